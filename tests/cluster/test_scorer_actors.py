"""A scorer's secrets are read before anything starts, refused by name, and hidden from what is started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fake_actors import FakeHandle

from cluster import site, spawn
from cluster.actor_process import Blueprint, ProcessSetup
from cluster.actors import score_limit_s, scorer_set, spawn_buffer, spawn_engines, spawn_scorers
from cluster.placement import plan
from cluster.secrets import check_secrets, hidden, secret_names, secrets_of
from cluster.train import dry_run, train
from cluster.user_code import check_user_code
from configs.bound import bind
from configs.load import load_config
from configs.schema import RunConfig

VALUE = "sk-live-0123456789"
TWO = (
    "scorers.judge={kind: length, weight: 1.0, replicas: 2, concurrency: 4}",
    "scorers.judge.secrets=[JUDGE_API_KEY, JUDGE_URL]",
    "scorers.other={kind: random, num_cpus: 0.5, secrets: [OTHER_API_KEY, JUDGE_URL]}",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three variables are set."""
    monkeypatch.setenv("JUDGE_API_KEY", VALUE)
    monkeypatch.setenv("JUDGE_URL", "https://judge")
    monkeypatch.setenv("OTHER_API_KEY", "another-secret")


class Silent:
    """A reporter that nobody hears."""

    def note(self, text: str) -> None: ...

    def header(self, **fields: object) -> None: ...

    def step(self, metrics: object) -> None: ...

    def phase(self, step: int, name: str) -> None: ...


def test_each_scorer_has_its_own() -> None:
    """By the names in its entry; the others' names are known, to be taken away."""
    config = load_config("debug", TWO)
    assert secrets_of(config, "judge").values == {"JUDGE_API_KEY": VALUE, "JUDGE_URL": "https://judge"}
    assert secrets_of(config, "other").values == {
        "OTHER_API_KEY": "another-secret",
        "JUDGE_URL": "https://judge",
    }
    assert secrets_of(config, "correct").values == {}
    assert secret_names(config) == ("JUDGE_API_KEY", "JUDGE_URL", "OTHER_API_KEY")
    check_secrets(config)


