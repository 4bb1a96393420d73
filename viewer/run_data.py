"""Read a run directory for the report: metric curves, evaluations, a few samples, the config.

In: runs/<name>/ with config.yaml, metrics.jsonl, rollouts/step=N/, eval/step=N/, any of which may be
incomplete, absent or damaged. Out: one `RunData`. What cannot be read becomes a sentence in `notes` and not
an exception, so that a crashed run has a report too. Only a folder that is not a run is a ValueError. Called
by `viewer.report`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml  # type: ignore[import-untyped]

from configs.origins import POLICY
from configs.schema import PROBE_TOLERANCE

Curve = tuple[float, ...]
"""One value per step of `RunData.steps`; NaN where the step has none."""
SAMPLES_PER_STEP = 8
_STEP_FOLDER = re.compile(r"step=(\d{1,18})")
_LARGEST = 1e30
"""A larger value is treated as missing: it would flatten every chart and overflow an axis."""
_MAX_STEP = 10**12
_COLUMNS = ("prompt_id", "origin", "text", "format_tag", "reward", "entropy_mean", "answer_ok")


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One completion as it was committed. Text is raw: escape it. NaN and "" mean null."""

    prompt_id: str
    text: str
    format_tag: str
    reward: float
    entropy: float
    answer_ok: str


@dataclass(frozen=True, slots=True)
class StepSamples:
    """The first completion of each of the first prompts of a step, out of `num_rows` rows."""

    step: int
    num_rows: int
    rows: tuple[SampleRow, ...]


@dataclass(frozen=True, slots=True)
class RunData:
    """A run directory in memory. `curves` go by `steps`, `evals` by `eval_steps`, both rising; `samples` are
    those of the first and of the last step.
    """

    name: str
    steps: tuple[int, ...]
    curves: Mapping[str, Curve]
    eval_steps: tuple[int, ...]
    evals: Mapping[str, Curve]
    samples: tuple[StepSamples, ...]
    config_text: str
    probe_tolerance: float
    notes: tuple[str, ...]

    def curve(self, key: str) -> Curve:
        """The values of metric `key`; all NaN when it was never recorded."""
        return self.curves.get(key) or (math.nan,) * len(self.steps)

    def has(self, key: str) -> bool:
        """True when metric `key` has at least one finite value."""
        return any(math.isfinite(value) for value in self.curves.get(key, ()))


def read_run(run_dir: Path) -> RunData:
    """Everything the report shows of `run_dir`.

    Raises:
        ValueError: `run_dir` is not a folder with a config.yaml or a metrics.jsonl.
    """
    if not run_dir.is_dir():
        raise ValueError(
            f"run directory must be a folder with config.yaml and metrics.jsonl, got {run_dir}: no folder"
        )
    if not (run_dir / "config.yaml").is_file() and not (run_dir / "metrics.jsonl").is_file():
        raise ValueError(f"run directory must have config.yaml or metrics.jsonl, got {run_dir} with neither")
    notes: list[str] = []
    config_text = _read_text(run_dir / "config.yaml", notes)
    records = _read_metrics(run_dir, notes)
    steps, curves = _columns(records, notes)
    evals = _step_metrics(run_dir / "eval", notes)
    eval_steps, eval_curves = _columns(evals, notes)
    return RunData(
        name=run_dir.resolve().name,
        steps=steps,
        curves=curves,
        eval_steps=eval_steps,
        evals=eval_curves,
        samples=_read_samples(run_dir / "rollouts", notes),
        config_text=config_text,
        probe_tolerance=_probe_tolerance(config_text, notes),
        notes=tuple(notes),
    )


def _read_text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error.strerror}")
        return ""


def _read_metrics(run_dir: Path, notes: list[str]) -> dict[int, dict[str, float]]:
    """Step -> metrics, from metrics.jsonl or, if that has none, from the step.json files."""
    path = run_dir / "metrics.jsonl"
    records: dict[int, dict[str, float]] = {}
    lines = _read_text(path, notes).splitlines() if path.is_file() else []
    # A run that is killed while it writes leaves an incomplete last line. The other lines are good.
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse_object(line)
        step = record.get("step")
        if _is_step(step):
            assert isinstance(step, int)
            records[step] = _floats(record, record.get("nonfinite"))
        else:
            notes.append(
                f"metrics.jsonl line {number} is not a JSON object with a whole number under step: left out"
            )
    if not records:
        # metrics.jsonl is only a copy for convenience: the step.json files are what was committed.
        records = _step_metrics(run_dir / "rollouts", notes)
        source = (
            "taken from the step.json files"
            if records
            else "and there are no step.json files: no step to show"
        )
        notes.append(f"metrics.jsonl is absent or has no steps, {source}")
    return records


