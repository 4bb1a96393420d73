"""What the learner's tests feed it: rows of very different lengths, cuts of a batch, a loss that observes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from plain_reference import ADAM_EPS
from rank_process import LIMIT_S, RankProcess, build_all
from safetensors.torch import load_file
from torch import Tensor

from actors.buffer import _index_of
from actors.requests import RankPlace
from cluster.actor_process import Blueprint
from cluster.role_proxies import BufferProxy, LearnerGroup
from cluster.supervise import Limits
from configs.bound import BoundRun, bind
from configs.kinds.base import Kind, Options
from configs.schema import KLConfig, LearnerConfig, ModelConfig, RunConfig
from lab.base_model import ModelShape, make_base
from rollouts.records import Completion, Group, Prompt, Sample, Sampling, Submission
from rollouts.schema import group_to_batch, to_batch, validate
from trainer.collate import align, collate, with_advantages
from trainer.losses.per_token import LossInputs
from trainer.model.batch_plan import deal_rows
from trainer.step_records import Batch, BatchPlan, Learnable
from trainer.weights.packed import PackedWeights, unpack_weights

GROUP_SIZES = (4, 4, 3, 3, 3)
LENGTHS = (8, 40, 17, 23, 11, 31, 9, 26, 38, 12, 20, 29, 8, 35, 14, 40, 10)
"""Completion tokens of the 17 rows: a prime number of them, fivefold between shortest and longest."""
NULL_ROWS = frozenset({3, 9, 16})
MASKED_ROW, MASKED_TOKENS = 5, slice(2, 9)
NUM_UPDATES = 3
VOCABULARY = 40
TOP = "learner_cases:learn_top"
LR, WEIGHT_DECAY, MAX_GRAD_NORM = 1.0e-3, 0.1, 0.5


def make_group(step: int, number: int, rng: np.random.Generator) -> Group:
    """Group `number` of a step: random tokens and rewards, some of them null, at temperature 1 or 0.7."""
    first = sum(GROUP_SIZES[:number])
    samples = []
    for row in range(first, first + GROUP_SIZES[number]):
        num_tokens = LENGTHS[row]
        completion = Completion(
            sample_id=f"step{step}-row{row}",
            seed=row,
            token_ids=tuple(rng.integers(0, VOCABULARY, num_tokens).tolist()),
            text="",
            finish_reason="stop",
            behavior_logprobs=tuple((-rng.random(num_tokens)).tolist()),
            versions=((0, 0),),
        )
        reward = None if row in NULL_ROWS else float(rng.normal() + num_tokens / 20)
        sample = Sample(
            completion=completion,
            origin="policy",
            scores={},
            score_status={},
            tags={},
            spans=(),
            answer=None,
            answer_ok=None,
            reward_vector=(),
            reward=reward,
        )
        samples.append(sample)
    submission = Submission(
        submission_index=step * len(GROUP_SIZES) + number,
        group_id=f"step{step}-group{number}",
        prompt=Prompt(prompt_id=f"p{number}", messages=(), answer=None, domain="test"),
        prompt_ids=tuple(rng.integers(0, VOCABULARY, 3 + 2 * number).tolist()),
        seeds=(0,) * GROUP_SIZES[number],
        sampling=Sampling(temperature=(1.0, 0.7)[number % 2], top_p=1.0, max_tokens=40),
    )
    return Group(submission=submission, samples=tuple(samples))


def make_rows(step: int) -> pa.RecordBatch:
    """The 17 rows of a step; one of them has tokens of the environment in it, which are not learned."""
    rng = np.random.default_rng(step)
    groups = [group_to_batch(make_group(step, number, rng), "run") for number in range(len(GROUP_SIZES))]
    rows = to_batch(pa.Table.from_batches(groups))
    masks = [list(mask) for mask in rows.column("loss_mask").to_pylist()]
    behavior = [list(values) for values in rows.column("behavior_logprobs").to_pylist()]
    width = MASKED_TOKENS.stop - MASKED_TOKENS.start
    masks[MASKED_ROW][MASKED_TOKENS] = [False] * width
    behavior[MASKED_ROW][MASKED_TOKENS] = [None] * width
    for name, values in {"loss_mask": masks, "behavior_logprobs": behavior}.items():
        place, field = rows.schema.get_field_index(name), rows.schema.field(name)
        rows = rows.set_column(place, field, pa.array(values, field.type))
    validate(rows)
    return rows


def with_policy_loss(run: BoundRun, kind: Kind, options: Options) -> BoundRun:
    """The run with another kind as the loss of origin policy, and no other loss."""
    entry = replace(run.losses["policy"], kind=kind, options=options)
    return replace(run, named={**run.named, "loss": {"policy": entry}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to run a batch. `rows_per_microbatch` 0 leaves the cut to `microbatch_tokens`."""

    stage: int
    num_ranks: int
    rows_per_microbatch: int = 0
    microbatch_tokens: int = 120
    updates_per_step: int = 1
    kl_coef: float = 0.0
    origin: str = "policy"
    kind: str = "ppo_clip"
    aggregate: str = "token_mean"
    dtype: str = "fp32"
    kl_base_coef: float = 0.0
    base_logprobs: bool = False
    offload_anchor: bool = False

    def config(self, base: Path) -> RunConfig:
        """As a run has it; the warm-up over the three steps gives each a learning rate of its own."""
        learner = LearnerConfig(
            num_ranks=self.num_ranks,
            zero_stage=self.stage,
            lr=LR,
            warmup_steps=NUM_UPDATES,
            weight_decay=WEIGHT_DECAY,
            eps=ADAM_EPS,
            max_grad_norm=MAX_GRAD_NORM,
            updates_per_step=self.updates_per_step,
            microbatch_tokens=self.microbatch_tokens,
            logit_chunk_tokens=32,
            base_logprobs=self.base_logprobs,
            offload_anchor=self.offload_anchor,
        )
        return RunConfig(
            model=ModelConfig(path=str(base), dtype=self.dtype),
            learner=learner,
            loss={self.origin: {"kind": self.kind, "aggregate": self.aggregate}},
            kl=KLConfig(coef=self.kl_coef),
            kl_base=KLConfig(coef=self.kl_base_coef),
        )

    def bound(self, config: RunConfig) -> BoundRun:
        """The bound config; `learn_top` with its `prepare`."""
        run = bind(config)
        if self.kind == TOP:
            kind = Kind(TopOptions, TOP, prepare="learner_cases:select_top")
            run = with_policy_loss(run, kind, TopOptions())
        return run

    def cut(self, batch: Batch, lengths_N: np.ndarray) -> Batch:
        """The batch under this case's plan."""
        if not self.rows_per_microbatch:
            return batch
        per_rank: list[list[tuple[tuple[int, ...], ...]]] = [[] for _ in range(self.num_ranks)]
        for update in range(self.updates_per_step):
            rows = [int(row) for row in np.flatnonzero(batch.update_N == update)]
            hands = deal_rows(rows, lengths_N, self.num_ranks)
            size = self.rows_per_microbatch
            cuts = [[tuple(hand[at : at + size]) for at in range(0, len(hand), size)] for hand in hands]
            most = max(len(cut) for cut in cuts)
            for rank, cut in enumerate(cuts):
                per_rank[rank].append(tuple(cut + [()] * (most - len(cut))))
        return replace(batch, plan=BatchPlan(microbatches=tuple(tuple(updates) for updates in per_rank)))


