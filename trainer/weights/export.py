"""Export of a policy as a Hugging Face folder that `AutoModelForCausalLM` and vLLM load."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from configs.schema import ModelConfig
from rollouts.files import fsync_dir, fsync_file, rename_dir_synced


def export_model(folder: Path, state: dict[str, Tensor], model: ModelConfig) -> None:
    """Write config, safetensors, tokenizer with chat template and generation config to `folder`, atomically.

    `state` are weights in checkpoint format; an existing folder is replaced.
    """
    staging = folder.with_name(folder.name + ".partial")
    # Left over from an export that was interrupted.
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code).save_pretrained(staging)
    AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code).save_pretrained(
        staging
    )
    if (Path(model.path) / "generation_config.json").exists():
        GenerationConfig.from_pretrained(model.path).save_pretrained(staging)
    # transformers requires the metadata "format".
    weights = staging / "model.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, weights, metadata={"format": "pt"}
    )
    # The files must be on disk before the rename, or a power cut could leave a folder of empty files.
    for written in staging.iterdir():
        fsync_file(written)
    fsync_dir(staging)
    if folder.exists():
        shutil.rmtree(folder)
    rename_dir_synced(staging, folder)
