"""pass@k against counting every subset; what counts as correct; when an evaluation is due."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from loop_fakes import FakeGenerator, scorers, token_prompts
from rollout_rows import make_group, make_sample

from configs.schema import EvalConfig, RunConfig
from rollouts.records import Sample
from rollouts.store import committed_evals, read_eval
from trainer.evaluate import Evaluator, eval_metrics, pass_at_k

CASES = [(n, c, k) for n in range(1, 8) for c in range(n + 1) for k in range(1, n + 1)]


@pytest.mark.parametrize(("n", "c", "k"), CASES)
def test_pass_at_k_counts_subsets(n: int, c: int, k: int) -> None:
    """The share of the k-subsets of n samples, c of them correct, that contain a correct one."""
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))


def test_metrics_by_hand() -> None:
    """Group 0: one of two correct (by answer_ok); group 1: none. pass@1 = (1/2 + 0)/2, pass@2 = (1 + 0)/2.

    Tags code code / prose none: code has 1 of 2 correct. Format entropy of (1/2, 1/4, 1/4) is 1.0397 nats.
    """
    right, wrong = make_sample("a", 2, reward=1.0), make_sample("b", 2, reward=None, tag="code")
    groups = [
        make_group(0, (right, _with_answer(wrong, False))),
        make_group(
            1,
            tuple(
                _with_answer(make_sample(f"c{tag}", 1, reward=0.5, tag=tag), False) for tag in ("prose", None)
            ),
        ),
    ]
    found = eval_metrics(groups, (1, 2))
    assert found == pytest.approx(
        {
            "eval/pass@1": 0.25,
            "eval/pass@2": 0.5,
            "eval/reward": 2 / 3,
            "eval/null_share": 1 / 4,
            "eval/format_share/code": 0.5,
            "eval/format_accuracy/code": 0.5,
            "eval/format_share/prose": 0.25,
            "eval/format_accuracy/prose": 0.0,
            "eval/format_share/untagged": 0.25,
            "eval/format_accuracy/untagged": 0.0,
            "eval/entropy_format": 1.0397208,
        }
    )


@pytest.mark.parametrize(("reward", "passed"), [(1.0, 1.0), (0.99, 0.0), (None, 0.0)])
def test_without_a_verdict_the_reward_decides(reward: float | None, passed: float) -> None:
    """A reward of at least 1 is correct; a null one is not."""
    sample = _with_answer(make_sample("a", 1, reward=reward), None)
    assert eval_metrics([make_group(0, (sample,))], (1,))["eval/pass@1"] == passed


def _with_answer(sample: Sample, answer_ok: bool | None) -> Sample:
    return replace(sample, answer_ok=answer_ok)


@pytest.mark.parametrize(("every", "due"), [(0, []), (2, [0, 2, 4, 5]), (5, [0, 5])])
def test_when_it_is_due(tmp_path: Path, every: int, due: list[int]) -> None:
    """Every `eval.every` of 5 steps, also at step 0 and the last; never with 0."""
    config = RunConfig(num_steps=5, eval=EvalConfig(every=every))
    evaluator = Evaluator(config, token_prompts(2), FakeGenerator(), scorers(), tmp_path)
    assert [step for step in range(6) if evaluator.due(step)] == due


def test_evaluations_are_paired_and_committed(tmp_path: Path) -> None:
    """The same prompts with the same seeds at steps 0 and 3; rows and metrics are on disk under each step."""
    config = RunConfig(eval=EvalConfig(every=1, num_prompts=2, num_samples=3, pass_at=(1, 3)))
    generator = FakeGenerator()
    evaluator = Evaluator(config, token_prompts(5), generator, scorers(), tmp_path)
    metrics = [asyncio.run(evaluator.evaluate(step)) for step in (0, 3)]
    assert committed_evals(tmp_path) == [0, 3]
    first, second = (read_eval(tmp_path, step) for step in (0, 3))
    assert first.num_rows == 6 and set(first.column("prompt_id").to_pylist()) == {"p0", "p1"}
    assert first.column("seed").to_pylist() == second.column("seed").to_pylist()
    assert len(set(first.column("seed").to_pylist())) == 6
    assert set(first.column("sample_id").to_pylist()).isdisjoint(second.column("sample_id").to_pylist())
    summary = json.loads((tmp_path / "eval" / "step=000003" / "step.json").read_text(encoding="utf-8"))
    assert summary["metrics"] == metrics[1]
