"""Held-out evaluation: sampling, scoring, unbiased pass@k, formats; stored in `eval/step=N`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.schema import RunConfig
from rollouts.records import Group, Sampling, Submission
from rollouts.schema import group_to_batch
from rollouts.store import commit_eval, committed_evals
from trainer.data.prompts import TokenPrompt
from trainer.label_entropy import entropy_of
from trainer.reward_ties import reaches
from trainer.roles import Generator
from trainer.rollout.pausable_clock import Clock
from trainer.rollout.rollouter import RolloutTools, ScorerSet, make_submission
from trainer.rollout.single_turn import single_turn
from trainer.seeds import derive_seed


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the unbiased estimator of arXiv 2107.03374, eq. 1, for n >= k samples."""
    if num_samples - num_correct < k:
        return 1.0
    # The product form of the paper; the binomials themselves would overflow a float for large n.
    return float(1.0 - np.prod(1.0 - k / np.arange(num_samples - num_correct + 1, num_samples + 1)))


def _passes(group: Group) -> list[bool]:
    """Whether each sample is correct: `answer_ok` where a scorer checked the answer, else reward >= 1."""
    return [
        sample.answer_ok if sample.answer_ok is not None else bool(reaches(sample.reward or 0.0, 1.0))
        for sample in group.samples
    ]


def eval_metrics(groups: Sequence[Group], pass_at: Sequence[int]) -> dict[str, float]:
    """eval/reward, eval/pass@k, eval/format_share/*, eval/format_accuracy/*, eval/entropy_format (nats).

    `pass_at` are the values of k. Metrics without a value (no reward, no format tags) are left out.
    """
    passes = [_passes(group) for group in groups]
    metrics = {
        f"eval/pass@{k}": float(np.mean([pass_at_k(len(p), sum(p), k) for p in passes])) for k in pass_at
    }
    samples = [sample for group in groups for sample in group.samples]
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    if rewards:
        metrics["eval/reward"] = float(np.mean(rewards))
    if len(rewards) < len(samples):
        metrics["eval/null_share"] = 1.0 - len(rewards) / len(samples)
    tags = [sample.tags.get("format") for sample in samples]
    if any(tags):
        flat = np.array([ok for group in passes for ok in group])
        known = np.array([tag or "untagged" for tag in tags], dtype=object)
        for tag in sorted(set(known)):
            metrics[f"eval/format_share/{tag}"] = float((known == tag).mean())
            metrics[f"eval/format_accuracy/{tag}"] = float(flat[known == tag].mean())
        metrics["eval/entropy_format"] = entropy_of(known)
    return metrics


class Evaluator:
    """Evaluates on the same prompts with the same seeds every time, so that two evaluations are paired."""

    def __init__(
        self,
        config: RunConfig,
        prompts: Sequence[TokenPrompt],
        generator: Generator,
        scorers: ScorerSet,
        run_dir: Path,
    ) -> None:
        self._config, self._generator, self._scorers, self._run_dir = config, generator, scorers, run_dir
        self._prompts = prompts[: config.eval.num_prompts]

    def due(self, step: int) -> bool:
        """Whether to evaluate after `step`: at step 0, every `eval.every` steps and at the last step.

        False if the evaluation is already on disk.
        """
        every = self._config.eval.every
        wanted = every > 0 and (step % every == 0 or step == self._config.num_steps)
        return wanted and step not in committed_evals(self._run_dir)

    async def evaluate(self, step: int) -> dict[str, float]:
        """Sample and score the held-out prompts with the published weights, and commit `eval/step=N`.

        Raises:
            TimeoutError: it took longer than eval.timeout_s.
        """
        config = self._config
        sampling = Sampling(
            temperature=config.eval.temperature, top_p=1.0, max_tokens=config.rollout.max_tokens
        )
        seed = derive_seed(config.seed, "eval")
        submissions = [
            make_submission(index, prompt, config.eval.num_samples, sampling, seed)
            for index, prompt in enumerate(self._prompts)
        ]
        # Seeds come from the index alone, so every evaluation samples with the same seeds; only ids differ.
        named = [
            replace(submission, group_id=f"eval-{step}-{submission.group_id}") for submission in submissions
        ]
        try:
            async with asyncio.timeout(config.eval.timeout_s):
                clock = Clock()
                groups = await asyncio.gather(*(single_turn(s, self._tools(s, clock)) for s in named))
        except TimeoutError as error:
            raise TimeoutError(
                f"evaluation after step {step} took longer than eval.timeout_s = {config.eval.timeout_s:g}"
            ) from error
        metrics = eval_metrics(groups, config.eval.pass_at)
        table = pa.Table.from_batches([group_to_batch(group, config.name) for group in groups])
        commit_eval(self._run_dir, step, table, {"metrics": metrics})
        return metrics

    def _tools(self, submission: Submission, clock: Clock) -> RolloutTools:
        rollout = self._config.rollout
        return RolloutTools(
            submission,
            self._generator,
            self._scorers,
            longest=rollout.max_prompt_tokens + rollout.max_tokens,
            limit_s=self._config.eval.timeout_s,
            clock=clock,
        )
