"""The arms of a comparison: the settings that may differ, and those that must not. In: files. Out: configs.

An arm is a YAML file merged over the comparison's config and under the command line's overrides, which apply
to all arms. The config itself is the arm `control`. Called by `lab.compare`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from configs.bound import bind
from configs.errors import COMMAND_LINE, ConfigError, Problem
from configs.experiment import experiment, settings
from configs.load import load_with_sources
from configs.schema import RunConfig
from configs.sources import NO_SOURCES, Provenance, Source, has_key, read_chain, read_overrides

CONTROL: Final = "control"
_DEFAULTS: Final = Source(
    "polyphony compare",
    {
        "checkpoint": {"every": 25, "keep": 1, "export_last": False},
        "eval": {"every": 1_000_000},  # that is: before the first step and after the last
    },
)
"""Defaults of a comparison's runs, overridden by CONFIG, the arm and the command line."""
FIXED: Final[Mapping[str, str]] = {
    "data": "all arms are trained and evaluated on the same prompts",
    "eval": "all arms are evaluated in the same way",
    "model": "all arms start from the same model",
    "num_steps": "all arms make the same number of steps",
    "rollout.max_tokens": "the evaluation samples under this limit, too",
    "rollout.max_prompt_tokens": "it decides which prompts are evaluated",
    "seed": "the seeds of a comparison are 0 to N - 1 (--seeds N)",
    "name": "a run is named after its arm and seed",
    "runs_dir": "the runs of a comparison are in --out",
    "resume": "a comparison always resumes its runs",
}
"""What an arm must not change, and why."""
_NOT_GIVEN: Final = ("seed", "name", "runs_dir", "resume")
"""The keys of `FIXED` that the command line must not set either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm: its name, its file ("" for control), one config per seed, and the keys in which it differs."""

    name: str
    file: str
    configs: tuple[RunConfig, ...]
    changes: Mapping[str, tuple[object, object]]
    """key -> (control's value, the arm's value); None for a key that a config does not have."""
    sources: Provenance = NO_SOURCES
    """Which file or override set each key."""

    def told_changes(self) -> dict[str, tuple[object, object]]:
        """`changes` without options that only follow from another kind: those it lacks or has by default."""
        return {key: pair for key, pair in self.changes.items() if self._is_told(key, pair)}

    def _is_told(self, key: str, pair: tuple[object, object]) -> bool:
        if None not in pair or key.endswith(".kind"):
            return True
        return pair[1] is not None and has_key(self.sources.merged or {}, key)

    @property
    def is_rescored(self) -> bool:
        """Whether its reward is another quantity than control's: other scorers, or other models behind them.

        Keys that only say where or how fast scores are computed do not count.
        """
        config = self.configs[0]
        options = [entry.options for entry in bind(config).scorers.values()]
        models = {f"models.{name}." for each in options for name in each.model_names().values()}
        deciding = experiment(config).keys()
        # A key that this arm lacks belongs to a scorer, or an option of one, that only control has.
        changed = (key for key, (_, mine) in self.changes.items() if key in deciding or mine is None)
        return any(key.startswith(("scorers.", *models)) for key in changed)


def load_arms(
    config: str, files: Sequence[str], overrides: Sequence[str], num_seeds: int, folder: Path
) -> tuple[Arm, ...]:
    """Control and an arm per file, each with the configs of its runs in `folder`/runs.

    Raises:
        ConfigError: a file or an override cannot be used, or an arm changes what must be the same.
        ValueError: there are no seeds, no arms, or two of one name.
    """
    if num_seeds < 1:
        raise ValueError(f"--seeds must be 1 or more, got {num_seeds}")
    names = [CONTROL, *(_arm_name(file) for file in files)]
    if len(names) == 1:
        raise ValueError("--arms must name at least one file: CONFIG itself is the arm control")
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"--arms must be files of different names, and none {CONTROL}.yaml, got {double}")
    given = read_overrides(overrides)
    _refuse([key for key in _NOT_GIVEN if has_key(given.tree, key)], COMMAND_LINE, given.tree)
    arms: list[Arm] = []
    for file in files:
        _refuse_given(file)
    for name, file in zip(names, ["", *files], strict=True):
        loaded = [
            # The seed last: an override of the command line must not replace it.
            _load(config, file, [*overrides, f"seed={seed}"], f"{name}-seed{seed}", folder)
            for seed in range(num_seeds)
        ]
        configs = tuple(each for each, _ in loaded)
        control = settings(arms[0].configs[0] if arms else configs[0])
        changes = _changes(control, settings(configs[0]))
        if arms:
            _check_changes(file, changes)
        arms.append(Arm(name=name, file=file, configs=configs, changes=changes, sources=loaded[0][1]))
    if arms[0].configs[0].eval.every == 0:
        raise ValueError("eval.every must be above 0: without held-out prompts there is nothing to compare")
    return tuple(arms)


def _refuse_given(file: str) -> None:
    """Raise if an arm's own file sets a key that the comparison sets itself, which would have no effect.

    `name` is allowed, as in any preset.
    """
    own = read_chain(Path(file))[-1].tree
    _refuse([key for key in _NOT_GIVEN if key != "name" and key in own], file, own)


def _arm_name(file: str) -> str:
    path = Path(file)
    if not path.is_file():
        rule = "must be a YAML file"
        raise ConfigError([Problem(source=COMMAND_LINE, key="--arms", value=file, rule=rule)])
    if not re.fullmatch(r"[A-Za-z0-9_-]+", path.stem):
        rule = "must have a name of letters, digits, - and _: the arm is called after it"
        raise ConfigError([Problem(source=COMMAND_LINE, key="--arms", value=file, rule=rule)])
    return path.stem


def _load(
    config: str, file: str, overrides: Sequence[str], name: str, folder: Path
) -> tuple[RunConfig, Provenance]:
    loaded, sources = load_with_sources(config, overrides, [Path(file)] if file else [], [_DEFAULTS])
    return replace(loaded, name=name, runs_dir=str(folder / "runs"), resume="auto"), sources


def _changes(control: Mapping[str, object], arm: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    keys = sorted(control.keys() | arm.keys())
    pairs = {key: (control.get(key), arm.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1] and key != "name"}


def _check_changes(file: str, changes: Mapping[str, tuple[object, object]]) -> None:
    if not changes:
        raise ValueError(
            f"{file}: must change something, got the same settings as control "
            "(an override on the command line applies to all arms, and hides the value in the file)"
        )
    _refuse([key for key in changes if _reason(key)], file, {key: pair[1] for key, pair in changes.items()})


def _refuse(keys: Sequence[str], source: str, values: Mapping[str, object]) -> None:
    problems = [
        Problem(source=source, key=key, value=values.get(key), rule=f"must not differ: {_reason(key)}")
        for key in keys
    ]
    if problems:
        raise ConfigError(problems)


def _reason(key: str) -> str:
    """Why an arm must not change this key; "" if it may."""
    return next((why for fixed, why in FIXED.items() if key == fixed or key.startswith(f"{fixed}.")), "")
