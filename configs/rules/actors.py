"""How the work is cut and where it runs: updates, microbatches and processes. Called by `configs.rules`."""

from __future__ import annotations

from collections.abc import Iterator

from configs.bound import BoundRun
from configs.errors import Broken


def _learner(run: BoundRun) -> Iterator[Broken]:
    rollout, learner = run.config.rollout, run.config.learner
    # Unequal updates would weigh the same rows differently.
    if learner.updates_per_step > 0 and rollout.groups_per_step % learner.updates_per_step:
        rule = f"must be divisible by learner.updates_per_step ({learner.updates_per_step})"
        yield "rollout.groups_per_step", rule
    longest = rollout.max_prompt_tokens + rollout.max_tokens
    # A row is never split, so a microbatch must hold the longest one that may come.
    if learner.microbatch_tokens < longest:
        rule = f"must hold one row: rollout.max_prompt_tokens + rollout.max_tokens is {longest}"
        yield "learner.microbatch_tokens", rule


def _one_process(run: BoundRun) -> Iterator[Broken]:
    if run.config.cluster.spawn != "local":
        return
    if run.config.generator.tensor_parallel > 1:
        yield "generator.tensor_parallel", "must be 1 with cluster.spawn local: its workers are processes"
    if run.config.cluster.schedule == "overlap":
        yield "cluster.schedule", "must be take_turns with cluster.spawn local: all share one process"
    if run.config.learner.num_ranks > 1:
        yield "learner.num_ranks", "must be 1 with cluster.spawn local: ranks are processes"


ACTOR_RULES = (_learner, _one_process)
