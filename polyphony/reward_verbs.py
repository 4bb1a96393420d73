"""`polyphony rewards list | try | bench`: the kinds of scorers, and the scorers of a config on completions.

In: parsed arguments. Out: text on stdout, a JSON file if asked for, and an exit code. Called by
`polyphony.cli`.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean
from typing import Final, cast

from configs.bound import BoundRun, bind
from configs.describe import about, attribute_docs, default_of
from configs.errors import nearest
from configs.kinds.scorers import SCORERS
from configs.load import load_config
from polyphony.reward_scoring import measure, opened, score_groups, with_scorers, without_reward
from polyphony.reward_tables import (
    Summary,
    as_json,
    row_lines,
    speed_lines,
    speed_of,
    summary_lines,
    summary_of,
)
from rollouts.files import write_json_atomic
from rollouts.records import Completion, Prompt
from trainer.data.completion_rows import CompletionGroup, read_completions, run_completions
from trainer.data.prompts import load_dataset
from viewer.text import one_line

_BASE: Final = "debug"
"""The preset of a trial without a config: only its scorers are used, which `--scorer` replaces."""
_BENCH_PROMPTS: Final = 64
_MOST_MISSING: Final = 0.5
"""Most of a scorer's scores that may be missing in a trial."""


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Run one of the verbs."""
    match arguments.rewards_verb:
        case "list":
            return list_kinds(arguments.kind)
        case "try":
            return try_scorers(arguments, overrides)
    return bench_scorers(arguments, overrides)


def list_kinds(kind: str | None) -> int:
    """Print the kinds of scorers, or one of them, with a line for each option."""
    if kind is not None and kind not in SCORERS:
        close = nearest(kind, SCORERS)
        hint = f" (did you mean {close}?)" if close else ""
        raise ValueError(f"KIND must be one of {', '.join(SCORERS)}, got {kind!r}{hint}")
    lines = []
    for name in [kind] if kind else SCORERS:
        options = SCORERS[name].options
        lines.append(f"{name}: {about(options).splitlines()[0]}")
        docs = attribute_docs(options)
        for field in fields(cast(type, options)):
            meaning = f": {docs[field.name]}" if field.name in docs else ""
            lines.append(f"    {field.name} = {default_of(field).strip('`')}{meaning}")
    print("\n".join(lines))
    return 0


def try_scorers(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Score existing completions; 1 if a scorer of the reward misses too many scores."""
    if min(arguments.step, arguments.limit) < 0:
        raise ValueError(f"--step and --limit must be 0 or more, got {arguments.step} and {arguments.limit}")
    is_run = Path(arguments.rows).is_dir()
    if is_run and arguments.limit:
        raise ValueError("--limit must be left out with a run directory: choose a step with --step")
    if not is_run and arguments.step:
        raise ValueError(f"--step must be left out with a file, got a file {arguments.rows}")
    bound = _bound(arguments.config, arguments.rows if is_run else "", arguments.scorer, overrides)
    groups = _groups(arguments.rows, bound, arguments.step, arguments.limit)
    with opened(bound, groups, _note) as scorers:
        scored = asyncio.run(score_groups(scorers, groups))
        if not _in_reward(bound):
            scored = [without_reward(row) for row in scored]
            _note("no scorer has a weight, so there is no reward: set scorers.NAME.weight=1")
        seconds = dict(scorers.seconds)
        for line in asyncio.run(scorers.reports()):
            _note(line)
    print(f"{one_line(arguments.rows, 120)}: {len(scored)} completions of {len(groups)} prompts\n")
    summaries = {
        name: summary_of(entry, name, scored, seconds[name]) for name, entry in bound.scorers.items()
    }
    print("\n".join([*summary_lines(summaries), "", *row_lines(scored)]))
    if arguments.json:
        found = {name: asdict(summary) for name, summary in summaries.items()}
        rows = [as_json(row) for row in scored]
        write_json_atomic(Path(arguments.json), {"rows_of": arguments.rows, "scorers": found, "rows": rows})
        print(f"\n{arguments.json}: the results of all {len(scored)} completions")
    return 1 if _count_missing(bound, summaries, len(scored)) else 0


def _count_missing(bound: BoundRun, summaries: Mapping[str, Summary], total: int) -> int:
    """Note missing scores of the reward; returns how many scorers miss too many to be used."""
    failed = 0
    for name in _in_reward(bound):
        missing = summaries[name].num_null
        # A run stops at the limit of a judge. Others have none, but half of the scores are not enough.
        too_many = missing > total * min(bound.scorers[name].options.failure_limit(), _MOST_MISSING)
        failed += too_many
        if missing:
            count = "all" if missing == total else f"{missing} of"
            _note(f"scorers.{name}: {count} {total} scores are missing{', too many' if too_many else ''}")
    return failed


