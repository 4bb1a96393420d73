"""Strategic n-grams and HICRA by hand: what must fail when anything in their functions is changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from loss_cases import loss_inputs

from configs.kinds.token_advantages import HicraOptions
from trainer.token_advantages.planning import hicra, mark_planning, random_mask_like, segment_ends
from trainer.token_advantages.strategic_ngrams import (
    Grams,
    _grams_of,
    find_grams,
    load_grams,
    mine_grams,
    write_grams,
)

Check = Callable[[], None]
DOCUMENTS = [[[1, 2, 3, 4]], [[1, 2, 3], [9, 1, 2, 3]], [[1, 2, 3, 4]], [[7, 8]]]
"""Of (1 2 3) three documents have it, one of them twice; of (2 3 4) and (1 2 3 4) two; of (9 1 2) and
(9 1 2 3) one. (3, 9, 1) lies across a gap."""
KNOWN = Grams(documents={(1, 2, 3): 3, (1, 2, 3, 4): 2, (2, 3, 4): 2}, num_documents=4, sources=("a",))


def check_mine() -> None:
    """Five n-grams: all, the first 3/5, and of all those in at least two documents; ties by ids."""
    all_of_them = mine_grams(DOCUMENTS, 1.0, 1, ["a"])
    assert dict(all_of_them.documents) == dict(KNOWN.documents) | {(9, 1, 2): 1, (9, 1, 2, 3): 1}
    assert list(all_of_them.documents)[:2] == [(1, 2, 3), (1, 2, 3, 4)]
    assert all_of_them.num_documents == 4
    assert list(mine_grams(DOCUMENTS, 0.6, 1, ["a"]).documents) == [(1, 2, 3), (1, 2, 3, 4), (2, 3, 4)]
    assert mine_grams(DOCUMENTS, 1.0, 2, ["a"]) == KNOWN
    assert list(mine_grams(DOCUMENTS, 0.2, 1, ["a"]).documents) == [(1, 2, 3)]
    assert list(_grams_of([1, 2, 3, 4])) == [(1, 2, 3), (2, 3, 4), (1, 2, 3, 4)]
    assert list(_grams_of([1, 2])) == []


def check_mine_refuses() -> None:
    """Shares and counts out of range, and documents without an n-gram in common."""
    for share, fewest, rule in ((0.0, 2, "share"), (1.5, 2, "share"), (0.5, 0, "min-documents")):
        with pytest.raises(ValueError, match=f"{rule} must be"):
            mine_grams(DOCUMENTS, share, fewest, ["a"])
    with pytest.raises(ValueError, match="3 to 5 tokens, got none in 1 completions with share"):
        mine_grams([[[1, 2, 3, 4, 5]]], 0.5, 2, ["a"])


def check_find() -> None:
    """The longest first, and nothing twice: (1 2 3 4) hides (2 3 4); at the end of a stretch (1 2 3) is left.

    1 2 3 4 4 | 1 2 3 | 4 0 2 3 4: tokens 0 to 3, 5 to 7 (whose 4 is behind the gap), 10 to 12.
    """
    ids = np.array([1, 2, 3, 4, 4, 1, 2, 3, 4, 0, 2, 3, 4])
    ends = np.array([5] * 5 + [8] * 3 + [13] * 5)
    inside, met = find_grams(ids, ends, KNOWN.documents)
    assert np.flatnonzero(inside).tolist() == [0, 1, 2, 3, 5, 6, 7, 10, 11, 12]
    assert met == [(1, 2, 3, 4), (1, 2, 3), (2, 3, 4)]
    inside, met = find_grams(ids[:0], ends[:0], KNOWN.documents)
    assert inside.shape == (0,) and met == []


def check_find_goes_on_behind() -> None:
    """1 1 1 1 1 of (1 1 1): one of the first three tokens, none of the two that are left; of six, two."""
    for count, met in ((5, 1), (6, 2)):
        inside, found = find_grams(np.ones(count, np.int64), np.full(count, count), {(1, 1, 1): 1})
        assert inside.tolist() == [True] * 3 * met + [False] * (count - 3 * met)
        assert found == [(1, 1, 1)] * met


def check_segments() -> None:
    """Row 0 at 0 1 3 4, row 1 at 5 (which would follow): stretches end at 2, 4 and 5."""
    row, position = np.array([0, 0, 0, 0, 1]), np.array([0, 1, 3, 4, 5])
    assert segment_ends(row, position).tolist() == [2, 2, 4, 4, 5]
    assert segment_ends(row[:0], position[:0]).tolist() == []


def check_random_mask_like() -> None:
    """Row 0 has two of four, row 1 none of two, row 2 its one. Draws count from their 21st binary digit.

    Those of row 0 are 0.75, 0.25, 0.5 and 0 there: tokens 3 and 1. Digits before it say the opposite.
    """
    row = np.array([0, 0, 0, 0, 1, 1, 2])
    mask = np.array([True, True, False, False, False, False, True])
    late = np.array([0.75, 0.25, 0.5, 0.0, 0.1, 0.2, 0.9])
    early = np.array([0.0, 0.5, 0.25, 0.75, 0.0, 0.5, 0.0])
    chosen = random_mask_like(row, mask, early + late / 2**20)
    assert np.flatnonzero(chosen).tolist() == [1, 3, 6]
    assert random_mask_like(row[:0], mask[:0], late[:0]).shape == (0,)


def check_hicra() -> None:
    """alpha 1/4: A = 2 is 5/2, A = -2 is -3/2, 0 stays; the last, no planning token, too."""
    planning = torch.tensor([True, True, True, False])
    inputs = replace(
        loss_inputs([-1.0] * 4, [-1.0] * 4, [2.0, -2.0, 0.0, -2.0]), prepared={"planning": planning}
    )
    found = hicra(inputs, HicraOptions(alpha=0.25))
    assert found.advantages.tolist() == [2.5, -1.5, 0.0, -2.0]
    assert found.marks["planning"].tolist() == planning.tolist()


def check_mark_planning() -> None:
    """Row a: 1 2 3 4 5 and 1 2 3, row b: 6 6. 7 of 10 tokens plan, of two n-grams once each: ln 2. Entropies
    are 0.5 inside and 2 outside. Of row a the random mask has 7 as well, of row b none.
    """
    columns = {
        "sample_id": np.array(["a"] * 8 + ["b"] * 2),
        "position": np.array([*range(8), 0, 1]),
        "token_ids": np.array([1, 2, 3, 4, 5, 1, 2, 3, 6, 6]),
        "entropy": np.array([0.5] * 4 + [2.0] + [0.5] * 3 + [2.0] * 2),
        "draw": np.array([0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.05]) / 2**20,
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "grams.json"
        write_grams(path, KNOWN)
        assert load_grams(path) == KNOWN
        mined, random = (
            mark_planning(columns, HicraOptions(path=str(path), mask=mask)) for mask in ("mined", "random")
        )
        none = mark_planning({name: values[:0] for name, values in columns.items()}, HicraOptions(str(path)))
    assert np.flatnonzero(mined.columns["planning"]).tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert np.flatnonzero(random.columns["planning"]).tolist() == [1, 2, 3, 4, 5, 6, 7]
    wanted = {
        "strategy_entropy": np.log(2),
        "planning_share": 0.7,
        "planning_entropy": 0.5,
        "execution_entropy": 2.0,
    }
    assert mined.stats == pytest.approx(wanted) and random.stats == mined.stats
    assert none.columns["planning"].shape == (0,) and none.stats == {"strategy_entropy": 0.0}


GRAM_CHECKS: dict[str, tuple[Check, ...]] = {
    "mine_grams": (check_mine, check_mine_refuses),
    "_grams_of": (check_mine,),
    "find_grams": (check_find, check_find_goes_on_behind),
}
"""By function of `trainer.token_advantages.strategic_ngrams`."""
PLANNING_CHECKS: dict[str, tuple[Check, ...]] = {
    "hicra": (check_hicra,),
    "mark_planning": (check_mark_planning,),
    "segment_ends": (check_segments,),
    "random_mask_like": (check_random_mask_like,),
}
"""By function of `trainer.token_advantages.planning`."""
