"""The format in which weights leave the learner, and whether a model folder can be trained at all.

transformers may hold a model's weights otherwise than a folder does: Qwen3-MoE has one tensor per expert on
disk and all experts of a layer in one in memory. Engines and exports take the folder's format. Which tensors
an update must bring follows from the architecture alone (`published_shapes`), so learner and engine come to
the same list without reading each other's files; a folder may hold more, such as buffers of old versions.
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
"""Config keys by which architectures change the logits after the head, and the value that changes nothing."""


def to_checkpoint_format(model: PreTrainedModel, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `model` by its own names, renamed and reshaped to what a model folder holds."""
    # The conversions of the architecture, not those that the files at hand happened to need.
    model._weight_conversions = None  # type: ignore[assignment]
    return dict(revert_weight_conversion(model, dict(named)))


def load_checkpoint_format(model: PreTrainedModel, named: Mapping[str, Tensor]) -> None:
    """Write weights in a folder's format into `model`, on its own device."""
    if not (named.keys() <= model.state_dict().keys()):
        loaded = type(model).from_pretrained(
            None, config=model.config, state_dict=dict(named), dtype=model.dtype
        )
        named = loaded.state_dict()
    model.load_state_dict(named, strict=False)


def empty_model(model: ModelConfig) -> PreTrainedModel:
    """The architecture without weights (on torch's meta device), as the learner builds it.

    Raises:
        ValueError: it is no causal language model that transformers knows.
    """
    try:
        config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(  # type: ignore[no-any-return]
                config, attn_implementation=ATTENTION, trust_remote_code=model.trust_remote_code
            )
    except Exception as error:  # whatever a config of another architecture or with odd sizes runs into
        raise ValueError(
            f"model.path must be a Hugging Face causal LM folder, got {model.path!r}: {error}"
        ) from error


def published_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What an update brings, by the model's own names: parameters, and buffers that a folder holds.

    A tied head is part of the embedding and listed once. Buffers are not trained, but an engine may keep one
    beside weights that an update replaces (the bias by which DeepSeek's routers choose experts).
    """
    yield from model.named_parameters()
    stored = model.state_dict(keep_vars=True).keys()
    yield from (
        (name, buffer)
        for name, buffer in model.named_buffers()
        if name in stored and buffer.is_floating_point()
    )


def published_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of an update, by its name in a folder."""
    named = dict(published_tensors(model))
    return {name: tuple(tensor.shape) for name, tensor in to_checkpoint_format(model, named).items()}


def published_names(model: ModelConfig) -> frozenset[str]:
    """Names of the tensors of an update.

    Raises:
        ValueError: see `empty_model`.
    """
    return frozenset(published_shapes(empty_model(model)))


@lru_cache(maxsize=8)
def check_model(path: str, trust_remote_code: bool) -> None:
    """Refuse a model folder that learner or engine could not work with, before either is started.

    Raises:
        ValueError: naming the folder and the tensor, key or rule.
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
    config = model.config.get_text_config()
    name = type(model).__name__
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError(f"{path}: weights must not be quantized, got a quantization_config in config.json")
    for key, neutral in _LOGIT_CHANGES.items():
        if (value := getattr(config, key, neutral)) not in (None, neutral):
            raise ValueError(
                f"{path}: {name} cannot be trained: config.json changes the logits after the head ({key} = "
                f"{value}), and the learner computes them without"
            )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        found = "one with a bias" if isinstance(head, nn.Linear) else type(head).__name__
        raise ValueError(
            f"{path}: the output head of {name} must be a linear layer without bias, got {found}"
        )
    accepted = inspect.signature(model.base_model.forward).parameters
    if "position_ids" not in accepted:
        raise ValueError(f"{path}: {name} must take position_ids, because rows are padded; it does not")


def _check_tensors(path: str, model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]]) -> None:
    wanted = published_shapes(model)
    missing = sorted(wanted.keys() - stored.keys())
    if missing:
        raise ValueError(
            f"{path}: the safetensors files must hold {missing[0]} of {type(model).__name__}, and do not "
            f"({len(missing)} of {len(wanted)} tensors missing); save_pretrained of the installed "
            "transformers writes a folder that has them"
        )
    alien = [name for name in sorted(stored.keys() - wanted.keys()) if not _is_redundant(model, name)]
    if alien:
        raise ValueError(
            f"{path}: {type(model).__name__} has no place for the stored tensor {alien[0]} "
            f"({len(alien)} such): the learner would drop it, and the engine use it or refuse the folder"
        )
    for name, shape in wanted.items():
        if stored[name] != shape:
            raise ValueError(
                f"{path}: {name} must have the shape {list(shape)} that config.json gives it, got "
                f"{list(stored[name])}"
            )


def _is_redundant(model: Any, name: str) -> bool:
    """Whether no loader needs the stored tensor: a tied head, a buffer, or what the class says to ignore."""
    if name in (model.all_tied_weights_keys or {}) and model.config.get_text_config().tie_word_embeddings:
        return True
    patterns = {_OLD_BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ())}
    return any(re.search(pattern, name) for pattern in patterns)
