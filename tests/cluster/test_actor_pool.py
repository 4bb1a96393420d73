"""The actor pool: which actors another run can use."""

from __future__ import annotations

from cluster.actor_pool import BUILT_IN, built_in
from configs.load import load_config


def test_actors_fit_a_run_that_differs_in_nothing_they_were_built_with() -> None:
    """An anchor, a loss, a learning rate or a seed comes with the run; Adam's betas and lengths do not."""
    one = load_config("debug")
    for other in ("kl.coef=0.1", "learner.updates_per_step=2", "learner.lr=1e-5", "seed=7", "num_steps=3"):
        assert built_in(one, load_config("debug", [other])) == []
    for key, value in (
        ("learner.betas", "[0.9,0.95]"),
        ("rollout.max_tokens", "30"),
        ("sync.num_probes", "3"),
    ):
        assert built_in(one, load_config("debug", [f"{key}={value}"])) == [key]
    two = load_config("debug", ["generator.num_engines=2", "learner.zero_stage=2"])
    assert built_in(one, two) == ["generator.num_engines", "learner.zero_stage"]
    assert "learner.lr" not in BUILT_IN
