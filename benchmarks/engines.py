"""What the system costs over its bare engines: `python -m benchmarks.engines` prints one table of ratios.

Generation goes through Ray to a generator actor, learning through Ray to a learner rank with a shard from the
buffer; beside each runs its bare counterpart (`bare_engine`, `bare_learner`) with the same model, requests,
microbatches, threads and environment. Rounds alternate: the system is first in one and second in the next,
and only one of the two works at a time. Weight sync has no counterpart; it is compared with a copy of the
same bytes. CPU only, one engine and rank.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import ray
from ray.util.placement_group import remove_placement_group

from benchmarks.bare import PRESET, ROOT, BareProcess
from cluster.actor_process import host_environment
from cluster.actors import scorer_set, spawn_buffer, spawn_engines, spawn_learner, spawn_scorers
from cluster.calls import BufferActor, call
from cluster.connect import connect
from cluster.placement import check, plan, reserve
from cluster.role_proxies import Engines, LearnerGroup, local_microbatches
from cluster.site import Site
from cluster.spawn import wait_ready
from cluster.supervise import Supervised
from cluster.weight_transport import HostTransport
from configs.bound import bind
from configs.load import load_config
from configs.schema import RunConfig
from rollouts.files import Json, write_json_atomic
from rollouts.records import Completion, Sampling, Submission
from rollouts.schema import group_to_batch
from trainer.collate import align, collate, with_advantages
from trainer.data.encode import load_tokenizer, load_vocab_size
from trainer.data.prompts import PromptOrder, TokenPrompt, load_dataset, tokenize_prompts
from trainer.loop import Roles
from trainer.rollout.pausable_clock import Clock
from trainer.rollout.rollouter import RolloutTools, make_submission
from trainer.rollout.single_turn import single_turn
from trainer.step_records import Batch, Learnable
from trainer.weights.probes import make_probes
from trainer.weights.weight_sync import Published, publish

GOAL = 0.9
NUM_WARMUPS = 2
Seconds = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds by part, one entry per timed round, of the system and of its counterpart."""

    system: Sequence[Seconds]
    bare: Sequence[Seconds]

    def ratios(self) -> list[float]:
        """The system's speed over the bare one's, round by round."""
        return [sum(b.values()) / sum(s.values()) for s, b in zip(self.system, self.bare, strict=True)]

    def parts(self) -> str:
        """The medians of each part in milliseconds, system and bare."""
        names = list(self.system[0])
        pairs = {
            n: [1e3 * median([side[n] for side in rows]) for rows in (self.system, self.bare)] for n in names
        }
        return ", ".join(
            f"{name} {ours:.0f} ms (bare {theirs:.0f})" for name, (ours, theirs) in pairs.items()
        )


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all rounds share. `folder` holds the files of the bare sides and the run's own."""

    config: RunConfig
    roles: Roles
    buffer_actor: Supervised
    prompts: Sequence[TokenPrompt]
    submissions: Sequence[Submission]
    folder: Path
    rounds: int


async def alternate(
    rounds: int, system: Callable[[], Awaitable[Seconds]], bare: Callable[[], Seconds]
) -> Rounds:
    """Warm up, then time `rounds` rounds of both sides, one after the other, swapping who goes first."""
    ours: list[Seconds] = []
    theirs: list[Seconds] = []
    for number in range(NUM_WARMUPS + rounds):
        if number % 2:
            theirs.append(bare())
        ours.append(await system())
        if not number % 2:
            theirs.append(bare())
    return Rounds(ours[NUM_WARMUPS:], theirs[NUM_WARMUPS:])


# -- generation --------------------------------------------------------------------------------------------


