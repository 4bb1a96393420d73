"""Whether a user's own code takes the arguments that it will be called with, told from its signature.

In: a function or class, and a `UserCall`. Out: what is wrong, in words. Run by `actors.sandbox_worker`; which
call belongs to which config key is said in `cluster.user_code`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rewards.target_forms import is_batched

_MAX_CHARS = 200
_VERL_ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")
_OWN_ARGUMENTS = ("prompt", "completions", "options")
_WITH_MODELS: Final = "scorer with models"


@dataclass(frozen=True, slots=True)
class UserCall:
    """A call: names of its arguments (none: nothing is known), and whether they are passed by name.

    `role` is "scorer" of a user's own kind, which may be a class or batched, "scorer with models" if its
    config names models, "custom" of the function of that kind, and "" of anything else.
    """

    arguments: tuple[str, ...] = ()
    by_name: bool = False
    role: str = ""

    def encoded(self) -> dict[str, object]:
        """As JSON; see `decode_call`."""
        return asdict(self)


ANY_CALL: Final = UserCall()


def custom_call(options: Sequence[str]) -> UserCall:
    """How `rewards.custom` calls a function; `options` are the further keywords."""
    return UserCall((*_VERL_ARGUMENTS, *options), by_name=True, role="custom")


def scorer_call(with_models: bool = False) -> UserCall:
    """How `actors.scorer` calls a user's own plain function; only a class can be given models."""
    return UserCall(_OWN_ARGUMENTS, role=_WITH_MODELS if with_models else "scorer")


def decode_call(fields: Mapping[str, Any]) -> UserCall:
    """A call as `UserCall.encoded` made it."""
    return UserCall(tuple(fields["arguments"]), bool(fields["by_name"]), str(fields["role"]))


def call_problem(target: Callable[..., Any], call: UserCall, name: str) -> str:
    """Why `target`, which the config calls `name`, cannot be called so; "" if it can or if nobody knows."""
    if not call.arguments:
        return ""
    if call.role == _WITH_MODELS and not (inspect.isclass(target) and _names(target, "models")):
        return "must be a class whose constructor takes (options, models), because the entry names models"
    if call.role in ("scorer", _WITH_MODELS):
        return _scorer_problem(target, name)
    if _takes(target, call.arguments, call.by_name):
        return ""
    problem = _must_accept(target, call.arguments, call.by_name)
    if call.role == "custom":
        hint = f'a scorer of a whole group, {_shown(_OWN_ARGUMENTS)}, is given as kind: "{name}"'
        problem = f"{problem}; {hint} (docs/scorers.md)"
    return problem


def _scorer_problem(target: Callable[..., Any], name: str) -> str:
    # A class gets its options in the constructor, and its method `score` only the rest.
    arguments = ("items",) if is_batched(target) else _OWN_ARGUMENTS[:-1]
    if inspect.isclass(target):
        given = ("options", "models") if _names(target, "models") else ("options",)
        if not _takes(target, given, False):
            return _must_accept(target, given, False)
        score = inspect.getattr_static(target, "score", None)
        # Without one it is refused when it starts; of what is no plain method the signature tells too little.
        if not inspect.isfunction(score) or _takes(score, ("self", *arguments), False):
            return ""
        return f"its method score {_must_accept(score, ('self', *arguments), False)}"
    arguments = (*arguments, "options")
    is_verl = _names(target, "solution_str")  # verl's last argument may have a default: three would do
    if not is_verl and _takes(target, arguments, False):
        return ""
    problem = _must_accept(target, arguments, False)
    if is_verl:
        problem = (
            f'{problem}; a function in verl\'s signature is given as {{kind: custom, function: "{name}"}}'
        )
    return f"{problem} (docs/scorers.md)"


def _takes(function: Callable[..., Any], arguments: Sequence[str], by_name: bool) -> bool:
    signature = _signature_of(function)
    if signature is None:
        return True
    try:
        if by_name:
            signature.bind(**dict.fromkeys(arguments))
        else:
            signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _names(function: Callable[..., Any], argument: str) -> bool:
    signature = _signature_of(function)
    return signature is not None and argument in signature.parameters


def _signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """None of what has none: some functions written in C."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _must_accept(function: Callable[..., Any], arguments: Sequence[str], by_name: bool) -> str:
    signature = _signature_of(function)
    assert signature is not None, "what has no signature is taken to accept everything"
    takes: list[str] = []
    marks: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    for parameter in signature.parameters.values():
        takes.append(marks.get(parameter.kind, "") + parameter.name)
    how = " by name" if by_name else ""
    return f"must accept {_shown(arguments)}{how}, it takes {_shown(takes)}"


def _shown(names: Sequence[str]) -> str:
    text = f"({', '.join(names)})"
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}..."
