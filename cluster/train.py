"""A training run from config to finished run directory: prompts, placement, actors, the loop, export.

Called by the command line, which passes in where to tell about it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import traceback
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import ray
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from cluster.actors import Site, spawn_run
from cluster.connect import connect, pick_device
from cluster.placement import Placement, PlacementError, check, plan, reserve
from cluster.spawn import ActorCallError, Handle, wait_ready
from configs.entries import scorer_options
from configs.load import dump_yaml
from configs.schema import RunConfig
from rewards.combine import check_tags
from rollouts.files import write_bytes_atomic
from rollouts.store import check_run_free, create_run_dir
from trainer.evaluate import Evaluator
from trainer.loop import NonFiniteError, NoRewardError, Reports, Roles, Run
from trainer.prompts import PromptOrder, TokenPrompt, load_dataset, load_tokenizer, tokenize_prompts
from trainer.proof import WeightSyncError
from trainer.rollout import Producer

_TOLD = (WeightSyncError, NonFiniteError, NoRewardError, ActorCallError, TimeoutError, PlacementError)
"""Reasons to stop that are told by their message alone."""
_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


class Reporter(Protocol):
    """Where a run tells what it does (`viewer.terminal.StepReporter`)."""

    def header(self, *, run_dir: Path, model: str, num_parameters: int = 0) -> None: ...

    def step(self, metrics: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


class RunError(RuntimeError):
    """A run that had started was stopped; the message says why and where its folder is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: exit code 0, 130 (interrupted) or 143 (terminated), and its folder."""

    exit_code: int
    run_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompts:
    train: Sequence[TokenPrompt]
    held_out: Sequence[TokenPrompt]


def local_model(config: RunConfig) -> RunConfig:
    """The config with its model as an absolute folder: here, beside the packages, or a hub's local snapshot.

    Raises:
        ValueError: there is no such folder and no such model on the hub.
    """
    packages = Path(__file__).resolve().parent.parent
    folders = [root / config.model.path for root in (Path.cwd(), packages)]
    found = next((folder.resolve() for folder in folders if (folder / "config.json").exists()), None)
    if found is None and config.model.path.startswith(("/", ".", "~")):
        raise ValueError(
            f"model.path must be a Hugging Face folder or hub name, got {config.model.path!r}: "
            "there is no config.json in that folder"
        )
    if found is None:
        try:
            found = Path(snapshot_download(config.model.path, allow_patterns=_MODEL_FILES))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"model.path must be a Hugging Face folder or hub name, got {config.model.path!r}: {reason}"
            ) from error
    return replace(config, model=replace(config.model, path=str(found)))


def load_prompts(config: RunConfig, reporter: Reporter) -> _Prompts:
    """Tokenized training and evaluation prompts; what is too long is counted and said.

    Raises:
        ValueError: dataset, tokenizer or chat template are not usable.
    """
    tokenizer = load_tokenizer(config.model)
    limit = config.rollout.max_prompt_tokens
    found: dict[str, list[TokenPrompt]] = {}
    for name, entry in (("train", config.data.train), ("eval", config.data.eval)):
        if name == "eval" and config.eval.every == 0:
            found[name] = []
            continue
        found[name], too_long = tokenize_prompts(load_dataset(entry), tokenizer, limit)
        if too_long:
            reporter.note(f"data.{name}: {too_long} prompts are longer than {limit} tokens and were left out")
    return _Prompts(train=found["train"], held_out=found["eval"])


def dry_run(config: RunConfig, reporter: Reporter) -> int:
    """Check everything that can be checked without starting anything but prints; returns the exit code."""
    config = local_model(config)
    check_run_free(Path(config.runs_dir) / config.name)
    prompts = load_prompts(config, reporter)
    device = "cuda" if config.cluster.device == "cuda" else "cpu"
    asked = ", ".join(
        f"{amount:g} {name}" for name, amount in plan(config, device).totals().items() if amount
    )
    sys.stdout.write(dump_yaml(config))
    reporter.note(f"{len(prompts.train)} training prompts; on {device} the run asks for {asked}")
    return 0


def train(config: RunConfig, reporter: Reporter) -> Outcome:
    """Run a training to its end.

    Raises:
        ValueError: bad input, or a cluster too small (`PlacementError`); nothing was started.
        RunError: the run had started and was stopped; its folder stays.
    """
    config = local_model(config)
    check_run_free(Path(config.runs_dir) / config.name)
    check_tags({name: scorer_options(entry)[0] for name, entry in config.scorers.items()})
    prompts = load_prompts(config, reporter)
    if config.cluster.spawn == "local":
        placement = plan(config, "cuda" if config.cluster.device == "cuda" else "cpu")
        return asyncio.run(_train(config, prompts, placement, reporter))
    connect()
    try:
        placement = plan(config, pick_device(config.cluster.device))
        check(placement)
        return asyncio.run(_train(config, prompts, placement, reporter))
    finally:
        ray.shutdown()


async def _train(config: RunConfig, prompts: _Prompts, placement: Placement, reporter: Reporter) -> Outcome:
    run_dir = create_run_dir(Path(config.runs_dir), config.name, numbered=False).resolve()
    write_bytes_atomic(run_dir / "config.yaml", dump_yaml(config).encode())
    log_dir = run_dir / "logs" / "attempt_1"
    log_dir.mkdir(parents=True)
    code = 0
    try:
        code = await _interruptible(_place_and_run(config, prompts, placement, log_dir, reporter), reporter)
    except Exception as error:
        write_bytes_atomic(log_dir / "driver.log", traceback.format_exc().encode())
        what = str(error) if isinstance(error, _TOLD) else f"{type(error).__name__}: {error}"
        raise RunError(f"{what}\nrun folder: {run_dir} (logs in logs/attempt_1)") from error
    return Outcome(exit_code=code, run_dir=run_dir)


async def _place_and_run(
    config: RunConfig, prompts: _Prompts, placement: Placement, log_dir: Path, reporter: Reporter
) -> None:
    group: PlacementGroup | None = None
    handles: Mapping[str, Sequence[Handle]] = {}
    run_dir = log_dir.parent.parent
    try:
        if config.cluster.spawn == "ray":
            group = await reserve(placement, config.cluster.ready_timeout_s)
        site = Site(config=config, placement=placement, group=group, log_dir=log_dir)
        roles, handles = spawn_run(site, run_dir)
        everyone = [handle for kind in handles.values() for handle in kind]
        where = f"their logs are in {log_dir}" if group is not None else "all in this process"
        reporter.note(f"starting {len(everyone)} actors; {where}")
        sizes = await wait_ready([*handles["ranks"], *everyone], config.cluster.ready_timeout_s)
        reporter.header(run_dir=run_dir, model=config.model.path, num_parameters=int(sizes[0]))
        await _run(config, prompts, roles, run_dir, reporter)
    finally:
        for handle in [handle for kind in handles.values() for handle in kind]:
            handle.kill()
        if group is not None:
            remove_placement_group(group)


async def _run(config: RunConfig, prompts: _Prompts, roles: Roles, run_dir: Path, reporter: Reporter) -> None:
    order = PromptOrder(prompts.train, config.seed, config.data.shuffle)
    producer = Producer(config, order, roles.generator, roles.judges, roles.buffer)
    evaluator = Evaluator(config, prompts.held_out, roles.generator, roles.judges, run_dir)
    run = Run(config, roles, producer, evaluator, Reports(step=reporter.step, note=reporter.note))
    try:
        await run.train(prompts.train, run_dir)
        if config.checkpoint.export_last:
            folder = run_dir / "export"
            await roles.learner.export(str(folder))
            reporter.note(f"final model: {folder}")
    finally:
        await producer.close()


async def _interruptible(work: Coroutine[None, None, None], reporter: Reporter) -> int:
    """Run `work`; the first SIGINT or SIGTERM drops the step under way, a second ends the process at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        reporter.note("stopping: what is under way is dropped, every finished step is on disk")
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not caught:
            raise
        return 128 + caught[0]
    return 0