async def generation(bench: Bench) -> tuple[Rounds, int, str]:
    """Rounds of generation, their tokens, and how many completions both sides agree on."""
    rows: list[Json] = [
        {"prompt_ids": s.prompt_ids, "seed": seed} for s in bench.submissions for seed in s.seeds
    ]
    write_json_atomic(bench.folder / "prompts.json", rows)
    latest: dict[str, list[tuple[int, ...]]] = {}

    async def system() -> Seconds:
        began = time.perf_counter()
        groups: list[list[Completion]] = await asyncio.gather(
            *(bench.roles.generator.generate(submission) for submission in bench.submissions)
        )
        seconds = time.perf_counter() - began
        latest["system"] = [completion.token_ids for group in groups for completion in group]
        return {"generate": seconds}

    with BareProcess("benchmarks.bare_engine", bench.folder, host_environment(1, "cpu")) as process:

        def bare() -> Seconds:
            answer = process.round()
            latest["bare"] = [tuple(ids) for ids in cast(list[list[int]], answer["token_ids"])]
            return {"generate": cast(float, answer["generate"])}

        rounds = await alternate(bench.rounds, system, bare)
    same = sum(one == other for one, other in zip(latest["system"], latest["bare"], strict=True))
    ours, theirs = (sum(map(len, latest[side])) for side in ("system", "bare"))
    note = f"{same} of {len(rows)} completions are the same on both sides ({ours} and {theirs} tokens)"
    return rounds, ours, note


# -- learning ----------------------------------------------------------------------------------------------


async def fill_batch(bench: Bench) -> Batch:
    """Roll out all submissions into the buffer, as the producer does, and take them."""
    roles, rollout = bench.roles, bench.config.rollout

    async def produce(submission: Submission) -> None:
        tools = RolloutTools(
            submission,
            roles.generator,
            roles.scorers,
            longest=rollout.max_prompt_tokens + rollout.max_tokens,
            limit_s=rollout.group_timeout_s,
            clock=Clock(),
        )
        group = await single_turn(submission, tools)
        await roles.buffer.add(group_to_batch(group, bench.config.name))

    await asyncio.gather(*(produce(submission) for submission in bench.submissions))
    index = await roles.buffer.take(len(bench.submissions), 0)
    assert index is not None
    return collate(index, bench.config)


async def write_update(bench: Bench, batch: Batch, learnable: Learnable) -> None:
    """The shard and the plan of rank 0, for the bare side."""
    rows = list(batch.plan.rows_of(0))
    shard: pa.RecordBatch = await call(bench.buffer_actor, BufferActor.shard, rows)
    with pa.ipc.new_file(str(bench.folder / "shard.arrow"), shard.schema) as writer:
        writer.write_batch(shard)
    update = {
        "microbatches": local_microbatches(batch.plan, 0),
        "advantages": learnable.advantage_N[rows].tolist(),
        "row_weights": learnable.row_weight_N[rows].tolist(),
    }
    write_json_atomic(bench.folder / "update.json", update)


async def learning(bench: Bench) -> tuple[Rounds, int]:
    """Rounds of score and update, and the completion tokens they learn from."""
    batch = await fill_batch(bench)
    learner = bench.roles.learner
    columns = align(batch.index, await learner.compute_logprobs(batch))
    learnable = with_advantages(batch, columns, bind(bench.config), 0)
    await write_update(bench, batch, learnable)

    async def system() -> Seconds:
        began = time.perf_counter()
        await learner.compute_logprobs(batch)
        scored = time.perf_counter()
        await learner.update(batch, learnable)
        return {"score": scored - began, "update": time.perf_counter() - scored}

    threads = len(os.sched_getaffinity(0))
    with BareProcess("benchmarks.bare_learner", bench.folder, host_environment(threads, "cpu")) as process:
        rounds = await alternate(bench.rounds, system, lambda: cast(Seconds, process.round()))
    return rounds, int(batch.index.column("num_tokens").to_numpy().sum())


# -- weight sync -------------------------------------------------------------------------------------------


