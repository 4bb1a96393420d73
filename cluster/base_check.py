"""The checks of a run that the base install can make, without torch, transformers and engines."""

from __future__ import annotations

from cluster.run_directory import check_claimable
from cluster.user_code import check_user_code
from configs.bound import bind
from configs.origins import SFT
from configs.schema import RunConfig
from configs.sources import NO_SOURCES, Provenance
from trainer.data.demonstrations import load_demonstrations
from trainer.data.prompts import check_fields, load_dataset


def check_without_engines(config: RunConfig, sources: Provenance = NO_SOURCES) -> str:
    """Check the run's folder and its data; returns a sentence with what was checked and what was not.

    Raises:
        ValueError: the folder cannot be claimed, or a scorer's code, a dataset or the demonstrations cannot
            be used. The message names the key, and the file of `sources` that set it.
    """
    try:
        return _check(config)
    except ValueError as error:
        raise ValueError(sources.name_in(str(error))) from error


def _check(config: RunConfig) -> str:
    run = bind(config)
    # The user's code in other sections may import torch, which is not installed here.
    check_user_code(run, lambda text: print(f"polyphony: {text}"), sections=("scorers.", "data."))
    check_claimable(config)
    train = load_dataset(run.single["data.train"])
    check_fields(run.refiner, train)
    counts = [f"{len(train)} training prompts"]
    if config.eval.every:
        counts.append(f"{len(load_dataset(run.single['data.eval']))} evaluation prompts")
    if SFT in run.losses:
        counts.append(f"{len(load_demonstrations(run.single['sft.data']))} demonstrations")
    usable = f"config, run folder and {', '.join(counts)} can be used"
    return f"{usable}; not checked: model, tokens and room on the disk"
