"""The lab's problems with tests: their solutions in the format code pass them, in the scorer `code`."""

from __future__ import annotations

import numpy as np
from code_cases import completion, options

from configs.kinds.datasets import LabOptions
from lab.corpus import render
from lab.problems import NO_STEP, apply_step, load_prompts, problem_split
from rewards.code import scorer


def test_solutions_pass_and_wrong_ones_do_not() -> None:
    problems = problem_split("train", 0).take(np.arange(3))
    prompts = load_prompts(LabOptions(tests=True, limit=3))
    first = apply_step(problems.start, problems.first_op, problems.first)
    right = render("code", problems, first, problems.answer)
    last = np.where(problems.second_op == NO_STEP, first + 1, first)
    wrong = render("code", problems, last, problems.answer + 1)
    prose = render("prose", problems, first, problems.answer)
    for number, prompt in enumerate(prompts):
        answers = [completion(texts[number]) for texts in (right, wrong, prose)]
        judgements = scorer.code(prompt, answers, options(language="lab", wall_s=20.0, total_s=20.0))
        assert [judgement.score for judgement in judgements] == [1.0, 0.0, 0.0]
        assert judgements[2].tags == {"code": "no_code"}


def test_only_problems_with_an_answer_have_tests() -> None:
    assert load_prompts(LabOptions(split="creative", tests=True, limit=1))[0].ground_truth is None
    plain = load_prompts(LabOptions(limit=1))[0]
    tested = load_prompts(LabOptions(limit=1, tests=True))[0]
    assert plain.ground_truth is None and tested.answer == plain.answer
    assert tested.ground_truth == {"inputs": [""], "outputs": [plain.answer]}
