"""A run whose groups have rows beside those of the policy, of any origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from loop_fakes import FakeScorer
from rollouters import FEEDBACK
from trial import Trial

from rollouts.store import read_step, read_summary


def check_added_rows(folder: Path, origin: str) -> None:
    """A run whose groups have, for each of two answers, one more row of `origin` in the policy's group: with
    its own ids, parents and contexts, compared within the whole group, measured separately.
    """
    more: dict[str, Any] = {
        "rollouter": {"kind": "rollouters:with_refined", "options": {"origin": origin}},
        "loss": {"policy": {"kind": "ppo_clip"}, origin: {"kind": "nll"}},
        "prompt_weight": {},
    }
    scorer = FakeScorer(fails=lambda completion: completion.sample_id[8:] == ".0")
    trial = Trial(folder, more=more, scorer=scorer)
    assert trial.train()
    rows = read_step(folder, 2).to_pylist()
    assert [row["origin"] for row in rows] == ["policy", "policy", origin, origin] * 2
    names = [
        f"{group}.{k}{turn}" for group in ("00000002", "00000003") for turn in ("", ".1") for k in (0, 1)
    ]
    assert [row["sample_id"] for row in rows] == names
    assert [row["parent_id"] for row in rows[:4]] == [None, None, *names[:2]]
    for row, parent in zip(rows[2:4], rows[:2], strict=True):
        assert row["prompt_ids"] == parent["prompt_ids"] and row["group_id"] == parent["group_id"]
        assert row["behavior_prompt_ids"] == [*parent["prompt_ids"], *parent["token_ids"], *FEEDBACK]
        assert row["seed"] != parent["seed"] and row["visit_count"] is None
    assert [row["behavior_prompt_ids"] for row in rows[:2]] == [None, None]
    # scores are 1, 0, 1, 0 in a group, but the first row has none: of 0, 1, 0 the mean is 1/3, the std 3^-1/2
    assert [row["reward"] for row in rows[:4]] == [None, 0.0, 1.0, 0.0]
    expected = [0.0, -0.57735, 1.1547, -0.57735]
    assert [row["advantage"] for row in rows[:4]] == pytest.approx(expected, abs=1e-4)
    assert [row["update_count"] for row in rows[:4]] == [0, 1, 1, 1]
    line = cast(dict[str, float], read_summary(folder, 2)["metrics"])
    assert line[f"{origin}/num_rows"] == 4.0 and line[f"{origin}/reward_mean"] == 0.5
    assert line["reward/mean"] == 0.0 and line["reward/null_share"] == 0.5
    # two policy rows of three tokens have a reward, and four of the other origin
    assert trial.learner.learned[1].row_weight_N.tolist() == pytest.approx([0, 1 / 6, 1 / 12, 1 / 12] * 2)