class Shards(BufferProxy):
    """A buffer of one step's rows."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._rows = rows

    async def shard(self, rows: Sequence[int]) -> object:
        return self._rows.take(pa.array(rows, pa.int64()))


def ignore(kind: str, actor: str, **fields: str | float) -> None:
    """Events go nowhere: these ranks are not watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The processes of one group of ranks, and where they meet."""

    handles: tuple[RankProcess, ...]
    port: int

    def build(self, case: Case, base: Path, target: str = "actors.learner:LearnerRank") -> RunConfig:
        """Make every process a learner rank of this case."""
        config = case.config(base)
        blueprints = []
        for rank in range(case.num_ranks):
            place = RankPlace(
                rank=rank,
                world_size=case.num_ranks,
                rendezvous=f"tcp://127.0.0.1:{self.port}",
                device="cpu",
                num_threads=1,
            )
            arguments = (case.bound(config), place)
            blueprints.append(Blueprint(target=target, arguments=arguments))
        asyncio.run(build_all(self.handles, blueprints))
        return config

    def ask_each(self, method: str, arguments: Sequence[tuple[object, ...]]) -> list[Any]:
        """The answers of all ranks, asked at once, each with arguments of its own."""

        async def gather() -> list[object]:
            pairs = zip(self.handles, arguments, strict=True)
            return list(await asyncio.gather(*(handle.call(method, *own) for handle, own in pairs)))

        return asyncio.run(gather())

    def ask(self, method: str, *arguments: object) -> list[Any]:
        """The same for all ranks."""
        return self.ask_each(method, [arguments] * len(self.handles))

    def weights(self) -> dict[str, Tensor]:
        """Rank 0's published weights; the other ranks publish none."""
        first, *others = self.ask("publish", 1)
        assert isinstance(first, PackedWeights) and not any(others)
        return dict(unpack_weights(first))

    def group(self, rows: pa.RecordBatch) -> LearnerGroup:
        """The ranks as the loop sees them; `rows` are the buffer's."""
        limits = Limits(max_restarts=0, backoff_s=0.0, hang_s=LIMIT_S, ready_s=LIMIT_S)
        return LearnerGroup(lambda: self.handles, Shards(rows), limits, ignore)

    def score(self, case: Case, config: RunConfig, rows: pa.RecordBatch) -> tuple[Batch, pa.Table]:
        """The batch as the case cuts it, and the learner's columns in the rows' order."""
        index = _index_of(rows)
        lengths = index.column("num_prompt_tokens").to_numpy() + index.column("num_tokens").to_numpy()
        batch = case.cut(collate(index, config), lengths)
        columns = asyncio.run(self.group(rows).compute_logprobs(batch))
        return batch, align(index, columns)

    def update(self, batch: Batch, learnable: Learnable) -> list[dict[str, float]]:
        """The step's updates on the rows last scored."""
        return asyncio.run(self.group(make_rows(0)).update(batch, learnable))

    def step(self, case: Case, config: RunConfig, rows: pa.RecordBatch, step: int) -> list[dict[str, float]]:
        """Score, advantages, update."""
        batch, columns = self.score(case, config, rows)
        return self.update(batch, with_advantages(batch, columns, bind(config), step))


