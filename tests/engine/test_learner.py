"""One learner rank and two, under every ZeRO stage: scores, skipped updates, batch statistics, weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from learner_cases import (
    GROUP_SIZES,
    LR,
    MAX_GRAD_NORM,
    NULL_ROWS,
    NUM_UPDATES,
    TOP,
    VOCABULARY,
    WEIGHT_DECAY,
    Case,
    Learners,
    Outcome,
    TopOptions,
    distance,
    make_rows,
    reversed_rows,
    train,
)
from matrices import quick_of
from plain_reference import Recipe, load_model, row_logprobs, train_plainly
from torch import Tensor
from transformers import Qwen3ForCausalLM

from actors.requests import RankUpdate
from configs.bound import bind
from lab.base_model import ModelShape, model_config, save_base
from lab.tokenizer import make_tokenizer
from rollouts.schema import sft_batch
from trainer.collate import with_advantages
from trainer.step_records import Probe

pytestmark = pytest.mark.engine

EVERY = list(product((0, 1, 2, 3), (1, 2)))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("stage", [0, 3])
def test_scores_are_the_models(learners: Learners, stage: int) -> None:
    """Logprobs at the row's temperature, entropies at both, and the base's, which updates leave alone."""
    case = Case(stage=stage, num_ranks=2, base_logprobs=True)
    ranks, rows = learners.ranks(case), reversed_rows(make_rows(1))
    config = ranks.build(case, learners.base)
    ranks.step(case, config, make_rows(0), NUM_UPDATES)
    _, columns = ranks.score(case, config, rows)
    base = load_model(learners.base)
    for row, found in zip(rows.to_pylist(), columns.to_pylist(), strict=True):
        assert found["sample_id"] == row["sample_id"]
        with torch.no_grad():
            expected = row_logprobs(base, row)
        assert found["base_logprobs"] == pytest.approx(expected.tolist(), abs=2e-6)
        assert found["ref_logprobs"] == found["base_logprobs"]
        moved = np.abs(np.array(found["proximal_logprobs"]) - np.array(found["base_logprobs"]))
        assert moved.max() > 1e-3
    state = ranks.weights()
    base.load_state_dict(state)
    row, found = rows.to_pylist()[0], columns.to_pylist()[0]
    with torch.no_grad():
        expected = row_logprobs(base, row)
        logits = base(torch.tensor([row["prompt_ids"] + row["token_ids"]])).logits[0]
    assert found["proximal_logprobs"] == pytest.approx(expected.tolist(), abs=2e-6)
    tempered = torch.distributions.Categorical(logits=logits / row["temperature"]).entropy()
    here = slice(len(row["prompt_ids"]) - 1, -1)
    assert found["entropy"] == pytest.approx(tempered[here].tolist(), abs=5e-6)
    at_one = torch.distributions.Categorical(logits=logits).entropy()[here]
    assert found["entropy_mean_t1"] == pytest.approx(float(at_one.mean()), abs=5e-6)


@pytest.mark.parametrize(
    ("stage", "num_ranks", "dtype"),
    quick_of(
        [(*place, "fp32") for place in EVERY] + [(stage, 2, "bf16") for stage in (0, 1, 2, 3)],
        [(0, 1, "fp32"), (2, 2, "fp32"), (1, 2, "bf16"), (3, 2, "bf16")],
    ),
)
def test_nonfinite_update_is_skipped(learners: Learners, stage: int, num_ranks: int, dtype: str) -> None:
    """A NaN on the last rank leaves weights and optimizer of all ranks alone, as the next update shows."""
    case = Case(stage=stage, num_ranks=num_ranks, dtype=dtype)
    ranks = learners.ranks(case)

    def run(with_bad_update: bool) -> dict[str, Tensor]:
        config = ranks.build(case, learners.base)
        ranks.step(case, config, make_rows(0), 0)
        if with_bad_update:
            before = ranks.weights()
            batch, columns = ranks.score(case, config, make_rows(1))
            learnable = with_advantages(batch, columns, bind(config), 1)
            advantages = learnable.advantage_N.copy()
            last = [row for row in batch.plan.rows_of(num_ranks - 1) if row not in NULL_ROWS]
            advantages[last[0]] = np.nan
            (sums,) = ranks.update(batch, replace(learnable, advantage_N=advantages))
            assert sums["grad/applied"] == 0.0 and np.isnan(sums["grad/norm"])
            assert_same(ranks.weights(), before)
        (sums,) = ranks.step(case, config, make_rows(2), 2)
        assert sums["grad/applied"] == 1.0 and np.isfinite(sums["grad/norm"])
        return ranks.weights()

    assert_same(run(with_bad_update=True), run(with_bad_update=False))


def top_tokens(rows: pa.RecordBatch, columns: pa.Table) -> set[int]:
    """Numbers, in order of (sample_id, position), of the learned tokens with the highest entropy."""
    tokens = []
    for row, found in zip(rows.to_pylist(), columns.to_pylist(), strict=True):
        for position, entropy in enumerate(found["entropy"]):
            if row["reward"] is not None and row["loss_mask"][position]:
                tokens.append((row["sample_id"], position, entropy))
    tokens.sort()
    ranked = sorted(range(len(tokens)), key=lambda number: -tokens[number][2])
    return set(ranked[: TopOptions().count])


CUTS = [(0, 1, 1), (1, 2, 2), (2, 1, 8), (3, 2, 1), (0, 2, 8), (3, 1, 2)]


@pytest.mark.parametrize(("stage", "num_ranks", "rows_per_microbatch"), quick_of(CUTS, [CUTS[1], CUTS[5]]))
def test_prepare_sees_the_whole_update(
    learners: Learners, stage: int, num_ranks: int, rows_per_microbatch: int
) -> None:
    """The top tokens of all rows on all ranks are learned, each once and on the rank that holds it."""
    case = Case(stage=stage, num_ranks=num_ranks, rows_per_microbatch=rows_per_microbatch, kind=TOP)
    ranks, rows = learners.ranks(case), make_rows(0)
    config = ranks.build(case, learners.base)
    batch, columns = ranks.score(case, config, rows)
    learnable = with_advantages(batch, columns, bind(config), 0)
    ranks.ask("learner_cases:take_seen")
    (sums,) = ranks.update(batch, learnable)
    seen = [number for numbers in ranks.ask("learner_cases:take_seen") for number in numbers]
    assert len(seen) == len(set(seen)) == TopOptions().count
    assert set(seen) == top_tokens(rows, columns)
    assert abs(sums["loss/total"] - top_loss(rows, columns)) < 1e-5


def top_loss(rows: pa.RecordBatch, columns: pa.Table) -> float:
    """-sum of A log p over the top tokens, over the number of learned tokens."""
    top, number, total, learned = top_tokens(rows, columns), 0, 0.0, 0
    pairs = list(zip(rows.to_pylist(), columns.to_pylist(), strict=True))
    for row, found in sorted(pairs, key=lambda pair: pair[0]["sample_id"]):
        rewards = [r["reward"] for r, _ in pairs if r["group_id"] == row["group_id"]]
        valid = np.array([reward for reward in rewards if reward is not None])
        learned += sum(row["loss_mask"]) if row["reward"] is not None else 0
        for position, logprob in enumerate(found["proximal_logprobs"]):
            if row["reward"] is None or not row["loss_mask"][position]:
                continue
            if number in top:
                total -= (row["reward"] - valid.mean()) / (valid.std(ddof=1) + 1e-6) * logprob
            number += 1
    return total / learned


@pytest.mark.parametrize(
    ("stage", "kind"),
    quick_of([(1, TOP), (3, TOP), (3, "ppo_clip"), (2, "ppo_clip")], [(1, TOP), (3, "ppo_clip")]),
)
def test_rank_without_rows_takes_part(learners: Learners, stage: int, kind: str) -> None:
    """A batch of a single row leaves one of two ranks without any; one rank alone agrees."""
    outcomes = []
    for num_ranks in (1, 2):
        case = Case(stage=stage, num_ranks=num_ranks, kind=kind)
        ranks, rows = learners.ranks(case), make_rows(0).take(pa.array([1]))
        config = ranks.build(case, learners.base)
        batch, columns = ranks.score(case, config, rows)
        learnable = with_advantages(batch, columns, bind(config), NUM_UPDATES)
        (sums,) = ranks.update(batch, replace(learnable, advantage_N=np.ones(1)))
        norms, losses = np.array([sums["grad/norm"]]), np.array([sums["loss/total"]])
        assert sums["grad/applied"] == 1.0 and sums["grad/norm"] > 0
        outcomes.append(Outcome(losses=losses, norms=norms, weights=ranks.weights()))
    found = distance(outcomes[1], outcomes[0], learners.start)
    found.check()


@pytest.mark.parametrize(("stage", "num_ranks"), quick_of(EVERY, [(0, 1), (1, 2), (2, 2), (3, 2)]))
def test_publishes_full_weights(learners: Learners, stage: int, num_ranks: int) -> None:
    """Every stage hands out whole tensors under their Hugging Face names; untouched, they are the file's."""
    case = Case(stage=stage, num_ranks=num_ranks)
    ranks = learners.ranks(case)
    ranks.build(case, learners.base)
    assert ranks.ask("ready") == [sum(tensor.numel() for tensor in learners.start.values())] * num_ranks
    names = [name for name, _ in load_model(learners.base).named_parameters()]
    assert_same(ranks.weights(), {name: learners.start[name] for name in names})


