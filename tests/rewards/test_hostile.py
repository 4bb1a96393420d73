"""Hostile answers against the scorers: nothing gets out, nothing is stuck, no program hides its own score.

A slice; `make test-long` runs all. The machine must have an isolation that holds: no test here is skipped.
"""

from __future__ import annotations

import pytest
from code_cases import methods_here

from benchmarks.hostile.programs import family_names, snippets
from benchmarks.hostile.run import CODE_OPTIONS, Trial, run_cases

FORKING = ("daemons", "fork_bombs", "memory", "threads")
"""Families that say more where programs may start processes."""


def check(trials: list[Trial]) -> None:
    assert [f"{trial.family}: {trial.name}: {trial.problem()}" for trial in trials if trial.problem()] == []


def test_the_corpus_has_its_size() -> None:
    assert len(family_names()) >= 15
    assert 3 * sum(len(snippets(family)) for family in family_names()) >= 300


@pytest.mark.slow
def test_a_slice_of_the_corpus() -> None:
    trials = run_cases(family_names(), CODE_OPTIONS, every=6, num_workers=4)
    assert len(trials) >= 70
    check(trials)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in methods_here() if name == "landlock"])
def test_a_slice_without_namespaces(method: str) -> None:
    """What a container takes that forbids them."""
    families = ["daemons", "files", "network", "peeking", "signals", "system_calls"]
    check(
        run_cases(families, {**CODE_OPTIONS, "isolation": method}, every=5, answers_too=False, num_workers=4)
    )


@pytest.mark.slow
def test_a_slice_with_processes() -> None:
    options = {**CODE_OPTIONS, "processes": 8}
    if set(methods_here()) == {"landlock"}:
        pytest.fail("nothing here holds more than one process: install bubblewrap or allow user namespaces")
    check(run_cases(FORKING, options, every=7, answers_too=False, num_workers=4))


@pytest.mark.slow
def test_the_benchmark_sees_an_escape() -> None:
    """Without isolation, programs connect and read what is lying about."""
    trials = run_cases(
        ["network", "peeking"], {**CODE_OPTIONS, "isolation": "none"}, every=3, answers_too=False
    )
    assert {trial.family for trial in trials if trial.problem()} == {"network", "peeking"}


@pytest.mark.long
@pytest.mark.parametrize("method", methods_here())
def test_the_whole_corpus(method: str) -> None:
    check(run_cases(family_names(), {**CODE_OPTIONS, "isolation": method}))


@pytest.mark.long
def test_all_families_that_fork_with_processes() -> None:
    check(run_cases(FORKING, {**CODE_OPTIONS, "processes": 8}, answers_too=False))
