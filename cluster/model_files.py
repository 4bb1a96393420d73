"""Where models are: folders or models of the hub, for the policy and for frozen models; and their checks.

Called by `cluster.job` and `cluster.checks` before anything starts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from cluster.run_directory import MODEL_FILES, models_digest
from configs.bound import BoundRun
from configs.kinds.models import ModelOptions
from configs.schema import ModelConfig
from trainer.model.checkpoint_format import check_cpu_attention

_MADE_BY: Final = {"runs/lab-reward-model": "polyphony lab train-reward-model makes it"}
"""Folders that presets name and a command makes."""


def used_models(run: BoundRun) -> Iterator[tuple[str, ModelOptions]]:
    """The frozen models of a run that some option names and that the run serves, with their names."""
    used = run.used_models()
    return ((name, options) for name, options in run.models.items() if name in used and not options.endpoint)


def used_endpoints(run: BoundRun) -> Iterator[tuple[str, ModelOptions]]:
    """The models that some option names and that a server outside of the run has, with their names."""
    used = run.used_models()
    return ((name, options) for name, options in run.models.items() if name in used and options.endpoint)


def local_models(run: BoundRun) -> BoundRun:
    """The run with absolute paths to the frozen models that some option names.

    Raises:
        ValueError: there is no such folder and no such model on the hub.
    """
    entries, config = dict(run.named["models"]), dict(run.config.models)
    for name, options in used_models(run):
        path = str(model_folder(options.path, f"models.{name}.path"))
        entries[name] = replace(entries[name], options=replace(options, path=path))
        config[name] = {**config[name], "path": path}
    run = replace(run, config=replace(run.config, models=config), named={**run.named, "models": entries})
    return _with_folders(run, {name: Path(options.path) for name, options in used_models(run)})


def model_ids(run: BoundRun) -> dict[str, str]:
    """What a model is, whatever its name: 16 hex digits of its files, or of its name at an endpoint."""
    served = {name: models_digest({"": Path(options.path)}) for name, options in used_models(run)}
    # As with a judge's own `endpoint`, the URL does not count: the same model may move.
    remote = {
        name: hashlib.sha256(options.path.encode()).hexdigest() for name, options in used_endpoints(run)
    }
    return {name: digest[:16] for name, digest in (served | remote).items()}


def _with_folders(run: BoundRun, folders: Mapping[str, Path]) -> BoundRun:
    """The run whose scorers know the folders of their models, and which models they are."""
    scorers, ids = {}, model_ids(run)
    for name, entry in run.scorers.items():
        try:
            known = entry.options.with_folders(folders).with_model_ids(ids)
            scorers[name] = replace(entry, options=known)
        except ValueError as error:
            raise ValueError(f"{entry.key}.{error}") from error
    return replace(run, named={**run.named, "scorers": scorers})


def check_models(run: BoundRun, device: str) -> None:
    """Check that the frozen models that some option names can run on a cluster with this device.

    Raises:
        ValueError: a model asks for GPUs where there are none, or for none where the engines need one, or its
            attention cannot be computed on CPUs; or the key of an endpoint is not set.
    """
    for name, options in used_models(run):
        key = f"models.{name}.num_gpus"
        if device == "cpu" and options.num_gpus:
            raise ValueError(f"{key} must be 0 on CPUs, got {options.num_gpus:g}")
        if options.backend == "transformers" or options.num_gpus:
            continue
        if device != "cpu":
            raise ValueError(f"{key} must be above 0 on GPUs, where vLLM cannot run on CPUs, got 0")
        try:
            check_cpu_attention(ModelConfig(path=options.path, trust_remote_code=options.trust_remote_code))
        except (ValueError, OSError, AttributeError, KeyError) as error:
            raise ValueError(f"models.{name}.path: {error}") from error
    for name, options in used_endpoints(run):
        if options.api_key and not os.environ.get(options.api_key):
            raise ValueError(
                f"models.{name}.api_key: environment variable {options.api_key} is not set: export it before "
                "the run"
            )


def model_folder(name: str, key: str) -> Path:
    """The folder of the model that the config calls `name` under `key`.

    A relative path is searched in the working directory, then beside the packages, then on the Hugging Face
    hub, from which a snapshot is downloaded.

    Raises:
        ValueError: there is no such folder and no such model on the hub.
    """
    packages = Path(__file__).resolve().parent.parent
    # A preset names the lab's models beside the packages, wherever the command is started.
    folders = [root / name for root in (Path.cwd(), packages)]
    path = next((folder.resolve() for folder in folders if (folder / "config.json").exists()), None)
    return _from_hub(name, folders[0], key) if path is None else path


def _is_path(name: str, folder: Path) -> bool:
    """Whether a missing `name` is a path: the hub is then not asked, which may take minutes to say no."""
    # A name on the hub is one word, or owner/name.
    parts = name.split("/")
    return (
        name.startswith(("/", ".", "~"))
        or len(parts) > 2
        or parts[0] == "runs"
        or (len(parts) == 2 and folder.parent.is_dir())
    )


def _from_hub(name: str, folder: Path, key: str) -> Path:
    """The folder of a snapshot of the hub's model `name`; `folder` is where it is not."""
    place = f"{key} = {name!r}"
    if folder.is_dir():
        raise ValueError(f"{place}: the folder has no config.json, so it is no Hugging Face model: {folder}")
    missing = f"{place}: no such folder in {Path.cwd()}"
    if _is_path(name, folder):
        how = _MADE_BY.get(name, "give the folder of a model, or owner/name of one on the hub")
        raise ValueError(f"{missing}: {how}")
    try:
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except LocalEntryNotFoundError as error:
        raise ValueError(f"{missing}, and the hub could not be reached") from error
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise ValueError(f"{missing}, and the hub has it neither: {' '.join(str(error).split())}") from error