def bench_scorers(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Measure each scorer by itself."""
    if not 0 < arguments.seconds < math.inf or arguments.cores < 1:
        raise ValueError(
            "--seconds must be a number above 0 and --cores at least 1, got "
            f"{arguments.seconds} and {arguments.cores}"
        )
    bound = _bound(arguments.config, "", arguments.scorer, overrides)
    groups = _groups(arguments.rows, bound, 0, 0) if arguments.rows else _made_groups(bound)
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        with opened(bound, groups, _note) as scorers:
            found = [asyncio.run(measure(scorers, name, groups, arguments.seconds)) for name in bound.scorers]
    finally:
        os.sched_setaffinity(0, before)
    size = fmean(len(group.completions) for group in groups)
    print(f"{len(cores)} cores, groups of {size:g} completions, {arguments.seconds:g} s for each scorer\n")
    speeds = {name: speed_of(measured) for name, measured in zip(bound.scorers, found, strict=True)}
    print("\n".join(speed_lines(speeds)))
    if arguments.json:
        values = {name: asdict(speed) for name, speed in speeds.items()}
        write_json_atomic(Path(arguments.json), {"cores": len(cores), "group_size": size, "scorers": values})
    return 0


def _bound(config: str | None, run_dir: str, names: Sequence[str], overrides: Sequence[str]) -> BoundRun:
    """The run whose scorers are used.

    Raises:
        ValueError: the config cannot be used, or a scorer cannot.
    """
    if config is None and run_dir:
        path = Path(run_dir) / "config.yaml"
        if not path.is_file():
            raise ValueError(f"{run_dir}: must be a run directory with config.yaml, or give --config")
        config = str(path)
    if config is not None:
        return with_scorers(bind(load_config(config, overrides)), names)
    if not names:
        raise ValueError(
            "rewards try needs --config CONFIG, or --scorer KIND for a kind with default options"
        )
    if unknown := [name for name in names if name not in SCORERS]:
        close = nearest(unknown[0], SCORERS)
        hint = f" (did you mean {close}?)" if close else ""
        raise ValueError(
            f"--scorer without --config must be one of {', '.join(SCORERS)}, got {unknown[0]!r}{hint}"
        )
    kinds = ", ".join(f"{name}: {{kind: {name}, weight: 1.0}}" for name in dict.fromkeys(names))
    return with_scorers(bind(load_config(_BASE, [f"scorers={{{kinds}}}", *overrides])), names)


def _groups(rows: str, bound: BoundRun, step: int, limit: int) -> list[CompletionGroup]:
    if Path(rows).is_dir():
        return run_completions(Path(rows), step, load_dataset(bound.single["data.train"]))
    return read_completions(rows, limit)


def _made_groups(bound: BoundRun) -> list[CompletionGroup]:
    """Completions of the first prompts of data.train: right, wrong, empty and long ones in turn."""
    size, groups = bound.config.rollout.group_size, []
    for prompt in load_dataset(bound.single["data.train"])[:_BENCH_PROMPTS]:
        texts = [_made_text(prompt, number) for number in range(size)]
        groups.append(
            CompletionGroup(
                prompt=prompt,
                completions=tuple(
                    Completion(
                        sample_id=f"{prompt.prompt_id}.{number}",
                        seed=number,
                        token_ids=tuple(range(len(text.split()))),
                        text=text,
                        finish_reason="stop",
                        behavior_logprobs=(0.0,) * len(text.split()),
                        versions=((0, 0),),
                    )
                    for number, text in enumerate(texts)
                ),
                places=(prompt.place or prompt.prompt_id,) * size,
                scores=({},) * size,
                has_tokens=True,
            )
        )
    return groups


def _made_text(prompt: Prompt, number: int) -> str:
    answer = prompt.answer or "7"
    reasoning = "We add the numbers one by one and check the sum again. " * 20
    made = (
        f"{reasoning}So the answer is \\boxed{{{answer}}}",
        f"so the answer is {answer}1",
        f"<think>{reasoning}</think><answer>{answer}</answer>",
        "",
        f"{reasoning * 5}{answer}",
    )
    return made[number % len(made)]


def _in_reward(bound: BoundRun) -> list[str]:
    return [
        name
        for name, entry in bound.scorers.items()
        if entry.common.weight != 0 or entry.common.combine != "sum"
    ]


def _note(text: str) -> None:
    print(f"polyphony: {text}", file=sys.stderr)
