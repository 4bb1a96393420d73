"""A run on actors that have worked already is the run that new actors make, to the bit. Real engines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from recorder import Recorder

from benchmarks.faults.common import fingerprint
from cluster.series import train_all
from configs.load import load_config
from configs.schema import RunConfig
from rollouts.store import committed_steps

pytestmark = pytest.mark.engine
SMALL = (
    *(
        "num_steps=2",
        "rollout.groups_per_step=2",
        "rollout.group_size=2",
        "eval.every=2",
        "eval.num_prompts=2",
    ),
    *("eval.num_samples=4", "eval.pass_at=[1,4]", "sync.num_probes=2"),
)


def _config(runs: Path, name: str, *overrides: str) -> RunConfig:
    return load_config("debug", [*SMALL, f"runs_dir={runs}", f"name={name}", *overrides])


def test_a_run_on_live_actors_is_the_run_on_new_ones(tmp_path: Path) -> None:
    """Fresh: seed 1 with an anchor, on actors of its own. Live: the same after seed 0 without anchor and with
    another loss, learning rate and fewer scorers, which leaves weights and moments behind and no anchor. A
    run that fails (its scorer cannot start) takes none of the others along."""
    wanted = ("seed=1", "kl.coef=0.2", "entropy.coef=0.01")
    before = (
        "seed=0",
        "learner.base_logprobs=false",
        "loss.policy.kind=cispo",
        "learner.updates_per_step=2",
        "learner.lr=2e-3",
        "scorers.format=null",
    )
    had_engine = "vllm" in sys.modules  # by another test
    fresh = Recorder()
    assert train_all([_config(tmp_path / "fresh", "run", *wanted)], fresh, fresh) == 0, fresh
    live = Recorder()
    broken = ("scorers.other={kind: 'scorer_forms:NoScorer', weight: 1.0}", "allow=[scorer_forms]")
    configs = [
        _config(tmp_path / "live", "before", *before),
        _config(tmp_path / "live", "run", *wanted),
        _config(tmp_path / "live", "broken", *broken),
    ]
    assert train_all(configs, live, live) == 0
    assert [path.name for path in live.folders] == ["before", "run"] and len(live.failures) == 1
    assert "NoScorer" in live.failures[0]
    assert sum(note.startswith("starting actors") for note in live.notes) == 1, live.notes
    assert sum(note.startswith("reusing the actors of the run before") for note in live.notes) == 1, (
        live.notes
    )
    assert committed_steps(tmp_path / "live" / "run") == [1, 2]
    # The run of another seed and loss is another one: equal hashes below mean something.
    first = fingerprint(tmp_path / "live" / "before")
    expected = fingerprint(tmp_path / "fresh" / "run")
    assert all(first[name] != expected[name] for name in ("weights", "learner", "metrics", "rows"))
    assert fingerprint(tmp_path / "live" / "run") == expected
    assert ("vllm" in sys.modules) == had_engine, "all of it in processes of their own"