@pytest.mark.parametrize(
    ("stage", "num_ranks"), quick_of([(0, 1), (1, 2), (2, 2), (3, 1), (3, 2)], [(1, 2), (3, 2)])
)
def test_export_is_what_the_learner_scores(
    learners: Learners, stage: int, num_ranks: int, tmp_path: Path
) -> None:
    """The exported folder, loaded by transformers, gives the learner's logprobs; so does the probe."""
    case = Case(stage=stage, num_ranks=num_ranks)
    ranks = learners.ranks(case)
    config = ranks.build(case, learners.base)
    ranks.step(case, config, make_rows(0), NUM_UPDATES)
    rows = make_rows(1)
    _, columns = ranks.score(case, config, rows)
    ranks.ask("export", str(tmp_path / "model"))
    assert not list(tmp_path.glob("*.partial"))
    model = load_model(tmp_path / "model")
    assert_same(ranks.weights(), dict(model.named_parameters()))
    tuples = list(zip(rows.to_pylist(), columns.to_pylist(), strict=True))
    gap = 0.0
    with torch.no_grad():
        for row, found in tuples:
            expected = row_logprobs(model, row).numpy()
            gap = max(gap, np.abs(expected - found["proximal_logprobs"]).max(initial=0.0))
    assert gap < 2e-6, gap
    row, found = tuples[0]
    assert row["temperature"] == 1.0
    (probed, *_) = ranks.ask("probe", [Probe(token_ids=tuple(row["prompt_ids"] + row["token_ids"]))])
    assert isinstance(probed, np.ndarray)
    tail = probed[len(row["prompt_ids"]) - 1 :]
    assert tail.tolist() == pytest.approx(found["proximal_logprobs"], abs=2e-6)


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The learners's model with one matrix for embedding and output head."""
    folder, tokenizer = tmp_path_factory.mktemp("tied"), make_tokenizer()
    shape = ModelShape(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=128)
    config = model_config(shape, tokenizer)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    save_base(Qwen3ForCausalLM(config), tokenizer, folder)
    return folder