async def weight_sync(bench: Bench) -> tuple[Rounds, int]:
    """Rounds of a whole publish with its proof, beside a copy of the same bytes; and those bytes."""
    config, roles = bench.config, bench.roles
    probes = await make_probes(config, bench.prompts, roles.generator)
    num_bytes = sum(file.stat().st_size for file in Path(config.model.path).glob("*.safetensors"))
    source = np.ones(num_bytes, np.uint8)
    last: list[Published | None] = [None]

    async def system() -> Seconds:
        version = 0 if last[0] is None else last[0].version + 1
        began = time.perf_counter()
        last[0], _ = await publish(
            version, roles.transport, roles.learner, roles.generator, probes, last[0], config
        )
        return {"publish": time.perf_counter() - began}

    def bare() -> Seconds:
        began = time.perf_counter()
        source.copy()
        return {"publish": time.perf_counter() - began}

    return await alternate(bench.rounds, system, bare), num_bytes


async def sync_parts(bench: Bench) -> str:
    """Medians in milliseconds of what a publish consists of, each waited for by itself."""
    roles = bench.roles
    probes = await make_probes(bench.config, bench.prompts, roles.generator)
    seconds: dict[str, list[float]] = {"publish and load": [], "learner's probe": [], "engine's probe": []}
    for version in range(bench.rounds):
        began = time.perf_counter()
        await roles.transport.sync(version)
        loaded = time.perf_counter()
        await roles.learner.probe(probes)
        expected = time.perf_counter()
        await roles.generator.probe(probes)
        done = time.perf_counter()
        for name, value in zip(seconds, (loaded - began, expected - loaded, done - expected), strict=True):
            seconds[name].append(value)
    return ", ".join(f"{name} {1e3 * median(values):.0f} ms" for name, values in seconds.items())


# -- the whole ---------------------------------------------------------------------------------------------


def speed_row(name: str, rounds: Rounds, tokens: int) -> str:
    """One row of the table, in tokens per second."""
    ours, theirs = (median([tokens / sum(r.values()) for r in side]) for side in (rounds.system, rounds.bare))
    ratios = rounds.ratios()
    verdict = f"{median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
    return f"| {name}, tokens/s | {ours:,.0f} | {theirs:,.0f} | {verdict} | {GOAL} or more |"


def sync_row(rounds: Rounds, num_bytes: int) -> str:
    """One row of the table, in milliseconds; the ratio is time over time."""
    ours, theirs = (1e3 * median([r["publish"] for r in side]) for side in (rounds.system, rounds.bare))
    slower = [1.0 / ratio for ratio in rounds.ratios()]
    times = f"{median(slower):,.0f}x ({min(slower):,.0f} .. {max(slower):,.0f})"
    what = f"weight sync and proof of {num_bytes / 1e6:.1f} MB, ms"
    return f"| {what} | {ours:.0f} | {theirs:.2f} (copy) | {times} | - |"


async def measure(bench: Bench) -> str:
    """All three, as a Markdown table and the notes under it."""
    generated, generated_tokens, agreement = await generation(bench)
    learned, learned_tokens = await learning(bench)
    synced, num_bytes = await weight_sync(bench)
    lines = [
        f"| median of {bench.rounds} rounds | system | bare | ratio (min .. max) | goal |",
        "|---|---:|---:|---:|---:|",
        speed_row("generation", generated, generated_tokens),
        speed_row("learning", learned, learned_tokens),
        sync_row(synced, num_bytes),
        "",
        f"Generation: {agreement}; {generated.parts()}.",
        f"Learning: {learned.parts()}.",
        f"Weight sync: {await sync_parts(bench)}.",
    ]
    return "\n".join(lines)


@contextmanager
def local_ray() -> Iterator[None]:
    connect()
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """The actors of a run, in their roles."""

    roles: Roles
    learner: LearnerGroup
    buffer_actor: Supervised
    others: Sequence[Supervised]
    """Engines, scorers and the buffer."""

    async def ready(self, limit_s: float) -> None:
        """Wait for all of them, and begin the run's journal."""
        await asyncio.gather(self.learner.ready(), wait_ready(self.others, limit_s))
        await self.roles.buffer.rewind(0, 1)

    def kill(self) -> None:
        """End all of them."""
        self.learner.kill()
        for each in self.others:
            each.kill()


