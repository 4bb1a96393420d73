"""Typed calls to actors: the caller passes the method itself, so mypy checks the arguments and the result.

    completions = await call(engine, GeneratorActor.generate, submission)

Only the method's name and its positional arguments are sent to the other process (`cluster.spawn.Handle`).
The driver must not import vLLM and DeepSpeed, which the modules of engines and learner ranks do: at run time
their classes are `RemoteClass`, and only the type checker sees the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple, overload

from cluster.actor_process import Blueprint

if TYPE_CHECKING:
    from actors.buffer import BufferActor
    from actors.classifier_server import ClassifierServer
    from actors.generator import GeneratorActor
    from actors.learner import LearnerRank
    from actors.model_server import ModelServer
    from actors.scorer import ScorerActor

__all__ = [
    *("BufferActor", "ClassifierServer", "GeneratorActor", "LearnerRank", "ModelServer", "ScorerActor"),
    *("blueprint", "call", "call_once", "call_ref"),
]

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


class RemoteMethod:
    """A method of a `RemoteClass`: its name."""

    def __init__(self, name: str) -> None:
        self.__name__ = name


class RemoteClass:
    """An actor's class by name, without importing it. Each attribute is a `RemoteMethod` of that name."""

    def __init__(self, module: str, name: str) -> None:
        # The names that a class has, so that `blueprint` reads both alike.
        self.__module__, self.__qualname__ = module, name

    def __getattr__(self, method: str) -> RemoteMethod:
        return RemoteMethod(method)


if not TYPE_CHECKING:
    BufferActor = RemoteClass("actors.buffer", "BufferActor")
    ClassifierServer = RemoteClass("actors.classifier_server", "ClassifierServer")
    GeneratorActor = RemoteClass("actors.generator", "GeneratorActor")
    LearnerRank = RemoteClass("actors.learner", "LearnerRank")
    ModelServer = RemoteClass("actors.model_server", "ModelServer")
    ScorerActor = RemoteClass("actors.scorer", "ScorerActor")


class Callee(Protocol):
    """The target of `call` and `call_ref`: a `cluster.spawn.Handle` or a `cluster.supervise.Supervised`."""

    async def call(self, method: str, *arguments: object) -> Any: ...

    async def call_ref(self, method: str, *arguments: object) -> Any: ...


class OnceCallee(Protocol):
    """The target of `call_once`: a `cluster.supervise.Supervised`."""

    async def once(self, method: str, *arguments: object) -> Any: ...


def blueprint(actor: Callable[[*_Arguments], object], *arguments: *_Arguments) -> Blueprint:
    """Instructions for a process to build an actor: its class, and the arguments of its constructor."""
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
    """Call `method` and return its result; raises what the actor's own `call` raises."""
    return await actor.call(method.__name__, *arguments)


async def call_ref(
    actor: Callee, method: Callable[[Any, *_Arguments], _Result], *arguments: *_Arguments
) -> _Result:
    """Call `method` and return a reference to its result, which stays on the actor's node; raises as `call`.

    The reference can be passed to another call in place of the result, and has its type for that reason. It
    has none of the result's attributes.
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
    """As `call`, but not repeated on a replacement: the caller handles ActorLostError."""
    return await actor.once(method.__name__, *arguments)
