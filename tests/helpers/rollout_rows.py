"""Groups made by hand or by hypothesis: for the tests of schema, journal, store and buffer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from configs.origins import ORIGINS
from rollouts.records import (
    Completion,
    Critique,
    Group,
    Partition,
    Prompt,
    Sample,
    Sampling,
    Span,
    Submission,
)
from rollouts.schema import group_to_batch, named_for_step, sft_batch

RUN = "run-a"


def make_sample(
    sample_id: str, num_tokens: int, *, reward: float | None = 1.0, version: int = 0, tag: str | None = "code"
) -> Sample:
    """A policy sample of `num_tokens` tokens, all sampled by one policy version."""
    completion = Completion(
        sample_id=sample_id,
        seed=7,
        token_ids=tuple(range(num_tokens)),
        text="t" * num_tokens,
        finish_reason="stop",
        behavior_logprobs=(-0.5,) * num_tokens,
        versions=((0, version),),
    )
    return Sample(
        completion=completion,
        origin="policy",
        scores={"correct": reward},
        score_status={"correct": "ok" if reward is not None else "timeout"},
        tags={} if tag is None else {"format": tag},
        spans=(Span(label="answer", start=0, end=num_tokens),),
        answer="3",
        answer_ok=True,
        reward_vector=(reward,),
        reward=reward,
    )


def make_group(index: int, samples: tuple[Sample, ...]) -> Group:
    """`samples` as the answers to prompt p<index>."""
    prompt = Prompt(prompt_id=f"p{index}", messages=(("user", "1+2?"),), answer="3", domain="math")
    submission = Submission(
        submission_index=index,
        group_id=f"g{index}",
        prompt=prompt,
        prompt_ids=(5, 6, 7),
        seeds=(7,) * len(samples),
        sampling=Sampling(temperature=0.7, top_p=1.0, max_tokens=8),
    )
    return Group(submission=submission, samples=samples)


def make_batch(
    index: int, *, num_rows: int = 2, version: int = 0, reward: float | None = 1.0
) -> pa.RecordBatch:
    """A group of samples g<index>-0, g<index>-1, ... of 1, 2, ... tokens."""
    samples = tuple(
        make_sample(f"g{index}-{number}", number + 1, version=version, reward=reward)
        for number in range(num_rows)
    )
    return group_to_batch(make_group(index, samples), RUN)


def make_demonstrations(step: int) -> pa.RecordBatch:
    """Two supervised rows, of 1 and 3 tokens, as those of step `step`."""
    rows = sft_batch(
        RUN,
        prompt_ids=[[1, 2]] * 2,
        token_ids=[[3], [4, 5, 6]],
        text=["x", "y"],
        domain=["math"] * 2,
        format_tag=["code", None],
    )
    return named_for_step(rows, step)


def learner_columns(rows: pa.RecordBatch, *, entropy: float = 0.25) -> pa.Table:
    """What a learner says of `rows`: constant logprobs and entropies."""
    tokens = rows.column("token_ids")
    flat = pa.array(np.full(len(tokens.values), entropy), pa.float32())
    lists = pa.ListArray.from_arrays(tokens.offsets, flat)
    return pa.table(
        {
            "sample_id": rows.column("sample_id"),
            "proximal_logprobs": lists,
            "entropy": lists,
            "entropy_mean": pa.array([entropy] * len(tokens), pa.float32()),
            "advantage": pa.array([0.5] * len(tokens), pa.float64()),
        }
    )


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LOGPROBS = st.floats(min_value=-50, max_value=0, width=32)
COUNTS = st.integers(0, 2**31 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def samples(draw: st.DrawFn, sample_id: str) -> Sample:
    """Any sample the records allow: empty completions, any Unicode, null rewards, several versions."""
    num_tokens = draw(st.integers(0, 6))
    origin = draw(st.sampled_from(tuple(ORIGINS)))
    starts = (
        sorted(draw(st.sets(st.integers(1, max(num_tokens - 1, 1)), max_size=2))) if num_tokens > 1 else []
    )
    bounds = sorted(draw(st.lists(st.integers(0, num_tokens), min_size=2, max_size=2)))
    scores = draw(st.dictionaries(TEXT, st.none() | FINITE, max_size=3))
    ids = st.lists(st.integers(0, 2**31 - 1), min_size=num_tokens, max_size=num_tokens)
    completion = Completion(
        sample_id=sample_id,
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        token_ids=tuple(draw(ids)),
        text=draw(TEXT),
        finish_reason=draw(st.sampled_from(["stop", "length", "error"])),
        behavior_logprobs=tuple(draw(st.lists(LOGPROBS, min_size=num_tokens, max_size=num_tokens))),
        versions=tuple((start, draw(st.integers(0, 2**40))) for start in (0, *starts)),
    )
    return Sample(
        completion=completion,
        origin=origin,
        scores=scores,
        score_status={name: "ok" if score is not None else "timeout" for name, score in scores.items()},
        tags=draw(st.dictionaries(st.just("format") | TEXT, TEXT, max_size=3)),
        spans=(Span(label=draw(TEXT), start=bounds[0], end=bounds[1]),) if draw(st.booleans()) else (),
        answer=draw(st.none() | TEXT),
        answer_ok=draw(st.none() | st.booleans()),
        reward_vector=tuple(scores.values()),
        reward=draw(st.none() | FINITE),
        teacher_prompt_ids=(9, 8) if ORIGINS[origin].taught else None,
        partition=draw(st.none() | st.builds(Partition, partition_id=COUNTS, size=COUNTS)),
        critique=draw(
            st.none() | st.builds(Critique, text=TEXT, kind=TEXT, verdict=TEXT, leaked=st.booleans())
        ),
        numbers=draw(st.dictionaries(TEXT, FINITE, max_size=2)),
        texts=draw(st.dictionaries(TEXT, TEXT, max_size=2)),
    )


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """One to four of them."""
    num_rows = draw(st.integers(1, 4))
    return make_group(
        draw(st.integers(0, 999)), tuple(draw(samples(f"s{number}")) for number in range(num_rows))
    )


class DyingDisk:
    """Counts what changes the disk; from call number `fatal` on every one fails, like a dead process.

    The fatal write itself puts half of its bytes on the disk first. `error` makes what a failed call raises:
    an OSError, unless another is given; one that is no Exception is caught nowhere, like a kill. `names` are
    the calls that count and fail, all unless some are given: a full disk still renames and deletes.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        fatal: int,
        error: Callable[[str], BaseException] = lambda text: OSError(5, text),
        names: Sequence[str] = ("write", "fsync", "replace", "mkdir", "unlink", "rmdir", "ftruncate"),
    ) -> None:
        self.fatal = fatal
        self.calls: list[str] = []
        self._error = error
        for name in names:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            number = len(self.calls)
            self.calls.append(name)
            if number < self.fatal:
                return real(*arguments, **named)
            if name == "write" and number == self.fatal:
                content = arguments[1]
                assert isinstance(content, memoryview)
                real(arguments[0], content[: len(content) // 2])
            raise self._error(f"injected failure of {name}, call {number}")

        return call


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
