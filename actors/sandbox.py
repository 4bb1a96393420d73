"""Run scoring code that may hang, crash or return wrong values, in processes that can be killed.

In: a scorer function's "module:attr", its options, a prompt with completions. Out: one Judgement per
completion, in order, whatever the code did. Used by `actors.scorer`. It protects against accidents and
hostile model output, not against an attacker: the code runs as the same user, with access to the same files,
though without the parent's environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from actors.sandbox_protocol import (
    HEADER,
    MAX_DETAIL_CHARS,
    MAX_REPLY_BYTES,
    MAX_TRACEBACK_CHARS,
    JsonObject,
    decode_judgement,
    encode_group,
    encode_options,
    pack,
)
from actors.scorer_log import ScorerLog
from actors.secrets import NO_SECRETS, Secrets
from actors.user_calls import ANY_CALL, UserCall
from rollouts.records import Completion, Judgement, Prompt, Status

START_LIMIT_S = 120.0
"""Limit for imports and warm-up, which do not count against a sample's limit."""
_POLL_S = 0.05
_KEPT_VARIABLES = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV",
    "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
_MARK = "POLYPHONY_SANDBOX"
_STARTING = "while starting: "
_LONG_S = 5.0
_LAST_WORDS_S = 1.0
"""Seconds to wait for the last output of a killed process."""


class SandboxError(Exception):
    """A child gave no judgement. `status` is the kind of failure, `full` the traceback if there is one."""

    def __init__(self, status: Status, detail: str, full: str = "") -> None:
        super().__init__(detail)
        self.status, self.full = status, full


