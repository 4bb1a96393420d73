"""Model folders from the hub: which can be trained, and the format of the published weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_folders import WEIGHTS, change_tensors, old_llama, qwen3_moe, save_model, tiny_sizes
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Glm4MoeConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    PhiConfig,
    ViTConfig,
    ViTModel,
)

from configs.schema import ModelConfig
from lab.tokenizer import make_tokenizer
from trainer.model.checkpoint_format import (
    check_cpu_attention,
    check_model,
    load_checkpoint_format,
    published_names,
    to_checkpoint_format,
)
from trainer.model.policy import load_policy
from trainer.model.stored_tensors import INDEX_FILE, weight_files
from trainer.weights.export import export_model


def gpt2(folder: Path) -> str:
    """Tied, with its head stored beside the embedding, and causal masks as old versions stored them."""
    path = save_model(GPT2Config(vocab_size=168, n_embd=64, n_layer=1, n_head=2, n_positions=64), folder)
    head = load_file(Path(path) / WEIGHTS)["transformer.wte.weight"]
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}
    change_tensors(path, {"lm_head.weight": head.clone(), **masks})
    return path


def glm4_moe(folder: Path) -> str:
    """Its routers choose experts by a bias that is a buffer in the learner and a parameter in the engine."""
    sizes = tiny_sizes(
        moe_intermediate_size=64, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=0
    )
    return save_model(Glm4MoeConfig(**sizes, n_group=1, topk_group=1), folder)


USABLE: dict[str, Callable[[Path], str]] = {
    "old llama": old_llama,
    "tied old llama": lambda folder: old_llama(folder, tied=True),
    "qwen3 moe": qwen3_moe,
    "glm4 moe": glm4_moe,
    "gpt2": gpt2,
}


@pytest.mark.parametrize("make", USABLE.values(), ids=list(USABLE))
def test_an_update_brings_what_a_folder_holds(tmp_path: Path, make: Callable[[Path], str]) -> None:
    """The learner's weights, converted, are the stored ones: names from config.json alone, values bitwise."""
    path = make(tmp_path / "model")
    check_model(path, False)
    stored = load_file(Path(path) / WEIGHTS)
    policy = load_policy(path, "fp32", 1024, False)
    found = to_checkpoint_format(policy.model, dict(policy.published_weights()))
    assert found.keys() == published_names(ModelConfig(path=path)) and found.keys() <= stored.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in found.items())
    for name in stored.keys() - found.keys():
        assert name == "lm_head.weight" or name.endswith(("inv_freq", "attn.bias"))


def test_the_routers_bias_is_part_of_an_update(tmp_path: Path) -> None:
    """Without it the engine's router would keep uninitialised memory."""
    names = published_names(ModelConfig(path=glm4_moe(tmp_path)))
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in names


def test_an_export_of_experts_is_a_folder_like_its_source(tmp_path: Path) -> None:
    """One tensor per expert, so that engines load it; transformers reads it back to the same weights."""
    path = qwen3_moe(tmp_path / "model")
    policy = load_policy(path, "fp32", 1024, False)
    for _, parameter in policy.named_weights():
        parameter.data.mul_(1.5)
    named = to_checkpoint_format(policy.model, dict(policy.published_weights()))
    export_model(tmp_path / "export", named, ModelConfig(path=path))
    check_model(str(tmp_path / "export"), False)
    again = load_policy(str(tmp_path / "export"), "fp32", 1024, False)
    for (name, one), (other_name, other) in zip(policy.named_weights(), again.named_weights(), strict=True):
        assert name == other_name and torch.equal(one, other)


def test_a_diagnosis_can_load_what_was_published(tmp_path: Path) -> None:
    """Experts are merged into one tensor again; a model without conversions keeps its names."""
    for make in (qwen3_moe, old_llama):
        path = make(tmp_path / make.__name__)
        policy = load_policy(path, "fp32", 1024, False)
        named = to_checkpoint_format(policy.model, dict(policy.published_weights()))
        doubled = {name: 2 * tensor.detach() for name, tensor in named.items()}
        before = {name: tensor.detach().clone() for name, tensor in policy.named_weights()}
        load_checkpoint_format(policy.model, doubled)
        assert all(torch.equal(2 * before[name], tensor) for name, tensor in policy.named_weights())