@pytest.mark.parametrize(
    ("stage", "num_ranks"), quick_of([(0, 2), (1, 1), (2, 2), (3, 1), (3, 2)], [(0, 2), (3, 1)])
)
def test_tied_head_learns_as_one(learners: Learners, tied_base: Path, stage: int, num_ranks: int) -> None:
    """A matrix used at both ends gets both gradients, and counts once in the norm and once in the names."""
    case = Case(stage=stage, num_ranks=num_ranks)
    outcome = train(learners.ranks(case), case, tied_base)
    recipe = Recipe(
        learning_rates=tuple(LR * (step + 1) / NUM_UPDATES for step in range(NUM_UPDATES)),
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        aggregate="token_mean",
        kl_coef=0.0,
        groups_of_update=(tuple(range(len(GROUP_SIZES))),),
    )
    trained = train_plainly(tied_base, [make_rows(step) for step in range(NUM_UPDATES)], recipe)
    expected = Outcome(
        losses=np.array(trained.losses), norms=np.array(trained.norms), weights=trained.weights
    )
    start = dict(load_model(tied_base).named_parameters())
    found = distance(outcome, expected, start)
    found.check()


def moved(weights: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """L2 length of what training changed, from the start as the weights' own dtype holds it."""
    gaps = [(weights[name].double() - start[name].to(weights[name].dtype).double()).norm() for name in start]
    return float(torch.stack(gaps).norm())


@pytest.mark.parametrize(
    ("stage", "num_ranks"), quick_of([(0, 1), (1, 1), (1, 2), (2, 2), (3, 2)], [(1, 1), (3, 2)])
)
def test_bf16_learns_nearly_the_same(learners: Learners, stage: int, num_ranks: int) -> None:
    """bf16 weights stay finite, and losses (-log p) and norms are within a few per cent of fp32's."""
    case = Case(stage=stage, num_ranks=num_ranks, dtype="bf16", kind="nll")
    low = train(learners.ranks(case), case, learners.base)
    exact = replace(case, dtype="fp32")
    high = train(learners.ranks(exact), exact, learners.base)
    assert all(tensor.dtype == torch.bfloat16 for tensor in low.weights.values())
    assert all(bool(tensor.isfinite().all()) for tensor in low.weights.values())
    # Also how far training went: an optimizer that starts with a step behind it would fall short.
    went = moved(low.weights, learners.start) / moved(high.weights, learners.start)
    print(low.losses / high.losses - 1, low.norms / high.norms - 1, went)
    assert went == pytest.approx(1.0, abs=0.05)
    assert np.abs(low.losses / high.losses - 1).max() < 0.05
    assert np.abs(low.norms / high.norms - 1).max() < 0.05


@pytest.mark.parametrize("stage", quick_of([1, 2, 3], [2]))
def test_bf16_gradients_add_up_whatever_the_cut(learners: Learners, stage: int) -> None:
    """One row at a time or all at once: gradients add up in fp32, so norms agree far below bf16's 0.4 %."""
    whole = Case(stage=stage, num_ranks=1, dtype="bf16", kind="nll", rows_per_microbatch=8)
    cut = replace(whole, rows_per_microbatch=1)
    one = train(learners.ranks(whole), whole, learners.base)
    other = train(learners.ranks(cut), cut, learners.base)
    print(np.abs(one.norms / other.norms - 1).max())
    assert np.abs(one.norms / other.norms - 1).max() < 2e-3


@pytest.mark.parametrize(("stage", "num_ranks"), [(1, 1), (3, 2)])
def test_learns_supervised_rows_without_scores(learners: Learners, stage: int, num_ranks: int) -> None:
    """Pretraining's way: rows of origin sft, no score before, and the loss is the mean of -log p."""
    case = Case(stage=stage, num_ranks=num_ranks, origin="sft", kind="nll")
    ranks = learners.ranks(case)
    ranks.build(case, learners.base)
    rng = np.random.default_rng(5)
    lengths = (4, 21, 9, 13, 6)
    rows = sft_batch(
        "run",
        prompt_ids=[[1, 2, 3]] * len(lengths),
        token_ids=[rng.integers(0, VOCABULARY, length).tolist() for length in lengths],
        text=[""] * len(lengths),
        domain=["test"] * len(lengths),
        format_tag=[None] * len(lengths),
    )
    requests = []
    for rank in range(num_ranks):
        shard = rows.take(pa.array(range(rank, len(lengths), num_ranks)))
        # The second rank has one row fewer, so its last microbatch is empty.
        cut = tuple((row,) if row < shard.num_rows else () for row in range(-(-len(lengths) // num_ranks)))
        update = RankUpdate(
            microbatches=(cut,),
            advantages_N=np.zeros(shard.num_rows),
            bonuses_N=np.zeros(shard.num_rows),
            row_weights_N=np.full(shard.num_rows, 1 / sum(lengths)),
            learning_rates=(LR,),
        )
        requests.append((shard, update))
    answers = ranks.ask_each("learn", requests)
    model = load_model(learners.base)
    with torch.no_grad():
        logprobs = torch.cat([row_logprobs(model, row) for row in rows.to_pylist()])
    loss = sum(answer[0]["loss/sft"] for answer in answers)
    assert loss == pytest.approx(-float(logprobs.mean()), rel=1e-5)
    assert [answer[0]["rank/applied"] for answer in answers] == [1.0] * num_ranks
