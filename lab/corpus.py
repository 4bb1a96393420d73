"""The lab corpus: arithmetic solutions in four formats, and syllable strings, as a finite list of rows.

Each format has its own first token, share of the rows and rate of wrong steps, so that the base model trained
on it has known format shares and accuracies. The formats are those of `rewards.formats`.

Inputs: a `CorpusConfig`. Outputs: `CorpusRow`s, turned into training rows by `lab.pretrain`; or, for runs,
`Demonstration`s by the options of their kind ``lab``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from configs.kinds.datasets import LabOptions
from configs.kinds.demonstrations import LabDemonstrationOptions
from lab.critiques import (
    Attempts,
    CritiqueConfig,
    check_critiques,
    dialogues,
    draw_kinds,
    fixed_results,
)
from lab.problems import (
    MAX_FACTOR,
    MAX_NUMBER,
    MAX_TERM,
    NO_STEP,
    NUM_HELDOUT,
    NUM_TRAIN,
    SYMBOLS,
    Integers,
    Problems,
    apply_step,
    creative_texts,
    problem_split,
    problem_texts,
    step_kinds,
)
from lab.problems import load_prompts as problem_prompts
from rewards.lab import SYLLABLES
from rollouts.records import Demonstration, Prompt

FORMATS = ("code", "prose", "symbolic", "tagged")
FIRST_TOKENS = {"code": "def", "prose": "we", "symbolic": "$", "tagged": "<step>"}
"""The token at position 0 that decides the format."""
CREATIVE = "creative"
_WORDS = ("plus", "minus", "times")
_WRONG_OFFSETS = np.array([-1, 1], dtype=np.int64)
_MIN_SYLLABLES, _MAX_SYLLABLES = 6, 12


@dataclass
class FormatConfig:
    """One format's part of the corpus."""

    weight: float = 1.0
    """Share of the arithmetic rows, over the sum of all weights."""
    multiplicity: int = 1
    """Renderings of one problem before the next is taken; they differ in their wrong steps only."""
    error_rate: float = 0.0
    """Probability, per step, that the written result is wrong; later steps use it."""


@dataclass
class HardStepsConfig:
    """Kinds of step, such as ``* 7``, whose result is nearly always written wrong, in every format.

    A base that is right now and then on every problem has no prompts that fail in all samples of a group; one
    with hard steps has.
    """

    share: float = 0.0
    """Share of the operators with their operands, drawn from the seed."""
    error_rate: float = 0.97


@dataclass
class CorpusConfig:
    """The training text of the base model. All numbers that decide its rows."""

    seed: int = 0
    num_rows: int = 98304
    num_train: int = NUM_TRAIN
    """Problems that may be rendered: the first ones of the train split."""
    num_heldout: int = NUM_HELDOUT
    """Problems kept for measuring: the first ones of the held-out split."""
    creative_share: float = 0.1
    """Share of the rows that answer an open-ended prompt."""
    creative_concentration: float = 1.0
    """Dirichlet parameter of the chain that writes syllables: larger is closer to uniform."""
    formats: dict[str, FormatConfig] = field(
        default_factory=lambda: {name: FormatConfig() for name in FORMATS}
    )
    hard: HardStepsConfig = field(default_factory=HardStepsConfig)
    critiques: CritiqueConfig = field(default_factory=CritiqueConfig)


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """One training text. `format` is a format's name, or "creative"; `answer` the true answer, "" if none.

    A fix has the format of the answer that it fixes; `answer` is that of the problem.
    """

    prompt: str
    response: str
    format: str
    answer: str