def print_event(kind: str, actor: str, **fields: str | float) -> None:
    """Actors that fail would spoil the measurement: say so."""
    print(kind, actor, *fields.values(), file=sys.stderr)


def start_system(site: Site, run_dir: Path) -> System:
    """Start the actors of a run, as `cluster.actor_pool` does."""
    engines, scorers = spawn_engines(site), spawn_scorers(site, {})
    buffer, buffer_actor = spawn_buffer(site, run_dir)
    learner, generator = spawn_learner(site, buffer), Engines(engines)
    roles = Roles(
        generator=generator,
        scorers=scorer_set(site.run, scorers, print),
        learner=learner,
        transport=HostTransport(learner, generator),
        buffer=buffer,
    )
    replicas = (replica for scorer in scorers.values() for replica in scorer.replicas)
    others = (*engines, *replicas, buffer_actor)
    return System(roles=roles, learner=learner, buffer_actor=buffer_actor, others=others)


async def run(config: RunConfig, folder: Path, rounds: int) -> str:
    """Start the system, measure, and end it."""
    tokenizer = load_tokenizer(config.model)
    vocab_size, limit = load_vocab_size(config.model), config.rollout.max_prompt_tokens
    prompts, _ = tokenize_prompts(
        load_dataset(bind(config).single["data.train"]), tokenizer, vocab_size, limit
    )
    placement = plan(bind(config), "cpu")
    check(placement)
    group = await reserve(placement, config.cluster.ready_timeout_s)
    logs = folder / "logs"
    site = Site(run=bind(config), placement=placement, group=group, log_dir=logs, report=print_event)
    system = start_system(site, folder / "run")
    try:
        await system.ready(config.cluster.ready_timeout_s)
        order = PromptOrder(prompts, config.seed, config.data.shuffle)
        rollout = config.rollout
        sampling = Sampling(
            temperature=rollout.temperature, top_p=rollout.top_p, max_tokens=rollout.max_tokens
        )
        submissions = [
            make_submission(index, order.at(index), rollout.group_size, sampling, config.seed)
            for index in range(rollout.groups_per_step)
        ]
        bench = Bench(
            config=config,
            roles=system.roles,
            buffer_actor=system.buffer_actor,
            prompts=prompts,
            submissions=submissions,
            folder=folder,
            rounds=rounds,
        )
        return await measure(bench)
    finally:
        system.kill()
        remove_placement_group(group)


def overrides_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Over the preset: the asked model and sizes, on one CPU engine and one CPU rank.

    Raises:
        ValueError: the model is not there, or a size is out of range.
    """
    model = Path(arguments.model).resolve()
    if not (model / "config.json").is_file():
        raise ValueError(
            f"--model must be a Hugging Face folder, got {arguments.model!r} without config.json"
        )
    if arguments.rounds < 1:
        raise ValueError(f"--rounds must be 1 or more, got {arguments.rounds}")
    return (
        f"model.path={model}",
        f"rollout.groups_per_step={arguments.groups}",
        f"rollout.group_size={arguments.samples}",
        f"rollout.max_tokens={arguments.max_tokens}",
        "cluster.device=cpu",
        "cluster.spawn=ray",
        "generator.num_engines=1",
        "learner.num_ranks=1",
    )


def main() -> int:
    """Print the table; exit code 2 for bad arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=str(ROOT / "lab" / "bases" / "voices"))
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    try:
        arguments = parser.parse_args()
        overrides = overrides_of(arguments)
        config = load_config(PRESET, overrides)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="polyphony-bench-") as name, local_ray():
        folder = Path(name)
        (folder / "run" / "journal").mkdir(parents=True)
        write_json_atomic(folder / "overrides.json", overrides)
        print(asyncio.run(run(config, folder, arguments.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
