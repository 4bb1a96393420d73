"""Clip-Cov and KL-Cov in the real learner: the same tokens and model under any cut and number of ranks."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from covariance_cases import CovarianceCase, Key, Plain, train_plainly
from learner_cases import Learners, Outcome, distance, make_rows, reversed_rows
from matrices import quick_of
from reference_covariance import Token
from safetensors.torch import load_file
from torch import Tensor

from trainer.metrics import update_metrics

pytestmark = pytest.mark.engine

TWO_UPDATES = ((0, 1, 2), (3, 4))
ONE_UPDATE = ((0, 1, 2, 3, 4),)


@cache
def plain(base: Path, kind: str, updates: tuple[tuple[int, ...], ...], draws: tuple) -> Plain:
    return train_plainly(base, make_rows(0).to_pylist(), kind, updates, dict(draws))


def run(
    learners: Learners, case: CovarianceCase, reverse: bool = False
) -> tuple[list[list[Token]], list[dict[str, float]], Outcome]:
    """One step on the rows of step 0; checks that every selected token was learned once, where it is held."""
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    ranks.ask("covariance_cases:take_seen")
    rows = reversed_rows(make_rows(0)) if reverse else make_rows(0)
    sums = ranks.step(case, config, rows, 0)
    seen = ranks.ask("covariance_cases:take_seen")
    tables = seen[0][0]
    assert all(other == tables for other, _ in seen), "every rank prepares the same table"
    learned = sorted(number for _, numbers in seen for number in numbers)
    assert learned == sorted(n for table in tables for n, token in enumerate(table) if token["selected"])
    losses, norms = ([update[name] for update in sums] for name in ("loss/total", "grad/norm"))
    return tables, sums, Outcome(losses=np.array(losses), norms=np.array(norms), weights=ranks.weights())


def chosen(tables: list[list[Token]]) -> list[set[Key]]:
    return [{(t["sample_id"], t["position"]) for t in table if t["selected"]} for table in tables]


CASES = [
    ("kl_cov", 0, 1, 17, False, 2),
    ("kl_cov", 1, 2, 1, True, 2),
    ("kl_cov", 3, 2, 2, False, 2),
    ("clip_cov", 3, 1, 5, True, 2),
    ("clip_cov", 2, 2, 3, False, 2),
    ("clip_cov", 0, 1, 9, False, 1),
    ("clip_cov", 3, 2, 2, False, 1),
]


@pytest.mark.parametrize(
    ("kind", "stage", "num_ranks", "rows", "reverse", "updates"), quick_of(CASES, [CASES[1], CASES[4]])
)
def test_cut_ranks_and_order_change_nothing(
    learners: Learners, kind: str, stage: int, num_ranks: int, rows: int, reverse: bool, updates: int
) -> None:
    """1 to 8 microbatches on 1 and 2 ranks, rows in either order: tokens, losses and model of plain torch.

    The second update selects under weights that the first has moved.
    """
    case = CovarianceCase(
        kind=kind, stage=stage, num_ranks=num_ranks, rows_per_microbatch=rows, updates_per_step=updates
    )
    tables, sums, outcome = run(learners, case, reverse)
    draws = {(t["sample_id"], t["position"]): t["draw"] for table in tables for t in table}
    groups = TWO_UPDATES if updates == 2 else ONE_UPDATE
    expected = plain(learners.base, kind, groups, tuple(sorted(draws.items())))
    assert chosen(tables) == expected.chosen and all(expected.chosen)
    wanted = Outcome(
        losses=np.array(expected.losses), norms=np.array(expected.norms), weights=expected.weights
    )
    found = distance(outcome, wanted, learners.start)
    print(case, found, [len(keys) for keys in expected.chosen])
    found.check()
    metrics = update_metrics(sums)
    num_chosen, num_tokens = sum(map(len, expected.chosen)), sum(map(len, tables))
    assert metrics["clip/cov"] == pytest.approx(num_chosen / num_tokens)
    spread = [metrics[f"prepare/cov_{name}"] for name in ("q50", "q80", "q98", "q99.8")]
    assert spread == sorted(spread) and spread[0] < spread[-1]


def gradient(learners: Learners, case: CovarianceCase, folder: Path) -> Tensor:
    """Adam's first moment after the updates last made: the sum of their clipped gradients, end to end."""
    folder.mkdir()
    learners.ranks(case).ask("save", str(folder))
    kept = [load_file(path) for path in sorted(folder.glob("learner-*.safetensors"))]
    moments = {name: values for each in kept for name, values in each.items() if name.startswith("exp_avg/")}
    return torch.cat([moments[name].double().reshape(-1) for name in sorted(moments)])


@pytest.mark.parametrize("kind", ["clip_cov", "kl_cov"])
def test_overlap_and_gradient_of_other_cuts(learners: Learners, tmp_path: Path, kind: str) -> None:
    """End to end, with scores of their own cuts: Jaccard of the tokens at least 0.99, cosine at least 0.9999.

    The control: the other method, on the same rows, has another gradient.
    """
    whole = CovarianceCase(kind=kind, stage=0, num_ranks=1, rows_per_microbatch=17)
    tables, _, _ = run(learners, whole)
    wanted = gradient(learners, whole, tmp_path / "whole")
    for number, (stage, num_ranks, rows) in enumerate([(0, 1, 9), (0, 1, 3), (2, 2, 2), (3, 2, 1)]):
        case = CovarianceCase(kind=kind, stage=stage, num_ranks=num_ranks, rows_per_microbatch=rows)
        others, _, _ = run(learners, case, reverse=number % 2 == 1)
        for mine, theirs in zip(chosen(tables), chosen(others), strict=True):
            assert len(mine & theirs) >= 0.99 * len(mine | theirs)
        found = gradient(learners, case, tmp_path / str(number))
        cosine = float(found @ wanted / (found.norm() * wanted.norm()))
        print(case, f"1 - cosine {1 - cosine:.1e}")
        assert cosine >= 0.9999
    other = CovarianceCase(kind={"clip_cov": "kl_cov", "kl_cov": "clip_cov"}[kind], stage=0, num_ranks=1)
    run(learners, other)
    found = gradient(learners, other, tmp_path / "other")
    assert float(found @ wanted / (found.norm() * wanted.norm())) < 0.9999


def test_logprobs_are_those_of_the_updates_weights(learners: Learners) -> None:
    """At first they are the scores, bit for bit; the second update's weights have moved away from them."""
    tables, _, _ = run(learners, CovarianceCase(stage=1, num_ranks=1))
    first, second = ([(t["logp"], t["old"]) for t in table] for table in tables)
    assert all(now == old for now, old in first)
    assert max(abs(now - old) for now, old in second) > 1e-3
    draws = [t["draw"] for table in tables for t in table]
    assert len(set(draws)) == len(draws) and min(draws) >= 0 and max(draws) < 1
