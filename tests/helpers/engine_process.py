"""What tests of real engines share: a small model, an engine in a Ray process, submissions, a learner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import ray
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from cluster.actor_process import Blueprint, ProcessSetup, host_environment
from cluster.role_proxies import Engines
from cluster.spawn import RayHandle, spawn_ray
from cluster.supervise import Supervised
from configs.schema import RunConfig
from lab.base_model import save_base
from lab.tokenizer import make_tokenizer
from rollouts.records import Completion, Prompt, Sampling, Submission
from trainer.model.checkpoint_format import to_checkpoint_format
from trainer.model.policy import PolicyModel, load_policy
from trainer.step_records import Probe
from trainer.weights.diagnose import explain_mismatch, probe_logprobs
from trainer.weights.packed import PackedWeights, pack_weights

PROMPT = Prompt(prompt_id="p", messages=(), answer=None, domain="test")
PROBES = tuple(
    Probe(token_ids=tuple(int(t) for t in np.random.default_rng(k).integers(8, 100, 20))) for k in range(8)
)


@contextmanager
def private_cluster() -> Iterator[None]:
    """A Ray of two cores, for a module's engines."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        namespace="engines",
    )
    try:
        yield
    finally:
        ray.shutdown()


def small_base(folder: Path, tied: bool) -> str:
    """A random 3-layer model with the lab's tokenizer."""
    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer) + (-len(tokenizer)) % 8,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=128,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
    )
    save_base(Qwen3ForCausalLM(config), tokenizer, folder)
    return str(folder)


def engine_config(path: str, max_tokens: int = 32) -> RunConfig:
    """A run's config with room for prompts of 64 tokens and 64 completions at once."""
    config = RunConfig()
    return replace(
        config,
        model=replace(config.model, path=path),
        rollout=replace(config.rollout, max_prompt_tokens=64, max_tokens=max_tokens),
        generator=replace(config.generator, max_num_seqs=64, kv_cache_bytes=64 * 2**20),
    )


def start_engine(config: RunConfig, log: Path, target: str = "actors.generator:GeneratorActor") -> RayHandle:
    """Start an engine of class `target`; it is up when `ready` answers."""
    setup = ProcessSetup(label="generator", log_file=str(log), environment=host_environment(1, "cpu"))
    blueprint = Blueprint(target=target, arguments=(config, "cpu"))
    return spawn_ray(setup, blueprint, num_cpus=0.5, num_gpus=0, group=None, bundle=-1, limit_s=180.0)


def submission_of(index: int, length: int, seeds: Sequence[int], max_tokens: int = 24) -> Submission:
    """Submission `index` of a random prompt of `length` tokens."""
    rng = np.random.default_rng(index)
    return Submission(
        submission_index=index,
        group_id=f"g{index}",
        prompt=PROMPT,
        prompt_ids=tuple(int(token) for token in rng.integers(8, 100, length)),
        seeds=tuple(seeds),
        sampling=Sampling(temperature=0.9, top_p=1.0, max_tokens=max_tokens),
    )


async def generate(handle: RayHandle, submissions: Sequence[Submission]) -> list[list[Completion]]:
    """The completions of each submission, all given at once."""
    engines = Engines([cast(Supervised, handle)])  # which calls it alike
    return list(await asyncio.gather(*(engines.generate(submission) for submission in submissions)))


class OwnLearner:
    """The learner's side of a publish, in this process; `spoil` is a fault on the way."""

    def __init__(self, path: str) -> None:
        self.policy: PolicyModel = load_policy(path, "fp32", 1024, False)
        self.spoil: Callable[[PackedWeights], PackedWeights] = lambda weights: weights
        self.last: PackedWeights | None = None

    def learn(self) -> None:
        """Move all weights a little."""
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for _, parameter in self.policy.named_weights():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 2e-3)

    async def publish(self, version: int) -> object:
        named = to_checkpoint_format(self.policy.model, dict(self.policy.published_weights()))
        self.last = pack_weights(version, named.items())
        return self.spoil(self.last)

    async def probe(self, probes: Sequence[Probe]) -> np.ndarray:
        return probe_logprobs(self.policy, probes, torch.device("cpu"))

    async def explain(
        self, probes: Sequence[Probe], observed: np.ndarray, current: object, previous: PackedWeights | None
    ) -> str:
        assert self.last is not None
        fresh = PolicyModel(type(self.policy.model)(self.policy.model.config), 1024)
        return explain_mismatch(fresh, probes, observed, self.last, previous)
