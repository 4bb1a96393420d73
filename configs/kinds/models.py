"""Frozen models by name: what an entry of `models` says. Scorers and refiners name the models that they use.

A frozen model is served by actors of the run (`actors.model_server`), and its weights never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from configs.errors import Broken
from configs.fields import NOT_EMPTY, NOT_NEGATIVE, NOTHING, POSITIVE, SHARE, one_of, option
from configs.kinds.base import Options
from configs.kinds.judges import URL, VARIABLE

GENERATE: Final = "generate"
CLASSIFY: Final = "classify"
EMBED: Final = "embed"
RESERVED: Final = frozenset({"policy"})
"""Names that no frozen model may have."""


def example(task: str, name: str = "") -> str:
    """An override that gives a model of the task, for messages."""
    usual = {CLASSIFY: "rm", EMBED: "embedder", GENERATE: "judge"}
    return f"models={{{name or usual[task]}: {{path: ..., task: {task}}}}}"


@dataclass
class ModelOptions(Options):
    """A frozen model and the processes that serve it.

    A scorer or a refiner that uses it names it in one of its options, such as `model: judge`. Each replica is
    a vLLM engine in its own process. Its CPUs and GPUs are in addition to those of engines and learner.
    """

    path: str = option("", NOT_EMPTY)
    """Hugging Face folder or name, searched as `model.path`: config.json, safetensors, tokenizer."""
    task: str = option(GENERATE, one_of(GENERATE, CLASSIFY, EMBED))
    """generate (text), classify (logits of a sequence classifier, reward models and cross-encoders among
    them) or embed (one vector per text)."""
    backend: str = option("vllm", one_of("vllm", "transformers"))
    """transformers runs classifiers that vLLM does not have (`AutoModelForSequenceClassification`)."""
    dtype: str = option("fp32", one_of("fp32", "bf16"))
    """Compute type: fp32 or bf16."""
    max_model_len: int = option(0, NOT_NEGATIVE)
    """Longest input, with its generated text, in tokens; 0 takes the model's own limit."""
    pooling: str = option("auto", one_of("auto", "mean", "cls", "last"))
    """Of embedders: how a text's vector is made of those of its tokens; auto does as the folder says."""
    trust_remote_code: bool = option(False)
    """Let transformers and vLLM run the Python code that is in the model folder."""
    replicas: int = option(1, POSITIVE, NOTHING)
    """Processes that serve the model. Requests go to the one with the fewest in flight."""
    num_gpus: float = option(0.0, NOT_NEGATIVE, NOTHING)
    """GPUs of each replica: 0 (it runs on CPUs), a share such as 0.25, or a whole number (above 1 with tensor
    parallelism)."""
    num_cpus: float = option(0.0, NOT_NEGATIVE, NOTHING)
    """CPUs that each replica asks the cluster for, and its threads; 0 reserves none, with one thread."""
    max_num_seqs: int = option(64, POSITIVE, NOTHING)
    """Sequences that a replica computes at the same time; further requests wait."""
    gpu_memory_utilization: float = option(0.0, SHARE, NOTHING)
    """On GPUs: share of a GPU's memory that a replica may use; 0 takes `num_gpus`, at most 0.9."""
    kv_cache_bytes: int = option(268_435_456, POSITIVE, NOTHING)
    """On CPUs: bytes of a replica's KV cache."""
    endpoint: str = option("", URL, NOTHING)
    """Base URL of an OpenAI-compatible server, such as http://127.0.0.1:8900/v1, that has the model under the
    name `path`. The run then starts no process for it, and has `max_num_seqs` calls at a time under way."""
    api_key: str = option("", VARIABLE, NOTHING)
    """Environment variable with the endpoint's key. A scorer that names the model has it among `secrets`."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request to the endpoint, such as {max_completion_tokens: 2000}."""

    def check(self) -> Iterator[Broken]:
        if self.num_gpus > 1 and self.num_gpus % 1:
            yield "num_gpus", "must be a share of one GPU or a whole number of them"
        # vLLM takes its share of the memory at the start, whatever else is on the GPU.
        if self.num_gpus < 1 and self.gpu_memory_utilization > self.num_gpus:
            yield (
                "gpu_memory_utilization",
                f"must be at most num_gpus ({self.num_gpus:g}), its share",
            )
        if self.backend == "transformers" and self.task != CLASSIFY:
            yield "backend", f"must be vllm with task {self.task}: transformers serves classifiers only"
        if self.backend == "transformers" and self.num_gpus > 1:
            yield "num_gpus", "must be at most 1 with backend transformers"
        if self.endpoint and self.task != GENERATE:
            yield "task", "must be generate with `endpoint`"
        if self.endpoint and (self.num_gpus or self.num_cpus or self.replicas > 1):
            yield "endpoint", "must be empty for a model with replicas, CPUs or GPUs of the run"
        if (self.api_key or self.extra) and not self.endpoint:
            yield "endpoint", "must be set with api_key or extra, which are for endpoints"
        if self.pooling != "auto" and self.task != EMBED:
            yield "pooling", f"must be auto with task {self.task}: only embedders pool"