@pytest.mark.parametrize("start", [dry_run, train])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "scorers.judge.secrets: environment variable JUDGE_API_KEY is not set"),
        ("", "scorers.judge.secrets: environment variable JUDGE_API_KEY is not set"),
        ("12345", "JUDGE_API_KEY must have at least 6 characters, got 5"),
    ],
)
def test_a_missing_variable_is_refused_before_anything_starts(
    start: Any, value: str | None, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A run and a dry run alike; no folder is made and the value is not shown."""
    if value is None:
        monkeypatch.delenv("JUDGE_API_KEY")
    else:
        monkeypatch.setenv("JUDGE_API_KEY", value)
    config = load_config("debug", [*TWO, f"runs_dir={tmp_path / 'runs'}"])
    with pytest.raises(ValueError) as refused:
        start(config, Silent())
    assert message in str(refused.value) and (not value or value not in str(refused.value))
    assert not (tmp_path / "runs").exists()


def test_a_users_module_has_them_while_it_is_tried() -> None:
    """One that reads its key at import: with the key it loads, without it the run is refused by that name."""
    entry = "scorers.mine={kind: 'needs_key:score', weight: 1.0, secrets: [JUDGE_API_KEY]}"
    code = check_user_code(bind(load_config("debug", [entry, "allow=[needs_key]"])), lambda text: None)
    assert list(code.digests) == ["needs_key"]
    without = load_config("debug", [entry.replace("JUDGE_API_KEY", "OTHER_API_KEY"), "allow=[needs_key]"])
    with pytest.raises(ValueError, match="JUDGE_API_KEY"):
        check_user_code(bind(without), lambda text: None)


def test_hidden_variables_come_back() -> None:
    """What is started inside the block lacks them; afterwards the driver has them again."""
    with pytest.raises(RuntimeError), hidden(["JUDGE_API_KEY", "NOT_SET_AT_ALL"]):
        assert "JUDGE_API_KEY" not in os.environ and "JUDGE_URL" in os.environ
        raise RuntimeError
    assert os.environ["JUDGE_API_KEY"] == VALUE and "NOT_SET_AT_ALL" not in os.environ


class Spawned:
    """What was spawned: setups, blueprints and shares."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, config: RunConfig, device: str = "cpu") -> None:
        self.made: list[tuple[Any, Any, dict[str, Any]]] = []

        def spawned(setup: Any, blueprint: Any, **asked: Any) -> FakeHandle:
            self.made.append((setup, blueprint, asked))
            return FakeHandle(label=setup.label)

        monkeypatch.setattr(site, "spawn_ray", spawned)
        group: Any = object()
        self.site = site.Site(
            run=bind(config),
            placement=plan(bind(config), device),
            group=group,
            log_dir=Path("logs"),
            report=lambda kind, actor, **fields: None,
        )


def test_replicas_of_a_judge_share_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is built with its share, and a change of a limit is a change of the scorer."""
    config = load_config("judge", ["scorers.judge.replicas=3", "scorers.judge.requests_per_minute=60"])
    spawned = Spawned(monkeypatch, config)
    pools = spawn_scorers(spawned.site, {})
    judges = [plan.arguments[1] for setup, plan, _ in spawned.made if "judge" in setup.label]
    assert [each.max_concurrent for each in judges] == [3, 3, 2]
    assert [each.requests_per_minute for each in judges] == [20.0] * 3
    assert [each.canaries for each in judges] == ["warn", "none", "none"]
    limits = scorer_set(spawned.site.run, pools, lambda text: None).failure_limits
    assert limits == {"correct": 1.0, "format": 1.0, "judge": 0.25}


def test_scorers_are_spawned_with_replicas_shares_and_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets travel in the constructor call, never in the environment that Ray shows."""
    spawned = Spawned(monkeypatch, load_config("debug", TWO))
    spawn_scorers(spawned.site, {})
    made = {setup.label: (setup, blueprint, asked) for setup, blueprint, asked in spawned.made}
    assert list(made) == [
        *("scorer-correct-0", "scorer-format-0", "scorer-judge-0", "scorer-judge-1", "scorer-other-0")
    ]
    setup, blueprint, asked = made["scorer-judge-1"]
    assert blueprint.arguments[2:] == (4, setup.secrets, False, {})
    assert setup.secrets.values["JUDGE_API_KEY"] == VALUE
    assert setup.foreign_secrets == ("JUDGE_API_KEY", "JUDGE_URL", "OTHER_API_KEY")
    assert (asked["num_cpus"], asked["num_gpus"], asked["group"], asked["limit_s"]) == (0, 0, None, None)
    assert made["scorer-correct-0"][0].secrets.values == {}
    other = made["scorer-other-0"][2]
    assert (other["num_cpus"], other["bundle"], other["group"]) == (0.5, 1, spawned.site.group)
    assert VALUE not in repr(spawned.made)
    assert not any(VALUE in str(dict(setup.environment)) for setup, _, _ in spawned.made)


def test_only_actors_that_ask_for_a_gpu_see_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray hides nothing from an actor without GPUs, whose code would take memory of the first one it sees."""
    overrides = ["scorers.on_gpu={kind: length, num_gpus: 0.05}", "generator.gpu_memory_utilization=0.8"]
    spawned = Spawned(monkeypatch, load_config("debug", overrides), "cuda")
    spawn_scorers(spawned.site, {})
    spawn_engines(spawned.site)
    spawn_buffer(spawned.site, Path("run"))
    hidden_from = {
        setup.label: setup.environment.get("CUDA_VISIBLE_DEVICES") == "" for setup, _, _ in spawned.made
    }
    without = ("scorer-correct-0", "scorer-format-0", "buffer")
    assert hidden_from == dict.fromkeys(without, True) | {"scorer-on_gpu-0": False, "generator-0": False}


def test_pings_do_not_wait_behind_the_calls_of_a_large_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray starts 1,000 calls of an actor at a time; a step or an evaluation may have more on one engine."""
    asked: dict[str, Any] = {}

    class Remote:
        def options(self, **options: Any) -> Any:
            asked.update(options)
            return self

        def remote(self, *arguments: object) -> object:
            return object()

    monkeypatch.setattr(spawn.ray, "remote", lambda host: Remote())
    setup, blueprint = ProcessSetup(label="generator-0", log_file=""), Blueprint(target="", arguments=())
    spawn.spawn_ray(setup, blueprint, num_cpus=1, num_gpus=0, group=None, bundle=-1, limit_s=None)
    assert asked["max_concurrency"] > 100_000


def test_scorers_of_the_run_before_stay_if_they_were_built_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another weight is no other scorer; another concurrency, replica or value of a secret is."""
    spawned = Spawned(monkeypatch, load_config("debug", TWO))
    first = spawn_scorers(spawned.site, {})

    def again(*overrides: str) -> list[str]:
        """Which scorers are made anew."""
        spawned.site.run = bind(load_config("debug", [*TWO, *overrides]))
        found = spawn_scorers(spawned.site, {}, first)
        return [name for name, pool in found.items() if pool is not first[name]]

    assert again() == [] and again("scorers.judge.weight=3") == []
    assert again("scorers.judge.concurrency=5") == ["judge"]
    assert again("scorers.judge.replicas=1", "scorers.other.seed=2") == ["judge", "other"]
    monkeypatch.setenv("OTHER_API_KEY", "a-renewed-secret")
    assert again() == ["other"]


LIMITS: list[tuple[str, float]] = [
    ("{kind: length}", 60.0),  # runs in the scorer's process: rollout.score_timeout_s
    ("{kind: math, limit_s: 1}", 60.0),  # 8 x (1 + 5) x 1 = 48 is less
    ("{kind: math, limit_s: 5}", 80.0),  # 8 x (5 + 5) x 1
    ('{kind: custom, function: "mine:f", limit_s: 7, concurrency: 2}', 192.0),  # 8 x (7 + 5) x 2
    ('{kind: "mine:plain", concurrency: 2}', 240.0),  # 8 x (10 + 5) x 2, the limit of `custom`
    ('{kind: "mine:plain", options: {limit_s: 4}}', 72.0),
    ('{kind: "mine:judge", concurrency: 16}', 60.0),  # async: no limit per sample
    ('{kind: "mine:judge", options: {limit_s: 30}, concurrency: 16}', 60.0),
]


@pytest.mark.parametrize(("scorer", "limit_s"), LIMITS)
def test_the_limit_of_a_group(scorer: str, limit_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sandbox the limit of every sample comes first; all else has rollout.score_timeout_s."""
    config = load_config("debug", [f"scorers.mine={scorer}", "allow=[mine]", "rollout.group_size=8"])
    in_actor = frozenset({"mine:judge"})
    assert score_limit_s(config, bind(config).scorers["mine"], in_actor) == limit_s
    spawned = Spawned(monkeypatch, config)
    spawned.site.in_actor = in_actor
    assert spawn_scorers(spawned.site, {})["mine"].role.limit_s == limit_s
