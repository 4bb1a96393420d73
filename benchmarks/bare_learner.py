"""Baseline of learning: the loop one would write by hand with Hugging Face, autograd and DeepSpeed.

The same model, ZeRO stage, microbatches and forwards as a learner rank, but torch's own AdamW, plain
logits, no records and no metrics; its microbatches are tensors before the clock starts. In: overrides.json,
shard.arrow (the rows a rank fetched from the buffer) and update.json of its folder. Run by
`benchmarks.engines`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from actors.deepspeed_engine import engine_config, init_distributed
from actors.requests import RankPlace
from benchmarks.bare import Answer, read_config, serve
from configs.schema import ModelConfig
from trainer.model.batch_plan import Microbatch, build_microbatch
from trainer.model.policy import DTYPES
from trainer.model.rows import read_rows

CLIP = 0.2


class PlainPolicy(nn.Module):
    """`forward` gives logprobs of the completion tokens and, if asked, their entropies, [T] each."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(
            config.path, dtype=DTYPES[config.dtype], attn_implementation="sdpa"
        ).eval()

    def forward(self, batch: Microbatch, with_entropy: bool) -> tuple[Tensor, Tensor]:
        hidden_BTD = self.model.base_model(
            input_ids=batch.ids_BT,
            attention_mask=batch.attention_BT,
            position_ids=batch.positions_BT,
            use_cache=False,
        ).last_hidden_state
        hidden_TD = hidden_BTD[batch.source_rows_T, batch.source_positions_T]
        logits_TV = self.model.get_output_embeddings()(hidden_TD).float() / batch.tau_T[:, None]
        logp_TV = torch.log_softmax(logits_TV, dim=-1)
        logprobs = logp_TV.gather(1, batch.targets_T[:, None]).squeeze(1)
        entropy = -(logp_TV.exp() * logp_TV).sum(-1) if with_entropy else torch.zeros(0)
        return logprobs, entropy


@dataclass(frozen=True, slots=True)
class _Part:
    """One microbatch; `advantages` and `weights` are per completion token, [T]."""

    batch: Microbatch
    advantages: Tensor
    weights: Tensor


def read_parts(folder: Path) -> list[list[_Part]]:
    """The microbatches of each update, from the shard and update.json."""
    with pa.ipc.open_file(str(folder / "shard.arrow")) as reader:
        rows = read_rows(reader.get_batch(0))
    update = json.loads((folder / "update.json").read_text())

    def part(chosen: list[int]) -> _Part:
        counts = [len(rows.tokens[row]) for row in chosen]

        def spread(values: list[float]) -> Tensor:
            return torch.from_numpy(np.repeat([values[row] for row in chosen], counts).astype(np.float32))

        batch = build_microbatch(
            [rows.prompts[row] for row in chosen],
            [rows.tokens[row] for row in chosen],
            rows.temperature_N[chosen],
            torch.device("cpu"),
        )
        return _Part(batch, spread(update["advantages"]), spread(update["row_weights"]))

    return [[part(chosen) for chosen in micros] for micros in update["microbatches"]]


class BareLearner:
    """One rank. A round scores every microbatch under policy and anchor, then runs the step's updates."""

    def __init__(self, folder: Path) -> None:
        config = read_config(folder)
        # As many threads as a learner rank has, or the comparison would be of threads.
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        place = RankPlace(
            rank=0, world_size=1, rendezvous=f"file://{folder.resolve()}/bare", device="cpu", num_threads=1
        )
        init_distributed(place, config.cluster.call_timeout_s)
        policy, learner = PlainPolicy(config.model), config.learner
        optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=learner.lr,
            betas=tuple(learner.betas),
            eps=learner.eps,
            weight_decay=learner.weight_decay,
        )
        settings = engine_config(learner, config.model.dtype)
        self._engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
        self._anchor = PlainPolicy(config.model).requires_grad_(False) if learner.base_logprobs else None
        self._updates = read_parts(folder)

    def round(self) -> Answer:
        """Seconds of scoring and of updating."""
        began = time.perf_counter()
        proximal = [[self._score(part) for part in parts] for parts in self._updates]
        scored = time.perf_counter()
        for parts, before in zip(self._updates, proximal, strict=True):
            for part, logprobs in zip(parts, before, strict=True):
                self._backward(part, logprobs)
            self._engine.step()
        return {"score": scored - began, "update": time.perf_counter() - scored}

    @torch.no_grad()
    def _score(self, part: _Part) -> Tensor:
        logprobs, _ = self._engine(part.batch, True)
        if self._anchor is not None:
            self._anchor(part.batch, False)
        return logprobs  # type: ignore[no-any-return]

    def _backward(self, part: _Part, proximal: Tensor) -> None:
        logprobs, _ = self._engine(part.batch, False)
        ratio = (logprobs - proximal).exp()
        clipped = ratio.clamp(1.0 - CLIP, 1.0 + CLIP)
        surrogate = torch.minimum(ratio * part.advantages, clipped * part.advantages)
        # The weights have the division by tokens already, as in the learner.
        self._engine.backward(-(part.weights * surrogate).sum(), scale_wrt_gas=False)


if __name__ == "__main__":
    serve(BareLearner)