def refusal(path: str) -> str:
    with pytest.raises(ValueError) as caught:
        check_model(path, False)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lm_head.weight": None}, "must hold lm_head.weight of LlamaForCausalLM, and do not (1 of 21"),
        (
            {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)},
            "no place for the stored tensor model.lay",
        ),
        (
            {"model.mtp.0.weight": torch.zeros(2)},
            "no place for the stored tensor model.mtp.0.weight (1 in all)",
        ),
        (
            {"lm_head.weight": torch.zeros(9, 64)},
            "lm_head.weight must have the shape [{vocab}, 64] that config.json",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    """Missing (transformers would initialise them at random), unknown, or of another shape."""
    path = old_llama(tmp_path)
    change_tensors(path, changes)
    assert message.format(vocab=len(make_tokenizer())) in refusal(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Gemma2Config(**tiny_sizes(tie_word_embeddings=True)), "(final_logit_softcapping = 30.0)"),
        (PhiConfig(**tiny_sizes()), "the output head of PhiForCausalLM must be a linear layer without bias"),
        (MambaConfig(vocab_size=168, hidden_size=64, num_hidden_layers=1), "got '"),
    ],
)
def test_architectures_that_the_learner_gets_wrong_are_refused(
    tmp_path: Path, config: object, message: str
) -> None:
    """Logits changed after the head, a head with a bias, and a model without position_ids."""
    assert message in refusal(save_model(config, tmp_path))  # type: ignore[arg-type]


def test_what_is_no_language_model_or_quantized_is_refused(tmp_path: Path) -> None:
    """By config.json alone."""
    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "vit"
    )
    assert "must be a Hugging Face causal LM folder" in refusal(str(tmp_path / "vit"))
    path = old_llama(tmp_path / "llama")
    config = Path(path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"bits": 4}}))
    assert "must not be quantized" in refusal(path)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    """No weights at all, only pickles, a missing shard, a damaged index, a Git LFS pointer."""
    LlamaConfig(**tiny_sizes()).save_pretrained(tmp_path)
    assert refusal(str(tmp_path)).endswith(f"must hold {WEIGHTS} or {INDEX_FILE}, found neither")
    (tmp_path / "pytorch_model.bin").touch()
    assert "pytorch_model.bin must be converted first" in refusal(str(tmp_path))
    (tmp_path / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "one.safetensors"}}))
    assert "names one.safetensors, which is not in that folder (1 missing)" in refusal(str(tmp_path))
    (tmp_path / INDEX_FILE).write_text("[]")
    assert "must have metadata and weight_map" in refusal(str(tmp_path))
    (tmp_path / INDEX_FILE).unlink()
    (tmp_path / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "got one of 43 bytes that cannot be read" in refusal(str(tmp_path))


def test_only_the_files_of_the_index_count(tmp_path: Path) -> None:
    """Some models have a second copy of the weights in another layout."""
    path = Path(old_llama(tmp_path / "model"))
    tensors = load_file(path / WEIGHTS)
    (path / WEIGHTS).rename(path / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (path / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    save_file({"tok_embeddings.weight": torch.zeros(2)}, path / "consolidated.safetensors")
    save_file(tensors, path / WEIGHTS)
    assert "got both: the learner would read the first" in refusal(str(path))
    (path / WEIGHTS).unlink()
    assert [file.name for file in weight_files(path)] == ["model-00001-of-00001.safetensors"]
    check_model(str(path), False)
    assert AutoModelForCausalLM.from_pretrained(path).num_parameters() > 0


def test_a_head_size_that_cpus_cannot_run_is_refused(tmp_path: Path) -> None:
    """Said or computed; learner and GPUs take any."""
    check_cpu_attention(ModelConfig(path=old_llama(tmp_path / "usual")))
    cases: dict[str, dict[str, Any]] = {
        "said": {"head_dim": 16},
        "computed": {"head_dim": None, "num_attention_heads": 4},
    }
    for name, sizes in cases.items():
        path = save_model(LlamaConfig(**tiny_sizes(**sizes)), tmp_path / name)
        check_model(path, False)
        with pytest.raises(ValueError, match=r"the head size must be one of 32, 64, .* on CPUs, got 16"):
            check_cpu_attention(ModelConfig(path=path))
