"""Tempered groups: which are learned, how they are scored, the effect on entropy, the loop, errors."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from config_files import check_refused
from hypothesis import given
from hypothesis import strategies as st
from index_table import make_index
from loop_fakes import TokenScorer
from matrices import parts
from rollout_rows import make_group, make_sample
from sampling_cases import TEMPERED_CHECKS
from trial import Killed, Trial, result_of

from cluster.train import Job, train
from configs.bound import bind
from configs.kinds.losses import NllOptions
from configs.load import load_config
from configs.schema import LearnerConfig, ReplayConfig, RolloutConfig, RunConfig, TemperedConfig
from rollouts.rewind import saved_groups
from rollouts.schema import as_replay, group_to_batch
from trainer.collate import collate, with_advantages
from trainer.losses.per_token import LossInputs, nll
from trainer.model.rows import read_rows
from trainer.rollout.replay import choose
from trainer.rollout.tempered import as_tempered
from viewer.terminal import StepReporter

LOSSES = {"policy": {"kind": "ppo_clip"}, "tempered": {"kind": "nll", "weight": 0.1}}
HEAT = {
    "kind": "threshold",
    "setting": "tempered.temperature",
    "metric": "entropy/token_mean",
    "target": 0.5,
    "relative": False,
    "value": 1.2,
    "otherwise": 0.8,
}
CONFIG = RunConfig(loss=LOSSES, tempered=TemperedConfig(groups_per_step=1), advantage={"kind": "dr_grpo"})
REWARD = st.sampled_from([None, 0.0, 1.0, 0.5, -1.0])


@pytest.mark.parametrize("name", TEMPERED_CHECKS)
def test_numbers_by_hand(name: str) -> None:
    for check in TEMPERED_CHECKS[name]:
        check()


def test_what_counts_by_hand() -> None:
    """Policy rewards 0 1: advantages of half, 1/6 each over six tokens. Tempered 1, 0, null, -1 and 1: the
    two ones are learned with an advantage of 1 and weigh 0.1/6 each; the policy's rows are as without them.
    """
    index = make_index([(0, "policy", (0.0, 1.0)), (1, "tempered", (1.0, 0.0, None, -1.0, 1.0))])
    learnable = with_advantages(collate(index, CONFIG), pa.table({}), bind(CONFIG), 0)
    assert learnable.advantage_N.tolist() == [-0.5, 0.5, 1.0, 0.0, 0.0, 0.0, 1.0]
    weights = [1 / 6, 1 / 6, 0.1 / 6, 0, 0, 0, 0.1 / 6]
    assert learnable.row_weight_N == pytest.approx(weights)


@given(
    st.lists(st.lists(REWARD, min_size=1, max_size=3), max_size=4),
    st.lists(st.lists(REWARD, min_size=1, max_size=3), min_size=1, max_size=3),
    st.sampled_from(["keep", "drop"]),
)
def test_weights_are_those_of_a_plain_loop(
    own: list[list[float | None]], tempered: list[list[float | None]], zero_variance_groups: str
) -> None:
    """In any order of rows: 0.1 over the tokens of learned rows, never NaN; other rows do not change."""
    config = replace(CONFIG, rollout=RolloutConfig(zero_variance_groups=zero_variance_groups))
    groups = [(number, "policy", rewards) for number, rewards in enumerate(own)]
    more = [(len(own) + number, "tempered", rewards) for number, rewards in enumerate(tempered)]
    index = make_index([*groups, *more])
    order = np.random.default_rng(len(index)).permutation(len(index))
    batch = collate(index.take(order), config)
    found = with_advantages(batch, pa.table({}), bind(config), 0)
    count = sum(reward is not None and reward > 0 for rewards in tempered for reward in rewards)
    expected = [
        (0.1 / (3 * count), 1.0) if reward is not None and reward > 0 else (0.0, 0.0)
        for rewards in tempered
        for reward in rewards
    ]
    start = sum(map(len, own))
    back = np.argsort(order)
    mine = np.stack([found.row_weight_N, found.advantage_N], axis=1)[back]
    assert mine[start:] == pytest.approx(np.array(expected))
    if own:
        alone = with_advantages(collate(make_index(groups), config), pa.table({}), bind(config), 0)
        assert mine[:start] == pytest.approx(np.stack([alone.row_weight_N, alone.advantage_N], axis=1))


def test_tempered_groups_are_spread_over_the_updates() -> None:
    """Four groups and two tempered ones over two updates: two and one each."""
    config = replace(CONFIG, learner=LearnerConfig(updates_per_step=2))
    groups = [(number, "policy" if number < 4 else "tempered", (1.0, 0.0)) for number in range(6)]
    assert collate(make_index(groups), config).update_N[::2].tolist() == [0, 0, 1, 1, 0, 1]


def expected_loss(logits: torch.Tensor, sampled_at: float, scored_at: float) -> torch.Tensor:
    """The mean nll of one token over all tokens, weighted by their probabilities at `sampled_at`."""
    drawn = torch.softmax(logits.detach() / sampled_at, 0)
    logprobs = torch.log_softmax(logits / scored_at, 0)
    blank = torch.zeros_like(logprobs)
    inputs = LossInputs(
        policy_logprobs=logprobs,
        entropy=blank,
        proximal_logprobs=blank,
        behavior_logprobs=blank,
        advantages=blank,
        rows=torch.zeros(len(logprobs), dtype=torch.long),
        token_ids=torch.arange(len(logprobs)),
        positions=torch.zeros(len(logprobs), dtype=torch.long),
        prepared={},
    )
    return (drawn * nll(inputs, NllOptions())).sum()


def entropy(logits: torch.Tensor) -> float:
    logprobs = torch.log_softmax(logits, 0)
    return float(-(logprobs.exp() * logprobs).sum())


def test_the_pull_is_towards_the_distribution_that_sampled() -> None:
    """Scored at the training temperature the gradient is pi - pi_T, by finite differences too: a small step
    raises the entropy if T is above it and lowers it below. Scored at T itself there is no gradient."""
    start = torch.tensor([2.0, 0.5, -1.0, 0.0], dtype=torch.float64, requires_grad=True)
    for sampled_at, sign in ((1.2, 1.0), (0.8, -1.0)):
        (gradient,) = torch.autograd.grad(expected_loss(start, sampled_at, 1.0), start)
        by_hand = torch.softmax(start, 0) - torch.softmax(start / sampled_at, 0)
        assert torch.allclose(gradient, by_hand.detach(), atol=1e-12)
        for place in range(4):
            shift = torch.zeros(4, dtype=torch.float64)
            shift[place] = 1e-5
            # the sampler stays as it is
            drawn = torch.softmax(start.detach() / sampled_at, 0)
            up, down = (
                -(drawn * torch.log_softmax(start.detach() + way * shift, 0)).sum() for way in (1, -1)
            )
            assert float((up - down) / 2e-5) == pytest.approx(float(gradient[place]), abs=1e-8)
        moved = start.detach() - 0.01 * gradient
        assert sign * (entropy(moved) - entropy(start.detach())) > 1e-6
        (none,) = torch.autograd.grad(expected_loss(start, sampled_at, sampled_at), start)
        assert torch.allclose(none, torch.zeros_like(none), atol=1e-12)


def test_rows_are_scored_at_the_training_temperature() -> None:
    """Sampled at 0.7; scored at 1.5 if tempered and that is the training temperature, else as sampled."""
    group = make_group(0, (make_sample("a", 2), make_sample("b", 1)))
    plain, tempered = (group_to_batch(each, "run") for each in (group, as_tempered(group)))
    assert tempered.column("origin").to_pylist() == ["tempered"] * 2
    assert read_rows(tempered, 1.5).temperature_N.tolist() == [1.5, 1.5]
    assert read_rows(plain, 1.5).temperature_N.tolist() == pytest.approx([0.7, 0.7])
    assert read_rows(tempered).temperature_N.tolist() == pytest.approx([0.7, 0.7])
    assert as_replay(tempered, 3).num_rows == 0 and as_replay(plain, 3).num_rows == 2


def test_replay_picks_the_steps_own_groups() -> None:
    """Two groups and a tempered one a step: of a step's three submissions the last is never picked."""
    config = RunConfig(
        rollout=RolloutConfig(groups_per_step=2),
        replay=ReplayConfig(groups_per_step=4),
        tempered=TemperedConfig(groups_per_step=1),
    )
    picks = choose(config, 2)
    assert [(pick.step, pick.submission_index) for pick in picks] == [(1, 0), (1, 1), (2, 3), (2, 4)]