def check_corpus(config: CorpusConfig) -> None:
    """Check the values of a corpus.

    Raises:
        ValueError: one is out of range; the message has the key, the value and the rule.
    """
    _require(config.seed >= 0, "corpus.seed", config.seed, "0 or more")
    _require(config.num_rows >= 1, "corpus.num_rows", config.num_rows, "1 or more")
    _require(1 <= config.num_train <= NUM_TRAIN, "corpus.num_train", config.num_train, f"1 to {NUM_TRAIN}")
    _require(
        1 <= config.num_heldout <= NUM_HELDOUT,
        "corpus.num_heldout",
        config.num_heldout,
        f"1 to {NUM_HELDOUT}",
    )
    _require(
        0 <= config.creative_share < 1, "corpus.creative_share", config.creative_share, "at least 0, below 1"
    )
    concentration = config.creative_concentration
    _require(concentration > 0, "corpus.creative_concentration", concentration, "above 0")
    _require(bool(config.formats), "corpus.formats", dict(config.formats), "one format or more")
    for name, part in config.formats.items():
        key = f"corpus.formats.{name}"
        _require(name in FORMATS, "corpus.formats", name, f"named among {', '.join(FORMATS)}")
        _require(part.weight >= 0, f"{key}.weight", part.weight, "0 or more")
        _require(part.multiplicity >= 1, f"{key}.multiplicity", part.multiplicity, "1 or more")
        _require(0 <= part.error_rate <= 1, f"{key}.error_rate", part.error_rate, "a probability")
    for key, hard in (("share", config.hard.share), ("error_rate", config.hard.error_rate)):
        _require(0 <= hard <= 1, f"corpus.hard.{key}", hard, "between 0 and 1")
    check_critiques(config.critiques)
    total = sum(part.weight for part in config.formats.values())
    _require(total > 0, "sum of corpus.formats.*.weight", total, "above 0")


