"""How long a scorer may take for a group. Used by `cluster.actors` and by `polyphony rewards`."""

from __future__ import annotations

from typing import Final

from configs.bound import BoundEntry
from configs.kinds.scorers import CustomOptions, ScorerCommon
from configs.schema import RunConfig

_RESTART_S: Final = 5.0
"""Time that an isolated scorer may need to replace a killed process, for each sample."""


def score_limit_s(
    config: RunConfig,
    entry: BoundEntry[ScorerCommon],
    in_actor: frozenset[str] = frozenset(),
    group_size: int = 0,
) -> float:
    """Seconds that a scorer may take for a group: `rollout.score_timeout_s`, more only in a sandbox.

    There each sample has a limit of its own, `limit_s`, and a killed process takes up to 5 s to replace, so a
    group has at least group_size x (limit_s + 5) x concurrency: concurrent groups may wait for the same child
    process. An own kind in `in_actor` (async, a class or batched) runs in no sandbox. A `group_size` of 0 is
    that of the rollouts.
    """
    least, options = config.rollout.score_timeout_s, entry.options
    if entry.is_own and entry.kind_name not in in_actor:
        per_sample = float(options.options.get("limit_s", CustomOptions().limit_s))
    elif entry.kind.isolated:
        per_sample = options.limit_s
    else:
        return least
    size = group_size or config.rollout.group_size
    return max(least, size * (per_sample + _RESTART_S) * entry.common.concurrency)
