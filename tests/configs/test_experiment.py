"""Which runs are the same experiment: under old names, with new options; and docs/config.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import experiment
from configs.errors import ConfigError
from configs.experiment import config_hash, differences
from configs.load import load_config
from configs.renamed import RENAMED, new_key, new_metric
from configs.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
BEFORE = json.loads((Path(__file__).parent / "run_before_renames.json").read_text())["experiment"]
"""Of a run of configs/debug.yaml begun before keys were renamed and before there were rollouters."""


def test_a_run_begun_under_old_names_is_resumed() -> None:
    """Longer, evaluated otherwise or placed elsewhere it is the same run; trained otherwise it is not."""
    assert {"loss.policy.old", "rollout.degenerate", "shape"} <= BEFORE.keys()
    same = ["num_steps=22", "eval.every=3", "scorers.correct.replicas=2", "cluster.max_restarts=1"]
    assert differences(BEFORE, load_config("debug", same)) == []
    other = ["learner.updates_per_step=2", "loss.policy.ratio_to=behavior", "advantage.kind=rloo"]
    found = {key: pair for key, *pair in differences(BEFORE, load_config("debug", other))}
    assert found == {
        "learner.updates_per_step": [1, 2],
        "loss.policy.ratio_to": ["proximal", "behavior"],
        "advantage.kind": ["grpo", "rloo"],
        "advantage.eps": [1e-6, "none"],
    }
    more = load_config("debug", ["token_advantage.few={kind: top_entropy}"])
    assert {key for key, *_ in differences(BEFORE, more)} >= {"token_advantage.few.kind"}


def test_settings_that_controllers_move_have_new_names_too() -> None:
    mover = "controllers.c={kind: adaptive_setting, setting: token_advantage.p.beta, delta: 0.1, high: 1}"
    config = load_config("debug", ["token_advantage.p={kind: repo}", mover])
    known = experiment.experiment(config)
    known["controllers.c.setting"] = "shape.p.beta"
    known["shape.p.kind"], known["shape.p.beta"] = known.pop("token_advantage.p.kind"), 0.01
    assert differences(known, config) == []


def test_an_option_that_is_new_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version that gives a kind one more option knows the runs of this one."""
    plain, moved = load_config("debug"), load_config("debug", ["loss.policy.dual_clip=3"])
    hashes = config_hash(plain), config_hash(moved)
    known = {key: value for key, value in experiment.experiment(plain).items() if "dual_clip" not in key}
    assert differences(known, plain) == []
    assert differences(known, moved) == [("loss.policy.dual_clip", "none", 3.0)]
    settings = experiment.settings

    def without_option(config: RunConfig) -> dict[str, object]:
        return {key: value for key, value in settings(config).items() if key != "loss.policy.dual_clip"}

    monkeypatch.setattr(experiment, "settings", without_option)
    assert config_hash(plain) == hashes[0] != hashes[1]


def test_a_mapping_is_at_its_default_only_as_a_whole() -> None:
    """Half of the default's formats, at their usual shares, are another mix."""
    rows = ["sft.share=0.1", "loss.sft={kind: nll}"]
    whole, half = (load_config("debug", [*rows, *more]) for more in ([], ["sft.data.formats={code: 0.4}"]))
    assert config_hash(whole) != config_hash(half)
    assert {key for key, *_ in differences(experiment.experiment(whole), half)} == {
        f"sft.data.formats.{name}" for name in ("prose", "symbolic", "tagged")
    }


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("loss.policy.old=behavior", "loss.policy.old = 'behavior': was renamed to loss.policy.ratio_to"),
        (
            "rollout.degenerate=drop",
            "rollout.degenerate = 'drop': was renamed to rollout.zero_variance_groups",
        ),
        (
            "shape={few: {kind: top_entropy}}",
            "was renamed to token_advantage: write it as token_advantage: {...}",
        ),
        ("cluster.scorer_replicas=2", "was renamed to scorers.<name>.replicas"),
        (
            "controllers.c={kind: adaptive_setting, setting: shape.p.beta, delta: 0.1, high: 1}",
            "controllers.c.setting = 'shape.p.beta': was renamed to token_advantage.p.beta",
        ),
        (
            "controllers.c={kind: adaptive_setting, setting: entropy.coef, delta: 1, high: 1, "
            "metric: sampling/degenerate_share}",
            "controllers.c.metric = 'sampling/degenerate_share': was renamed to sampling/zero_variance_share",
        ),
        (
            "controllers.c={kind: entropy_bands, bands: {b: {metric: clip/shape.few/low, low: 1}}, "
            "actuators: {a: {setting: entropy.coef, bands: [b], high: 1}}}",
            "bands.b.metric = 'clip/shape.few/low': was renamed to clip/token_advantage.few/low",
        ),
        (
            "reference.plateau_metric=sampling/degenerate_share",
            "reference.plateau_metric = 'sampling/degenerate_share': was renamed to",
        ),
    ],
)
def test_an_old_name_is_refused_by_its_new_one(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("debug", [override])
    assert len(str(caught.value).splitlines()) == 1 and line in str(caught.value)


def test_new_names() -> None:
    """With what is under them; a key that only looks alike keeps its name."""
    assert new_key("shape.a.b") == "token_advantage.a.b" and new_key("loss.x.old") == "loss.x.ratio_to"
    assert [new_key(key) for key in ("shapes", "loss.old", "loss.x.older", "rollout")] == [""] * 4
    assert all(new_key(old.replace("*", "x")) for old, _ in RENAMED)
    assert new_metric("prepare/shape.few/kept") == "prepare/token_advantage.few/kept"
    assert [new_metric(metric) for metric in ("sampling/degenerate_shares", "clip/shapes", "")] == [""] * 3


def test_a_run_with_a_kind_that_has_another_name_now_resumes() -> None:
    """Its description has the old name, which another kind has today; a run of that other kind is another."""
    config = load_config("debug", ["token_advantage.a={kind: entropy_quadrants, strength: 0.25}"])
    known = experiment.experiment(config)
    assert differences(known | {"token_advantage.a.kind": "stare"}, config) == []
    released = load_config("debug", ["token_advantage.a={kind: stare}"])
    assert differences(known | {"token_advantage.a.kind": "stare"}, released) != []
    assert differences(experiment.experiment(released), released) == []


def test_a_run_that_watches_a_renamed_metric_resumes() -> None:
    """Its description has the old name, in controllers and for the reference."""
    watched = "controllers.c={kind: threshold, metric: sampling/zero_variance_share}"
    config = load_config("debug", [watched, "loss.sft={kind: nll}", "sft.share=0.1"])
    known = experiment.experiment(config) | {"controllers.c.metric": "sampling/degenerate_share"}
    assert differences(known, config) == []
    assert differences(known | {"controllers.c.metric": "reward/mean"}, config) != []


def test_every_key_says_what_it_means() -> None:
    """The last column of the page is the docstring below the field."""
    rows = [line for line in (ROOT / "docs" / "config.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert [line for line in rows if not line.rsplit(" | ", 1)[-1].strip(" |")] == []


def test_the_page_of_keys_is_up_to_date() -> None:
    """`make docs` writes it."""
    check = [sys.executable, str(ROOT / "docs" / "config_page.py"), "--check"]
    found = subprocess.run(check, capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 0, found.stderr
