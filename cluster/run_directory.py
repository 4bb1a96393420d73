"""Claiming a run directory: a new one, or that of an unfinished run of the same experiment, to resume it.

    runs/<name>/run.json     which experiment this is: its settings, their hash, the digests of its prompts
                             and of the user's own code
    runs/<name>/lock         held by the one driver that works on it
    runs/<name>/logs/attempt_<n>/    of the n-th driver

Called by `cluster.attempt` before anything is started.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from cluster.user_code import NO_CODE, UserCode
from configs.experiment import DEFAULTS_VERSION, config_hash, differences, experiment
from configs.load import dump_yaml
from configs.schema import RunConfig
from rollouts.checkpoints import checkpoint_steps, newest_checkpoint
from rollouts.events import append_event
from rollouts.files import make_dir_synced, write_bytes_atomic, write_json_atomic
from rollouts.lock import RunLock
from rollouts.space import check_free_space
from rollouts.store import check_run_free, committed_steps, create_run_dir
from trainer.data.prompts import TokenPrompt

RUN_FILE: Final = "run.json"
FINISHED_FILE: Final = "finished.json"
_SAMPLED_BYTES: Final = 1 << 20
_FORMAT: Final = 1
_LOCK_WAIT_S: Final = 3.0
_STATE_BYTES_PER_PARAMETER: Final = 12
"""fp32 weights and two moments."""
_SLACK_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A run directory that is this driver's until `lock` is released."""

    run_dir: Path
    attempt: int
    lock: RunLock
    experiment_hash: str

    def note_finished(self, num_steps: int) -> None:
        """Keep that the run has made its steps and its export."""
        write_json_atomic(self.run_dir / FINISHED_FILE, {"num_steps": num_steps})

    @property
    def log_dir(self) -> Path:
        """Logs of this attempt."""
        return self.run_dir / "logs" / f"attempt_{self.attempt}"


def source_digest(prompts: Sequence[TokenPrompt], model: Path) -> str:
    """sha256 (hex) of what a run is made from: training prompts with answers, and the model.

    Of a model file the name, the size, and the first and the last MiB count.
    """
    digest = hashlib.sha256()
    for prompt in prompts:
        row = prompt.prompt
        told = (row.prompt_id, row.answer, row.domain, sorted(row.extra.items()), prompt.token_ids)
        digest.update(f"{told}\n".encode(errors="surrogatepass"))
        if row.ground_truth is not None or row.data_source:  # most rows have neither
            digest.update(f"{(row.ground_truth, row.data_source)}\n".encode())
    for path in sorted(model.glob("*.json")) + sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode() + file.read(_SAMPLED_BYTES))
            file.seek(max(0, size - _SAMPLED_BYTES))
            digest.update(file.read())
    return digest.hexdigest()


def shown_digest(demonstrations: pa.RecordBatch) -> str:
    """sha256 (hex) of a run's demonstrations, or "" without any.

    Separate from `source_digest`: a run with demonstrations can be compared with one that has none.
    """
    if not demonstrations.num_rows:
        return ""
    digest = hashlib.sha256()
    for row in demonstrations.select(["prompt_ids", "token_ids"]).to_pylist():
        digest.update(f"{row}\n".encode())
    return digest.hexdigest()


def is_finished(config: RunConfig, job: str) -> bool:
    """Whether a run of this name, experiment and job has made all its steps, and its export, already."""
    run_dir = Path(config.runs_dir) / config.name
    if config.resume == "never" or not (run_dir / RUN_FILE).exists():
        return False
    if _check_experiment(run_dir, config).get("job") != job or not (run_dir / FINISHED_FILE).exists():
        return False
    try:
        made = int(json.loads((run_dir / FINISHED_FILE).read_text(encoding="utf-8"))["num_steps"])
    except (ValueError, KeyError, TypeError):
        return False  # its steps are looked at instead
    exported = not config.checkpoint.export_last or (run_dir / "export").is_dir()
    return exported and made >= config.num_steps


@contextmanager
def reading(run_dir: Path) -> Iterator[None]:
    """Keep a run from being resumed while its rollouts are read.

    Raises:
        ValueError: a driver is at work on it.
    """
    lock = RunLock(run_dir / "lock", "a reader", shared=True)
    if lock.path.exists():
        with suppress(OSError):  # without write access nobody here can resume the run either
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_claimable(config: RunConfig, code: UserCode = NO_CODE) -> None:
    """Raise what `claim_run` would raise for the settings and the code, without touching anything."""
    run_dir = Path(config.runs_dir) / config.name
    for folder in (run_dir, *run_dir.parents):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"runs_dir and name must be a folder, got the file {folder}")
    if config.resume == "never":
        check_run_free(run_dir)
    elif (run_dir / RUN_FILE).exists():
        _changed_modules(run_dir, _check_experiment(run_dir, config), config, code)
    elif committed_steps(run_dir) or checkpoint_steps(run_dir) or any(run_dir.glob("journal/*.arrow")):
        raise ValueError(
            f"{run_dir}: must have a {RUN_FILE} that says which experiment it is, found none: "
            "choose another name (name=...), or move or delete that folder"
        )