def _require(holds: bool, key: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{key} must be {rule}, got {value!r}")


def make_corpus(config: CorpusConfig) -> list[CorpusRow]:
    """All rows, shuffled; the same list for the same config.

    Raises:
        ValueError: see `check_corpus`.
    """
    check_corpus(config)
    # The second number keeps this stream apart from those of the problems, which have the same seed.
    rng = np.random.default_rng([config.seed, 3])
    train = problem_split("train", config.seed)
    num_creative = round(config.num_rows * config.creative_share)
    counts = _row_counts(config, config.num_rows - num_creative)
    rows: list[CorpusRow] = []
    for name, count in counts.items():
        part = config.formats[name]
        num_problems = -(-count // part.multiplicity)
        # `resize` repeats the permutation: each problem is used once before any is used twice.
        visited = np.resize(rng.permutation(config.num_train), num_problems)
        problems = train.take(np.repeat(visited, part.multiplicity)[:count])
        # Critiques are drawn first: a corpus without any has the numbers that it always had.
        num_critiques = round(count * config.critiques.share)
        if num_critiques:
            rows += _critique_rows(name, problems.take(np.arange(num_critiques)), config, rng)
        rows += _format_rows(name, problems.take(np.arange(num_critiques, count)), config, rng)
    rows += _creative_rows(num_creative, config, rng)
    return [rows[index] for index in rng.permutation(len(rows)).tolist()]


def load_prompts(options: LabOptions) -> list[Prompt]:
    """The prompts of one split; with `solutions`, arithmetic ones have a right one as `extra.solution`.

    Raises:
        ValueError: see `lab.problems.load_prompts`.
    """
    prompts = problem_prompts(options)
    if not options.solutions or options.split == "creative":
        return prompts
    problems = problem_split(options.split, options.corpus_seed)
    first = apply_step(problems.start, problems.first_op, problems.first)
    shown = render(options.solutions, problems, first, problems.answer)
    return [replace(prompt, extra={"solution": text}) for prompt, text in zip(prompts, shown, strict=False)]


def load_demonstrations(options: LabDemonstrationOptions) -> list[Demonstration]:
    """Solutions of training problems; a problem repeats in a format only after all others were used.

    Raises:
        ValueError: see `check_corpus`.
    """
    formats = {
        name: FormatConfig(weight=share, error_rate=options.error_rate)
        for name, share in options.formats.items()
    }
    config = CorpusConfig(
        seed=options.corpus_seed, num_rows=options.num_rows, creative_share=0.0, formats=formats
    )
    try:
        rows = make_corpus(config)
    except ValueError as error:
        raise ValueError(f"sft.data: {error}") from error
    return [
        Demonstration(
            prompt_id=f"lab{options.corpus_seed}-sft-{index:05d}",
            messages=(("user", row.prompt),),
            completion=row.response,
            domain="arithmetic",
            format_tag=row.format,
            is_text=True,
        )
        for index, row in enumerate(rows)
    ]


def _row_counts(config: CorpusConfig, total: int) -> dict[str, int]:
    """Rows per format: cumulative weights rounded, so that they add up to `total`."""
    names = [name for name in FORMATS if name in config.formats]
    weights = np.array([config.formats[name].weight for name in names])
    # Each share rounded by itself would not sum to `total`; differences of rounded sums do.
    edges = np.rint(np.cumsum(weights) / weights.sum() * total).astype(np.int64)
    return dict(zip(names, np.diff(edges, prepend=0).tolist(), strict=True))


Rates = float | npt.NDArray[np.float64]
"""Probability that a result is written wrong: of all steps, or of each, [P]."""


def hard_steps(config: CorpusConfig) -> npt.NDArray[np.bool_]:
    """bool [4, 10]: whether the step with this operator code and operand is hard."""
    hard = np.zeros((NO_STEP + 1, max(MAX_TERM, MAX_FACTOR) + 1), np.bool_)
    ops, operands = step_kinds()
    count = round(len(ops) * config.hard.share)
    chosen = np.random.default_rng([config.seed, 5]).permutation(len(ops))[:count]
    hard[ops[chosen], operands[chosen]] = True
    return hard


def _step_rates(problems: Problems, error_rate: float, config: CorpusConfig) -> tuple[Rates, Rates]:
    """The error rates of each problem's first and second step."""
    if not config.hard.share:
        return error_rate, error_rate
    hard = hard_steps(config)
    steps = ((problems.first_op, problems.first), (problems.second_op, problems.second))
    first, second = (np.where(hard[op, operand], config.hard.error_rate, error_rate) for op, operand in steps)
    return first, second


def _written_results(
    problems: Problems, rates: tuple[Rates, Rates], rng: np.random.Generator
) -> tuple[Integers, Integers]:
    """The result written after each step, [P] and [P]: each wrong with its rate, always in 0..99.

    A wrong first result that would take the second step out of range is replaced by another, or by the right
    one where no other fits. One-step problems have their only result in both columns.
    """
    right = apply_step(problems.start, problems.first_op, problems.first)
    # A wrong step carries on into the next, as a mistake of a real solution does.
    first = _maybe_wrong(right, rates[0], rng, problems.second_op, problems.second)
    second = _second_results(problems, first, rates[1], rng)
    return first, np.where(problems.second_op == NO_STEP, first, second)


def _second_results(
    problems: Problems, first: Integers, error_rate: Rates, rng: np.random.Generator
) -> Integers:
    """The result written after the second step from `first` [P], each wrong with `error_rate`."""
    carried = apply_step(first, problems.second_op, problems.second)
    nothing = np.zeros_like(carried)
    return _maybe_wrong(carried, error_rate, rng, nothing + NO_STEP, nothing)


def _maybe_wrong(
    right: Integers, error_rate: Rates, rng: np.random.Generator, next_op: Integers, next_operand: Integers
) -> Integers:
    """`right` [P] with errors drawn so that ``error next_op next_operand`` stays in 0..99."""
    # Both offsets are tried in random order, so that errors are unbiased where both fit.
    tried = right[:, None] + rng.permuted(np.tile(_WRONG_OFFSETS, (len(right), 1)), axis=1)
    onward = apply_step(tried, next_op[:, None], next_operand[:, None])
    fits = (tried >= 0) & (tried <= MAX_NUMBER) & (onward >= 0) & (onward <= MAX_NUMBER)
    wrong = tried[np.arange(len(right)), fits.argmax(axis=1)]
    return np.where(fits.any(axis=1) & (rng.random(len(right)) < error_rate), wrong, right)


Step = tuple[int, int, int, int]
"""(value before, operator code, operand, written result)."""


def _render_code(steps: list[Step]) -> str:
    shown = [
        f"x = {'x' if index else left} {SYMBOLS[op]} {right} -> {result} ;"
        for index, (left, op, right, result) in enumerate(steps)
    ]
    return f"def : {' '.join(shown)} return {steps[-1][3]}"


def _render_prose(steps: list[Step]) -> str:
    shown = [f"{left} {_WORDS[op]} {right} which is {result}" for left, op, right, result in steps]
    return f"we take {' and then '.join(shown)} so the answer is {steps[-1][3]}"


def _render_symbolic(steps: list[Step]) -> str:
    shown = [f"{left} {SYMBOLS[op]} {right} = {result}" for left, op, right, result in steps]
    return f"$ {' , '.join(shown)} => {steps[-1][3]} $"


def _render_tagged(steps: list[Step]) -> str:
    shown = [f"<step> {left} {SYMBOLS[op]} {right} = {result} </step>" for left, op, right, result in steps]
    return f"{' '.join(shown)} <answer> {steps[-1][3]} </answer>"


_RENDERERS: dict[str, Callable[[list[Step]], str]] = {
    "code": _render_code,
    "prose": _render_prose,
    "symbolic": _render_symbolic,
    "tagged": _render_tagged,
}


def render(name: str, problems: Problems, first: Integers, second: Integers) -> list[str]:
    """The solutions of P problems in format `name`, with `first` and `second` [P] as the written results."""
    draw = _RENDERERS[name]
    columns = (
        problems.start,
        problems.first_op,
        problems.first,
        first,
        problems.second_op,
        problems.second,
        second,
    )
    texts = []
    for start, op, operand, middle, last_op, last, final in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        steps: list[Step] = [(start, op, operand, middle)]
        if last_op != NO_STEP:
            steps.append((middle, last_op, last, final))
        texts.append(draw(steps))
    return texts


def _format_rows(
    name: str, problems: Problems, config: CorpusConfig, rng: np.random.Generator
) -> list[CorpusRow]:
    rates = _step_rates(problems, config.formats[name].error_rate, config)
    responses = render(name, problems, *_written_results(problems, rates, rng))
    answers = problems.answer.tolist()
    return [
        CorpusRow(prompt, response, name, str(answer))
        for prompt, response, answer in zip(problem_texts(problems), responses, answers, strict=True)
    ]


def _critique_rows(
    name: str, problems: Problems, config: CorpusConfig, rng: np.random.Generator
) -> list[CorpusRow]:
    """Answers to P problems in format `name`, each with a critique and a fix, or with its critique alone."""
    usual = config.formats[name].error_rate
    rates = _step_rates(problems, usual, config)
    tried_at = _step_rates(problems, max(usual, config.critiques.attempt_error_rate), config)
    tries = []
    for step_rates in (tried_at, rates):
        first, second = _written_results(problems, step_rates, rng)
        texts = render(name, problems, first, second)
        tries.append(Attempts(problems=problems, texts=texts, first=first, second=second))
    attempt, fresh = tries
    again = config.critiques.error_rate
    redone, _ = _written_results(problems, (again, again), rng)
    results = {
        "first": redone,
        "after": _second_results(problems, redone, rates[1], rng),
        "second": _second_results(problems, attempt.first, again, rng),
    }
    kinds = draw_kinds(config.critiques, attempt.second == problems.answer, rng)
    fixes = render(name, problems, *fixed_results(attempt, fresh, results, kinds))
    answers = problems.answer.tolist()
    made = dialogues(attempt, fixes, kinds)
    return [
        CorpusRow(row.prompt, row.response, name, str(answer))
        for row, answer in zip(made, answers, strict=True)
    ]


def _creative_rows(count: int, config: CorpusConfig, rng: np.random.Generator) -> list[CorpusRow]:
    """`count` strings of 6 to 12 syllables: a seeded first-order chain starting at the prompt's last."""
    size = len(SYLLABLES)
    chain = rng.dirichlet(np.full(size, config.creative_concentration), size=size).cumsum(axis=1)
    prompts = creative_texts()
    chosen = rng.integers(len(prompts), size=count)
    state = chosen % size
    written = np.empty((count, _MAX_SYLLABLES), dtype=np.int64)
    for position in range(_MAX_SYLLABLES):
        # `chain` has cumulative probabilities, so the number of them below a uniform draw is the next state.
        above = rng.random(count)[:, None] > chain[state]
        state = np.minimum(above.sum(axis=1), size - 1)
        written[:, position] = state
    lengths = rng.integers(_MIN_SYLLABLES, _MAX_SYLLABLES + 1, size=count)
    return [
        CorpusRow(prompts[prompt], " ".join(SYLLABLES[code] for code in codes[:length]), CREATIVE, "")
        for prompt, codes, length in zip(chosen.tolist(), written.tolist(), lengths.tolist(), strict=True)
    ]
