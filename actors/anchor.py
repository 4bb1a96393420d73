"""The frozen model of step 0 on a learner rank: base and reference logprobs. Used by `actors.learner`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from actors.deepspeed_engine import start_frozen
from configs.schema import RunConfig
from trainer.batch import Microbatch
from trainer.policy import load_policy


class Anchor:
    """One frozen copy, sharded under ZeRO-3; in host memory between uses if `learner.offload_anchor`."""

    def __init__(self, path: str, config: RunConfig, device: torch.device) -> None:
        model, learner = config.model, config.learner
        policy = load_policy(path, model.dtype, learner.logit_chunk_tokens, model.trust_remote_code)
        # ZeRO-3 offloads its shards itself; a whole copy is moved by us.
        self._moves = learner.offload_anchor and learner.zero_stage < 3
        self._device = device
        home = torch.device("cpu") if self._moves else device
        self._model = start_frozen(policy.to(home), learner.zero_stage, model.dtype, learner.offload_anchor)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Bring an offloaded copy to the device for as long as the block lasts."""
        if self._moves:
            self._model.to(self._device)
        yield
        if self._moves:
            self._model.to("cpu")

    def logprobs(self, batch: Microbatch) -> Tensor:
        """Logprobs [T] of the microbatch's completion tokens, at the rows' temperatures."""
        with torch.no_grad():
            return self._model(batch)[0]  # type: ignore[no-any-return]