@dataclass(frozen=True, slots=True, kw_only=True)
class Learners:
    """The two groups of ranks, and the model that every case starts from."""

    base: Path
    start: Mapping[str, Tensor]
    by_size: Mapping[int, Ranks]

    def ranks(self, case: Case) -> Ranks:
        """The processes that can run `case`."""
        return self.by_size[case.num_ranks]

    def stop(self) -> None:
        """End every process."""
        for ranks in self.by_size.values():
            for handle in ranks.handles:
                handle.kill()


def start_learners(folder: Path) -> Learners:
    """A base and the processes of one and of two ranks, which end with `stop`."""
    names = {1: ("solo",), 2: ("left", "right")}
    handles = {size: tuple(RankProcess(name, folder) for name in of) for size, of in names.items()}
    shape = ModelShape(
        hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=128, init_std=0.1
    )
    make_base(shape, folder / "base")
    by_size = {size: Ranks(handles=of, port=free_port()) for size, of in handles.items()}
    start = load_file(folder / "base" / "model.safetensors")
    return Learners(base=folder / "base", start=start, by_size=by_size)


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What training gave: one entry per update, and the weights after the last."""

    losses: np.ndarray
    norms: np.ndarray
    weights: Mapping[str, Tensor]


def reversed_rows(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows, last first."""
    return rows.take(pa.array(range(rows.num_rows - 1, -1, -1)))


