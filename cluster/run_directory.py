"""Claiming a run directory: a new one, or that of an unfinished run of the same experiment, to resume it.

    runs/<name>/run.json     which experiment this is: its settings, their hash, the digests of its prompts
                             and of the user's own code
    runs/<name>/lock         held by the driver that works on the run
    runs/<name>/logs/attempt_<n>/    logs of the n-th driver

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
from typing import Any, Final

import pyarrow as pa

from cluster.user_code import NO_CODE, UserCode
from configs.bound import BoundEntry, BoundRun
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
"""Bytes hashed at each end of a model file; hashing all of a large model would take minutes."""
MODEL_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""The files of a model's folder."""
_FORMAT: Final = 1
_SOURCES: Final = {
    "source_sha256": "prompts or answers of data.train, or other tokenizer or model files of model.path",
    "demonstrations_sha256": "demonstrations of sft.data",
    "scorer_files_sha256": "files that scorers, the refiner or token advantages name, such as rubrics",
    "models_sha256": "files of frozen models under models",
}
"""What each digest in the run's description is of."""
_LOCK_WAIT_S: Final = 3.0
"""A driver that was just killed releases its lock within moments."""
_STATE_BYTES_PER_PARAMETER: Final = 12
"""fp32 weights and Adam's two moments."""
_SLACK_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A run directory that belongs to this driver until `lock` is released."""

    run_dir: Path
    attempt: int
    lock: RunLock
    experiment_hash: str

    def note_finished(self, num_steps: int) -> None:
        """Record that the run has made all its steps and its export."""
        write_json_atomic(self.run_dir / FINISHED_FILE, {"num_steps": num_steps})

    @property
    def log_dir(self) -> Path:
        """The folder for the logs of this attempt."""
        return self.run_dir / "logs" / f"attempt_{self.attempt}"


def source_digest(prompts: Sequence[TokenPrompt], model: Path) -> str:
    """sha256 (hex) of a run's sources: its training prompts with their answers, and the model's files.

    A model file counts by its name, its size, and its first and last MiB.
    """
    digest = hashlib.sha256()
    for prompt in prompts:
        row = prompt.prompt
        content = (row.prompt_id, row.answer, row.domain, sorted(row.extra.items()), prompt.token_ids)
        digest.update(f"{content}\n".encode(errors="surrogatepass"))
        # Added later: rows without these fields keep the digest that runs begun before have stored.
        if row.ground_truth is not None or row.data_source:
            digest.update(f"{(row.ground_truth, row.data_source)}\n".encode())
    for path in sorted(model.glob("*.json")) + sorted(model.glob("*.safetensors")):
        _add_file(digest, path)
    return digest.hexdigest()


def models_digest(folders: Mapping[str, Path]) -> str:
    """sha256 (hex) of the files of frozen models, by the models' names, or "" if there are none.

    Files count as in `source_digest`; those of tokenizer and chat template are among them.
    """
    if not folders:
        return ""
    digest = hashlib.sha256()
    for name, folder in sorted(folders.items()):
        digest.update(f"{name}\0".encode())
        for path in sorted(path for pattern in MODEL_FILES for path in folder.glob(pattern)):
            _add_file(digest, path)
    return digest.hexdigest()


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode() + file.read(_SAMPLED_BYTES))
        # Another training of the same model differs at the end of every file, where no header is.
        file.seek(max(0, size - _SAMPLED_BYTES))
        digest.update(file.read())


def demonstrations_digest(demonstrations: pa.RecordBatch) -> str:
    """sha256 (hex) of a run's demonstrations, or "" if there are none.

    Separate from `source_digest`, so that a run with demonstrations can be compared with one without.
    """
    if not demonstrations.num_rows:
        return ""
    digest = hashlib.sha256()
    for row in demonstrations.select(["prompt_ids", "token_ids"]).to_pylist():
        digest.update(f"{row}\n".encode())
    return digest.hexdigest()


def scorer_files_digest(run: BoundRun) -> str:
    """sha256 (hex) of the files that options of scorers, refiner and token advantages name, or "" for none.

    Raises:
        ValueError: a file cannot be read; the message names the entry.
    """
    digest, num_files = hashlib.sha256(), 0
    named: list[tuple[str, BoundEntry[Any]]] = [*run.scorers.items(), ("refiner", run.refiner)]
    named += [(entry.key, entry) for entry in run.token_advantages.values()]
    for name, entry in named:
        for path in entry.options.files():
            try:
                content = Path(path).read_bytes()
            except OSError as error:
                raise ValueError(
                    f"{entry.key} must name files that can be read, got {path!r}: {error}"
                ) from error
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
            num_files += 1
    return digest.hexdigest() if num_files else ""


def is_finished(config: RunConfig, job: str) -> bool:
    """Whether a run of this name, experiment and job has already made all its steps and its export."""
    run_dir = Path(config.runs_dir) / config.name
    if config.resume == "never" or not (run_dir / RUN_FILE).exists():
        return False
    if _check_experiment(run_dir, config).get("job") != job or not (run_dir / FINISHED_FILE).exists():
        return False
    try:
        made = int(json.loads((run_dir / FINISHED_FILE).read_text(encoding="utf-8"))["num_steps"])
    except (ValueError, KeyError, TypeError):
        return False  # not readable: the run is resumed, which counts its committed steps
    exported = not config.checkpoint.export_last or (run_dir / "export").is_dir()
    return exported and made >= config.num_steps


@contextmanager
def reading(run_dir: Path) -> Iterator[None]:
    """Keep a run from being resumed while its rollouts are read.

    Raises:
        ValueError: a driver is working on it.
    """
    lock = RunLock(run_dir / "lock", "a reader", shared=True)
    if lock.path.exists():
        with suppress(OSError):  # a folder without write access cannot be resumed from here either
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_claimable(config: RunConfig, code: UserCode = NO_CODE) -> None:
    """Check whether the run could be claimed with these settings and this code, without writing anything.

    Raises:
        ValueError: as `claim_run`.
    """
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
            f"{run_dir}: must have a {RUN_FILE} that describes its experiment, but there is none: "
            "choose another name (name=...), or move or delete that folder"
        )


def claim_run(
    config: RunConfig,
    digest: str,
    job: str,
    demonstrations: str = "",
    code: UserCode = NO_CODE,
    scorer_files: str = "",
    models: str = "",
) -> Claim:
    """Claim the run directory of `config` (as the user gave it, model path unresolved).

    `digest`, `demonstrations`, `scorer_files` and `models` are those of `source_digest`,
    `demonstrations_digest`, `scorer_files_digest` and `models_digest`.

    Raises:
        ValueError: the directory is in use; belongs to another experiment (with the differences), another
            job, other prompts or other code; has checkpoints, none of them complete; or exists although
            `resume` is never.
    """
    check_claimable(config, code)
    try:
        run_dir = _open_run_dir(config)
        lock = RunLock(run_dir / "lock", "polyphony train")
        lock.acquire(_LOCK_WAIT_S)
    except OSError as error:
        raise ValueError(f"runs_dir must be a folder that can be written and locked, got {error}") from error
    try:
        digests = dict(zip(_SOURCES, (digest, demonstrations, scorer_files, models), strict=True))
        experiment_hash = _identify(run_dir, config, digests, job, code)
        newest_checkpoint(run_dir)  # raises if there are checkpoints but none can be used
        attempt = _begin_attempt(run_dir)
    except BaseException:  # KeyboardInterrupt too: the lock must not outlive a failed claim
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
    """Write `run.json`, or check it against this run; returns the experiment hash that checkpoints carry."""
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
    changed_sources = [_SOURCES[name] for name, digest in digests.items() if known.get(name, "") != digest]
    if changed_sources:
        raise ValueError(
            f"{run_dir / RUN_FILE}: a run must be resumed with what it began with, got other "
            f"{'; and other '.join(changed_sources)}: restore them, or choose another name (name=...)"
        )
    if changed := _changed_modules(run_dir, known, config, code):
        record = dict(known) | {"code_sha256": dict(code.digests)}
        write_json_atomic(run_dir / RUN_FILE, record)  # type: ignore[arg-type]
        append_event(run_dir, "code_changed", modules=", ".join(changed))
    return str(known["experiment_hash"])


def _changed_modules(
    run_dir: Path, known: Mapping[str, object], config: RunConfig, code: UserCode
) -> list[str]:
    """Names of the user's modules that have changed since the run began.

    Raises:
        ValueError: there are some, and `resume` is not `changed_code`.
    """
    before = known.get("code_sha256")
    if not isinstance(before, dict):  # written by a version that did not store it
        return []
    names = sorted(before.keys() | code.digests.keys())
    changed = [name for name in names if before.get(name) != code.digests.get(name)]
    if changed and config.resume != "changed_code":
        modules = ", ".join(f"{name} ({code.files.get(name, 'no longer loaded')})" for name in changed)
        raise ValueError(
            f"{run_dir / RUN_FILE}: your own code must be what the run began with, got other content of "
            f"{modules}: choose another name (name=...), restore the files, or resume with the new code "
            "(resume=changed_code)"
        )
    return changed


def _check_experiment(run_dir: Path, config: RunConfig) -> Mapping[str, object]:
    path = run_dir / RUN_FILE
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        before, hashed = dict(known["experiment"]), known["experiment_hash"]
        known["source_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: must be a run's description, got a damaged file ({error!r}): choose another name "
            "(name=...), or move or delete that folder"
        ) from error
    if hashed == config_hash(config):
        return known  # type: ignore[no-any-return]
    lines = [
        f"  {key}: the run has {then!r}, this config has {now!r}"
        for key, then, now in differences(before, config)
    ]
    if known.get("defaults", 1) != DEFAULTS_VERSION:
        lines.append(f"  defaults: the run has those of version {known.get('defaults', 1)}")
    if not lines:  # same settings, hashed by a version that counted other keys
        return known  # type: ignore[no-any-return]
    raise ValueError(
        f"run directory {run_dir} is of another experiment, which cannot be resumed with this config:\n"
        + "\n".join(lines)
        + "\nset these keys to the run's own values to resume it, or choose another name (name=...)"
    )


def _begin_attempt(run_dir: Path) -> int:
    """Make the folders of the next attempt; returns its number, from 1."""
    make_dir_synced(run_dir / "journal")
    attempt = _next_attempt(run_dir / "logs")
    (run_dir / "logs" / f"attempt_{attempt}").mkdir(parents=True)
    return attempt


def _next_attempt(logs: Path) -> int:
    numbers = [name.name.removeprefix("attempt_") for name in logs.glob("attempt_*")]
    return max((int(number) for number in numbers if number.isdigit()), default=0) + 1


def count_parameters(folder: Path) -> int:
    """Number of parameters in a model folder, from the headers of its safetensors files.

    Raises:
        ValueError: the folder has no safetensors files that can be read.
    """
    from trainer.model.stored_tensors import stored_shapes  # safetensors is not in the base install

    return sum(math.prod(shape) for shape in stored_shapes(folder).values())


def check_space(config: RunConfig) -> None:
    """Check that the disk has room for the checkpoints and the export. `config.model.path` is a folder.

    A run that is resumed already has some of its checkpoints: room for those is not asked for again.

    Raises:
        ValueError: it has not; the message has the bytes needed and free.
    """
    parameters = count_parameters(Path(config.model.path))
    made = len(checkpoint_steps(Path(config.runs_dir) / config.name))
    # An old one is deleted only after the new one is complete, so there is always one to write.
    states = max(1, config.checkpoint.keep + 1 - made)
    needed = parameters * (_STATE_BYTES_PER_PARAMETER * states + 4) + _SLACK_BYTES
    purpose = f"{states} checkpoint{'s' if states > 1 else ''} and an export of {parameters:,} parameters"
    check_free_space(Path(config.runs_dir), needed, purpose)


def write_config(run_dir: Path, config: RunConfig) -> None:
    """Write the resolved config of the newest attempt."""
    write_bytes_atomic(run_dir / "config.yaml", dump_yaml(config).encode())
