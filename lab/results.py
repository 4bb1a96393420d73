"""The stored result of a finished run of a comparison: one small JSON file per arm and seed.

In: a run directory. Out: `results/<arm>_seed<k>.json`, written atomically, with curves of the main metrics,
their means over the last steps, and the last evaluation prompt by prompt: enough to draw the whole comparison
again without the runs. Called by `lab.compare`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from cluster.run_directory import RUN_FILE
from configs.experiment import config_hash
from configs.schema import RunConfig
from rollouts.files import make_dir_synced, write_json_atomic
from rollouts.store import committed_evals, read_eval
from trainer.evaluate import pass_at_k
from trainer.label_entropy import entropy_of
from trainer.reward_ties import reaches
from viewer.run_data import read_run

FORMAT: Final = 1
LEADING: Final = "leading share"
CURVES: Final = {
    "reward": "reward/mean",
    "token entropy": "entropy/token_mean_t1",
    "format entropy": "entropy/format",
    "KL to base": "kl/k3_policy_vs_base",
    LEADING: "format/leading_share",
}
"""Name of a curve -> the metric of a step that it has."""
_LAST_SHARE: Final = 0.1
_LAST_AT_LEAST: Final = 5
_DIGITS: Final = 6
_COLUMNS = ("submission_index", "prompt_id", "reward", "answer", "answer_ok", "format_tag", "tags")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """One prompt's samples in the last evaluation. `formats` and `strategies` count samples by tag."""

    prompt_id: str
    num_samples: int
    num_correct: int
    num_rewarded: int
    reward_sum: float
    formats: Mapping[str, int]
    strategies: Mapping[str, int]
    answer_entropy: float | None
    """In nats; None if no scorer returns answers."""
    num_answers: int | None = None
    """Number of different answers; None as above, or in results that do not have it."""

    def pass_at(self, k: int) -> float:
        """pass@k of these samples."""
        return pass_at_k(self.num_samples, self.num_correct, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A finished run: `curves` go by `steps` (NaN where a step has no value), `last` are their last means."""

    arm: str
    seed: int
    config_hash: str
    num_steps: int
    source_sha256: str
    demonstrations_sha256: str | None
    """"" without demonstrations; None if written by a version that did not store it."""
    code_sha256: str | None
    """Digest of the user's own code; "" and None as above."""
    steps: tuple[int, ...]
    curves: Mapping[str, tuple[float, ...]]
    last: Mapping[str, float]
    num_last: int
    wall_s: float
    prompts: tuple[PromptResult, ...]


def result_path(folder: Path, arm: str, seed: int) -> Path:
    """The file of the result of an arm's seed."""
    return folder / "results" / f"{arm}_seed{seed}.json"


def gather(
    run_dir: Path, arm: str, config: RunConfig, wall_s: float, metrics: Sequence[str] = ()
) -> RunResult:
    """The result of a finished run of `config`; `metrics` are those of a step to add to its curves.

    Raises:
        ValueError: it has no metrics, or no evaluation after its last step.
    """
    run = read_run(run_dir)
    if config.num_steps not in committed_evals(run_dir):
        raise ValueError(f"{run_dir}: must have an evaluation after step {config.num_steps}, got none")
    steps = tuple(step for step in run.steps if step <= config.num_steps)  # the run may have continued since
    named = CURVES | {metric: metric for metric in metrics}
    curves = {name: run.curve(metric)[: len(steps)] for name, metric in named.items()}
    num_last = min(len(steps), max(_LAST_AT_LEAST, math.ceil(_LAST_SHARE * len(steps))))
    known = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
    return RunResult(
        arm=arm,
        seed=config.seed,
        config_hash=config_hash(config, with_evaluation=True),
        num_steps=config.num_steps,
        source_sha256=str(known["source_sha256"]),
        demonstrations_sha256=known.get("demonstrations_sha256"),
        code_sha256=_digest_of(known.get("code_sha256")),
        steps=steps,
        curves={name: tuple(_rounded(value) for value in curve) for name, curve in curves.items()},
        last={name: _rounded(_mean(curve[-num_last:])) for name, curve in curves.items()},
        num_last=num_last,
        wall_s=round(wall_s, 2),
        prompts=prompt_results(read_eval(run_dir, config.num_steps, list(_COLUMNS))),
    )


def _digest_of(modules: object) -> str | None:
    """sha256 (hex) of the digests of a run's own modules by name; "" for none, None if they were not kept."""
    if not isinstance(modules, dict):
        return None
    return hashlib.sha256(json.dumps(modules, sort_keys=True).encode()).hexdigest() if modules else ""


def prompt_results(rows: pa.Table) -> tuple[PromptResult, ...]:
    """An evaluation's rows prompt by prompt, in the order of the prompts."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        groups.setdefault(row["submission_index"], []).append(row)
    return tuple(_prompt_result(groups[index]) for index in sorted(groups))


def _prompt_result(rows: Sequence[Mapping[str, Any]]) -> PromptResult:
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    answers = [row["answer"] for row in rows]
    # As in `trainer.evaluate`: by the answer if a scorer gives one, else by the reward.
    right = [
        row["answer_ok"] if row["answer_ok"] is not None else bool(reaches(row["reward"] or 0.0, 1.0))
        for row in rows
    ]
    formats = [row["format_tag"] for row in rows]
    strategies = [dict(row["tags"]).get("strategy") for row in rows]
    answered = any(answer is not None for answer in answers)
    return PromptResult(
        prompt_id=rows[0]["prompt_id"],
        num_samples=len(rows),
        num_correct=sum(right),
        num_rewarded=len(rewards),
        reward_sum=_rounded(math.fsum(rewards)),
        formats=_counts(formats),
        strategies=_counts(strategies),
        answer_entropy=_rounded(entropy_of(answers)) if answered else None,
        num_answers=len({answer for answer in answers if answer is not None}) if answered else None,
    )


def _counts(tags: Sequence[str | None]) -> dict[str, int]:
    """Samples by tag, what has none as "untagged"; nothing if no sample has any."""
    return dict(sorted(Counter(tag or "untagged" for tag in tags).items())) if any(tags) else {}


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


# -- on disk -------------------------------------------------------------------------------------------------


def write_result(path: Path, result: RunResult) -> None:
    """Write a result atomically; values that are not finite become null."""
    make_dir_synced(path.parent)
    record = {
        "format": FORMAT,
        "arm": result.arm,
        "seed": result.seed,
        "config_hash": result.config_hash,
        "num_steps": result.num_steps,
        "source_sha256": result.source_sha256,
        "demonstrations_sha256": result.demonstrations_sha256,
        "code_sha256": result.code_sha256,
        "wall_s": result.wall_s,
        "num_last": result.num_last,
        "last": {name: _or_null(value) for name, value in result.last.items()},
        "steps": list(result.steps),
        "curves": {name: [_or_null(value) for value in curve] for name, curve in result.curves.items()},
        "prompts": [
            [
                *(each.prompt_id, each.num_samples, each.num_correct, each.num_rewarded, each.reward_sum),
                *(dict(each.formats), dict(each.strategies), each.answer_entropy, each.num_answers),
            ]
            for each in result.prompts
        ],
    }
    write_json_atomic(path, json.loads(json.dumps(record)))


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_result(path: Path) -> RunResult:
    """Read a stored result.

    Raises:
        ValueError: it is damaged, or has another format.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT}, got {record['format']!r}")
        return RunResult(
            arm=str(record["arm"]),
            seed=int(record["seed"]),
            config_hash=str(record["config_hash"]),
            num_steps=int(record["num_steps"]),
            source_sha256=str(record["source_sha256"]),
            demonstrations_sha256=record.get("demonstrations_sha256"),
            code_sha256=record.get("code_sha256"),
            steps=tuple(int(step) for step in record["steps"]),
            curves={
                str(name): tuple(_or_nan(value) for value in curve)
                for name, curve in record["curves"].items()
            },
            last={str(name): _or_nan(value) for name, value in record["last"].items()},
            num_last=int(record["num_last"]),
            wall_s=float(record["wall_s"]),
            prompts=tuple(_read_prompt(each) for each in record["prompts"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: must be the result of a run, got a damaged file ({error!r}): delete it, and run the "
            "same command to write it again from the run's folder"
        ) from error


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _read_prompt(fields: Sequence[Any]) -> PromptResult:
    prompt_id, num_samples, num_correct, num_rewarded, reward_sum, formats, strategies, answers, *rest = (
        fields
    )
    return PromptResult(
        prompt_id=str(prompt_id),
        num_samples=int(num_samples),
        num_correct=int(num_correct),
        num_rewarded=int(num_rewarded),
        reward_sum=float(reward_sum),
        formats={str(tag): int(count) for tag, count in formats.items()},
        strategies={str(tag): int(count) for tag, count in strategies.items()},
        answer_entropy=None if answers is None else float(answers),
        num_answers=int(rest[0]) if rest and rest[0] is not None else None,
    )
