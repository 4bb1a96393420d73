"""Rules that make classes of pairs: by hand, by their definitions in plain Python, in any order."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.partition_rules import (
    RULES,
    complete,
    components,
    greedy,
    histogram,
    mean_distances,
    normalised,
    size_scores,
)


def matrix(size: int, edges: dict[tuple[int, int], float]) -> np.ndarray:
    """Symmetric, with ones on the diagonal; a pair that is not given has probability 0."""
    found = np.eye(size)
    for (first, second), probability in edges.items():
        found[first, second] = found[second, first] = probability
    return found


CHAIN = matrix(4, {(0, 1): 0.9, (1, 2): 0.6, (2, 3): 0.8})
"""0 - 1 - 2 - 3, of which the middle edge is the weakest."""


def test_a_chain_by_hand() -> None:
    """Union-find joins the whole chain. Greedy: 1 joins 0, 2 is not like 0, 3 joins 2. Complete as greedy."""
    assert components(CHAIN, 0.5) == [0, 0, 0, 0]
    assert greedy(CHAIN, 0.5) == [0, 0, 1, 1]
    assert complete(CHAIN, 0.5) == [0, 0, 1, 1]
    # the threshold is itself an edge; above 0.6 the middle one is cut, above 0.9 all are
    assert components(CHAIN, 0.6) == [0] * 4 and components(CHAIN, 0.61) == [0, 0, 1, 1]
    assert [rule(CHAIN, 0.91) for rule in RULES.values()] == [[0, 1, 2, 3]] * 3


def test_a_star_by_hand() -> None:
    """0 is like 1, 2 and 3, which differ: greedy puts all with 0, complete only the nearest."""
    star = matrix(4, {(0, 1): 0.6, (0, 2): 0.9, (0, 3): 0.7})
    assert components(star, 0.5) == [0, 0, 0, 0] == greedy(star, 0.5)
    assert complete(star, 0.5) == [0, 1, 0, 2]


@pytest.mark.parametrize("rule", RULES.values())
def test_no_text_and_one(rule: object) -> None:
    assert callable(rule)
    assert rule(np.eye(0), 0.5) == [] and rule(np.eye(1), 0.5) == [0]


MATRICES = st.integers(0, 7).flatmap(
    lambda size: st.lists(
        st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]), min_size=size * size, max_size=size * size
    ).map(lambda flat: np.maximum(m := np.array(flat).reshape(size, size), m.T))
)


def as_sets(ids: list[int]) -> set[frozenset[int]]:
    return {frozenset(at for at, each in enumerate(ids) if each == wanted) for wanted in ids}


@given(MATRICES)
def test_components_by_reachability(probability: np.ndarray) -> None:
    """Two texts are together exactly if a path of edges joins them; ids ascend from 0 by first member."""
    size = len(probability)
    reach = (probability >= 0.5) | np.eye(size, dtype=bool)
    for _ in range(size):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    ids = components(probability, 0.5)
    for first, second in itertools.product(range(size), repeat=2):
        assert (ids[first] == ids[second]) == reach[first, second]
    assert sorted(set(ids)) == list(range(len(set(ids)))) and ids == _renumbered(ids)


def _renumbered(ids: list[int]) -> list[int]:
    order = list(dict.fromkeys(ids))
    return [order.index(each) for each in ids]


@given(MATRICES)
def test_greedy_by_its_definition(probability: np.ndarray) -> None:
    """The first of a class is the representative: a member is like it, and like no earlier representative."""
    ids = greedy(probability, 0.5)
    first = {each: ids.index(each) for each in set(ids)}
    for text, mine in enumerate(ids):
        if first[mine] == text:
            assert all(probability[first[other], text] < 0.5 for other in range(mine))
        else:
            like = [other for other in range(mine + 1) if probability[first[other], text] >= 0.5]
            assert like[0] == mine
    assert ids == _renumbered(ids)


@given(MATRICES)
def test_complete_by_a_slow_search(probability: np.ndarray) -> None:
    """Agglomeration over sets, and what it promises: every pair of a class is an edge, and no two join."""
    clusters = [[at] for at in range(len(probability))]
    while True:
        options = [
            (min(probability[a, b] for a, b in itertools.product(one, two)), -i, -j)
            for (i, one), (j, two) in itertools.combinations(enumerate(clusters), 2)
        ]
        best = max(options, default=(-1.0, 0, 0))
        if best[0] < 0.5:
            break
        i, j = -best[1], -best[2]
        clusters[i] = sorted(clusters[i] + clusters[j])
        del clusters[j]
    found = complete(probability, 0.5)
    assert as_sets(found) == {frozenset(cluster) for cluster in clusters}
    assert found == _renumbered(found)


@given(st.lists(st.integers(0, 3), max_size=8))
def test_exact_edges_give_the_same_classes(truth: list[int]) -> None:
    """Without a wrong edge the rules agree, and the two scores do."""
    probability = (np.array(truth)[:, None] == np.array(truth)[None, :]).astype(float)
    for rule in RULES.values():
        assert rule(probability, 0.5) == _renumbered(truth)
    assert mean_distances(probability) == pytest.approx(size_scores(_renumbered(truth)))


def test_scores_by_hand() -> None:
    """Sizes 3 and 1 of 4: (4 - 3)/3 and (4 - 1)/3. Distances: 1 - (0.9 + 0 + 0)/3, 1 - (0.9 + 0.6)/3, ..."""
    assert size_scores([0, 0, 1, 0]) == pytest.approx([1 / 3, 1 / 3, 1.0, 1 / 3])
    assert size_scores([0, 0]) == [0.0, 0.0] and size_scores([0]) == [1.0] and size_scores([]) == []
    assert mean_distances(CHAIN) == pytest.approx([0.7, 0.5, 1.6 / 3, 2.2 / 3])
    assert mean_distances(np.eye(1)) == [1.0] and mean_distances(np.eye(0)) == []


def test_normalised_by_hand() -> None:
    """Raised to the floor after the division; nothing is divided by 0."""
    assert normalised([0.0, 0.2, 0.5], "none", 0.1) == [0.1, 0.2, 0.5]
    assert normalised([0.0, 0.2, 0.5], "largest", 0.1) == [0.1, 0.4, 1.0]
    assert normalised([0.0, 0.0], "largest", 0.0) == [0.0, 0.0] and normalised([], "largest", 0.1) == []


def test_histogram_by_hand() -> None:
    """Bins of a tenth, lower edge included; 1 is in the last; a negative cosine in the first."""
    found = json.loads(histogram([0.0, 0.05, 0.1, 0.95, 1.0, -0.3, 1.0000001]))
    assert found == [3, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    assert json.loads(histogram([])) == [0] * 10
