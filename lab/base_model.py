"""The lab's model: a small Qwen3 with an untied output head, with weights drawn from a seed.

The head is untied because an engine on CPU keeps a tied head at its old weights after a weight update.

Inputs: a `ModelShape`. Outputs: `Qwen3ForCausalLM` and its folder. Called by `lab.pretrain` and the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lab.tokenizer import make_tokenizer
from trainer.model.checkpoint_format import CPU_HEAD_SIZES


@dataclass
class ModelShape:
    """The transformer's sizes and the seed of its first weights."""

    seed: int = 0
    hidden_size: int = 128
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 256
    max_length: int = 128
    """Longest sequence in tokens, prompt included."""
    rope_theta: float = 10000.0
    init_std: float = 0.02


def check_shape(shape: ModelShape) -> None:
    """Check that layers and engines support the sizes.

    Raises:
        ValueError: they do not; the message has the key, the value and the rule.
    """
    if shape.head_dim not in CPU_HEAD_SIZES:
        raise ValueError(
            f"model.head_dim must be one of {', '.join(map(str, CPU_HEAD_SIZES))}, got {shape.head_dim}"
        )
    if shape.num_kv_heads < 1 or shape.num_heads % shape.num_kv_heads:
        raise ValueError(
            f"model.num_heads must be a multiple of num_kv_heads {shape.num_kv_heads}, got {shape.num_heads}"
        )
    sizes = {
        "hidden_size": shape.hidden_size,
        "num_layers": shape.num_layers,
        "num_heads": shape.num_heads,
        "intermediate_size": shape.intermediate_size,
        "max_length": shape.max_length,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"model.{name} must be 1 or more, got {size}")


def model_config(shape: ModelShape, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """The architecture, with the vocabulary and special tokens of `tokenizer`."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        initializer_range=shape.init_std,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )


def make_model(shape: ModelShape, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A new fp32 model; the weights depend on seed and shape only. Does not use torch's global generator.

    Raises:
        ValueError: see `check_shape`.
    """
    check_shape(shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        model = Qwen3ForCausalLM(model_config(shape, tokenizer))
    # Without it engines take defaults of their own, which truncate the distribution for some models.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


def save_base(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write config, generation config, model.safetensors, tokenizer and chat template into `folder`."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_base(shape: ModelShape, folder: Path, with_critiques: bool = False) -> None:
    """Write a new model and its tokenizer as a Hugging Face folder, to start pretraining and tests from."""
    tokenizer = make_tokenizer(with_critiques)
    save_base(make_model(shape, tokenizer), tokenizer, folder)