def train(ranks: Ranks, case: Case, base: Path, reverse: bool = False) -> Outcome:
    """Three steps, each on rows of its own; `reverse` hands the rows over in the opposite order."""
    config = ranks.build(case, base)
    sums: list[dict[str, float]] = []
    for step in range(NUM_UPDATES):
        rows = reversed_rows(make_rows(step)) if reverse else make_rows(step)
        sums += ranks.step(case, config, rows, step)
    assert all(update["grad/applied"] == 1.0 for update in sums)
    return Outcome(
        losses=np.array([update["loss/total"] for update in sums]),
        norms=np.array([update["grad/norm"] for update in sums]),
        weights=ranks.weights(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far one outcome is from another."""

    loss: float
    norm: float
    weights_max: float
    update_l2: float
    """L2 distance of the weights over the L2 length of what training changed."""

    def __str__(self) -> str:
        return f"loss {self.loss:.1e} norm {self.norm:.1e} max {self.weights_max:.1e} l2 {self.update_l2:.1e}"

    def check(self) -> None:
        """Assert that only rounding lies between the two.

        Measured over all cases: loss 1e-6, norm 5e-7, weights 5e-7 (an update moves a weight by up to 1e-3),
        update 4e-6.
        """
        assert self.loss < 1e-5 and self.norm < 1e-5, self
        assert self.weights_max < 2e-6 and self.update_l2 < 2e-5, self


def distance(one: Outcome, other: Outcome, start: Mapping[str, Tensor]) -> Distance:
    """Largest relative differences of losses and norms, and two distances of the weights.

    GRPO advantages make some losses cancel to nothing: a loss below 0.1 is compared as if it were 0.1.
    """
    assert one.weights.keys() == other.weights.keys() == start.keys()

    def flat(weights: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([weights[name].double().reshape(-1) for name in sorted(start)])

    with torch.no_grad():
        gap, moved = flat(one.weights) - flat(other.weights), flat(other.weights) - flat(start)
    return Distance(
        loss=float((np.abs(one.losses - other.losses) / np.maximum(np.abs(other.losses), 0.1)).max()),
        norm=float(np.abs(one.norms / other.norms - 1).max()),
        weights_max=float(gap.abs().max()),
        update_l2=float(gap.norm() / moved.norm()),
    )


@dataclass
class TopOptions(Options):
    """Learn only the `count` tokens of highest entropy."""

    count: int = 23


SEEN: list[int] = []
"""Numbers of the tokens that `learn_top` was told to learn in this process since the last `take_seen`."""


def take_seen() -> list[int]:
    """Empty SEEN and return what was in it."""
    seen = SEEN.copy()
    SEEN.clear()
    return seen


def select_top(columns: Mapping[str, np.ndarray], options: TopOptions) -> dict[str, np.ndarray]:
    """Marks the tokens to learn; `number` and `logprob` let the loss see that its tokens are its own."""
    entropy = columns["entropy"]
    selected = np.zeros(len(entropy), np.float32)
    selected[np.argsort(-entropy, kind="stable")[: options.count]] = 1.0
    return {
        "selected": selected,
        "number": np.arange(len(entropy)),
        "logprob": columns["proximal_logprobs"],
    }


def learn_top(inputs: LossInputs, options: TopOptions) -> Tensor:
    """Minus the logprob of the selected tokens, weighted by their advantage."""
    assert torch.equal(inputs.prepared["logprob"], inputs.proximal_logprobs), "prepared columns went astray"
    SEEN.extend(inputs.prepared["number"][inputs.prepared["selected"] > 0].tolist())
    return -inputs.prepared["selected"] * inputs.advantages * inputs.policy_logprobs