def _parse_object(text: str) -> dict[str, object]:
    """The JSON object in `text`; an empty one when it holds anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # an incomplete or damaged line, which the caller reports
        return {}
    return value if isinstance(value, dict) else {}


def _is_step(value: object) -> bool:
    # In Python True is an int.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_STEP


def _floats(record: Mapping[str, object], nonfinite: object) -> dict[str, float]:
    """The numbers of `record` by name; absurd ones, and those that `nonfinite` names, become NaN.

    The store leaves values that are not finite out and lists their names. Other types are skipped.
    """
    names = nonfinite if isinstance(nonfinite, list) else []
    numbers = {name: math.nan for name in names if isinstance(name, str)}
    for key, value in record.items():
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
            numbers[key] = float(value) if abs(value) <= _LARGEST else math.nan
    return numbers


def _step_folders(parent: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the `step=N` folders in `parent`, rising."""
    if not parent.is_dir():
        return []
    matches = ((_STEP_FOLDER.fullmatch(path.name), path) for path in parent.iterdir() if path.is_dir())
    found = [(int(match.group(1)), path) for match, path in matches if match is not None]
    return sorted(pair for pair in found if pair[0] <= _MAX_STEP)


def _step_metrics(parent: Path, notes: list[str]) -> dict[int, dict[str, float]]:
    """Step -> the `metrics` of each `step=N/step.json` in `parent`."""
    records: dict[int, dict[str, float]] = {}
    for step, folder in _step_folders(parent):
        path = folder / "step.json"
        summary = _parse_object(_read_text(path, notes)) if path.is_file() else {}
        metrics = summary.get("metrics")
        if isinstance(metrics, dict):
            records[step] = _floats(metrics, summary.get("nonfinite"))
        else:
            notes.append(f"{parent.name}/{folder.name}/step.json has no metrics: left out")
    return records


def _columns(
    records: Mapping[int, Mapping[str, float]], notes: list[str]
) -> tuple[tuple[int, ...], dict[str, Curve]]:
    """Records by step -> (rising steps, curve per metric); values that are not finite go to `notes`."""
    steps = tuple(sorted(records))
    keys = sorted({key for record in records.values() for key in record})
    curves = {key: tuple(records[step].get(key, math.nan) for step in steps) for key in keys}
    for key in keys:
        num_broken = sum(key in records[step] and not math.isfinite(records[step][key]) for step in steps)
        if num_broken:
            notes.append(
                f"{key} is not a finite number at {num_broken} of {len(steps)} steps: not drawn there"
            )
    return steps, curves


def _read_samples(rollouts: Path, notes: list[str]) -> tuple[StepSamples, ...]:
    """Samples of the first and the last committed step, where they can be read."""
    folders = _step_folders(rollouts)
    if not folders:
        notes.append("rollouts/ has no committed step: no completions to show")
    # Two steps, which are one if the run has only one.
    wanted = folders[:1] + folders[1:][-1:]
    read = (_read_step_samples(step, folder, notes) for step, folder in wanted)
    return tuple(samples for samples in read if samples is not None)


def _read_step_samples(step: int, folder: Path, notes: list[str]) -> StepSamples | None:
    picked: dict[str, SampleRow] = {}
    num_rows = 0
    try:
        for path in sorted(folder.glob("*.parquet")):
            # One file at a time, not a dataset: the folder name would be taken for a second `step` column.
            with pq.ParquetFile(path) as file:
                num_rows += file.metadata.num_rows
                names = [name for name in _COLUMNS if name in file.schema_arrow.names]
                for batch in file.iter_batches(batch_size=256, columns=names):
                    _pick(batch, picked)
                    if len(picked) >= SAMPLES_PER_STEP:
                        break
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        notes.append(f"rollouts/{folder.name} could not be read: {reason}")
        return None
    if not picked:
        notes.append(f"rollouts/{folder.name} has no rows: no completions of that step to show")
        return None
    return StepSamples(step, num_rows, tuple(picked.values()))


def _pick(batch: pa.RecordBatch, picked: dict[str, SampleRow]) -> None:
    """Add to `picked` the first sampled row of every prompt it lacks, up to SAMPLES_PER_STEP rows."""
    for row in batch.to_pylist():
        if len(picked) >= SAMPLES_PER_STEP:
            return
        prompt_id = _text(row.get("prompt_id"))
        # One completion per prompt: the rows of a group follow each other, and eight of one prompt show
        # little.
        if prompt_id not in picked and row.get("origin", POLICY) == POLICY:
            picked[prompt_id] = SampleRow(
                prompt_id=prompt_id,
                text=_text(row.get("text")),
                format_tag=_text(row.get("format_tag")),
                reward=_float(row.get("reward")),
                entropy=_float(row.get("entropy_mean")),
                answer_ok={True: "right", False: "wrong"}.get(row.get("answer_ok"), ""),
            )


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _probe_tolerance(config_text: str, notes: list[str]) -> float:
    """The largest probe gap (nats) the run accepts: `sync.tolerance`, by compute type when 0; NaN unknown."""
    try:
        config = yaml.safe_load(config_text)
    except (yaml.YAMLError, ValueError, RecursionError):
        notes.append("config.yaml is not valid YAML: its text is shown unchanged")
        return math.nan
    sync, model = _mapping(config, "sync"), _mapping(config, "model")
    try:
        tolerance = float(_text(sync.get("tolerance")) or 0.0)  # YAML 1.1 reads 1e-3 as text
    except ValueError:
        tolerance = math.nan
    if tolerance > 0:
        return tolerance
    return PROBE_TOLERANCE.get(_text(model.get("dtype")), math.nan)


def _mapping(config: object, key: str) -> Mapping[object, object]:
    value = config.get(key) if isinstance(config, dict) else None
    return value if isinstance(value, dict) else {}


def mean(values: Iterable[float]) -> float:
    """The mean of the finite ones among `values`; NaN when there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
