"""The scorer `code`: 1 for a program that passes the tests of its prompt. In: completions. Out: Judgements.

Named in `configs/kinds/code.py`; runs in killable processes (`actors.sandbox`), one completion at a time.
A wrong program has score 0 and a tag ``code`` that says why. A test that cannot be run, or a sandbox that
fails, is a null score with status ``error``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from configs.kinds.code import CodeOptions
from rewards.code.box import Limits, SandboxBrokenError
from rewards.code.cases import Test, read_tests
from rewards.code.extract import extract
from rewards.code.inside_files import harness_folder, remove_left_folders
from rewards.code.isolation import NONE, sandbox
from rewards.code.proof import choose
from rewards.code.runs import BrokenTestError, LocalRunner, Outcome, Rules
from rewards.code.service import ServiceRunner
from rollouts.records import Completion, Judgement, Prompt

_MIB = 1 << 20
Runner = LocalRunner | ServiceRunner


def code(prompt: Prompt, completions: Sequence[Completion], options: CodeOptions) -> list[Judgement]:
    """Run each completion's program against the prompt's tests.

    The score is 1 if all pass, else 0; with ``reward: share`` it is the share that passes. Numbers:
    ``tests_passed`` and ``tests_total``. Texts: ``outcomes``, one word for each test that was run, and
    ``reason``, the last line of what a program that failed wrote to standard error, or its exception. With
    ``reward: all`` tests after the first failure are not run.

    Raises:
        ValueError: the prompt has no tests that are known.
    """
    # The first ones and not a sample: a completion must have the same score in every run.
    tests = read_tests(prompt)[: options.max_tests or None]
    return [_judge(completion.text, tests, options) for completion in completions]


def warm_up(options: CodeOptions) -> None:
    """Choose the isolation and prove that it holds, before any program runs.

    Raises:
        ValueError: none does.
    """
    _runner(_key(options))
    if not options.url:
        print(_start_line(choose(options.isolation, options.processes)))


def _start_line(method: str) -> str:
    if method == NONE:
        return "programs run without a sandbox (isolation: none)"
    return (
        f"programs run in the sandbox {method!r}: a hostile program was tried, and could not reach files "
        "outside, the network, other processes or the environment, nor exceed its memory"
    )


def _judge(text: str, tests: Sequence[Test], options: CodeOptions) -> Judgement:
    program = extract(text, options.language, bare=options.bare)
    if program is None:
        return _judgement(["no_code"], len(tests), options)
    runner = _runner(_key(options))
    try:
        outcomes = runner.run(program, tests)
    except (SandboxBrokenError, BrokenTestError) as error:
        return Judgement(score=None, status="error", detail=str(error))
    return _judgement(outcomes, len(tests), options, runner.reason)


def _judgement(outcomes: Sequence[Outcome], total: int, options: CodeOptions, reason: str = "") -> Judgement:
    passed = sum(outcome == "passed" for outcome in outcomes)
    failure = next((outcome for outcome in outcomes if outcome != "passed"), "passed")
    score = passed / total if options.reward == "share" else float(passed == total)
    return Judgement(
        score=score,
        tags={"code": failure},
        answer_ok=passed == total,
        numbers={"tests_passed": float(passed), "tests_total": float(total)},
        texts={"outcomes": " ".join(outcomes)}
        | ({"reason": reason} if reason and failure != "passed" else {}),
    )


Key = tuple[str, str, int, Rules]


def _key(options: CodeOptions) -> Key:
    limits = Limits(
        cpu_s=options.cpu_s,
        memory_bytes=options.memory_mb * _MIB,
        processes=options.processes,
        file_bytes=options.files_mb * _MIB,
        output_bytes=options.output_bytes,
    )
    rules = Rules(
        limits=limits,
        wall_s=options.wall_s,
        total_s=options.total_s,
        tolerance=options.tolerance,
        in_place=options.in_place,
        stop_at_failure=options.reward == "all",
    )
    return options.isolation, options.url, options.processes, rules


@cache
def _runner(key: Key) -> Runner:
    isolation, url, processes, rules = key
    if url:
        return ServiceRunner(url, rules)
    # A scorer that was killed leaves the folder of its program.
    remove_left_folders()
    harness_folder()
    return LocalRunner(sandbox(choose(isolation, processes)), rules)
