"""Credit for diversity: by hand, the papers' equations in floats, what is kept, which configs it takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import diversity_cases
import numpy as np
import pytest
import reference_credit as papers
from credit_cases import rewarded
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.kinds.advantages import DrGrpoOptions, UcpoOptions
from configs.kinds.bonuses import SetpoOptions
from configs.kinds.reward_shapes import VpoOptions
from configs.load import load_config
from trainer.credit.advantages import dr_grpo
from trainer.credit.diversity import MEASURES, dirichlet, setpo, ucpo, vpo

ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2), st.floats(-30, 0), st.integers(-1, 3)),
    min_size=1,
    max_size=9,
)
Row = tuple[float, int, float, int]
SHARES = st.floats(0, 1)
VECTORS = st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=4)
PARTITION = "scorers.diverse={kind: partition, quality: correct}"


@pytest.mark.parametrize("name", diversity_cases.DIVERSITY_CHECKS)
def test_by_hand(name: str) -> None:
    for check in diversity_cases.DIVERSITY_CHECKS[name]:
        check()


def places_of(groups: list[int]) -> list[list[int]]:
    return [[place for place, at in enumerate(groups) if at == group] for group in set(groups)]


@given(ROWS, SHARES)
def test_ucpo_against_the_paper(rows: list[Row], tau: float) -> None:
    """Row by row; and right rows of equal rewards keep the sum of their advantages."""
    rewards, groups, logprobs, _ = (list(column) for column in zip(*rows, strict=True))
    given = rewarded(rewards, groups, logprobs=logprobs)
    base = dr_grpo(given, DrGrpoOptions())
    found = ucpo(given, UcpoOptions(base="dr_grpo", tau=tau, threshold=1.0, per_token=False))
    for places in places_of(groups):
        mine = [float(base[place]) for place in places]
        right = [rewards[place] >= 1.0 for place in places]
        for me, place in enumerate(places):
            of_group = [logprobs[place] for place in places]
            wanted = papers.ucpo(mine, of_group, right, me, tau)
            assert found[place] == pytest.approx(wanted, rel=1e-6, abs=1e-12)
        kept = [place for place in places if rewards[place] >= 1.0]
        assert math.fsum(found[kept]) == pytest.approx(math.fsum(base[kept]), abs=1e-9)


@given(ROWS, st.sampled_from(sorted(MEASURES)), st.booleans())
def test_setpo_against_kernels(rows: list[Row], measure: str, centred: bool) -> None:
    """By rank, eigenvalues and pairs of the kernel; rarer rows of a group never contribute less."""
    _, groups, _, classes = (list(column) for column in zip(*rows, strict=True))
    options = SetpoOptions(coef=2.0, measure=measure, centred=centred)
    found = setpo(rewarded([0.0] * len(rows), groups, classes=classes), options)
    for places in places_of(groups):
        members = [place for place in places if classes[place] >= 0]
        assert all(found[place] == 0.0 for place in places if place not in members)
        of_group = [classes[place] for place in members]
        marginals = [papers.setpo(of_group, me, measure) for me in range(len(members))]
        centre = papers.mean(marginals) if centred and marginals else 0.0
        for place, marginal in zip(members, marginals, strict=True):
            assert found[place] == pytest.approx(2.0 * (marginal - centre), abs=1e-6)
        sizes = [of_group.count(each) for each in of_group]
        for a, b in ((a, b) for a in range(len(members)) for b in range(len(members)) if sizes[a] < sizes[b]):
            assert marginals[a] >= marginals[b] - 1e-9


@given(st.lists(VECTORS, min_size=1, max_size=4), st.integers(0, 3))
def test_vpo_against_the_paper(candidates: list[list[tuple[float, float]]], seed: int) -> None:
    """The same draws, by loops; over the group, what the maximum loses without each row."""
    options = VpoOptions(components=("a", "b"), num_draws=7, seed=seed)
    numbers = [
        {
            f"candidate/{k}/{name}": value
            for k, pair in enumerate(each)
            for name, value in zip("ab", pair, strict=True)
        }
        for each in candidates
    ]
    size = len(candidates)
    found = vpo(rewarded([0.0] * size, [3] * size, numbers=numbers), options)
    draws = dirichlet("p3", options).tolist()
    assert found.tolist() == pytest.approx([papers.vpo(each, draws) for each in candidates])
    firsts = [each[0] for each in candidates]
    scores = [dict(zip("ab", pair, strict=True)) for pair in firsts]
    group = VpoOptions(components=("a", "b"), num_draws=7, seed=seed, over="group")
    marginal = vpo(rewarded([0.0] * size, [3] * size, scores=scores), group)
    rest = [papers.vpo(firsts[:me] + firsts[me + 1 :], draws) if size > 1 else 0.0 for me in range(size)]
    assert marginal.tolist() == pytest.approx([papers.vpo(firsts, draws) - each for each in rest], abs=1e-9)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows: list[Row], random: object) -> None:
    """But for the last digit of a mean."""
    rewards, groups, logprobs, classes = (list(column) for column in zip(*rows, strict=True))
    scores = [{"a": reward, "b": logprob} for reward, logprob in zip(rewards, logprobs, strict=True)]
    given = rewarded(rewards, groups, logprobs=logprobs, classes=classes, scores=scores)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = given.only(np.array(order))
    components = VpoOptions(components=("a", "b"), scale="group", over="group")
    functions: list[tuple[Callable[..., np.ndarray], object]]
    functions = [(ucpo, UcpoOptions()), (setpo, SetpoOptions()), (vpo, components)]
    for function, options in functions:
        straight = function(given, options)
        assert straight[order].tolist() == pytest.approx(function(shuffled, options).tolist(), abs=1e-9)


def test_which_configs_have_them() -> None:
    """SetPO needs classes, and no answers; VPO names scorers."""
    assert load_config("debug", [PARTITION, "bonus.set={kind: setpo}"]).bonus["set"]["measure"] == "vendi"
    with pytest.raises(
        ConfigError, match=r"bonus\.set.*must have a scorer that puts completions into classes"
    ):
        load_config("debug", ["bonus.set={kind: setpo}"])
    unread = [
        "scorers.correct={kind: length, weight: 1}",
        "scorers.diverse={kind: partition, over: all, equivalence: ngram}",
    ]
    assert load_config("debug", [*unread, "bonus.set={kind: setpo}"]).bonus
    with pytest.raises(ConfigError, match="must have a scorer that reads answers"):
        load_config("debug", [*unread, "bonus.set={kind: setpo}", "bonus.ucb={kind: ucb}"])
    with pytest.raises(ConfigError, match=r"components.*must name scorers of this config .*got corect"):
        load_config("debug", ["reward_shape.v={kind: vpo, components: [corect]}"])
