"""The hash of an experiment: what changes it and what does not."""

from dataclasses import replace
from typing import Any

import pytest

from configs import experiment
from configs.experiment import config_hash
from configs.load import (
    load_config,
)
from configs.schema import RunConfig


def test_a_key_at_its_default_is_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a version with a new key knows the runs of the one before; another value is another experiment."""
    plain, moved = load_config("debug", []), load_config("debug", ["entropy.coef=0.1"])
    hashes = config_hash(plain), config_hash(moved)
    known = experiment.settings

    def with_new_key(config: RunConfig) -> dict[str, object]:
        return {key: value for key, value in known(config).items() if key != "entropy.coef"}

    monkeypatch.setattr(experiment, "settings", with_new_key)  # a version that has no entropy.coef yet
    assert config_hash(plain) == hashes[0] == config_hash(moved) != hashes[1]


def test_an_entry_that_is_newer_is_not_hashed_at_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run from before there were rollouters goes on with the one it had; another is another experiment."""
    other = ["rollouter.kind=my.module:fn", "allow=[my]"]
    plain, moved = load_config("debug", []), load_config("debug", other)
    known, hashes = experiment.experiment(plain), (config_hash(plain), config_hash(moved))
    assert known.pop("rollouter.kind") == "single_turn" and experiment.differences(known, plain) == []
    assert ("rollouter.kind", "none", "my.module:fn") in experiment.differences(known, moved)
    settings = experiment.settings
    monkeypatch.setattr(
        experiment, "settings", lambda run: {k: v for k, v in settings(run).items() if k != "rollouter.kind"}
    )
    assert config_hash(plain) == hashes[0] != hashes[1]


def test_an_entry_that_is_taken_away_changes_the_hash() -> None:
    """A mapping's entries are hashed all: an empty one differs from the default."""
    both = load_config("debug", ["loss.sft={kind: nll}", "sft.share=0.1"])
    assert len({config_hash(load_config("debug", [])), config_hash(both)}) == 2
    assert config_hash(replace(both, loss={"sft": both.loss["sft"]})) != config_hash(both)


def test_the_hash_changes_with_the_experiment_only() -> None:
    """Longer, renamed or moved is the same experiment; so is a default written out."""
    plain = config_hash(load_config("debug", []))
    assert len(plain) == 64
    assert config_hash(load_config("debug", ["num_steps=7", "name=x", "runs_dir=y"])) == plain
    assert config_hash(load_config("debug", ["learner.lr=3e-4"])) == plain
    assert config_hash(load_config("debug", ["learner.lr=4e-4"])) != plain
    assert config_hash(load_config("debug", ["seed=1"])) != plain
    assert config_hash(load_config("debug", ["learner.num_ranks=2", "checkpoint.every=3"])) == plain
    assert config_hash(load_config("debug", ["eval.every=1", "data.eval.split=train"])) == plain


ORDERED = {
    "token_advantage": ("push: {kind: repo}", "forks: {kind: top_entropy}"),
    "reward_shape": ("modes: {kind: mara}", "long: {kind: overlong}"),
    "scorers": ("strict: {kind: math, weight: 1}", "first: {kind: lab_answer}"),
}


@pytest.mark.parametrize("section", ORDERED)
def test_the_order_of_entries_counts_where_it_changes_results(section: str) -> None:
    """Repo before a mask leaves masked tokens nothing, after it gives them -beta log pi. A run that stored no
    order is known by its other keys, and names in alphabetical order keep the hash that they had."""
    entries = ORDERED[section]
    one, other = (
        load_config("debug", [f"{section}={{{', '.join(names)}}}"]) for names in (entries, entries[::-1])
    )
    known, key = experiment.experiment(one), f"{section}.order"
    assert config_hash(one) != config_hash(other)
    # The scorer format reads no answers and makes no classes.
    before, after = ([name for name in getattr(each, section) if name != "format"] for each in (one, other))
    assert experiment.differences(known, other) == [(key, before, after)]
    assert experiment.differences(known, one) == []
    del known[key]
    assert experiment.differences(known, other) == []
    fewer_entries: Any = {entries[0].partition(":")[0]: next(iter(getattr(one, section).values()))}
    changes: dict[str, Any] = {section: fewer_entries}
    fewer = replace(one, **changes)
    assert all(key != found for found, *_ in experiment.differences(experiment.experiment(one), fewer))


def test_the_order_of_other_entries_does_not_count() -> None:
    """Bonuses and weights are added and multiplied; one scorer alone reads answers."""
    names = ("b: {kind: ucb}", "a: {kind: batch}")
    hashes = {
        config_hash(load_config("debug", [f"bonus={{{', '.join(each)}}}"])) for each in (names, names[::-1])
    }
    assert len(hashes) == 1
    plain = load_config("debug")
    assert config_hash(replace(plain, scorers=dict(reversed(plain.scorers.items())))) == config_hash(plain)


def test_results_that_are_compared_also_hash_how_they_were_evaluated() -> None:
    """Two evaluations of another size are not paired; a longer limit of one is no difference."""
    hashes = {
        config_hash(load_config("debug", changes), with_evaluation=True)
        for changes in ([], ["eval.timeout_s=7"], ["eval.num_samples=16"], ["data.eval.split=train"])
    }
    assert len(hashes) == 3
