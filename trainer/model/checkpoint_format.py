"""The checkpoint format of published weights, and the check whether a model folder can be trained.

transformers may name and shape weights differently in memory than on disk: Qwen3-MoE has one tensor per
expert on disk and one per layer in memory. Engines and exports use the format on disk. The list of published
tensors follows from the architecture alone (`published_shapes`), so learner and engine compute the same list
without reading each other's files. A folder may hold more, such as buffers of old versions.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from configs.schema import ModelConfig
from trainer.model.stored_tensors import stored_shapes

ATTENTION: Final = "sdpa"
CPU_HEAD_SIZES: Final = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that the engine's CPU attention runs (vllm 0.32)."""
_OLD_BUFFERS: Final = r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$"
"""Stored by old versions of transformers; recomputed by all loaders."""
_LOGIT_CHANGES: Final = {
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "lm_head_multiplier": 1.0,
}
"""Config keys with which architectures change the logits after the head, and their neutral values."""


def to_checkpoint_format(model: PreTrainedModel, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights from the names and shapes in `model` to those in a model folder."""
    # Use all conversions of the architecture, not only those that loading this folder needed.
    model._weight_conversions = None  # type: ignore[assignment]
    return dict(revert_weight_conversion(model, dict(named)))


def load_checkpoint_format(model: PreTrainedModel, named: Mapping[str, Tensor]) -> None:
    """Load weights in the format of a model folder into `model`, on its device."""
    if not (named.keys() <= model.state_dict().keys()):
        loaded = type(model).from_pretrained(
            None, config=model.config, state_dict=dict(named), dtype=model.dtype
        )
        named = loaded.state_dict()
    # Not strict: buffers that are computed, such as rotary tables, are not in a folder.
    model.load_state_dict(named, strict=False)


def empty_model(model: ModelConfig) -> PreTrainedModel:
    """The architecture without weights (on torch's meta device), as the learner builds it.

    Raises:
        ValueError: transformers cannot build a causal language model from it.
    """
    try:
        config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(  # type: ignore[no-any-return]
                config, attn_implementation=ATTENTION, trust_remote_code=model.trust_remote_code
            )
    except Exception as error:  # a config of another architecture may raise anything
        raise ValueError(
            f"model.path must be a Hugging Face causal LM folder, got {model.path!r}: {error}"
        ) from error


def published_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a weight sync sends, by their names in `model`: parameters and persistent buffers.

    A tied head is part of the embedding and listed once. Buffers are not trained, but an engine may treat one
    as a weight (the bias with which DeepSeek's routers select experts).
    """
    yield from model.named_parameters()
    stored = model.state_dict(keep_vars=True).keys()
    yield from (
        (name, buffer)
        for name, buffer in model.named_buffers()
        if name in stored and buffer.is_floating_point()
    )


def published_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The shape of each published tensor, by its name in a model folder."""
    named = dict(published_tensors(model))
    return {name: tuple(tensor.shape) for name, tensor in to_checkpoint_format(model, named).items()}


def published_names(model: ModelConfig) -> frozenset[str]:
    """The names of the published tensors, as in a model folder.

    Raises:
        ValueError: see `empty_model`.
    """
    return frozenset(published_shapes(empty_model(model)))


@lru_cache(maxsize=8)
def check_model(path: str, trust_remote_code: bool) -> None:
    """Check that learner and engine can use a model folder, before either is started. Cached per folder.

    Raises:
        ValueError: they cannot; the message names the folder and the tensor, key or rule.
    """
    stored = stored_shapes(Path(path))
    model = empty_model(ModelConfig(path=path, trust_remote_code=trust_remote_code))
    _check_architecture(path, model)
    _check_tensors(path, model, stored)


def check_cpu_attention(model: ModelConfig) -> None:
    """Refuse a head size that an engine on CPU cannot run; one on a GPU can.

    Raises:
        ValueError: naming the folder and the sizes that it can run.
    """
    config = AutoConfig.from_pretrained(
        model.path, trust_remote_code=model.trust_remote_code
    ).get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        raise ValueError(f"{model.path}: the head size must be one of {sizes} on CPUs, got {size}")


def _check_architecture(path: str, model: PreTrainedModel) -> None:
    """Refuse architectures for which the learner would compute other logprobs than the engine."""
    config = model.config.get_text_config()
    name = type(model).__name__
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError(f"{path}: weights must not be quantized, got a quantization_config in config.json")
    for key, neutral in _LOGIT_CHANGES.items():
        if (value := getattr(config, key, neutral)) not in (None, neutral):
            raise ValueError(
                f"{path}: {name} cannot be trained: config.json changes the logits after the head ({key} = "
                f"{value}), which the learner does not support"
            )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        kind = "one with a bias" if isinstance(head, nn.Linear) else type(head).__name__
        raise ValueError(f"{path}: the output head of {name} must be a linear layer without bias, got {kind}")
    accepted = inspect.signature(model.base_model.forward).parameters
    if "position_ids" not in accepted:
        raise ValueError(f"{path}: {name} must accept position_ids, because rows are padded; it does not")


def _check_tensors(path: str, model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse folders with missing, unknown or misshapen tensors."""
    expected = published_shapes(model)
    missing = sorted(expected.keys() - stored.keys())
    if missing:
        raise ValueError(
            f"{path}: the safetensors files must hold {missing[0]} of {type(model).__name__}, and do not "
            f"({len(missing)} of {len(expected)} tensors missing); save_pretrained of the installed "
            "transformers writes a folder that has them"
        )
    unknown = [name for name in sorted(stored.keys() - expected.keys()) if not _is_redundant(model, name)]
    if unknown:
        raise ValueError(
            f"{path}: {type(model).__name__} has no place for the stored tensor {unknown[0]} "
            f"({len(unknown)} in all): the learner would ignore it, and the engine use it or fail to load"
        )
    for name, shape in expected.items():
        if stored[name] != shape:
            raise ValueError(
                f"{path}: {name} must have the shape {list(shape)} that config.json gives it, got "
                f"{list(stored[name])}"
            )


def _is_redundant(model: Any, name: str) -> bool:
    """Whether all loaders ignore the stored tensor: a tied head, an old buffer, a name the class ignores."""
    if name in (model.all_tied_weights_keys or {}) and model.config.get_text_config().tie_word_embeddings:
        return True
    patterns = {_OLD_BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ())}
    return any(re.search(pattern, name) for pattern in patterns)