def tempered_trial(folder: Path, attempt: int = 1) -> Trial:
    return Trial(folder, attempt=attempt, heat=HEAT, scorer=TokenScorer())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A run that is not interrupted."""
    trial = tempered_trial(tmp_path_factory.mktemp("whole") / "run")
    assert trial.train()
    return trial


def test_the_loop_samples_at_what_the_controller_says(whole: Trial) -> None:
    """Two groups of the policy at 1.0 and a tempered one a step, with the prompt of the first: at 1.2 after a
    step of low entropy, else at 0.8.
    """
    expected, seen = result_of(whole), set()
    for step, (table, line) in enumerate(zip(expected.steps, expected.metrics, strict=True)):
        low = step > 0 and cast(float, expected.metrics[step - 1]["entropy/token_mean"]) < 0.5
        heat = 1.2 if low else 0.8
        seen.add(heat)
        assert line["control/tempered.temperature"] == heat
        names = ("submission_index", "origin", "temperature", "reward", "advantage", "update_count")
        rows = table.select([*names, "prompt_id"]).to_pylist()
        own, other = ([row for row in rows if row["origin"] == origin] for origin in ("policy", "tempered"))
        assert {row["submission_index"] for row in own} == {3 * step, 3 * step + 1}
        assert {row["submission_index"] for row in other} == {3 * step + 2}
        assert {row["temperature"] for row in own} == {1.0} and {row["temperature"] for row in other} == {
            heat
        }
        assert {row["prompt_id"] for row in other} == {own[0]["prompt_id"]}
        for row in other:
            assert (row["advantage"], row["update_count"]) == (
                float(row["reward"] > 0),
                int(row["reward"] > 0),
            )
        assert line["reward/mean"] == np.mean([row["reward"] for row in own])
        assert line["tempered/reward_mean"] == np.mean([row["reward"] for row in other])
    assert seen == {0.8, 1.2}, "this seed has steps of both kinds"
    assert all("tempered.temperature" not in learned.settings for learned in whole.learner.learned)
    assert {group.column("origin")[0].as_py() for group in saved_groups(whole.folder)} == {"policy"}


@pytest.mark.parametrize("part", parts(29))
def test_killed_at_every_call(whole: Trial, tmp_path: Path, part: int) -> None:
    """Bit for bit the same, whichever call is the last of the first process."""
    expected = result_of(whole)
    for fatal, name in list(enumerate(whole.calls))[part::29]:
        trial = tempered_trial(tmp_path / str(fatal))
        trial.kill_at(fatal, before=fatal % 2 == 0)
        with pytest.raises(Killed):
            trial.train()
        again = tempered_trial(tmp_path / str(fatal), attempt=2)
        assert again.train()
        assert result_of(again) == expected, f"killed at call {fatal}, {name}"


NLL = "loss.tempered={kind: nll, weight: 0.1}"
TWO = "tempered.groups_per_step=2"
MOVED = "controllers.heat={kind: threshold, setting: tempered.temperature, relative: false"


@pytest.mark.parametrize(
    ("overrides", "key", "rule"),
    [
        ([NLL], "loss.tempered", "must have rows: tempered.groups_per_step is 0"),
        ([f"{MOVED}}}"], "controllers.heat", "must have rows to sample"),
        ([TWO], "tempered.groups_per_step", "must have a loss to train with: loss.tempered"),
        (
            [TWO, "loss.tempered={kind: ppo_clip}"],
            "loss.tempered.kind",
            "must be nll: rows are sampled at",
        ),
        ([NLL, "tempered.groups_per_step=99"], "tempered.groups_per_step", "must not be above"),
        ([NLL, "tempered.groups_per_step=-1"], "tempered.groups_per_step", "must not be negative"),
        ([NLL, TWO, "rollout.max_lag=1"], "tempered.groups_per_step", "must be 0 with rollout.max_lag"),
        (
            [NLL, TWO, "rollout.zero_variance_groups=refill"],
            "tempered.groups_per_step",
            "must be 0 with rollout.zero",
        ),
        ([NLL, TWO, "tempered.temperature=1.0"], "tempered.temperature", "must be another than rollout"),
        ([NLL, TWO, "tempered.temperature=0"], "tempered.temperature", "must be above 0"),
        (
            [NLL, TWO, f"{MOVED}, otherwise: 0}}"],
            "controllers.heat.otherwise",
            "as it is a value of tempered",
        ),
    ],
)
def test_what_is_refused(overrides: list[str], key: str, rule: str) -> None:
    check_refused(overrides, key, rule)


def test_half_a_training_is_refused(tmp_path: Path) -> None:
    """Both --rollout-only and --train-only, before anything starts."""
    config = load_config("debug", [f"runs_dir={tmp_path}", NLL, TWO])
    for job, half in ((Job(rollouts_of=tmp_path), "--train-only"), (Job(learns=False), "--rollout-only")):
        with pytest.raises(ValueError, match=f"tempered.groups_per_step must be 0 with {half}, got 2"):
            train(config, StepReporter(1, StringIO()), job)
    assert not any(tmp_path.iterdir())
