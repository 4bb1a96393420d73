"""What a driver has to do, and its inputs: the model's folder and the tokenized prompts.

In: a bound run. Out: the same with a local model folder, and tokenized prompts. Called by `cluster.checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from cluster.model_files import model_folder
from cluster.placement import Placement
from cluster.user_code import NO_CODE, UserCode
from configs.bound import BoundRun, started
from configs.schema import RunConfig
from rollouts.records import Prompt
from trainer.data.demonstrations import demonstration_rows
from trainer.data.encode import (
    FIXED_NOW,
    load_tokenizer,
    load_vocab_size,
    named_rows,
    prompt_ids,
    row_of,
    tells_the_time,
    text_encoder,
)
from trainer.data.prompts import TokenPrompt, load_dataset, tokenize_prompts
from trainer.model.checkpoint_format import check_model
from trainer.rollout.rollouter import NO_ENCODERS, Encoders
from trainer.token_advantages.transforms import start_transforms


class Reporter(Protocol):
    """Receives the progress of a run (`viewer.terminal.StepReporter`)."""

    def header(self, *, run_dir: Path, model: str, num_parameters: int = 0) -> None: ...

    def step(self, metrics: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...

    def phase(self, step: int, name: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to do: train. With `learns` false, only sample; with `rollouts_of`, only learn, from that run."""

    learns: bool = True
    rollouts_of: Path | None = None

    def describe(self) -> str:
        """The job in words. It is stored in `run.json`, so it must be the same for every attempt."""
        if self.rollouts_of is not None:
            return f"train only, on the rollouts of {self.rollouts_of.resolve()}"
        return "train" if self.learns else "rollouts only"


def check_job(config: RunConfig, job: Job) -> None:
    """Check that the config allows a job that only samples or only learns.

    Raises:
        ValueError: the config has settings that need both sampling and learning.
    """
    half = "--train-only" if job.rollouts_of is not None else "" if job.learns else "--rollout-only"
    if half == "--train-only" and config.rollout.zero_variance_groups == "refill":
        raise ValueError(
            f"rollout.zero_variance_groups must be keep or drop with {half}, got refill: nothing is sampled"
        )
    if half and (count := config.tempered.groups_per_step):
        raise ValueError(f"tempered.groups_per_step must be 0 with {half}, got {count}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Tokenized prompts to train on and to evaluate with, and demonstrations."""

    train: Sequence[TokenPrompt]
    held_out: Sequence[TokenPrompt]
    demonstrations: pa.RecordBatch
    encoders: Encoders = NO_ENCODERS
    """How text becomes token ids, for rollouters and refiners."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRun:
    """A run whose config, files and prompts were checked; whether the cluster has its `placement` is not.

    `given` is its config as the user gave it, `run` has a local model.
    """

    given: RunConfig
    run: BoundRun
    prompts: Prompts
    placement: Placement
    reporter: Reporter
    job: Job
    code: UserCode = NO_CODE

    @property
    def config(self) -> RunConfig:
        """The sections of `run`."""
        return self.run.config


def local_model(run: BoundRun) -> BoundRun:
    """The run with an absolute path to its model, and to the files named by its scorers and transforms.

    Raises:
        ValueError: there is no such folder and no such model on the hub, or a file that a transform or a
            scorer names cannot be used.
    """
    # Before the model is looked for: these files are local and checked in no time, a model may be downloaded.
    run = started(start_transforms(run), "scorers")
    model = run.config.model
    path = model_folder(model.path, "model.path")
    return replace(run, config=replace(run.config, model=replace(model, path=str(path))))


def load_prompts(run: BoundRun, note: Callable[[str], None]) -> Prompts:
    """Tokenized training and evaluation prompts, and demonstrations.

    Prompts longer than `rollout.max_prompt_tokens` are left out; a note has their number.

    Raises:
        ValueError: the model folder, a dataset, the demonstrations, the tokenizer or the chat template cannot
            be used.
    """
    config = run.config
    check_model(config.model.path, config.model.trust_remote_code)
    tokenizer, vocab_size = load_tokenizer(config.model), load_vocab_size(config.model)
    if tells_the_time(tokenizer):
        note(
            f"the chat template of {config.model.path} prints the date: prompts always have "
            f"{FIXED_NOW:%d %B %Y}, so that the run can resume on another day"
        )
    limit = config.rollout.max_prompt_tokens
    prompts: dict[str, list[TokenPrompt]] = {}
    for name in ("train", "eval"):
        # A run that never evaluates must not need a data set for it.
        if name == "eval" and config.eval.every == 0:
            prompts[name] = []
            continue
        key = f"data.{name}"
        dataset = load_dataset(run.single[key])
        prompts[name], too_long = tokenize_prompts(dataset, tokenizer, vocab_size, limit, key)
        if too_long:
            note(_too_long_note(key, too_long, len(dataset), limit))
    demonstrations = demonstration_rows(run, tokenizer, vocab_size, note)
    return Prompts(
        train=prompts["train"],
        held_out=prompts["eval"],
        demonstrations=demonstrations,
        encoders=Encoders(
            text=text_encoder(tokenizer),
            prompt=lambda prompt: prompt_ids(prompt, tokenizer, vocab_size),
            end_ids=() if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),),
        ),
    )


def _too_long_note(key: str, too_long: Sequence[Prompt], num_prompts: int, limit: int) -> str:
    is_, was, them = ("is", "was", "it") if len(too_long) == 1 else ("are", "were", "them")
    rows = named_rows([row_of(prompt) for prompt in too_long])
    return (
        f"{key}: {len(too_long)} of {num_prompts} prompts {is_} longer than "
        f"rollout.max_prompt_tokens = {limit} and {was} left out ({rows}); raise it to keep {them}"
    )
