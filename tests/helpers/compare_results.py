"""Made-up results of a comparison, for the tests of its table and pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lab.results import PromptResult, RunResult


def prompt(
    name: str,
    correct: int,
    formats: Mapping[str, int],
    strategies: Mapping[str, int] | None = None,
    answer_entropy: float | None = 0.5,
    num_answers: int | None = None,
) -> PromptResult:
    """A prompt of 4 samples of which `correct` are right, with a reward of 1 each."""
    return PromptResult(
        prompt_id=name,
        num_samples=4,
        num_correct=correct,
        num_rewarded=4,
        reward_sum=float(correct),
        formats=formats,
        strategies=strategies or {},
        answer_entropy=answer_entropy,
        num_answers=num_answers,
    )


def result(
    arm: str, seed: int, prompts: Sequence[PromptResult], entropy: float = 0.1, kl: float = 0.02
) -> RunResult:
    """A run of two steps that ends with these prompts, this token entropy and this KL."""
    last = {"reward": 0.5, "token entropy": entropy, "format entropy": 0.6, "KL to base": kl}
    last["leading share"] = 0.75
    return RunResult(
        arm=arm,
        seed=seed,
        config_hash="abc",
        num_steps=2,
        source_sha256="def",
        demonstrations_sha256="",
        code_sha256="",
        steps=(1, 2),
        curves={name: (value / 2, value) for name, value in last.items()},
        last=last,
        num_last=2,
        wall_s=1.0,
        prompts=tuple(prompts),
    )
