"""Ending this process inside a sequence of writes: at its n-th call that changes the run directory.

Installed by `benchmarks.faults.warm` in the process of a driver whose actors all live in it
(cluster.spawn=local), before the command begins. A sequence is the execution of a method of the production
code, named with its step or group (`commit@6`, `checkpoint@8`, `journal@21`); a call is one of the os
functions below, or a write of the learner's file, on a path within the run directory.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import pathlib
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_BY_PATH: Final = ("mkdir", "replace", "rename", "unlink", "remove", "rmdir")
_BY_NUMBER: Final = ("write", "pwrite", "fsync", "ftruncate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Where to end: before, after or in the middle ("torn") of call `number` (from 0) of `sequence`."""

    sequence: str
    number: int
    when: str


@dataclass(slots=True)
class _Watch:
    """The current sequence, and the calls seen in each."""

    root: str
    stop: Stop | None
    log: str
    under_way: str = ""
    calls: dict[str, list[str]] = field(default_factory=dict)

    def enter(self, sequence: str) -> bool:
        """Begin a sequence; False inside another one, to which its calls then belong."""
        if self.under_way:
            return False
        self.under_way = sequence
        self.calls[sequence] = []
        return True

    def leave(self) -> None:
        self.under_way = ""
        if self.log:
            Path(self.log).write_text(json.dumps(self.calls))

    def seen(self, name: str, path: str, do: Callable[[], Any], tear: Callable[[], Any] | None = None) -> Any:
        """Do a call, or end the process at it."""
        # Logs are left out: their lines depend on timing, so the number of a call would differ from run to
        # run.
        inside = self.under_way and path.startswith(self.root) and f"{self.root}logs" not in path
        if not inside:
            return do()
        number = len(self.calls[self.under_way])
        self.calls[self.under_way].append(f"{name} {path.removeprefix(self.root)}")
        stop = self.stop
        if stop is None or (stop.sequence, stop.number) != (self.under_way, number):
            return do()
        if stop.when == "before":
            _end()
        # A call that cannot be torn ends the process after it.
        if stop.when == "torn" and tear is not None:
            tear()
            _end()
        do()
        return _end()


def _end() -> None:
    # SIGKILL and not an exception: no handler may tidy up, as none does when the power fails.
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def install(run_dir: Path, stop: Stop | None, log: str = "") -> None:
    """Watch every sequence; end at `stop`, and keep the calls of each sequence in the file `log`."""
    watch = _Watch(root=f"{run_dir.resolve()}/", stop=stop, log=log)
    _watch_calls(watch)
    _watch_sequences(watch)


def _watch_calls(watch: _Watch) -> None:
    for name in _BY_PATH:
        setattr(os, name, _by_path(watch, name, getattr(os, name)))
    for name in _BY_NUMBER:
        setattr(os, name, _by_number(watch, name, getattr(os, name)))
    really_open = os.open

    @functools.wraps(really_open)
    def open_(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        def do() -> int:
            return really_open(path, flags, *rest, **named)

        # Only what changes the folder counts: a process may end at any read without harm.
        if not flags & os.O_CREAT:
            return do()
        return watch.seen("create", _whole(path, named.get("dir_fd")), do)  # type: ignore[no-any-return]

    os.open = open_
    really_open_path = pathlib.Path.open

    @functools.wraps(really_open_path)
    def open_path(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        # io.open makes its file itself, and a FileIO writes without os.write
        if mode == "wb" and named.get("buffering") == 0:
            file = watch.seen("create", str(path), lambda: really_open_path(path, mode, *rest, **named))
            return _WatchedFile(watch, str(path), file)
        return really_open_path(path, mode, *rest, **named)

    pathlib.Path.open = open_path  # type: ignore[method-assign, assignment]


def _by_path(watch: _Watch, name: str, really: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(really)
    def call(path: Any, *rest: Any, **named: Any) -> Any:
        whole = _whole(path, named.get("dir_fd"))
        return watch.seen(name, whole, lambda: really(path, *rest, **named))

    return call


def _by_number(watch: _Watch, name: str, really: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(really)
    def call(descriptor: int, *rest: Any) -> Any:
        def tear() -> None:
            if name in ("write", "pwrite"):
                really(descriptor, memoryview(rest[0]).cast("B")[: len(rest[0]) // 2], *rest[1:])

        return watch.seen(name, _path_of(descriptor), lambda: really(descriptor, *rest), tear)

    return call


class _WatchedFile:
    """A file opened for unbuffered writing."""

    def __init__(self, watch: _Watch, path: str, file: Any) -> None:
        self._watch, self._path, self._file = watch, path, file

    def write(self, content: bytes | memoryview) -> int:
        half = memoryview(content).cast("B")[: len(content) // 2]
        do, tear = (lambda: self._file.write(content)), (lambda: self._file.write(half))
        return self._watch.seen("write", self._path, do, tear)  # type: ignore[no-any-return]

    def fileno(self) -> int:
        return int(self._file.fileno())

    def __enter__(self) -> _WatchedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _whole(path: Any, folder: int | None) -> str:
    text = os.fsdecode(path) if not isinstance(path, int) else _path_of(path)
    if os.path.isabs(text):
        return text
    return os.path.join(_path_of(folder) if folder is not None else os.getcwd(), text)


def _path_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def _watch_sequences(watch: _Watch) -> None:
    """Wrap the method of each sequence. Imported here, because importing a driver takes seconds."""
    import cluster.attempt
    from actors.buffer import BufferActor
    from actors.learner import LearnerRank
    from trainer.checkpoint import Checkpoints
    from trainer.evaluate import Evaluator
    from trainer.loop import Run

    inside = functools.partial(_watch_method, watch)
    inside(cluster.attempt, "claim_run", lambda given: "claim")
    inside(cluster.attempt, "write_config", lambda given: "config")
    inside(BufferActor, "add", lambda given: f"journal@{given['batch'].column('submission_index')[0]}")
    inside(BufferActor, "commit", lambda given: f"commit@{given['step']}")
    inside(BufferActor, "rewind", lambda given: f"rewind@{given['step']}")
    inside(Checkpoints, "rewound", lambda given: f"rebuild@{given['step']}")
    inside(Checkpoints, "log", lambda given: f"log@{given['step']}")
    inside(Run, "_checkpoint", lambda given: f"checkpoint@{given['step']}")
    inside(Evaluator, "evaluate", lambda given: f"eval@{given['step']}")
    inside(LearnerRank, "export", lambda given: "export")


def _watch_method(watch: _Watch, owner: Any, method: str, name: Callable[[Mapping[str, Any]], str]) -> None:
    """Wrap a method so that each call of it is a sequence, named by `name` from its arguments."""
    really = getattr(owner, method)
    signature = inspect.signature(really)

    def begin(*given: Any, **named: Any) -> bool:
        return watch.enter(name(signature.bind(*given, **named).arguments))

    @functools.wraps(really)
    async def call_async(*given: Any, **named: Any) -> Any:
        mine = begin(*given, **named)
        try:
            return await really(*given, **named)
        finally:
            if mine:
                watch.leave()

    @functools.wraps(really)
    def call(*given: Any, **named: Any) -> Any:
        mine = begin(*given, **named)
        try:
            return really(*given, **named)
        finally:
            if mine:
                watch.leave()

    setattr(owner, method, call_async if inspect.iscoroutinefunction(really) else call)
