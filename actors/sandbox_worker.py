"""The process in which untrusted scoring code runs: ``python -m actors.sandbox_worker REQUEST_FD REPLY_FD``.

In: one opening message (the function and its options), then groups, as length-prefixed JSON on REQUEST_FD.
Out: one reply for each on REPLY_FD. Ends when REQUEST_FD closes. Started and killed by `actors.sandbox`
alone. It imports no torch, ray or vllm, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO

import rewards.custom
from actors.sandbox_protocol import (
    HEADER,
    MAX_DETAIL_CHARS,
    MAX_TRACEBACK_CHARS,
    JsonObject,
    check_judgements,
    decode_completion,
    decode_options,
    decode_prompt,
    encode_judgement,
    pack,
)
from actors.user_calls import call_problem, decode_call
from configs.errors import raised_at, traceback_of
from configs.kinds.base import TargetError, load_target
from rewards.target_forms import runs_in_actor

MEMORY_LIMIT_BYTES = 8 << 30
"""Limit of the address space: a runaway allocation raises MemoryError here and does not fill the machine."""
ORPHAN_GRACE_S = 5.0
"""The parent kills this process at the limit. If the parent has died, the kernel does it so much later."""
_CALLERS = frozenset({__file__, rewards.custom.__file__})
"""Our own files, whose frames are left out of a function's traceback."""
_OUR_PACKAGES = frozenset(
    {"configs", "rollouts", "rewards", "trainer", "actors", "cluster", "lab", "viewer", "polyphony"}
)

Scorer = Callable[..., object]


def main() -> None:
    """Serve until the parent closes the request pipe."""
    request_fd, reply_fd = int(sys.argv[1]), int(sys.argv[2])
    # Processes that the function starts must not keep the pipes open after this one has ended.
    for descriptor in (request_fd, reply_fd):
        os.set_inheritable(descriptor, False)
    # Blocked in the processes of a private cluster (`cluster.connect`), and inherited from them. Children of
    # the function must be able to receive it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.dup2(2, 1)  # standard output goes to the log too
    with contextlib.suppress(ValueError, OSError):  # a lower limit was set from outside, and stays
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    # Children are killed and crash by design: core files would fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(request_fd, "rb") as requests, open(reply_fd, "wb") as replies:
        opening = _receive(requests)
        if opening is None:
            return
        try:
            function, options = _open(opening)
        except Exception as error:
            # The message of a built-in scorer is for its reader, who gains nothing from a place in our code.
            plain = isinstance(error, TargetError) or (isinstance(error, ValueError) and _is_ours(opening))
            _send(replies, {"refused": str(error) if plain else _describe(error)})
            return
        modules = _own_modules(opening["allow"])
        _send(replies, {"ready": True, "modules": modules, "wants_actor": runs_in_actor(function)})
        while (request := _receive(requests)) is not None:
            _send(replies, _serve(function, options, request))


def _is_ours(opening: JsonObject) -> bool:
    """Whether all code that runs is ours; the scorer `custom` calls its user's."""
    target = str(opening["target"])
    return target.partition(".")[0] in _OUR_PACKAGES and not target.startswith(f"{rewards.custom.__name__}:")


def _open(opening: JsonObject) -> tuple[Scorer, object]:
    """Import the function and warm it up; any exception means that the function cannot be used."""
    described, variables = opening["options"], opening["secrets"]
    assert isinstance(described, dict) and isinstance(variables, dict)
    os.environ.update(variables)
    function = load_target(str(opening["target"]))
    if not callable(function):
        raise TargetError(f"target {opening['target']!r} must name a callable, got {type(function).__name__}")
    call = opening["call"]
    assert isinstance(call, dict)
    if problem := call_problem(function, decode_call(call), str(opening["target"])):
        raise TargetError(problem)
    options = decode_options(described["type"], described["fields"])
    if opening["warm_target"]:
        load_target(str(opening["warm_target"]))(options)
    return function, options


def _own_modules(allow: object) -> JsonObject:
    """Name -> [file, its sha256] of the loaded modules under the prefixes in `allow`, except polyphony's."""
    assert isinstance(allow, list)
    modules: JsonObject = {}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        is_own = any(name == prefix or name.startswith(f"{prefix}.") for prefix in allow)
        if is_own and name.partition(".")[0] not in _OUR_PACKAGES and path and os.path.isfile(path):
            with open(path, "rb") as file:
                modules[name] = [path, hashlib.sha256(file.read()).hexdigest()]
    return modules


def _serve(function: Scorer, options: object, request: JsonObject) -> JsonObject:
    """Score one request. An exception becomes a reply."""
    fields, completions, limit_s = request["prompt"], request["completions"], request["limit_s"]
    assert isinstance(fields, dict) and isinstance(completions, list) and isinstance(limit_s, float)
    group = [decode_completion(completion) for completion in completions]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the function may have set its own handler
    signal.setitimer(signal.ITIMER_REAL, limit_s + ORPHAN_GRACE_S)
    try:
        judgements = check_judgements(function(decode_prompt(fields), group, options), len(group))
    except Exception as error:
        return {"id": request["id"], "error": _describe(error), "full": _traceback(error)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    return {"id": request["id"], "judgements": [encode_judgement(judgement) for judgement in judgements]}


def _describe(error: Exception) -> str:
    """ "my_rewards.py:12 in compute_score: KeyError: 'answer'"."""
    place = raised_at(error, _CALLERS)
    return f"{place}{': ' if place else ''}{type(error).__name__}: {error}"[:MAX_DETAIL_CHARS]


def _traceback(error: Exception) -> str:
    """The traceback from the function's own frame on; only its end if it is long."""
    return traceback_of(error, _CALLERS)[-MAX_TRACEBACK_CHARS:]


def _receive(requests: BinaryIO) -> JsonObject | None:
    """The next message, or None at the end."""
    header = requests.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    message = json.loads(requests.read(size))
    assert isinstance(message, dict)
    return message


def _send(replies: BinaryIO, message: JsonObject) -> None:
    replies.write(pack(message))
    replies.flush()


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)  # threads that the function has started must not keep the process alive
