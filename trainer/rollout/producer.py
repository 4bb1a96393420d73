"""The producer: submits prompts and stores the scored groups in the buffer. Async, without Ray.

Used by the loop. It keeps (max_lag + 1) x groups_per_step groups in flight. `top_up(step)` submits the groups
of the step and of `max_lag` steps after it; `settle(step)` waits until the groups of the step are in the
buffer. With `rollout.zero_variance_groups` refill it then submits more and waits for them, round by round
(`trainer.rollout.dynamic_sampling`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from configs.bound import BoundRun
from rewards.model_calls import Model
from rollouts.records import Completion, Group, Sampling, Submission
from rollouts.schema import group_to_batch
from trainer.data.prompts import PromptOrder
from trainer.roles import Buffer, Generator
from trainer.rollout import tempered
from trainer.rollout.dynamic_sampling import asked_for, max_rounds, submissions_per_step
from trainer.rollout.pausable_clock import Clock
from trainer.rollout.refiner import bound_refiner
from trainer.rollout.rollouter import (
    NO_ENCODERS,
    Encoders,
    RolloutTools,
    ScorerSet,
    bound_rollouter,
    make_submission,
)
from trainer.rollout.tempered import as_tempered, temperature_of
from trainer.scorer_watch import FailureWatch

TEMPERATURE: Final = "rollout.temperature"
SAMPLING_SETTINGS: Final = (TEMPERATURE, tempered.TEMPERATURE)
"""Settings of the sampling that controllers may change."""


GRACE_S: Final = 10.0
"""Seconds after `rollout.group_timeout_s`, or after it was cancelled, at which a rollouter that has not
returned is given up."""


class Producer:
    """Fills the buffer. Step `s` (from 0) begins at submission s x submissions_per_step.

    `num_groups` is the number of groups of the last settled step: groups_per_step, or more after several
    rounds. `phase` is called with the step's committed number (from 1) and "scoring" when its first
    completions arrive; `on_group` is called with every group that is stored.
    """

    def __init__(
        self,
        run: BoundRun,
        order: PromptOrder,
        generator: Generator,
        scorers: ScorerSet,
        buffer: Buffer,
        phase: Callable[[int, str], None] = lambda step, name: None,
        encoders: Encoders = NO_ENCODERS,
        scorer_log: Callable[[str], str] = lambda name: f"the log of scorer {name}",
        models: Mapping[str, Model] | None = None,
    ) -> None:
        config = run.config
        self._config, self._order = config, order
        self._generator, self._scorers, self._buffer = _TimedGenerator(generator), scorers, buffer
        rollout = config.rollout
        self._sampling = Sampling(
            temperature=rollout.temperature, top_p=rollout.top_p, max_tokens=rollout.max_tokens
        )
        self._rollouter = bound_rollouter(run)
        self._longest = rollout.max_prompt_tokens + rollout.max_tokens
        self._phase, self._clock = phase, Clock()
        self._encoders, self._models = encoders, models
        self._refiner = bound_refiner(run)
        self._failures = FailureWatch(scorers.failure_limits, scorer_log)
        self.on_group: Callable[[Group], None] = lambda group: None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._stride = submissions_per_step(config)
        self._first_round = rollout.groups_per_step + config.tempered.groups_per_step
        self.num_groups = self._first_round
        self._tempered_at = config.tempered.temperature
        self._submitted = 0
        self._waiting: frozenset[int] = frozenset()

    async def restart(self, step: int, waiting: Iterable[int]) -> None:
        """Continue after `step` finished steps; the buffer has the groups of the submissions `waiting`."""
        await self.close()
        self._submitted = step
        self._waiting = frozenset(waiting)

    def top_up(self, step: int, settings: Mapping[str, float] | None = None) -> None:
        """Submit the groups of `step` (from 0) and of the `max_lag` steps after it, unless submitted before.

        `settings` are the controllers' values for the step, by dotted config key.
        """
        settings = settings or {}
        self._tempered_at = temperature_of(self._config, settings)
        temperature = settings.get(TEMPERATURE, self._config.rollout.temperature)
        self._sampling = replace(self._sampling, temperature=temperature)
        self._notify_first_reply(step)
        last = min(step + self._config.rollout.max_lag + 1, self._config.num_steps)
        for each in range(self._submitted, last):
            indexes = self._indexes(each, self._first_round)
            self._submit(index for index in indexes if index not in self._waiting)
        self._submitted = max(self._submitted, last)

    def _indexes(self, step: int, num_groups: int) -> range:
        return range(step * self._stride, step * self._stride + num_groups)

    def _submit(self, indexes: Iterable[int]) -> None:
        for index in indexes:
            self._tasks[index] = asyncio.create_task(self._produce(index), name=f"group {index}")

    def submit_again(self, step: int, waiting: Iterable[int]) -> list[int]:
        """Submit the groups of `step` that are neither in the buffer nor in flight; returns their indexes."""
        have = {*waiting, *self._tasks}
        missing = [index for index in self._indexes(step, self.num_groups) if index not in have]
        self._notify_first_reply(step)
        self._submit(missing)
        return missing

    async def settle(self, step: int) -> dict[str, float]:
        """Wait for the groups of `step`, in all its rounds.

        Returns time/generate_s until the last completion and time/score_s after it.

        Raises:
            TimeoutError: the completions of a group took longer than rollout.group_timeout_s.
            ScorerStoppedError: too many scores of a scorer are missing.
        """
        began = time.perf_counter()
        await self._finish(step)
        while further := await self._further(step):
            self._phase(step + 1, "generating")
            self._notify_first_reply(step)
            self._submit(further)
            await self._finish(step)
        ended = time.perf_counter()
        generated = min(max(self._generator.last_reply, began), ended)
        return {"time/generate_s": generated - began, "time/score_s": ended - generated}

    async def _finish(self, step: int) -> None:
        """Wait for all groups submitted for `step` and earlier steps."""
        due = [index for index in sorted(self._tasks) if index < (step + 1) * self._stride]
        # Removed only when all are done: after a failure `close` must still find and cancel the others.
        await asyncio.gather(*(self._tasks[index] for index in due))
        for index in due:
            del self._tasks[index]
        self._generator.on_reply = _ignore

    def _notify_first_reply(self, step: int) -> None:
        """Report the phase "scoring" of `step` at the next reply of an engine."""
        # Called before groups are submitted, because a reply may arrive before `settle` waits for it.
        self._generator.on_reply = lambda: self._phase(step + 1, "scoring")

    async def _further(self, step: int) -> list[int]:
        """The submissions of the next round of `step`, by its rewards so far; empty if there is none."""
        rollout = self._config.rollout
        if max_rounds(rollout) == 1:
            return []
        first = step * self._stride
        rows = await self._buffer.rewards(first, first + self._stride)
        self.num_groups = asked_for(rows, first, rollout).num_groups
        have = set(rows.column("submission_index").to_pylist())
        return [index for index in self._indexes(step, self.num_groups) if index not in have]

    def generating_s(self) -> float:
        """Seconds so far during which at least one submission was being generated."""
        return self._generator.busy_s()

    async def pause(self) -> None:
        """Stop the engines, and the time limits of groups in flight, until `resume`."""
        self._clock.pause()  # first, so that no group times out while the engines are being paused
        await self._generator.pause()

    async def resume(self) -> None:
        """Continue after `pause`; no effect if not paused."""
        await self._generator.resume()
        self._clock.resume()

    async def close(self) -> None:
        """Cancel all groups in flight, and wait at most GRACE_S for them to end."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
            task.add_done_callback(_forget)
        if tasks:  # not `gather`: a user's rollouter may ignore that it was cancelled
            await asyncio.wait(tasks, timeout=GRACE_S)

    async def _produce(self, index: int) -> None:
        """Generate, score, refine and store the group of one submission."""
        rollout, (step, place) = self._config.rollout, divmod(index, self._stride)
        # The last indexes of a step are its tempered groups, on the prompts of its first groups.
        is_tempered = place >= self._stride - self._config.tempered.groups_per_step
        sampling = replace(self._sampling, temperature=self._tempered_at) if is_tempered else self._sampling
        prompt = self._order.of_step(
            step, place % rollout.groups_per_step if is_tempered else place, rollout.groups_per_step
        )
        submission = make_submission(index, prompt, rollout.group_size, sampling, self._config.seed)
        tools = RolloutTools(
            submission,
            self._generator,
            self._scorers,
            longest=self._longest,
            limit_s=rollout.group_timeout_s,
            clock=self._clock,
            encoders=self._encoders,
            models=self._models,
        )
        try:
            # The tools end at the deadline, when late scorers give nulls. The grace is for a rollouter that
            # waits for anything else.
            async with self._clock.timeout_at(self._clock.now() + rollout.group_timeout_s + GRACE_S):
                group = await self._rollouter.roll_out(submission, tools)
                if not is_tempered:
                    group = await self._refiner.refine(group, tools)
        except TimeoutError as error:
            raise TimeoutError(
                f"the completions of group {index} (prompt {prompt.prompt.prompt_id}) were not there within "
                f"rollout.group_timeout_s = {rollout.group_timeout_s:g}"
            ) from error
        group = as_tempered(group) if is_tempered else group
        self._failures.observe(group)
        await self._buffer.add(group_to_batch(group, self._config.name))
        self.on_group(group)


class _TimedGenerator:
    """A generator that measures the time of its last reply and its busy time, in seconds."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.last_reply = 0.0
        self.on_reply: Callable[[], None] = lambda: None
        self._in_flight = 0
        self._busy_s = self._busy_since = 0.0
        self.probe, self.pause, self.resume = generator.probe, generator.pause, generator.resume

    async def generate(self, submission: Submission) -> list[Completion]:
        if not self._in_flight:
            self._busy_since = time.perf_counter()
        self._in_flight += 1
        try:
            completions = await self._generator.generate(submission)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._busy_s += time.perf_counter() - self._busy_since
        self.last_reply = time.perf_counter()
        self.on_reply()
        self.on_reply = _ignore
        return completions

    def busy_s(self) -> float:
        now = time.perf_counter()
        return self._busy_s + (now - self._busy_since if self._in_flight else 0.0)


def _forget(task: asyncio.Task[None]) -> None:
    """Take the exception of a cancelled group, which asyncio would report otherwise."""
    if not task.cancelled():
        task.exception()


def _ignore() -> None:
    """The callback after the first reply of a step: later replies are not reported."""