def claim_run(config: RunConfig, digest: str, job: str, shown: str = "", code: UserCode = NO_CODE) -> Claim:
    """Claim the run directory of `config` (as the user gave it, model path unresolved).

    `digest` and `shown` are of its sources (`source_digest`, `shown_digest`).

    Raises:
        ValueError: it is in use, of another experiment (with the differences), another job, other prompts or
            other code, it has checkpoints of which none is whole, or it exists and `resume` is never.
    """
    check_claimable(config, code)
    try:
        run_dir = _open_run_dir(config)
        lock = RunLock(run_dir / "lock", "polyphony train")
        lock.acquire(_LOCK_WAIT_S)
    except OSError as error:
        raise ValueError(f"runs_dir must be a folder that can be written and locked, got {error}") from error
    try:
        digests = {"source_sha256": digest, "demonstrations_sha256": shown}
        experiment_hash = _identify(run_dir, config, digests, job, code)
        newest_checkpoint(run_dir)  # refused before anything is started
        make_dir_synced(run_dir / "journal")
        attempt = _next_attempt(run_dir / "logs")
        (run_dir / "logs" / f"attempt_{attempt}").mkdir(parents=True)
    except BaseException:
        lock.release()
        raise
    return Claim(run_dir=run_dir, attempt=attempt, lock=lock, experiment_hash=experiment_hash)


def _open_run_dir(config: RunConfig) -> Path:
    if config.resume == "never":
        return create_run_dir(Path(config.runs_dir), config.name, numbered=False).resolve()
    run_dir = (Path(config.runs_dir) / config.name).resolve()
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    make_dir_synced(run_dir)
    return run_dir


def _identify(run_dir: Path, config: RunConfig, digests: Mapping[str, str], job: str, code: UserCode) -> str:
    """Write who the run is, or check that it is this one; the hash that its checkpoints bear."""
    if not (run_dir / RUN_FILE).exists():
        record = {
            "format": _FORMAT,
            "experiment_hash": config_hash(config),
            "experiment": experiment(config),
            "defaults": DEFAULTS_VERSION,
            **digests,
            "code_sha256": dict(code.digests),
            "job": job,
        }
        write_json_atomic(run_dir / RUN_FILE, record)  # type: ignore[arg-type]
        return config_hash(config)
    known = _check_experiment(run_dir, config)
    if known.get("job") != job:
        raise ValueError(
            f"run directory {run_dir} was begun for another job ({known.get('job')}), not for: {job}; "
            "choose another name (name=...)"
        )
    if any(known.get(name, "") != digest for name, digest in digests.items()):
        raise ValueError(
            f"{run_dir / RUN_FILE}: data.train, sft.data and model.path must be what the run began with, got "
            "others (prompts, answers, demonstrations, tokenizer or model files have changed): "
            "choose another name (name=...)"
        )
    if changed := _changed_modules(run_dir, known, config, code):
        record = dict(known) | {"code_sha256": dict(code.digests)}
        write_json_atomic(run_dir / RUN_FILE, record)  # type: ignore[arg-type]
        append_event(run_dir, "code_changed", modules=", ".join(changed))
    return str(known["experiment_hash"])


def _changed_modules(
    run_dir: Path, known: Mapping[str, object], config: RunConfig, code: UserCode
) -> list[str]:
    """The user's modules that are not what the run began with, if `resume` accepts that.

    Raises:
        ValueError: it does not.
    """
    before = known.get("code_sha256")
    if not isinstance(before, dict):  # of a version that kept none
        return []
    names = sorted(before.keys() | code.digests.keys())
    changed = [name for name in names if before.get(name) != code.digests.get(name)]
    if changed and config.resume != "changed_code":
        told = ", ".join(f"{name} ({code.files.get(name, 'no longer loaded')})" for name in changed)
        raise ValueError(
            f"{run_dir / RUN_FILE}: your own code must be what the run began with, got other content of "
            f"{told}: choose another name (name=...), put the files back, or resume the run with the new "
            "code by resume=changed_code"
        )
    return changed


def _check_experiment(run_dir: Path, config: RunConfig) -> Mapping[str, object]:
    path = run_dir / RUN_FILE
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        before, hashed = dict(known["experiment"]), known["experiment_hash"]
        known["source_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: must be a run's description, found it damaged: {error!r}") from error
    if hashed == config_hash(config):
        return known  # type: ignore[no-any-return]
    lines = [
        f"  {key}: the run has {then!r}, asked for {now!r}" for key, then, now in differences(before, config)
    ]
    if known.get("defaults", 1) != DEFAULTS_VERSION:
        lines.append(f"  defaults: the run has those of version {known.get('defaults', 1)}")
    if not lines:  # hashed by another version, which counted other keys
        return known  # type: ignore[no-any-return]
    raise ValueError(
        f"run directory {run_dir} is of another experiment, which cannot be resumed with this config:\n"
        + "\n".join(lines)
        + "\nask for the run's own settings to resume it, or choose another name (name=...)"
    )


def _next_attempt(logs: Path) -> int:
    numbers = [name.name.removeprefix("attempt_") for name in logs.glob("attempt_*")]
    return max((int(number) for number in numbers if number.isdigit()), default=0) + 1


def count_parameters(folder: Path) -> int:
    """Parameters in a model folder's safetensors files, from their headers.

    Raises:
        ValueError: there are none that can be read.
    """
    from trainer.model.stored_tensors import stored_shapes  # safetensors is not in the base install

    return sum(math.prod(shape) for shape in stored_shapes(folder).values())


def check_space(config: RunConfig) -> None:
    """Refuse to start without room for the checkpoints and the export (`config.model.path` is a folder).

    Raises:
        ValueError: with how much is needed and how much is free.
    """
    parameters = count_parameters(Path(config.model.path))
    states = config.checkpoint.keep + 1  # an old one goes only after the new one is there
    needed = parameters * (_STATE_BYTES_PER_PARAMETER * states + 4) + _SLACK_BYTES
    purpose = f"{states} checkpoints and an export of {parameters:,} parameters"
    check_free_space(Path(config.runs_dir), needed, purpose)


def write_config(run_dir: Path, config: RunConfig) -> None:
    """Keep the resolved config of the newest attempt."""
    write_bytes_atomic(run_dir / "config.yaml", dump_yaml(config).encode())
