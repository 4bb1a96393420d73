"""Tiny random models in the layouts that folders from the hub have, each with the lab's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from lab.tokenizer import make_tokenizer

WEIGHTS = "model.safetensors"


def tiny_sizes(**changes: object) -> dict[str, object]:
    """Sizes that the engine's CPU attention runs, for any decoder's config."""
    tokenizer = make_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return sizes | changes


def save_model(config: PretrainedConfig, folder: Path) -> str:
    """A random model of that architecture, as `save_pretrained` of today writes it."""
    torch.manual_seed(2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def change_tensors(folder: str, changes: Mapping[str, Tensor | None]) -> None:
    """Write tensors of the folder anew; None takes one out."""
    path = Path(folder) / WEIGHTS
    tensors = load_file(path) | dict(changes)
    save_file({name: value for name, value in tensors.items() if value is not None}, path, {"format": "pt"})


def old_llama(folder: Path, tied: bool = False) -> str:
    """A Llama whose rotary frequencies are stored in each layer, as transformers did until 4.31."""
    path = save_model(LlamaConfig(**tiny_sizes(tie_word_embeddings=tied)), folder)
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, 32, 2) / 32)
    change_tensors(
        path, {f"model.layers.{k}.self_attn.rotary_emb.inv_freq": frequencies.clone() for k in range(2)}
    )
    return path


def qwen3_moe(folder: Path) -> str:
    """Four experts a layer: a tensor each on disk, one for all in memory."""
    sizes = tiny_sizes(moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2)
    return save_model(Qwen3MoeConfig(**sizes), folder)
