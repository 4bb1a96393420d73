"""Weight updates and pauses in the middle of generation, and engines that hang or break, in real processes.

Where a load falls is certain: the engine pauses itself after some steps, and each probe of a paused engine
takes the running requests along by exactly one token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from engine_process import (
    PROBES,
    OwnLearner,
    engine_config,
    generate,
    private_cluster,
    small_base,
    start_engine,
    submission_of,
)

from cluster.spawn import ActorLostError, RayHandle
from rollouts.records import Completion, Submission
from trainer.weights.diagnose import gap
from trainer.weights.packed import PackedWeights

pytestmark = pytest.mark.engine
SUBMISSIONS = [submission_of(i, 6 + i, range(10 * i, 10 * i + 8), max_tokens=64) for i in range(3)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayHandle, list[PackedWeights]]]:
    """An engine and the weights of versions 0 to 3; each test begins with `fresh` ones of version 0."""
    folder = tmp_path_factory.mktemp("inflight")
    path = small_base(folder / "model", tied=False)
    learner = OwnLearner(path)
    versions = []
    for version in range(4):
        asyncio.run(learner.publish(version))
        assert learner.last is not None
        versions.append(learner.last)
        for _ in range(10):
            learner.learn()
    with private_cluster():
        target = "tests.helpers.faulty_generator:ObstructedGenerator"
        handle = start_engine(engine_config(path, max_tokens=64), folder / "engine.log", target)
        asyncio.run(handle.call("ready"))
        yield handle, versions
        handle.kill()


async def _fresh(handle: RayHandle, weights: PackedWeights) -> None:
    await handle.call("load", weights)
    await handle.call("resume")


async def _underway(
    handle: RayHandle, submissions: Sequence[Submission] = SUBMISSIONS, steps: int = 4
) -> asyncio.Task[list[list[Completion]]]:
    """Begin to generate all submissions at once, and pause after some steps: of one token each, if seated."""
    await handle.call("pause")
    task = asyncio.create_task(generate(handle, submissions))
    wanted = sum(len(submission.seeds) for submission in submissions)
    await _until(lambda: _is(handle.call("num_queued"), wanted))
    await handle.call("run_steps", steps)
    await _until(lambda: _is(handle.call("paused"), True))
    return task


async def _is(found: Awaitable[object], wanted: object) -> bool:
    return await found == wanted


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.01)


def test_loads_in_flight_mark_the_tokens_they_precede(engine: tuple[RayHandle, list[PackedWeights]]) -> None:
    """Two loads, three tokens apart: before the first all is bitwise as without; from then on it differs."""
    handle, weights = engine

    async def act() -> tuple[list[list[Completion]], list[list[Completion]]]:
        await _fresh(handle, weights[0])
        plain = await generate(handle, SUBMISSIONS)
        task = await _underway(handle)
        await handle.call("load", weights[1])
        for _ in range(3):
            await handle.call("probe", PROBES[:1])
        await handle.call("load", weights[2])
        await handle.call("load", weights[2])  # asked twice: the same span
        await handle.call("resume")
        return plain, await task

    plain, mixed = asyncio.run(act())
    long = 0
    for before, after in zip(chain(*plain), chain(*mixed), strict=True):
        assert {version for _, version in before.versions} == {0}
        if len(after.versions) < 3:  # it ended before the second load: its spans must say so, too
            assert [version for _, version in after.versions] == list(range(len(after.versions)))
            continue
        long += 1
        (zero, _), (first, _), (second, _) = after.versions
        assert [version for _, version in after.versions] == [0, 1, 2]
        assert (zero, first, second) == (0, 4, 7)
        assert after.token_ids[:first] == before.token_ids[:first]
        assert after.behavior_logprobs[:first] == before.behavior_logprobs[:first]
        assert after.behavior_logprobs[first] != before.behavior_logprobs[first]
    assert long >= 12


def test_a_pause_keeps_everything_and_answers_probes(engine: tuple[RayHandle, list[PackedWeights]]) -> None:
    """Paused twice, loaded, probed, given more work: all comes out as if nothing had been."""
    handle, weights = engine

    async def act() -> tuple[list[list[Completion]], list[list[Completion]], float]:
        await _fresh(handle, weights[0])
        plain = await generate(handle, SUBMISSIONS)
        expected = await handle.call("probe", PROBES)
        task = await _underway(handle)
        more = asyncio.create_task(generate(handle, [SUBMISSIONS[0], submission_of(7, 9, range(4))]))
        await handle.call("pause")
        await handle.call("load", weights[0])
        observed: np.ndarray = await handle.call("probe", PROBES)
        await _until(lambda: _is(handle.stalled_for_s(), 0.0))
        assert not task.done() and not more.done()
        await handle.call("resume")
        await handle.call("resume")
        again = await task
        assert (await more)[0] == again[0]  # the same submission, asked for while it was under way
        return plain, again, gap(observed, expected)

    plain, again, difference = asyncio.run(act())
    assert plain == again
    assert difference == 0.0


def test_probes_need_not_wait_for_a_seat(engine: tuple[RayHandle, list[PackedWeights]]) -> None:
    """Twice as many completions as seats, none of which may move: the probes are answered all the same."""
    handle, weights = engine
    submissions = [submission_of(i, 8, range(10 * i, 10 * i + 8), max_tokens=64) for i in range(16)]

    async def act() -> None:
        await _fresh(handle, weights[0])
        expected = await handle.call("probe", PROBES)
        task = await _underway(handle, submissions)
        assert await handle.call("num_queued") > 0
        assert gap(await handle.call("probe", PROBES), expected) < 1e-6
        assert not task.done()
        await handle.call("resume")
        groups = await task
        assert [len(group) for group in groups] == [8] * 16

    asyncio.run(act())


def test_going_back_to_earlier_weights_drops_what_is_under_way(
    engine: tuple[RayHandle, list[PackedWeights]],
) -> None:
    """Tokens of a version that a rewind has undone must not come back under a smaller number."""
    handle, weights = engine

    async def act() -> tuple[list[list[Completion]], list[list[Completion]]]:
        await _fresh(handle, weights[0])
        plain = await generate(handle, SUBMISSIONS)
        await handle.call("load", weights[3])
        task = await _underway(handle)
        await handle.call("load", weights[0])
        with pytest.raises(RuntimeError, match="weights went back from 3 to 0"):
            await task
        await handle.call("resume")
        return plain, await generate(handle, SUBMISSIONS)

    plain, again = asyncio.run(act())
    assert plain == again


def test_a_prompt_that_does_not_fit_is_refused_alone(engine: tuple[RayHandle, list[PackedWeights]]) -> None:
    """The caller hears of it; its companions and the engine go on."""
    handle, weights = engine

    async def act() -> None:
        await _fresh(handle, weights[0])
        good = asyncio.create_task(generate(handle, SUBMISSIONS))
        with pytest.raises(ValueError, match=r"rejected a prompt: .*length"):
            await generate(handle, [submission_of(9, 400, range(4))])
        assert len(await good) == 3

    asyncio.run(act())


def test_an_engine_that_hangs_and_one_that_breaks(engine: tuple[RayHandle, list[PackedWeights]]) -> None:
    """`stalled_for_s` answers and shows hanging; breaking reaches every open and later call."""
    handle, weights = engine

    async def act() -> None:
        await _fresh(handle, weights[0])
        await _until(lambda: _is(handle.stalled_for_s(), 0.0))
        await handle.call("hang")
        task = asyncio.create_task(generate(handle, SUBMISSIONS))

        async def hangs() -> bool:
            return await handle.stalled_for_s() > 0.2

        await _until(hangs)
        await handle.call("fail")
        await handle.call("go_on")
        broken = r"the engine has failed: ValueError: no more"
        with pytest.raises(ActorLostError, match=broken):
            await task
        for call in (
            generate(handle, SUBMISSIONS[:1]),
            handle.call("probe", PROBES),
            handle.call("pause"),
            handle.call("load", weights[1]),
            handle.call("ready"),
            handle.stalled_for_s(),
        ):
            with pytest.raises(ActorLostError, match=broken):
                await call

    asyncio.run(act())  # the last one with this engine: nothing can be asked of it any more


def test_no_prompt_meets_a_prefix_of_other_weights(
    tmp_path: Path, engine: tuple[RayHandle, list[PackedWeights]]
) -> None:
    """With a prefix cache and requests under way that use it: found before a load, not found after it."""
    _, weights = engine
    config = engine_config(small_base(tmp_path / "model", tied=False), max_tokens=64)
    handle = start_engine(config, tmp_path / "engine.log", "tests.helpers.faulty_generator:CachingGenerator")
    submission = submission_of(1, 40, (1,), max_tokens=4)

    async def act() -> list[int]:
        await handle.call("ready")
        for name in ("a", "b"):
            await generate(handle, [replace(submission, group_id=name)])
        underway = await _underway(handle)
        await handle.call("load", weights[0])
        await handle.call("resume")
        for name in ("c", "d"):
            await generate(handle, [replace(submission, group_id=name)])
        await underway
        found: list[int] = await handle.call("cached")
        return found

    found = asyncio.run(act())
    handle.kill()
    assert [count for count in found if count] == [32, 32], found
