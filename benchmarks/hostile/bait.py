"""What a hostile program would find if it got out: a secret file, a port, a folder that can be written.

In: a folder and the token. Out: an object that tells what was touched.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Final

VARIABLE: Final = f"HOSTILE_TOKEN_{os.getpid()}"
"""The environment variable with the token, another one in each run on a machine."""


class Bait:
    """A file with the token, a folder, and listeners that send the token on a port and an abstract socket."""

    def __init__(self, folder: Path, token: str) -> None:
        self.secret, self.out = folder / "secret", folder / "out"
        self.secret.write_text(token, encoding="utf-8")
        self.out.mkdir()
        self.secret.chmod(0o666)
        for each in (folder, self.out):
            each.chmod(0o777)  # so that it is the sandbox that keeps programs out
        self._token, self._num_reached = token, 0
        self._sockets: list[socket.socket] = []
        self._bearer: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Bait:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        named = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        named.bind(f"\0hostile-{self.port}")
        named.listen()
        datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        datagrams.bind(f"\0hostile-datagram-{self.port}")
        self._sockets = [listener, named, datagrams]
        # A process that has the token in its environment, as ours has secrets.
        self._bearer = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            env={VARIABLE: self._token},
            stdin=subprocess.PIPE,
        )
        for each in (listener, named):
            threading.Thread(target=self._accept, args=(each,), daemon=True).start()
        threading.Thread(target=self._receive, args=(datagrams,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._sockets:
            each.close()
        if self._bearer:
            self._bearer.communicate(timeout=10)

    def state(self) -> tuple[object, ...]:
        """What a program could change."""
        found = self.secret.stat()
        inside = sorted(os.listdir(self.out))
        outside = sorted(
            path for path in ("/written", "/usr/written", "/var/tmp/written") if os.path.exists(path)
        )
        home = os.path.exists(os.path.join(os.path.expanduser("~"), "written"))
        mode = self.out.stat().st_mode
        return self._num_reached, found.st_mode, found.st_mtime, found.st_size, mode, inside, outside, home

    def changes(self, before: tuple[object, ...]) -> list[str]:
        """What is different from `before`, in words."""
        words = (
            "connections",
            "mode of the secret",
            "time of the secret",
            "size of the secret",
            "mode of the folder",
            "files in the folder",
            "files elsewhere",
            "files at home",
        )
        pairs = zip(words, before, self.state(), strict=True)
        return [f"{word}: {old} became {new}" for word, old, new in pairs if old != new]

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self._num_reached += 1
                with contextlib.suppress(OSError), connection:
                    connection.sendall(f"{self._token}\n".encode())

    def _receive(self, datagrams: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while datagrams.recv(64):
                self._num_reached += 1
