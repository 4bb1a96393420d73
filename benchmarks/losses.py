"""What each loss costs over PPO-clip: learner ranks in one process that differ only in the loss.

    python -m benchmarks.losses RUN OUT.json [--rounds 15]

Every arm has a real learner rank (DeepSpeed, the run's model) that makes two updates a step, so that ratios
are not 1, on the rows of the run's first step. A round measures a step's scoring and updates of every arm, in
CPU seconds of one thread (other processes disturb them less than the clock's), in an order that turns; ratios
are within a round. What takes another forward (a loss with a `prepare`, before its second update) is
listed apart. Exits with 1 if another loss costs more than the goal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.learner import LearnerRank
from actors.requests import RankPlace, RankUpdate
from benchmarks.faults.common import markdown
from cluster.role_proxies import local_microbatches
from configs.bound import bind
from configs.load import load_config
from configs.schema import RunConfig
from rollouts.files import write_json_atomic
from rollouts.schema import as_group
from rollouts.store import read_step
from trainer.losses.normalize import row_weights
from trainer.model.batch_plan import plan_batch

GOAL: Final = 1.10
BASELINE: Final = "ppo_clip"
ARMS: Final[dict[str, tuple[str, ...]]] = {
    BASELINE: (),
    "ppo_clip, dual clip": ("loss.policy.dual_clip=3",),
    "gspo": ("loss.policy={kind: gspo, aggregate: sequence_mean}",),
    "cispo": ("loss.policy.kind=cispo",),
    "gppo": ("loss.policy.kind=gppo",),
    "ce_gppo": ("loss.policy.kind=ce_gppo",),
    "nll": ("loss.policy.kind=nll",),
    "KL anchors in the loss": ("kl.coef=0.1", "kl_base.coef=0.1"),
    "entropy bonus": ("entropy.coef=0.001",),
    "positive_reweight": ("token_advantage.a={kind: positive_reweight}",),
    "entropy_quadrants": ("token_advantage.a={kind: entropy_quadrants}",),
    "stare": ("token_advantage.a={kind: stare}",),
    "clamped bonus": ("entropy.coef=0.001", "entropy.clamp=0.3"),
    "repo_r": ("token_advantage.a={kind: repo_r}",),
    "clip_cov": ("loss.policy.kind=clip_cov",),
    "kl_cov": ("loss.policy.kind=kl_cov",),
}
_UPDATES: Final = 2
_WARM_ROUNDS: Final = 3


class Arm:
    """One learner, and the step it repeats."""

    def __init__(self, config: RunConfig, table: pa.Table, rank: LearnerRank) -> None:
        self._rank, self._rows = rank, as_group(table)
        lengths, counted = (
            _lengths(self._rows, names) for names in (("prompt_ids", "token_ids"), ("token_ids",))
        )
        groups = np.unique(self._rows.column("submission_index").to_numpy(), return_inverse=True)[1]
        update_N = groups * _UPDATES // (groups.max() + 1)
        plan = plan_batch(lengths, update_N, _UPDATES, 1, config.learner.microbatch_tokens)
        order = list(plan.rows_of(0))
        run = bind(config)
        origins = np.full(len(lengths), "policy", dtype=object)
        commons = {origin: loss.common for origin, loss in run.losses.items()}
        weights = row_weights(counted, origins, update_N, commons, config.rollout.max_tokens)
        advantages = table.column("advantage").to_numpy().astype(np.float64)
        asked = [*run.losses.values(), *run.token_advantages.values()]
        self.has_forward = any(each.kind.prepare for each in asked)
        self._shard = self._rows.take(pa.array(order))
        self._update = RankUpdate(
            microbatches=local_microbatches(plan, 0),
            # A row without a reward has no advantage; its weight counts all the same.
            advantages_N=np.nan_to_num(advantages)[order],
            bonuses_N=np.zeros(len(order)),
            row_weights_N=weights[order],
            learning_rates=(1e-5,) * _UPDATES,
        )

    def step(self) -> dict[str, float]:
        """Score and update once; CPU seconds of each."""
        began = time.process_time()
        self._rank.compute_logprobs(self._shard, self._update.microbatches)
        scored = time.process_time()
        self._rank.update(self._update)
        ended = time.process_time()
        return {"score": scored - began, "update": ended - scored}


def _lengths(rows: pa.RecordBatch, names: Sequence[str]) -> np.ndarray:
    """Tokens of each row in these columns together."""
    return np.sum([pc.list_value_length(rows.column(name)).to_numpy() for name in names], axis=0)


def measure(run: Path, rounds: int) -> dict[str, dict[str, object]]:
    """Arm -> seconds of its rounds, and whether it takes another forward."""
    table = read_step(run, 1)
    with tempfile.TemporaryDirectory() as folder:
        arms = {name: make_arm(table, overrides, Path(folder)) for name, overrides in ARMS.items()}
        seconds: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
        for number in range(_WARM_ROUNDS + rounds):
            names = list(arms)[number % len(arms) :] + list(arms)[: number % len(arms)]
            for name in names:
                took = arms[name].step()
                if number >= _WARM_ROUNDS:
                    seconds[name].append(took)
            print(f"round {number + 1} of {_WARM_ROUNDS + rounds}", flush=True)
        return {name: {"seconds": seconds[name], "forward": arms[name].has_forward} for name in arms}


def make_arm(table: pa.Table, overrides: Sequence[str], folder: Path) -> Arm:
    """A learner rank under the debug preset with `overrides`."""
    config = load_config("debug", [f"learner.updates_per_step={_UPDATES}", *overrides])
    place = RankPlace(rank=0, world_size=1, rendezvous=f"file://{folder}/meet", device="cpu", num_threads=1)
    return Arm(config, table, LearnerRank(bind(config), place))


def ratios(found: Mapping[str, Mapping[str, object]], name: str, part: Sequence[str]) -> list[float]:
    """The arm's seconds of these parts over the baseline's, round by round."""

    def total(arm: str) -> list[float]:
        return [sum(each[key] for key in part) for each in found[arm]["seconds"]]  # type: ignore[attr-defined]

    return [mine / base for mine, base in zip(total(name), total(BASELINE), strict=True)]


def table_of(found: Mapping[str, Mapping[str, object]]) -> str:
    """Arms with update and whole step over the baseline's: median, and the middle half of the rounds."""
    rows = []
    for name in sorted(found, key=lambda name: bool(found[name]["forward"])):
        update, step = (ratios(found, name, part) for part in (("update",), ("score", "update")))
        extra = "another forward pass" if found[name]["forward"] else ""
        rows.append([name, _shown(update), _shown(step), extra])
    return markdown(["arm", "update over ppo_clip", "scoring and update over ppo_clip", ""], rows)


def _shown(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, keep the seconds; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__)
    parser.add_argument("run", type=Path, help="a run of the lab whose first step's rows are learned")
    parser.add_argument("out", type=Path, help="JSON to write")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args(argv)
    found = measure(arguments.run, arguments.rounds)
    write_json_atomic(arguments.out, found)  # type: ignore[arg-type]
    print(table_of(found))
    plain = {name: statistics.median(ratios(found, name, ("score", "update"))) for name in found}
    missed = [name for name, ratio in plain.items() if ratio > GOAL and not found[name]["forward"]]
    print(f"goal {GOAL:g} without another forward: {'missed by ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
