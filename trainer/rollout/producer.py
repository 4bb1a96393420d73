"""The producer: prompts out, judged and durable groups in. Async and free of Ray; called by the loop.

It keeps (max_lag + 1) x groups_per_step groups in flight: `top_up(step)` submits what the step may see, and
`settle(step)` waits until the groups of that step are in the buffer. With `rollout.zero_variance_groups`
refill it then submits further ones and waits for those, round by round (`trainer.rollout.dynamic_sampling`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from configs.schema import RunConfig
from rollouts.records import Completion, Group, Sampling, Submission
from rollouts.schema import group_to_batch
from trainer.data.prompts import PromptOrder
from trainer.roles import Buffer, Generator
from trainer.rollout import tempered
from trainer.rollout.dynamic_sampling import asked_for, max_rounds, submissions_per_step
from trainer.rollout.pausable_clock import Clock
from trainer.rollout.rollouter import RolloutTools, ScorerSet, bound_rollouter, make_submission
from trainer.rollout.tempered import as_tempered, temperature_of

TEMPERATURE: Final = "rollout.temperature"
SAMPLING_SETTINGS: Final = (TEMPERATURE, tempered.TEMPERATURE)
"""Settings by which controllers say what a step is sampled at."""


class Producer:
    """Fills the buffer, in submission order; step `s` (from 0) begins at submission s x submissions_per_step.

    `num_groups` is how many the step has that was settled last: groups_per_step, or more in several rounds.
    `phase` gets the step's committed number (from 1) and "scoring" when its first completions are there,
    `on_group` every group that is durable.
    """

    def __init__(
        self,
        config: RunConfig,
        order: PromptOrder,
        generator: Generator,
        scorers: ScorerSet,
        buffer: Buffer,
        phase: Callable[[int, str], None] = lambda step, name: None,
    ) -> None:
        self._config, self._order = config, order
        self._generator, self._judges, self._buffer = _Timed(generator), scorers, buffer
        rollout = config.rollout
        self._sampling = Sampling(
            temperature=rollout.temperature, top_p=rollout.top_p, max_tokens=rollout.max_tokens
        )
        self._rollouter = bound_rollouter(config)
        self._longest = rollout.max_prompt_tokens + rollout.max_tokens
        self._phase, self._clock = phase, Clock()
        self.on_group: Callable[[Group], None] = lambda group: None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._stride = submissions_per_step(config)
        self._first_round = rollout.groups_per_step + config.tempered.groups_per_step
        self.num_groups = self._first_round
        self._tempered_at = config.tempered.temperature
        self._submitted = 0
        self._waiting: frozenset[int] = frozenset()

    async def restart(self, step: int, waiting: Iterable[int]) -> None:
        """Go on from `step` finished steps; `waiting` are submissions whose groups the buffer has already."""
        await self.close()
        self._submitted = step
        self._waiting = frozenset(waiting)

    def top_up(self, step: int, settings: Mapping[str, float] | None = None) -> None:
        """Submit every group that step `step` (counted from 0) and the `max_lag` after it may use.

        `settings` are what controllers want of the step, by dotted config key.
        """
        settings = settings or {}
        self._tempered_at = temperature_of(self._config, settings)
        temperature = settings.get(TEMPERATURE, self._config.rollout.temperature)
        self._sampling = replace(self._sampling, temperature=temperature)
        self._tell_first_reply(step)
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
        """Submit what step `step` lacks beside the groups that wait; which they are."""
        have = {*waiting, *self._tasks}
        missing = [index for index in self._indexes(step, self.num_groups) if index not in have]
        self._tell_first_reply(step)
        self._submit(missing)
        return missing

    async def settle(self, step: int) -> dict[str, float]:
        """Wait for the groups of step `step`, of all its rounds; returns the seconds of generation and of the
        scoring after it.

        Raises:
            TimeoutError: the completions of a group took longer than rollout.group_timeout_s.
        """
        began = time.perf_counter()
        await self._finish(step)
        while further := await self._further(step):
            self._phase(step + 1, "generating")
            self._tell_first_reply(step)
            self._submit(further)
            await self._finish(step)
        ended = time.perf_counter()
        generated = min(max(self._generator.last_reply, began), ended)
        return {"time/generate_s": generated - began, "time/score_s": ended - generated}

    async def _finish(self, step: int) -> None:
        """Wait for all that was submitted for `step` and before it."""
        mine = [index for index in sorted(self._tasks) if index < (step + 1) * self._stride]
        # Popped only when all are done: after a failure `close` must still find and cancel the others.
        await asyncio.gather(*(self._tasks[index] for index in mine))
        for index in mine:
            del self._tasks[index]
        self._generator.on_reply = _no_notice

    def _tell_first_reply(self, step: int) -> None:
        """Report `step` as scoring with the next reply. Set before anything is submitted: a reply may come
        before anyone waits for it."""
        self._generator.on_reply = lambda: self._phase(step + 1, "scoring")

    async def _further(self, step: int) -> list[int]:
        """The submissions that the rewards of `step` so far ask for beyond what the buffer has."""
        rollout = self._config.rollout
        if max_rounds(rollout) == 1:
            return []
        first = step * self._stride
        rows = await self._buffer.rewards(first, first + self._stride)
        self.num_groups = asked_for(rows, first, rollout).num_groups
        have = set(rows.column("submission_index").to_pylist())
        return [index for index in self._indexes(step, self.num_groups) if index not in have]

    def generating_s(self) -> float:
        """Seconds up to now during which at least one submission was with an engine."""
        return self._generator.busy_s()

    async def pause(self) -> None:
        """Stop the engines and the clock of what is in flight, until `resume`."""
        self._clock.pause()
        await self._generator.pause()

    async def resume(self) -> None:
        """Go on after `pause`; not paused is fine."""
        await self._generator.resume()
        self._clock.resume()

    async def close(self) -> None:
        """Cancel what is in flight."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _produce(self, index: int) -> None:
        rollout, (step, place) = self._config.rollout, divmod(index, self._stride)
        is_tempered = place >= self._stride - self._config.tempered.groups_per_step
        sampling = replace(self._sampling, temperature=self._tempered_at) if is_tempered else self._sampling
        # tempered groups have the prompts of the step's first ones
        prompt = self._order.of_step(
            step, place % rollout.groups_per_step if is_tempered else place, rollout.groups_per_step
        )
        submission = make_submission(index, prompt, rollout.group_size, sampling, self._config.seed)
        tools = RolloutTools(
            submission,
            self._generator,
            self._judges,
            longest=self._longest,
            limit_s=rollout.group_timeout_s,
            clock=self._clock,
        )
        try:
            group = await self._rollouter.roll_out(submission, tools)
        except TimeoutError as error:
            raise TimeoutError(
                f"the completions of group {index} (prompt {prompt.prompt.prompt_id}) were not there within "
                f"rollout.group_timeout_s = {rollout.group_timeout_s:g}"
            ) from error
        group = as_tempered(group) if is_tempered else group
        await self._buffer.add(group_to_batch(group, self._config.name))
        self.on_group(group)


class _Timed:
    """A generator that remembers when its last answer came and how long it had something to do."""

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
        self.on_reply = _no_notice
        return completions

    def busy_s(self) -> float:
        now = time.perf_counter()
        return self._busy_s + (now - self._busy_since if self._in_flight else 0.0)


def _no_notice() -> None:
    """Only the first reply of a step is of note."""
