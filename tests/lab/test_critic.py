"""The lab's rule critic, and the corpus rows that teach a base to use critiques."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.kinds.datasets import LabOptions
from lab.corpus import (
    CorpusConfig,
    FormatConfig,
    HardStepsConfig,
    check_corpus,
    hard_steps,
    load_prompts,
    make_corpus,
)
from lab.critic import first_wrong_step, read_solution
from lab.critiques import CritiqueConfig
from lab.recipe import load_recipe, recipe_hash
from lab.tokenizer import UNKNOWN, make_tokenizer, vocabulary
from rewards.formats import tag
from rollouts.records import Prompt


def problem(question: str = "( 3 + 4 ) * 2 = ?", answer: str | None = "14") -> Prompt:
    return Prompt(prompt_id="p", messages=(("user", question),), answer=answer, domain="arithmetic")


ROOT = Path(__file__).resolve().parents[2]
PROSE = "we take 3 plus 4 which is 7 and then 7 times 2 which is 15 so the answer is 15"
TAGGED = "<step> 3 + 5 = 8 </step> <step> 8 * 2 = 16 </step> <answer> 16 </answer>"


@pytest.mark.parametrize(
    ("text", "verdict", "critique"),
    [
        ("$ 3 + 4 = 7 , 7 * 2 = 14 => 14 $", "right", "right"),
        ("$ 3 + 4 = 8 , 8 * 2 = 16 => 16 $", "wrong", "wrong : 3 + 4 = 8"),
        (PROSE, "wrong", "wrong : 7 * 2 = 15"),
        ("def : x = 3 + 4 -> 7 ; x = x * 2 -> 13 ; return 13", "wrong", "wrong : 7 * 2 = 13"),
        (TAGGED, "wrong", "wrong : 3 + 5 = 8"),
        ("$ 3 + 4 = 7 , 8 * 2 = 16 => 16 $", "wrong", "wrong : 8 * 2 = 16"),  # not from the result before it
        ("$ 3 + 4 = 7 , 7 + 2 = 9 => 9 $", "wrong", "wrong : 7 + 2 = 9"),  # another operator
        ("$ 3 + 4 = 7 , 7 * 2 = 14 => 15 $", "wrong", "wrong : the answer is 15"),  # steps right, answer not
        ("$ 3 + 4 = 7 => 7 $", "wrong", "wrong"),  # a step is missing
        ("$ 3 + 4 = 7 , 7 * 2 = 14 , 14 + 1 = 15 => 15 $", "wrong", "wrong : 14 + 1 = 15"),  # one too many
        ("$ 3 + 4 = 8 , 8 * 2 = 14 => 14 $", "right", "right"),  # two errors: the answer decides
        ("ba de fi", "wrong", "wrong"),
        ("", "wrong", "wrong"),
        ("def : x = x + 4 -> 7 ; return 7", "wrong", "wrong"),
    ],
)  # fmt: skip
def test_the_first_wrong_step_by_hand(text: str, verdict: str, critique: str) -> None:
    assert first_wrong_step(problem(), text) == (verdict, critique)


def test_problems_of_one_step_and_others() -> None:
    assert first_wrong_step(problem("3 + 4 = ?", "7"), "$ 3 + 4 = 6 => 6 $") == ("wrong", "wrong : 3 + 4 = 6")
    with pytest.raises(ValueError, match=r"must get a problem of the lab, got 'what is it\?'"):
        first_wrong_step(problem("what is it?"), "$ 3 + 4 = 6 => 6 $")


def test_solutions_are_read_in_every_format() -> None:
    steps = [(3, "+", 4, 7), (7, "*", 2, 14)]
    for text in (
        "def : x = 3 + 4 -> 7 ; x = x * 2 -> 14 ; return 14",
        "we take 3 plus 4 which is 7 and then 7 times 2 which is 14 so the answer is 14",
        "$ 3 + 4 = 7 , 7 * 2 = 14 => 14 $",
        "<step> 3 + 4 = 7 </step> <step> 7 * 2 = 14 </step> <answer> 14 </answer>",
    ):
        assert read_solution(text) == (steps, 14), text


@pytest.mark.parametrize("name", ["code", "prose", "symbolic", "tagged"])
def test_prompts_with_their_solutions(name: str) -> None:
    """As the control gold_injection needs them; the critic finds nothing wrong with any."""
    prompts = load_prompts(LabOptions(split="heldout", limit=200, solutions=name))
    for prompt in prompts:
        assert tag(str(prompt.extra["solution"]), (name,)) == name
        assert first_wrong_step(prompt, str(prompt.extra["solution"])) == ("right", "right")
    bare = load_prompts(LabOptions(split="heldout", limit=200))
    assert [replace(prompt, extra={}) for prompt in prompts] == bare


def corpus(**changes: Any) -> CorpusConfig:
    formats = {name: FormatConfig(error_rate=0.3) for name in ("code", "prose", "symbolic", "tagged")}
    return CorpusConfig(
        num_rows=4000,
        creative_share=0.0,
        formats=formats,
        hard=HardStepsConfig(share=0.25, error_rate=1.0),
        critiques=CritiqueConfig(share=0.5, **changes),
    )


def is_fixed(response: str, answer: str) -> bool:
    return re.findall(r"\d+", response)[-1:] == [answer]


def test_a_fix_depends_on_its_critique() -> None:
    """Without errors in redone steps: the quoted step is right in the fix, what was before it is kept; told
    the answer, it ends in it; what was right is repeated. A bare "wrong" fixes fewer than a quoted step.
    """
    shares: dict[str, list[bool]] = {}
    for row in make_corpus(corpus(error_rate=0.0)):
        if row.prompt.endswith("= ?"):
            continue
        question, attempt, rest = re.fullmatch(
            r"(.*? = \?) (.*?(?:return \d+|so the answer is \d+|=> \d+ \$|</answer>))( .*)", row.prompt
        ).groups()  # type: ignore[union-attr]
        verdict, quoted = first_wrong_step(problem(question, row.answer), attempt)
        if rest == " critique":
            assert row.response == quoted
        elif rest == " right again":
            assert verdict == "right" and row.response == attempt
        elif rest == f" wrong , the answer is {row.answer} again":
            assert is_fixed(row.response, row.answer)
        elif rest == "  again":
            shares.setdefault("silent", []).append(is_fixed(row.response, row.answer))
        elif rest == " wrong again":
            shares.setdefault("verdict", []).append(is_fixed(row.response, row.answer))
        else:
            assert rest == f" {quoted} again"
            before, after = read_solution(attempt), read_solution(row.response)
            assert before is not None and after is not None
            shown = ["{} {} {} = {}".format(*one) for one in before[0]]
            step = next(k for k, one in enumerate(shown) if quoted == f"wrong : {one}")
            assert after[0][:step] == before[0][:step] and after[0][step][3] != before[0][step][3]
            shares.setdefault("step", []).append(is_fixed(row.response, row.answer))
    found = {name: sum(each) / len(each) for name, each in shares.items()}
    assert found["step"] > 0.7 > 0.45 > found["verdict"], found


def test_hard_steps_are_wrong_in_every_format() -> None:
    """6 of 26 kinds of step, drawn from the seed; at a rate of 1 a first hard step is never written right."""
    config = corpus()
    hard = hard_steps(config)
    assert hard.sum() == 6
    ops = {"+": 0, "-": 1, "*": 2}
    seen = Counter[bool]()
    for row in make_corpus(config):
        solution = read_solution(row.response)
        if row.prompt.endswith("= ?") and solution is not None:
            left, op, right, result = solution[0][0]
            true = {"+": left + right, "-": left - right, "*": left * right}[op]
            if hard[ops[op], right]:
                seen[result == true] += 1
    # where no other number is in range, the right one is written
    assert seen[False] > 200 and seen[True] < 0.05 * seen[False]


def test_words_of_critiques_take_the_place_of_padding() -> None:
    """All other ids are the same, and every row of the corpus is made of known words."""
    plain, told = vocabulary(), vocabulary(with_critiques=True)
    assert len(plain) == len(told)
    changed = [word for word, other in zip(told, plain, strict=True) if word != other]
    assert changed == ["right", "wrong", "again", "critique", "<unused0>"]
    tokenizer = make_tokenizer(with_critiques=True)
    for row in make_corpus(corpus())[:500]:
        assert UNKNOWN not in tokenizer.tokenize(f"{row.prompt} {row.response}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.0}, "corpus.critiques.share must be at least 0, below 1, got 1.0"),
        ({"error_rate": 2.0}, "corpus.critiques.error_rate must be a probability"),
        ({"kinds": {"step": -1.0}}, "corpus.critiques.kinds.step must be 0 or more"),
        ({"kinds": {"steps": 1.0}}, "corpus.critiques.kinds must be named among step, verdict"),
        ({"share": 0.5, "kinds": {"step": 0.0}}, "sum of corpus.critiques.kinds must be above 0"),
    ],
)
def test_values_that_make_no_corpus(change: dict[str, object], message: str) -> None:
    config = corpus()
    for name, value in change.items():
        setattr(config.critiques, name, value)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_corpus(config)
    with pytest.raises(ValueError, match=r"corpus\.hard\.share must be between 0 and 1, got 2"):
        check_corpus(CorpusConfig(hard=HardStepsConfig(share=2.0)))


@pytest.mark.parametrize("name", ["voices", "critics"])
def test_bundled_bases_are_those_of_their_recipes(name: str) -> None:
    """A recipe that changed would make another base than the one beside it."""
    manifest = json.loads((ROOT / f"lab/bases/{name}/manifest.json").read_text(encoding="utf-8"))
    assert manifest["recipe_sha256"] == recipe_hash(load_recipe(str(ROOT / f"lab/bases/{name}.yaml")))


def test_corpora_without_critiques_are_as_they_were() -> None:
    """The rows of voices, hashed before corpora could have critiques or hard steps."""
    rows = make_corpus(load_recipe(str(ROOT / "lab/bases/voices.yaml")).corpus)
    shown = repr([(row.prompt, row.response, row.format, row.answer) for row in rows])
    assert hashlib.sha256(shown.encode()).hexdigest() == (
        "1c0ef8a54b4f2a70b59573caeb33f55b70a91ef9d3b40d904ebea44c68c8ca0f"
    )
