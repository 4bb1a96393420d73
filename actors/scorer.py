"""One scorer, ready to judge. In: a kind and its options, then groups. Out: one Judgement per completion.

A plain class, spawned by `cluster` (one per scorer and replica) or used directly; the rollout producer calls
`score`. A bad sample never raises: it gets a null score and a status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from actors.sandbox import KillablePool
from actors.sandbox_protocol import check_judgements
from actors.scorer_log import ScorerLog
from configs.entries import OwnOptions
from configs.errors import raised_at
from configs.kinds.base import load_target
from configs.kinds.scorers import ISOLATED, SCORERS, CustomOptions, MathOptions
from rollouts.records import Completion, Judgement, Prompt

WARM_UPS: dict[str, str] = {"math": "rewards.math:warm_up", "custom": "rewards.custom:warm_up"}
"""Isolated kind -> what its processes run once before the first sample, as ``fn(options)``."""


class ScorerActor:
    """Scores with the kind called `kind`: in process, or in killable ones for code we cannot trust to end.

    `options` is the kind's options dataclass, or a mapping of its fields. A user's own kind ("module:attr")
    gets its options as they are, and sees its whole group in one call; it may hold ``limit_s`` (per
    completion) and ``num_processes``.

    Raises:
        ValueError: an unknown kind or option, or code that cannot be imported.
    """

    def __init__(self, kind: str, options: object) -> None:
        if ":" not in kind and kind not in SCORERS:
            raise ValueError(f'scorer kind must be one of {sorted(SCORERS)} or "module:attr", got {kind!r}')
        self._kind = kind
        self._options = _make_options(kind, options)
        self._pool: KillablePool | None = None
        self._function: Callable[..., object] | None = None
        self._log = ScorerLog(kind)
        if kind not in SCORERS:
            limit_s, num_processes = _limits(self._options)
            self._pool = KillablePool(kind, self._options, num_processes, limit_s)
        elif kind in ISOLATED:
            limit_s, num_processes = _limits(self._options)
            self._pool = KillablePool(
                SCORERS[kind].target, self._options, num_processes, limit_s, WARM_UPS[kind]
            )
        else:
            self._function = load_target(SCORERS[kind].target)

    def ready(self) -> bool:
        """True; returning means that the scorer's code was found and its processes are warm."""
        return True

    def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        """One judgement per completion, in order; exceptions and wrong results become statuses."""
        if self._pool is not None:
            if self._kind in ISOLATED:
                return self._pool.score(prompt, completions)
            return self._pool.score_group(prompt, completions)
        assert self._function is not None
        try:
            results = self._function(prompt, completions, self._options)
        except Exception as error:  # data may be anything; the group is recorded as failed and counted
            detail = f"{raised_at(error, (__file__,))}: {type(error).__name__}: {error}"
            results = [Judgement(score=None, status="error", detail=detail) for _ in completions]
        judgements = check_judgements(results, len(completions))
        for judgement, completion in zip(judgements, completions, strict=True):
            self._log.judgement(judgement, completion.sample_id)
        return judgements

    def close(self) -> None:
        """End the processes, if there are any. Idempotent."""
        if self._pool is not None:
            self._pool.close()


def _make_options(kind: str, options: object) -> object:
    """A mapping for a known kind becomes its dataclass; anything else stays."""
    if kind not in SCORERS or not isinstance(options, Mapping):
        return options
    try:
        return SCORERS[kind].options(**options)
    except TypeError as error:
        raise ValueError(
            f"scorer {kind}: options must be those of the kind, got {dict(options)}: {error}"
        ) from error


def _limits(options: object) -> tuple[float, int]:
    """(limit_s, num_processes) of an isolated kind; a user's own without them has those of ``custom``."""
    if isinstance(options, (MathOptions, CustomOptions)):
        return options.limit_s, options.num_processes
    own = options.options if isinstance(options, OwnOptions) else options
    default = CustomOptions()
    given = own if isinstance(own, Mapping) else {}
    return (
        float(given.get("limit_s", default.limit_s)),
        int(given.get("num_processes", default.num_processes)),
    )
