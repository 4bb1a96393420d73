"""Typed calls to actors: the method is given as a method, so the type checker knows arguments and result.

    completions = await call(engine, GeneratorActor.generate, submission)

Between processes only the method's name and the arguments travel, by position (`cluster.spawn.Handle`). The
modules of engines and learner ranks import vLLM and DeepSpeed, which a driver must not: at run time their
classes are `RemoteClass`, and only the type checker sees the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple, overload

from cluster.actor_process import Blueprint

if TYPE_CHECKING:
    from actors.buffer import BufferActor
    from actors.generator import GeneratorActor
    from actors.learner import LearnerRank
    from actors.scorer import ScorerActor

__all__ = [
    *("BufferActor", "GeneratorActor", "LearnerRank", "ScorerActor"),
    *("blueprint", "call", "call_once", "call_ref"),
]

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


class RemoteMethod:
    """A method of a `RemoteClass`: its name."""

    def __init__(self, name: str) -> None:
        self.__name__ = name


class RemoteClass:
    """An actor's class by name, not imported. Its attributes stand for its methods."""

    def __init__(self, module: str, name: str) -> None:
        self.__module__, self.__qualname__ = module, name

    def __getattr__(self, method: str) -> RemoteMethod:
        return RemoteMethod(method)


if not TYPE_CHECKING:
    BufferActor = RemoteClass("actors.buffer", "BufferActor")
    GeneratorActor = RemoteClass("actors.generator", "GeneratorActor")
    LearnerRank = RemoteClass("actors.learner", "LearnerRank")
    ScorerActor = RemoteClass("actors.scorer", "ScorerActor")


class Callee(Protocol):
    """Whom `call` and `call_ref` reach: a `cluster.spawn.Handle` or a `cluster.supervise.Supervised`."""

    async def call(self, method: str, *arguments: object) -> Any: ...

    async def call_ref(self, method: str, *arguments: object) -> Any: ...


class OnceCallee(Protocol):
    """Whom `call_once` reaches: a `cluster.supervise.Supervised`."""

    async def once(self, method: str, *arguments: object) -> Any: ...


def blueprint(actor: Callable[[*_Arguments], object], *arguments: *_Arguments) -> Blueprint:
    """How a process is to build `actor`, a class, with arguments that its constructor takes."""
    return Blueprint(target=f"{actor.__module__}:{actor.__qualname__}", arguments=arguments)


@overload
async def call(
    actor: Callee,
    method: Callable[[Any, *_Arguments], Coroutine[Any, Any, _Result]],
    *arguments: *_Arguments,
) -> _Result: ...


@overload
async def call(
    actor: Callee, method: Callable[[Any, *_Arguments], _Result], *arguments: *_Arguments
) -> _Result: ...


async def call(actor: Callee, method: Callable[..., Any], *arguments: object) -> Any:
    """The result of `method`; errors as the actor's own `call`."""
    return await actor.call(method.__name__, *arguments)


async def call_ref(
    actor: Callee, method: Callable[[Any, *_Arguments], _Result], *arguments: *_Arguments
) -> _Result:
    """A reference to the result, which stays where it was made; errors as `call`.

    Typed as the result, whose place it takes as an argument of another call. Do not look inside.
    """
    return await actor.call_ref(method.__name__, *arguments)  # type: ignore[no-any-return]


@overload
async def call_once(
    actor: OnceCallee,
    method: Callable[[Any, *_Arguments], Coroutine[Any, Any, _Result]],
    *arguments: *_Arguments,
) -> _Result: ...


@overload
async def call_once(
    actor: OnceCallee, method: Callable[[Any, *_Arguments], _Result], *arguments: *_Arguments
) -> _Result: ...


async def call_once(actor: OnceCallee, method: Callable[..., Any], *arguments: object) -> Any:
    """As `call`, but not repeated on a replacement: ActorLostError is the caller's to handle."""
    return await actor.once(method.__name__, *arguments)