class KillablePool:
    """`num_processes` children that run the function `fn_target`, killed after `limit_s` on a sample.

    The constructor returns when every child has imported the function and run `warm_target(options)`, if one
    is given. Their environment has the variables of `secrets` and few others. The log (`actors.scorer_log`)
    has their output, and the reason when a sample has no score. Safe to call from several threads.

    Raises:
        ValueError: a bad argument, or the function cannot be imported or warmed up.
    """

    def __init__(
        self,
        fn_target: str,
        options: object,
        num_processes: int,
        limit_s: float,
        warm_target: str = "",
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        if num_processes < 1:
            raise ValueError(f"num_processes must be at least 1, got {num_processes}")
        if not 0.0 < limit_s < float("inf"):
            raise ValueError(f"limit_s must be a positive number of seconds, got {limit_s}")
        self._limit_s = float(limit_s)
        described = encode_options(options)
        try:
            self._opening = pack(_opening(fn_target, described, warm_target, secrets=secrets))
        except TypeError as error:
            raise ValueError(f"options of {fn_target!r} must be plain values: {error}") from error
        self._lock = threading.Lock()
        self._closed = False
        self._log = ScorerLog(getattr(options, "function", "") or fn_target, secrets.mask)
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._children = {_Child(self._opening, self._log) for _ in range(num_processes)}
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="sandbox")
        for child in self._children:
            self._idle.put(child)
        try:
            for child in self._children:
                child.wait_ready()
        except SandboxError as failure:
            self.close()
            raise ValueError(f"scorer function {fn_target!r} must start, got {failure}") from failure
        self.wants_actor = all(child.wants_actor for child in self._children)
        """Whether the function has a form that only the actor can call (`rewards.target_forms`)."""

    def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        """Score each completion separately, `num_processes` at a time, with `limit_s` for each."""
        futures = [
            self._threads.submit(self._score_in_child, prompt, (completion,), self._limit_s)
            for completion in completions
        ]
        return [future.result()[0] for future in futures]

    def score_group(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        """Score the completions in one call, for functions that compare them.

        The limit is `limit_s` times their number. A failure gives all of them a null score.
        """
        if not completions:
            return []
        limit_s = self._limit_s * len(completions)
        return self._threads.submit(self._score_in_child, prompt, tuple(completions), limit_s).result()

    def close(self) -> None:
        """Kill every child and all its processes. Running calls fail, later ones raise RuntimeError."""
        with self._lock:
            self._closed = True
            children = list(self._children)
        for child in children:
            child.signal_group()
        # After the signals: a thread that waits for a reply ends only when its pipe is closed.
        self._threads.shutdown(wait=True, cancel_futures=True)
        for child in children:
            child.kill()

    def _score_in_child(
        self, prompt: Prompt, completions: tuple[Completion, ...], limit_s: float
    ) -> list[Judgement]:
        child = self._idle.get()
        try:
            if not child.is_alive:  # no other could be started in its place
                child = self._replace(child)
            child.wait_ready()
            # The limit begins here: a replacement may have been importing until now.
            judgements = child.score(prompt, completions, limit_s)
            for judgement, completion in zip(judgements, completions, strict=True):
                self._log.judgement(judgement, completion.sample_id)
            return judgements
        except SandboxError as failure:
            if not self._closed:
                self._log.failure(failure.status, str(failure), completions[0].sample_id, failure.full)
            if failure.status != "error":  # an exception leaves the child usable
                child = self._replace(child)
            return [Judgement(score=None, status=failure.status, detail=str(failure))] * len(completions)
        finally:
            self._idle.put(child)

    def _replace(self, child: _Child) -> _Child:
        """Kill a child and start another, which imports while the others work; after `close` only kill it."""
        child.kill()
        with self._lock:
            if self._closed:
                return child
            try:
                fresh = _Child(self._opening, self._log)
            except OSError as error:
                self._log.failure("crashed", f"no process could be started: {error}", "-")
                return child  # dead: its next sample tries again
            self._children.remove(child)
            self._children.add(fresh)
            return fresh


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of importing a target: `problem` is the reason why it cannot be used, or "".

    `modules` are the user's own modules that were loaded with it: name -> (file, its sha256).
    """

    problem: str
    modules: Mapping[str, tuple[str, str]]
    in_actor: bool = False
    """Whether it is of a form that runs in the scorer's own process (`rewards.target_forms`)."""


TargetUse = tuple[str, UserCall]
"""A "module:attr", and how it will be called."""


def import_targets(
    targets: Mapping[TargetUse, Secrets], allow: Sequence[str], note: Callable[[str], None]
) -> dict[TargetUse, Imported]:
    """Import each "module:attr" in its own process, which is killed after `START_LIMIT_S`.

    A target that cannot be called as its `UserCall` describes is a problem too. The process has the target's
    secrets, as in the run. `allow` are the prefixes of the user's own modules. `note` receives a line if it
    takes long. No code of the user runs in this process.
    """
    children: dict[TargetUse, _Child] = {}
    try:
        for (target, call), secrets in targets.items():
            opening = pack(_opening(target, encode_options({}), "", allow, secrets, call))
            children[target, call] = _Child(opening, ScorerLog(target, secrets.mask))
        names = ", ".join(dict.fromkeys(target for target, _ in children))
        timer = threading.Timer(_LONG_S, note, [f"importing {names} (at most {START_LIMIT_S:g} s)"])
        timer.start()
        try:
            return {use: _import_result(child, targets[use]) for use, child in children.items()}
        finally:
            timer.cancel()
    finally:
        for child in children.values():
            child.kill()


def _import_result(child: _Child, secrets: Secrets) -> Imported:
    try:
        child.wait_ready()
    except SandboxError as failure:
        return Imported(secrets.mask(str(failure)).removeprefix(_STARTING), {})
    return Imported("", child.modules, child.wants_actor)


def _opening(
    target: str,
    options: JsonObject,
    warm_target: str,
    allow: Sequence[str] = (),
    secrets: Secrets = NO_SECRETS,
    call: UserCall = ANY_CALL,
) -> JsonObject:
    """The first message to a child; see `actors.sandbox_worker`."""
    return {
        "target": target,
        "options": options,
        "warm_target": warm_target,
        "allow": list(allow),
        "secrets": dict(secrets.values),
        "call": call.encoded(),
    }


class _Child:
    """One child process, its pipes and its session. One thread at a time uses it; any may `signal_group`."""

    def __init__(self, opening: bytes, log: ScorerLog) -> None:
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        self._lock = threading.Lock()
        self._num_requests = 0
        self._ready = False
        self.modules: dict[str, tuple[str, str]] = {}
        self.wants_actor = False
        self.is_alive = True
        request_fd, self._request_fd = os.pipe()
        self._reply_fd, reply_fd = os.pipe()
        # A child that does not read must not block the parent past the limit: writes wait in `_wait`.
        os.set_blocking(self._request_fd, False)
        output_fd, printed_fd = os.pipe()
        # -u: no output is lost in a buffer when the child is killed. faulthandler: crashes print a traceback.
        # -P: modules come only from the parent's search path, given as PYTHONPATH.
        flags = ["-u", "-X", "faulthandler", "-P"]
        command = [sys.executable, *flags, "-m", "actors.sandbox_worker", str(request_fd), str(reply_fd)]
        self._process = subprocess.Popen(
            command,
            env=_environment(self._mark),
            stdin=subprocess.DEVNULL,
            stdout=printed_fd,
            stderr=printed_fd,
            pass_fds=(request_fd, reply_fd),
            start_new_session=True,
        )
        for descriptor in (request_fd, reply_fd, printed_fd):
            os.close(descriptor)
        self._output = log.follow(output_fd)
        self._start_deadline = time.monotonic() + START_LIMIT_S
        # Send what fits into the pipe now, so that all children import at the same time; `wait_ready` sends
        # the rest.
        self._unsent = opening[os.write(self._request_fd, opening) :]

    def wait_ready(self) -> None:
        """Return when the function is imported and warmed up.

        Raises:
            SandboxError: ``crashed``, with the child's reason if it gave one.
        """
        if not self.is_alive:
            raise SandboxError("crashed", "no process could be started")
        if self._ready:
            return
        try:
            self._send(self._unsent, self._start_deadline)
            reply = self._receive(self._start_deadline)
        except SandboxError as failure:
            is_late = failure.status == "timeout"
            reason = f"its import did not end within {START_LIMIT_S:g} s" if is_late else str(failure)
            raise SandboxError("crashed", _STARTING + reason) from failure
        if reply.get("ready") is not True:
            raise SandboxError("crashed", f"{_STARTING}{reply.get('refused')}")
        modules = reply.get("modules")
        if isinstance(modules, dict):
            self.modules = {name: (str(found[0]), str(found[1])) for name, found in modules.items()}
        self.wants_actor = reply.get("wants_actor") is True
        self._ready = True

    def score(self, prompt: Prompt, completions: Sequence[Completion], limit_s: float) -> list[Judgement]:
        """One request and its reply.

        Raises:
            SandboxError: ``timeout``, ``crashed`` or ``invalid``: the child must be killed. ``error``: it can
                be used again.
        """
        deadline = time.monotonic() + limit_s
        self._num_requests += 1
        request = {"id": self._num_requests, "limit_s": limit_s, **encode_group(prompt, completions)}
        self._send(pack(request), deadline)
        reply = self._receive(deadline)
        if reply.get("id") != self._num_requests:
            raise SandboxError("invalid", "the reply belongs to another request")
        if "error" in reply:
            detail, full = str(reply["error"]), str(reply.get("full", ""))
            raise SandboxError("error", detail[:MAX_DETAIL_CHARS], full[:MAX_TRACEBACK_CHARS])
        judgements = reply.get("judgements")
        if not isinstance(judgements, list) or len(judgements) != len(completions):
            raise SandboxError("invalid", f"the reply does not have {len(completions)} judgements")
        return [decode_judgement(judgement) for judgement in judgements]

    def signal_group(self) -> None:
        """Send SIGKILL to the child's process group. A thread that waits on its pipes sees them close."""
        with self._lock:
            if self.is_alive:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill the child and all its descendants, and close the pipes. Idempotent."""
        if not self.is_alive:
            return
        self.signal_group()
        with self._lock:
            # Under the lock: once the child is reaped, its pid, the group's number, may be used again.
            self.is_alive = False
            self._process.wait()
        _kill_marked(self._mark)
        self._output.join(_LAST_WORDS_S)
        os.close(self._request_fd)
        os.close(self._reply_fd)

    def _send(self, message: bytes, deadline: float) -> None:
        rest = memoryview(message)
        while rest:
            self._wait(self._request_fd, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._request_fd, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise self._ended() from error

    def _receive(self, deadline: float) -> JsonObject:
        (size,) = HEADER.unpack(self._read(HEADER.size, deadline))
        if size > MAX_REPLY_BYTES:
            raise SandboxError("invalid", f"a reply of {size} bytes")
        body = self._read(size, deadline)
        try:
            reply = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise SandboxError("invalid", "the reply is not JSON") from error
        if not isinstance(reply, dict):
            raise SandboxError("invalid", "the reply is not an object")
        return reply

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(self._reply_fd, select.POLLIN, deadline)
            piece = os.read(self._reply_fd, size - len(data))
            if not piece:
                raise self._ended()
            data += piece
        return bytes(data)

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        """Return when the pipe is ready.

        The process is polled too: if it has ended, a fork of it may still hold the pipe open.
        """
        poller = select.poll()
        poller.register(descriptor, event)
        while True:
            rest_s = deadline - time.monotonic()
            if rest_s <= 0.0:
                raise SandboxError("timeout", "the limit was exceeded")
            if poller.poll(1000.0 * min(rest_s, _POLL_S)):
                return
            # WNOWAIT does not reap it: its pid, the group's number, must not be reused before the kill.
            if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise self._ended()

    def _ended(self) -> SandboxError:
        """How a process ended whose pipe is closed."""
        deadline = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < deadline:
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None and ended.si_code == os.CLD_EXITED:
                return SandboxError("crashed", f"the process ended with exit code {ended.si_status}")
            if ended is not None:
                return SandboxError("crashed", f"the process was killed by {_name_of(ended.si_status)}")
            time.sleep(_POLL_S)
        return SandboxError("crashed", "the process closed its pipe")


def _name_of(number: int) -> str:
    """A signal's name. Most real-time signals, which a function may send to itself, have none in Python."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _environment(mark: str) -> dict[str, str]:
    """A child's environment: only what it needs, so no API keys. Hashing is fixed, so that scores repeat."""
    name, _, value = mark.partition("=")
    return {
        **{key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ},
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        name: value,
    }


def _kill_marked(mark: str) -> None:
    """Send SIGKILL to every process that inherited this environment variable (Linux only).

    Descendants that started their own session have left the process group.
    """
    variable = mark.encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # a process of another user, or one that has ended
            if variable in entry.read_bytes().split(b"\0"):
                os.kill(int(entry.parent.name), signal.SIGKILL)
