"""Entries that are parsed once and bound often: each binding has options of its own, of what it says."""

from __future__ import annotations

import pytest

from configs import entries
from configs.bound import bind_entry
from configs.entries import PARSED, parse_entry, role_of, structured
from configs.schema import LearnerConfig
from configs.sources import Provenance


def test_what_is_bound_twice_shares_nothing() -> None:
    """Also lists and mappings within the options."""
    entry = {"kind": "lab_reward:score", "options": {"deep": {"list": [1]}}}
    first, second = bind_entry(entry, "scorers.own"), bind_entry(entry, "scorers.own")
    assert first == second
    first.options.options["deep"]["list"].append(2)
    first.common.weight = 7.0
    assert second == bind_entry(entry, "scorers.own") != first
    assert second.options.options == {"deep": {"list": [1]}}


def test_values_that_are_equal_but_of_other_types_are_distinguished() -> None:
    """1 == 1.0 == True in Python; a config means different things by them."""
    found = [
        bind_entry({"kind": "lab_reward:score", "options": {"x": value}}, "scorers.own").options.options["x"]
        for value in (1, 1.0, True, "1")
    ]
    assert [type(value) for value in found] == [int, float, bool, str]


def test_a_problem_is_found_each_time() -> None:
    role = role_of("loss.policy")
    assert role is not None
    for _ in range(2):
        parsed, problems = parse_entry({"kind": "ppo_clip", "clip": 1}, role, "loss.policy", Provenance())
        assert parsed is None and [it.key for it in problems] == ["loss.policy.clip"]


def test_the_memory_of_entries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "MAX_PARSED", 3)
    PARSED.clear()
    for weight in range(20):
        assert bind_entry({"kind": "length", "weight": float(weight)}, "scorers.a").common.weight == weight
        assert len(PARSED) <= 3


def test_a_structured_config_is_its_own() -> None:
    first, second = structured(LearnerConfig), structured(LearnerConfig)
    first.lr = 7.0
    assert second.lr == structured(LearnerConfig).lr == LearnerConfig().lr
