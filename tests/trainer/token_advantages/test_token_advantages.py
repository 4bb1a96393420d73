"""Transforms by entropy, surprisal and sampler: by hand, against scalars, for any division, from a config."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import reference_token_advantages as papers
import token_advantage_cases as cases
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from loss_cases import loss_inputs
from token_advantage_cases import drifted

from configs.errors import ConfigError
from configs.kinds.base import load_target
from configs.kinds.losses import LOSSES, LossCommon, PpoClipOptions
from configs.kinds.token_advantages import (
    TOKEN_ADVANTAGES,
    EntropyAdvantageOptions,
    EntropyQuadrantsOptions,
    IcepopOptions,
    RejectionOptions,
    StareOptions,
    TisOptions,
    TopEntropyOptions,
)
from configs.load import load_config
from trainer.losses.batch_statistics import TokenTable
from trainer.losses.logprobs import TokenScores
from trainer.losses.per_token import LossInputs, TokenLoss
from trainer.objective import BoundLoss, Objective, TokenColumns, microbatch_loss
from trainer.token_advantages.entropy_transforms import (
    choose_surprising,
    entropy_advantage,
    entropy_quadrants,
    find_quantiles,
    select_entropy,
    stare,
    top_entropy,
)
from trainer.token_advantages.off_policy import icepop, rejection, tis
from trainer.token_advantages.transforms import BoundTransform, apply_transforms, prepare_transforms

torch.set_num_threads(1)
CHECKS = cases.ENTROPY_CHECKS | cases.OFF_POLICY_CHECKS | cases.LOGPROB_CHECKS
ADVANTAGE = st.just(0.0) | st.floats(-5, 5)
LOGPROB = st.floats(-8, 0)
TWO = "learner.updates_per_step=2"


@pytest.mark.parametrize("name", CHECKS)
def test_by_hand(name: str) -> None:
    for check in CHECKS[name]:
        check()


@given(st.lists(st.tuples(ADVANTAGE, LOGPROB, st.floats(0, 5)), max_size=12), st.floats(0.01, 0.5))
def test_entropy_shapes_against_scalars(tokens: list[tuple[float, float, float]], fraction: float) -> None:
    """Also: nothing is infinite or has a gradient, no sign changes, and an advantage of 0 stays 0."""
    advantages, logprobs, entropies = ([token[k] for token in tokens] for k in range(3))
    inputs = replace(
        loss_inputs(logprobs, logprobs, advantages), entropy=torch.tensor(entropies, dtype=torch.float64)
    )
    paid = entropy_advantage(inputs, EntropyAdvantageOptions(alpha=0.4, kappa=2.0))
    pairs = zip(advantages, entropies, strict=True)
    assert paid.tolist() == pytest.approx([papers.entropy_advantage(a, h, 0.4, 2.0) for a, h in pairs])

    few = TopEntropyOptions(fraction=fraction)
    chosen = select_entropy({"entropy": np.array(entropies)}, few).columns["kept"]
    kept = top_entropy(replace(inputs, prepared={"kept": torch.from_numpy(chosen)}), few)
    assert kept.advantages.tolist() == papers.top_entropy(advantages, entropies, fraction)

    options = EntropyQuadrantsOptions(strength=0.5, fraction=fraction)
    ends = find_quantiles({"policy_logprobs": np.array(logprobs)}, options).columns
    given_ends = {name: torch.from_numpy(values) for name, values in ends.items()}
    swung = entropy_quadrants(replace(inputs, prepared=given_ends), options)
    assert swung.advantages.tolist() == pytest.approx(
        papers.entropy_quadrants(advantages, logprobs, 0.5, fraction)
    )
    released = StareOptions(amplify=1.1, damp=0.9, share=fraction)
    given = {"policy_logprobs": np.array(logprobs), "advantage": np.array(advantages)}
    picked = {
        name: torch.from_numpy(each) for name, each in choose_surprising(given, released).columns.items()
    }
    weighed = stare(replace(inputs, prepared=picked), released)
    assert weighed.advantages.tolist() == pytest.approx(
        papers.stare(advantages, logprobs, 1.1, 0.9, fraction)
    )
    for found in (paid, kept.advantages, swung.advantages, weighed.advantages):
        assert found.isfinite().all() and not found.requires_grad
        assert (found * inputs.advantages >= 0).all() and not found[inputs.advantages == 0].any()


SEQUENCES = st.lists(
    st.lists(st.tuples(LOGPROB, LOGPROB, ADVANTAGE), min_size=1, max_size=4), min_size=1, max_size=4
)


@given(SEQUENCES)
def test_off_policy_shapes_against_scalars(sequences: list[list[tuple[float, float, float]]]) -> None:
    """Sequences of one to four tokens; tokens within a relative 1e-9 of a bound are left out."""
    tokens = [token for sequence in sequences for token in sequence]
    rows = [number for number, sequence in enumerate(sequences) for _ in sequence]
    proximal, behavior, advantages = ([token[k] for token in tokens] for k in range(3))
    means = [
        math.fsum(now - sampled for now, sampled, _ in sequence) / len(sequence) for sequence in sequences
    ]
    drifts = [now - sampled for now, sampled, _ in tokens]
    edges = [math.log(bound) for bound in (0.5, 5.0, 0.8, 1.25)]
    assume(all(abs(value - edge) > 1e-9 for value in (*means, *drifts) for edge in edges))
    inputs = replace(
        loss_inputs(proximal, proximal, advantages, rows),
        behavior_logprobs=torch.tensor(behavior, dtype=torch.float64),
    )
    found = tis(inputs, TisOptions())
    assert found.advantages.tolist() == pytest.approx([papers.tis(a, p, b, 2.0) for p, b, a in tokens])
    whole = tis(inputs, TisOptions(level="sequence"))
    by_row = [([p for p, _, _ in each], [b for _, b, _ in each]) for each in sequences]
    held = [papers.tis_sequence(a, *by_row[row], 2.0) for row, a in zip(rows, advantages, strict=True)]
    assert whole.advantages.tolist() == pytest.approx(held, rel=1e-6, abs=1e-7)
    popped = icepop(inputs, IcepopOptions())
    assert popped.advantages.tolist() == pytest.approx(
        [papers.icepop(a, p, b, 0.5, 5.0) for p, b, a in tokens]
    )
    rejected = rejection(inputs, RejectionOptions(low=0.8, high=1.25))
    wanted = [papers.is_rejected(*by_row[row], 0.8, 1.25) for row in rows]
    assert rejected.marks["dropped"].tolist() == wanted
    left = [0.0 if out else a for a, out in zip(advantages, wanted, strict=True)]
    assert rejected.advantages.tolist() == left


@pytest.mark.parametrize("shape", [tis, icepop, rejection])
def test_a_sampler_that_agrees_changes_nothing(shape: object) -> None:
    """Ratios of 1, and no tokens at all."""
    options = {tis: TisOptions(level="sequence"), icepop: IcepopOptions(), rejection: RejectionOptions()}
    for count in (0, 1, 3):
        inputs = drifted([1.0] * count, [2.0, -1.0, 0.0][:count], [0] * count)
        found = shape(inputs, options[shape])  # type: ignore[operator, index]
        assert found.advantages.tolist() == inputs.advantages.tolist()
        assert not any(mark.any() for mark in found.marks.values())


def test_where_an_advantage_raises_entropy() -> None:
    """The first-order claim behind `entropy_quadrants`, by finite differences of an entropy of four.

    A step dz = eta A (e_y - pi) changes H by eta A [pi_y (S_y - H) + c] with c = sum pi^2 (log pi + H) for
    every y alike, so that of two tokens the one with the higher pi (S - H) raises H more.
    """
    logits = torch.tensor([2.0, 1.0, 0.0, -1.5], dtype=torch.float64)

    def entropy(z: torch.Tensor) -> float:
        logp = z.log_softmax(0)
        return float(-(logp.exp() * logp).sum())

    logp = logits.log_softmax(0)
    p, h, eta = logp.exp(), entropy(logits), 1e-6
    common = (p * p * (logp + h)).sum()
    for token in range(4):
        for advantage in (1.0, -1.0):
            step = eta * advantage * (torch.eye(4, dtype=torch.float64)[token] - p)
            change = (entropy(logits + step) - entropy(logits - step)) / (2 * eta)
            predicted = advantage * (p[token] * (-logp[token] - h) + common)
            assert change == pytest.approx(predicted.item(), abs=1e-8)


SHAPED: dict[str, BoundTransform] = {
    "few": BoundTransform(kind=TOKEN_ADVANTAGES["top_entropy"], options=TopEntropyOptions(fraction=0.3)),
    "swing": BoundTransform(
        kind=TOKEN_ADVANTAGES["entropy_quadrants"], options=EntropyQuadrantsOptions(fraction=0.3)
    ),
}


def table(rows: list[tuple[str, list[tuple[int, int]]]]) -> TokenTable:
    """(sample_id, (entropy, surprisal) in tenths per token): few values, so that many are equal."""
    counts = [len(tokens) for _, tokens in rows]
    flat = np.array([token for _, tokens in rows for token in tokens], np.float32).reshape(-1, 2) / 10
    ones = np.ones(len(flat), np.float32)
    return {
        "sample_id": np.repeat(np.array([name for name, _ in rows], dtype=np.str_), counts),
        "position": np.array([k for count in counts for k in range(count)], np.int64),
        "token_ids": np.zeros(len(flat), np.int64),
        "origin": np.full(len(flat), "policy"),
        "weight": ones,
        "advantage": ones,
        "draw": ones,
        "entropy": flat[:, 0],
        "policy_entropy": flat[:, 0],
        "policy_logprobs": -flat[:, 1],
        "proximal_logprobs": -flat[:, 1],
        "behavior_logprobs": -flat[:, 1],
    }


Key = tuple[str, str, str, int]


def selections(shards: list[list[tuple[str, list[tuple[int, int]]]]]) -> set[Key]:
    """(transform, column, sample, position) of every True, each rank for its own tokens."""
    tables = [table(rows) for rows in shards]

    def gather(own: TokenTable) -> list[TokenTable]:
        return tables  # every token of these tables is learned

    found = set()
    for local in tables:
        keys = list(zip(local["sample_id"].tolist(), local["position"].tolist(), strict=True))
        for shape, prepared in prepare_transforms(local, SHAPED, gather).items():
            for column, values in prepared.columns.items():
                found |= {(shape, column, *key) for key, hit in zip(keys, values, strict=True) if hit}
    return found


TOKENS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8)


@given(
    st.lists(TOKENS, min_size=1, max_size=6),
    st.permutations(range(6)),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
)
def test_ranks_and_row_order_select_alike(
    samples: list[list[tuple[int, int]]], order: list[int], dealt: list[int]
) -> None:
    """One, two or three ranks (some without a row), rows in any order, many ties."""
    rows = [(f"g{number % 2}-{number}", tokens) for number, tokens in enumerate(samples)]
    moved = [rows[place] for place in order if place < len(rows)]
    wanted = selections([rows])
    for num_ranks in (1, 2, 3):
        shards: list[list[tuple[str, list[tuple[int, int]]]]] = [[] for _ in range(num_ranks)]
        for row, rank in zip(moved, dealt, strict=False):
            shards[rank % num_ranks].append(row)
        assert selections(shards) == wanted


def decoupled_objective(options: PpoClipOptions) -> Objective:
    loss = BoundLoss(common=LossCommon(kind="ppo_clip"), kind=LOSSES["ppo_clip"], options=options)
    shape = BoundTransform(kind=TOKEN_ADVANTAGES["tis"], options=TisOptions())
    return Objective(losses={"policy": loss}, anchors={}, transforms={"correct": shape})


@given(st.lists(st.tuples(LOGPROB, LOGPROB, LOGPROB, ADVANTAGE), min_size=1, max_size=4))
def test_ppo_clip_with_tis_is_the_decoupled_loss(tokens: list[tuple[float, float, float, float]]) -> None:
    """Value and gradient of -w min(r A, clip(r) A) as a mean over tokens, w held fixed, in the objective."""
    for policy, proximal, _, _ in tokens:
        for edge in (math.log(0.8), math.log(1.3)):  # at a corner of the clip there is no derivative
            assume(abs(policy - proximal - edge) > 1e-3)
        assume(abs(policy - proximal) > 1e-3)
    policy_T, proximal_T, behavior_T, advantages_T = torch.tensor(tokens, dtype=torch.float64).T
    logprobs, count = policy_T.clone().requires_grad_(), len(tokens)
    columns = TokenColumns(
        proximal_logprobs=proximal_T,
        behavior_logprobs=behavior_T,
        anchor_logprobs={},
        advantages=advantages_T,
        weights=torch.full((count,), 1.0 / count, dtype=torch.float64),
        rows=torch.arange(count),
        origins={"policy": torch.ones(count, dtype=torch.bool)},
        token_ids=torch.zeros(count, dtype=torch.long),
        positions=torch.zeros(count, dtype=torch.long),
        prepared={},
    )
    scores = TokenScores(logprobs, *[torch.zeros(count)] * 3)
    found = decoupled_objective(PpoClipOptions(clip_low=0.2, clip_high=0.3))
    total, sums = microbatch_loss(scores, columns, found)
    total.backward()

    def reference(moved: int = -1, by: float = 0.0) -> float:
        losses = [
            papers.decoupled(p + by * (k == moved), q, b, a, (0.2, 0.3), 2.0)
            for k, (p, q, b, a) in enumerate(tokens)
        ]
        return math.fsum(losses) / count

    assert total.item() == pytest.approx(reference(), rel=1e-9, abs=1e-9)
    assert logprobs.grad is not None
    for k in range(count):
        slope = (reference(k, 1e-6) - reference(k, -1e-6)) / 2e-6
        assert logprobs.grad[k].item() == pytest.approx(slope, rel=1e-4, abs=1e-4)
    truncated = sum(b < q - math.log(2.0) for _, q, b, _ in tokens)
    assert sums["mark/policy/token_advantage.correct/truncated"] == truncated


PROPORTIONAL = ("ppo_clip", "gspo", "cispo", "gppo", "ce_gppo", "clip_cov", "shaped", "advantage_nll")


def loss_of(kind: str, inputs: LossInputs) -> list[float]:
    """The loss per token under the kind's defaults, of ratios to the proximal policy."""
    options = LOSSES[kind].options()
    found = load_target(LOSSES[kind].target)(inputs, options)
    loss: torch.Tensor = found.loss if isinstance(found, TokenLoss) else found
    return loss.tolist()


