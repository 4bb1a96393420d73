"""Policy losses and transforms in real learners: no cut of the batch changes them, and they do act."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from learner_cases import Case, Learners, Outcome, distance, train

from configs.schema import RunConfig

pytestmark = pytest.mark.engine

TOKEN_ADVANTAGES = {
    "half": {"kind": "positive_reweight", "weight": 0.5},
    "push": {"kind": "repo_r", "zeta": 0.1},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCase(Case):
    """A case with transforms; two updates per step, so the second's ratios are not 1."""

    updates_per_step: int = 2
    transforms: dict[str, dict[str, object]] = field(default_factory=dict)

    def config(self, base: Path) -> RunConfig:
        return replace(Case.config(self, base), token_advantage=self.transforms)


def trained(learners: Learners, case: MethodCase) -> Outcome:
    return train(learners.ranks(case), case, learners.base)


@pytest.mark.parametrize(
    ("kind", "aggregate", "transforms"),
    [("gspo", "sequence_mean", {}), ("gspo", "token_mean", TOKEN_ADVANTAGES), ("ce_gppo", "token_mean", {})],
    ids=["gspo", "gspo-transformed", "ce_gppo"],
)
def test_cut_and_ranks_change_nothing(
    learners: Learners, kind: str, aggregate: str, transforms: dict[str, dict[str, object]]
) -> None:
    """One rank with 8 rows at a time and two ranks with one: a row's ratio never depends on its neighbours.

    Two float32 runs of the learner differ by rounding; the bounds are those of the tests against plain torch.
    """
    whole = MethodCase(
        stage=0, num_ranks=1, rows_per_microbatch=8, kind=kind, aggregate=aggregate, transforms=transforms
    )
    first, second = (
        trained(learners, whole),
        trained(learners, replace(whole, num_ranks=2, rows_per_microbatch=1)),
    )
    found = distance(first, second, learners.start)
    print(kind, aggregate, found)
    found.check()


def test_kinds_and_transforms_reach_the_learner(learners: Learners) -> None:
    """Against ppo_clip from the same start, each of them ends with other weights."""
    plain = MethodCase(stage=0, num_ranks=1)
    start = trained(learners, plain)
    for other in (replace(plain, kind="gspo"), replace(plain, transforms=TOKEN_ADVANTAGES)):
        found = distance(trained(learners, other), start, learners.start)
        print(other.kind, other.transforms, found)
        assert found.update_l2 > 1e-3, found
