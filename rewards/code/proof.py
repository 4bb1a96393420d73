"""Choose a method of isolation, and prove that it holds on this machine before any program runs in it.

In: a name from a config. Out: the name of a method, or one ValueError with what each method lacks. The proof
is a program that tries to get out (`rewards.code.inside.probe`) while this process watches for it.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from rewards.code.box import Box, Clock, Job, Limits, SandboxBrokenError, supervise
from rewards.code.isolation import METHODS, NONE, missing, sandbox

AUTO = "auto"
_WALL_S = 20.0
_MEMORY = 256 << 20


@cache
def choose(isolation: str, processes: int) -> str:
    """The first method that holds of all but ``none`` if `isolation` is ``auto``, else `isolation`.

    Raises:
        ValueError: it does not hold here; the message has the reasons and what can be done.
    """
    if isolation == NONE:
        return NONE
    tried = [name for name in METHODS if name != NONE] if isolation == AUTO else [isolation]
    reasons = {}
    for method in tried:
        reasons[method] = missing(method, processes) or escapes(method, processes)
        if not reasons[method]:
            return method
    listed = "; ".join(f"{method}: {reason}" for method, reason in reasons.items())
    raise ValueError(
        f"isolation {isolation!r} must hold on this machine, but {listed}. Install bubblewrap, allow user "
        "namespaces or Landlock, set `url` to a sandbox service, or, if you trust every program, set "
        "isolation: none"
    )


def escapes(method: str, processes: int) -> str:
    """How a hostile program got out of `method` or why it could not be started; "" if the method holds."""
    limits = Limits(
        cpu_s=10, memory_bytes=_MEMORY, processes=processes, file_bytes=1 << 20, output_bytes=1 << 16
    )
    with tempfile.TemporaryDirectory(prefix="polyphony-proof-") as folder, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        # The test below must not wait for a connection that, as hoped, never comes.
        listener.setblocking(False)
        secret = Path(folder, "secret")
        secret.write_text("secret", encoding="utf-8")
        for path in (secret, Path(folder)):
            path.chmod(0o777)  # so that it is the sandbox that keeps the program out
        targets = _targets(secret, listener.getsockname()[1], limits)
        job = Job("probe.py", {"targets": json.dumps(targets)}, limits)
        try:
            (ending,) = supervise([Box(job, sandbox(method))], Clock(time.monotonic() + _WALL_S))
        except (SandboxBrokenError, OSError) as error:
            return str(error)
        if ending.status != 0:
            return (
                f"it does not work ({ending.killed or ending.stderr.decode(errors='replace').strip()[-300:]})"
            )
        found = json.loads(ending.stdout)
        # Seen from outside too: a program that got out could say that it did not.
        found["reached"] = _was_reached(listener)
        found["left"] = sorted(each.name for each in Path(folder).iterdir() if each != secret)
        return _breach(found, limits)


def _targets(secret: Path, port: int, limits: Limits) -> dict[str, Any]:
    home = os.path.expanduser("~")
    return {
        "read": [str(secret), "/etc/passwd", __file__, f"/proc/{os.getpid()}/environ", f"{home}/.bashrc"],
        "write": [str(secret.parent / "written"), f"{home}/.polyphony-written", "/polyphony-written"],
        "port": port,
        "pids": [os.getpid(), os.getppid()],
        "variables": sorted(set(os.environ) - {"PWD"}),  # bubblewrap sets it, to the folder inside
        "forks": limits.processes + 16,
        "bytes": 2 * limits.memory_bytes,
    }


def _was_reached(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def _breach(found: dict[str, Any], limits: Limits) -> str:
    """What the program must not have been able to do, in words; "" if nothing."""
    most_forks = 0 if limits.processes == 1 else limits.processes + 2
    breaches = {
        "a file outside could be read": found["read_file"],
        "a file outside could be written": found["wrote_file"] or found["left"],
        "a connection could be made": found["connected"] or found["reached"],
        "a process outside could be signalled": found["signalled"],
        "the environment could be read": found["environment"],
        f"{found['forks']} processes could be started": found["forks"] > most_forks,
        "the memory limit does not hold": found["allocated"],
        f"descriptors {found['descriptors']} were left open": found["descriptors"],
    }
    return ", ".join(words for words, is_so in breaches.items() if is_so)