@given(st.lists(st.tuples(LOGPROB, LOGPROB, ADVANTAGE), min_size=1, max_size=5), st.floats(0, 3))
def test_losses_in_proportion_to_the_advantage(
    tokens: list[tuple[float, float, float]], factor: float
) -> None:
    """loss(c A) = c loss(A): a weight on the advantage is one on the loss."""
    policy, old, advantages = ([token[k] for token in tokens] for k in range(3))
    chosen = {"selected": torch.arange(len(tokens)) % 2 == 1}
    plain = replace(loss_inputs(policy, old, advantages), prepared=chosen)
    scaled = replace(plain, advantages=factor * plain.advantages)
    for kind in PROPORTIONAL:
        wanted = [factor * loss for loss in loss_of(kind, plain)]
        assert loss_of(kind, scaled) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_kl_cov_is_not() -> None:
    """A penalty of beta |log pi - log pi_old| = 1 on a selected token stays when A is halved: -1/2 e + 1."""
    inputs = replace(loss_inputs([0.0], [-1.0], [1.0]), prepared={"selected": torch.tensor([True])})
    halved = replace(inputs, advantages=0.5 * inputs.advantages)
    assert loss_of("kl_cov", inputs) == pytest.approx([1 - math.e])
    assert loss_of("kl_cov", halved) == pytest.approx([1 - math.e / 2])
    # nll and sdpo use no advantage.
    assert set(LOSSES) == {*PROPORTIONAL, "kl_cov", "nll", "sdpo"}


