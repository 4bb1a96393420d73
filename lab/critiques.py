"""The part of the lab corpus that teaches a base to use critiques: question, answer, critique, fix.

A fix depends on what the critique says, so that a base trained on it does better the more it is told: after a
quoted step that step is redone and the steps before it are kept; after a bare verdict or none at all the
whole solution is written anew, with the errors of its format; after the true answer it ends in that answer.
What was right is repeated. Some rows are critiques themselves, as the critic's answer.

Prompts are rendered from the same template files that refiners use (`configs/prompts/lab`). Called by
`lab.corpus`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from configs.templates import PromptSet, load_prompt_set
from lab.critic import first_wrong_step
from lab.problems import NO_STEP, Integers, Problems, apply_step, problem_texts
from rollouts.records import Prompt

STEP, VERDICT, TRUTH, SILENT, REPEAT, CRITIC = "step", "verdict", "truth", "silent", "repeat", "critic"
KINDS: Final = (STEP, VERDICT, TRUTH, SILENT, REPEAT, CRITIC)


@dataclass
class CritiqueConfig:
    """Rows that hold a question, an answer, a critique of it and a better answer."""

    share: float = 0.0
    """Share of the arithmetic rows."""
    attempt_error_rate: float = 0.36
    """Probability, per step, that the criticised answer is wrong; the format's own where that is higher."""
    error_rate: float = 0.05
    """Probability that a step which the critique quotes is wrong again in the fix."""
    kinds: dict[str, float] = field(
        default_factory=lambda: {STEP: 0.4, VERDICT: 0.1, TRUTH: 0.1, SILENT: 0.1, REPEAT: 0.15, CRITIC: 0.15}
    )
    """Weights. step: the first wrong step is quoted; verdict: only that it is wrong; truth: the answer is
    said; silent: asked again without a critique; repeat: a right answer, said to be right; critic: the
    critique itself is the response."""


def check_critiques(config: CritiqueConfig) -> None:
    """Check the values.

    Raises:
        ValueError: one is out of range; the message has the key, the value and the rule.
    """
    key = "corpus.critiques"
    if not 0 <= config.share < 1:
        raise ValueError(f"{key}.share must be at least 0, below 1, got {config.share!r}")
    for name in ("attempt_error_rate", "error_rate"):
        if not 0 <= (rate := getattr(config, name)) <= 1:
            raise ValueError(f"{key}.{name} must be a probability, got {rate!r}")
    for name, weight in config.kinds.items():
        if name not in KINDS:
            raise ValueError(f"{key}.kinds must be named among {', '.join(KINDS)}, got {name!r}")
        if weight < 0:
            raise ValueError(f"{key}.kinds.{name} must be 0 or more, got {weight!r}")
    if config.share and not sum(config.kinds.values()) > 0:
        raise ValueError(f"sum of {key}.kinds must be above 0, got {dict(config.kinds)!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """Solutions of P problems in one format: the `results` written after each of the two steps, [P] each."""

    problems: Problems
    texts: list[str]
    first: Integers
    second: Integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """One row: the context, what follows it, and its kind."""

    prompt: str
    response: str
    kind: str


def draw_kinds(config: CritiqueConfig, right: np.ndarray, rng: np.random.Generator) -> list[str]:
    """A kind for every attempt, by whether it is `right`, bool [P]: no right answer is called wrong."""
    weights = np.array([config.kinds.get(kind, 0.0) for kind in KINDS])
    drawn = rng.choice(len(KINDS), size=len(right), p=weights / weights.sum())
    return [_fitting(KINDS[kind], bool(ok)) for kind, ok in zip(drawn.tolist(), right.tolist(), strict=True)]


def _fitting(kind: str, is_right: bool) -> str:
    if kind in (CRITIC, SILENT):
        return kind
    if is_right:
        return REPEAT
    return STEP if kind == REPEAT else kind


def fixed_results(
    attempts: Attempts, fresh: Attempts, redone: Mapping[str, Integers], kinds: list[str]
) -> tuple[Integers, Integers]:
    """The results written in the fix of each attempt, [P] and [P].

    `fresh` is another attempt at the same problems. `redone` has, by name, results of single steps: `first`
    and `second` right or wrong at the corpus's `error_rate`, `after` the second step from `first` with the
    errors of the format, `second` from the attempt's own first result.
    """
    problems = attempts.problems
    two_steps = problems.second_op != NO_STEP
    first_is_wrong = attempts.first != apply_step(problems.start, problems.first_op, problems.first)
    first, second = fresh.first.copy(), fresh.second.copy()
    of = np.array(kinds, dtype=object)
    again = of == STEP
    first = np.where(again, np.where(first_is_wrong, redone["first"], attempts.first), first)
    second = np.where(again, np.where(first_is_wrong, redone["after"], redone["second"]), second)
    second = np.where(of == TRUTH, problems.answer, second)
    first = np.where((of == TRUTH) & ~two_steps, problems.answer, first)
    first = np.where(of == REPEAT, attempts.first, first)
    second = np.where(of == REPEAT, attempts.second, second)
    return first, np.where(two_steps, second, first)


def dialogues(attempts: Attempts, fixes: list[str], kinds: list[str]) -> list[Dialogue]:
    """The rows of P attempts with their fixes, rendered from the lab's templates."""
    prompts, made = load_prompt_set("lab"), []
    answers = attempts.problems.answer.tolist()
    rows = zip(problem_texts(attempts.problems), attempts.texts, fixes, answers, kinds, strict=True)
    for question, attempt, fix, answer, kind in rows:
        fields = {"question": question, "answer": attempt, "reference": str(answer)}
        prompt = Prompt(prompt_id="", messages=(("user", question),), answer=str(answer), domain="arithmetic")
        _, quoted = first_wrong_step(prompt, attempt)
        if kind == CRITIC:
            made.append(Dialogue(prompt=prompts.critic(fields), response=quoted, kind=kind))
            continue
        critique = _critique(prompts, kind, quoted, fields)
        made.append(
            Dialogue(prompt=prompts.refine({**fields, "critique": critique}), response=fix, kind=kind)
        )
    return made


def _critique(prompts: PromptSet, kind: str, quoted: str, fields: Mapping[str, str]) -> str:
    """What the critic of a kind says of an attempt whose first wrong step is `quoted`."""
    if kind == SILENT:
        return ""
    if kind == TRUTH:
        return prompts.verdict(fields, is_right=False, with_truth=True)
    if kind == STEP:
        return quoted
    return prompts.verdict(fields, is_right=kind == REPEAT, with_truth=False)