def test_a_later_shape_sees_what_an_earlier_one_dropped() -> None:
    """A bonus in proportion to |A| adds nothing on tokens that icepop dropped; in the other order neither."""
    drop = BoundTransform(kind=TOKEN_ADVANTAGES["icepop"], options=IcepopOptions(weigh=False))
    pay = BoundTransform(kind=TOKEN_ADVANTAGES["entropy_advantage"], options=EntropyAdvantageOptions())
    inputs = replace(drifted([1.0, 6.0], [2.0, 2.0]), entropy=torch.tensor([5.0, 5.0], dtype=torch.float64))
    for shapes in ({"drop": drop, "pay": pay}, {"pay": pay, "drop": drop}):
        found, marks = apply_transforms(inputs, shapes, {})
        assert found.advantages.tolist() == [3.0, 0.0]
        assert marks["token_advantage.drop/dropped"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["token_advantage.a={kind: entropy_advantage, alpha: -1}"], "alpha .*must not be negative"),
        (["token_advantage.a={kind: entropy_advantage, kappa: 1}"], "must be above 1"),
        (["token_advantage.a={kind: top_entropy, fraction: 0}"], "must be above 0 and at most 1"),
        (["token_advantage.a={kind: entropy_quadrants, fraction: 0.6}"], "must be above 0 and at most 0.5"),
        (
            ["token_advantage.a={kind: stare, strength: 0.5, fraction: 0.2}"],
            "strength.*stare is now the released rule; the kind with this option is entropy_quadrants",
        ),
        (["token_advantage.a={kind: stare, amplify: 0.9}"], "must be at least 1"),
        (["token_advantage.a={kind: entropy_quadrants, strength: 1.5}"], "must be between 0 and 1"),
        (["token_advantage.a={kind: hicra}"], "path .*must not be empty"),
        (["token_advantage.a={kind: hicra, path: x.json, mask: both}"], "must be one of mined, random"),
        (["token_advantage.a={kind: hicra, path: x.json, alpha: 1}"], "must be at least 0 and below 1"),
        (["token_advantage.a={kind: tis, cap: 0.5}"], "must be at least 1"),
        (["token_advantage.a={kind: tis, level: row}"], "must be one of token, sequence"),
        (["token_advantage.a={kind: icepop, low: 2}"], "must be between 0 and 1"),
        (["token_advantage.a={kind: icepop, high: 0.5}"], "must be at least 1"),
        (["token_advantage.a={kind: rejection, high: 0.5}"], "must be at least 1"),
        (
            ["token_advantage.a={kind: tis}", "loss.policy.ratio_to=behavior"],
            "must not be tis with ratio_to: behavior",
        ),
        (
            ["token_advantage.a={kind: icepop}", "loss.policy.ratio_to=behavior"],
            "must not be icepop with ratio_to: behavior",
        ),
        (
            ["token_advantage.a={kind: tis}", "token_advantage.b={kind: icepop}"],
            "token_advantage.a weighs by proximal / behavior already",
        ),
        (
            ["token_advantage.a={kind: tis}", "loss.policy={kind: kl_cov}", TWO],
            "kl_cov pulls on tokens whatever",
        ),
        (
            ["token_advantage.a={kind: top_entropy}", "loss.policy={kind: kl_cov}", TWO],
            "kl_cov pulls on tokens",
        ),
        (["token_advantage.a={kind: tis}", "loss.policy={kind: nll}"], "nll does not"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        load_config("debug", overrides)


def test_what_works_together() -> None:
    """Masks beside one correction; a mask with ratios to the sampler; the bonus with kl_cov."""
    load_config("debug", ["token_advantage.a={kind: tis}", "token_advantage.b={kind: icepop, weigh: false}"])
    load_config("debug", ["token_advantage.a={kind: rejection}", "loss.policy.ratio_to=behavior"])
    load_config("debug", ["token_advantage.a={kind: entropy_quadrants}", "loss.policy={kind: kl_cov}", TWO])
