"""The command line: verbs reach their functions, bad input exits 2 with one message, help imports little."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from run_files import save_step

from configs.load import load_config
from configs.schema import RunConfig
from polyphony.cli import main

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "pyarrow", "omegaconf", "numpy")


def run_python(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A Python with our root on its path, started in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@dataclass(frozen=True)
class Job:
    """What `cluster.train.Job` carries from the command line."""

    learns: bool = True
    rollouts_of: Path | None = None


def replace_module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: object) -> None:
    """Stand a module with these attributes in for `name`, so that a verb's target need not run."""
    module = ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


def replace_training(
    monkeypatch: pytest.MonkeyPatch,
    train: Callable[..., object] = lambda *arguments: pytest.fail("must not train"),
    dry_run: Callable[..., object] = lambda *arguments: pytest.fail("must not check"),
) -> None:
    """Stand these in for what the verb `train` calls."""
    replace_module(monkeypatch, "cluster.train", train=train, dry_run=dry_run, RunError=RuntimeError, Job=Job)


def test_help_lists_the_verbs_and_imports_nothing_heavy(tmp_path: Path) -> None:
    """Help must answer at once: the set of imported modules is the measure, not a clock."""
    program = (
        "import sys\n"
        "from polyphony.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = run_python(["-c", program], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    assert all(verb in done.stdout for verb in ("config", "train", "compare", "lab", "report"))


def test_config_print_gives_yaml_that_is_the_same_config(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What is printed can be saved and run again."""
    assert main(["config", "print", "debug", "learner.lr=1e-4"]) == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(str(path), []) == load_config("debug", ["learner.lr=1e-4"])


def test_bad_input_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    """As a user meets it: a process, a code, nothing on stdout, no traceback."""
    done = run_python(["-m", "polyphony", "train", "debug", "learner.lrr=0.1"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == (
        "polyphony: command line: learner.lrr = 0.1: unknown key (did you mean learner.lr?)"
    )


@pytest.mark.parametrize("name", ["rewards", "viewer"])
def test_a_package_of_the_users_that_hides_ours_is_refused(name: str, tmp_path: Path) -> None:
    """Their `rewards/` would be imported in place of ours; a folder that is no package hides nothing."""
    (tmp_path / name).mkdir()
    plain_folder = run_python(["-m", "polyphony", "config", "print", "debug"], tmp_path)
    assert plain_folder.returncode == 0, plain_folder.stderr
    (tmp_path / name / "__init__.py").write_text("raise SystemExit('must not be imported')\n")
    done = run_python(["-m", "polyphony", "config", "print", "debug"], tmp_path)
    assert done.returncode == 2
    assert str(ROOT / name) in done.stderr and str(tmp_path / name) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "dry_run"),
    [
        (["train", "debug", "num_steps=7"], False),
        (["train", "debug", "num_steps=7", "--dry-run"], True),
        (["train", "debug", "--dry-run", "num_steps=7"], True),
        (["train", "--dry-run", "debug", "num_steps=7"], True),
    ],
)
def test_train_hands_over_the_config_and_the_flag(
    arguments: list[str], dry_run: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Flags and overrides in any order; the exit code is the run's; a run with a step has a report."""
    calls: list[tuple[int, bool]] = []
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("{}\n")
    save_step(run_dir, 1)

    def train(config: RunConfig, reporter: object, job: Job, sources: object) -> SimpleNamespace:
        assert job == Job()
        calls.append((config.num_steps, False))
        return SimpleNamespace(exit_code=3, run_dir=run_dir)

    def check_only(config: RunConfig, reporter: object, sources: object) -> int:
        calls.append((config.num_steps, True))
        return 3

    replace_training(monkeypatch, train, check_only)
    assert main(arguments) == 3
    assert calls == [(7, dry_run)]
    assert (run_dir / "report.html").exists() != dry_run


@pytest.mark.parametrize(
    ("flags", "job"),
    [
        (["--rollout-only"], Job(learns=False)),
        (["--train-only", "saved"], Job(rollouts_of=Path("saved"))),
    ],
)
def test_one_half_of_the_work_can_be_asked_for(
    flags: list[str], job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only rollouts, or only learning from another run's, which must be there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    jobs: list[Job] = []

    def train(config: RunConfig, reporter: object, job: Job, sources: object) -> SimpleNamespace:
        jobs.append(job)
        return SimpleNamespace(exit_code=0, run_dir=tmp_path)

    replace_training(monkeypatch, train)
    assert main(["train", "debug", *flags]) == 0
    assert jobs == [job]
    assert not (tmp_path / "report.html").exists(), "no step was committed"


def test_a_run_to_learn_from_must_be_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused by name before anything is started."""
    replace_training(monkeypatch)
    assert main(["train", "debug", "--train-only", "runs/absent"]) == 2
    assert (
        "--train-only must name a run directory, such as runs/debug-1, got runs/absent"
        in capsys.readouterr().err
    )


def test_a_run_that_was_stopped_says_why_and_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message without a traceback: the reason is the run's, not the program's."""

    def train(config: RunConfig, reporter: object, job: Job, sources: object) -> SimpleNamespace:
        raise RuntimeError("engine 0 and learner differ")

    replace_training(monkeypatch, train)
    assert main(["train", "debug"]) == 1
    assert capsys.readouterr().err == "polyphony: the run was stopped: engine 0 and learner differ\n"


@pytest.mark.parametrize("exit_code", [0, 143])
def test_a_report_that_cannot_be_written_does_not_fail_the_run(
    exit_code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run has reached its end: its exit code stays, a note says what is missing, and nothing is left."""
    (tmp_path / "report.html").mkdir()
    (tmp_path / "config.yaml").write_text("{}\n")
    save_step(tmp_path, 1)
    outcome = SimpleNamespace(exit_code=exit_code, run_dir=tmp_path)
    replace_training(monkeypatch, lambda *arguments: outcome)
    assert main(["train", "debug"]) == exit_code
    assert "no report was written: " in capsys.readouterr().out
    assert not list(tmp_path.glob(".report*"))


def test_pretrain_and_report_reach_their_functions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A thin layer: names and arguments are all there is to get wrong."""
    calls: list[tuple[str, list[str]]] = []

    def pretrain(path: str, overrides: Sequence[str]) -> int:
        calls.append((path, list(overrides)))
        return 0

    replace_module(monkeypatch, "lab.pretrain", pretrain=pretrain)
    replace_module(monkeypatch, "viewer.report", write_report=lambda run: run / "report.html")
    assert main(["lab", "pretrain", "lab/bases/voices.yaml", "steps=5"]) == 0
    assert calls == [("lab/bases/voices.yaml", ["steps=5"])]
    replace_module(monkeypatch, "lab.train_equivalence", train_equivalence=pretrain)
    assert main(["lab", "train-equivalence", "lab/bases/equivalence.yaml", "lr=5"]) == 0
    assert calls[1:] == [("lab/bases/equivalence.yaml", ["lr=5"])]
    assert main(["report", "runs/debug"]) == 0
    assert capsys.readouterr().out == "runs/debug/report.html\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("row 3: no prompt"),
        FileNotFoundError("no such run: x"),
        IsADirectoryError("a folder: x"),
        NotADirectoryError("a file: x"),
        PermissionError("not allowed: x"),
    ],
)
def test_errors_about_input_are_refused_without_a_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag brings the traceback back for whoever looks for the place."""

    def write_report(run: Path) -> Path:
        raise error

    replace_module(monkeypatch, "viewer.report", write_report=write_report)
    assert main(["report", "x"]) == 2
    assert capsys.readouterr().err == f"polyphony: {error}\n"
    assert main(["--traceback", "report", "x"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyError("bug")])
def test_errors_of_the_program_pass_through(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed programme is loud, also when Ray dresses its error as a ValueError."""

    def write_report(run: Path) -> Path:
        raise error

    replace_module(monkeypatch, "viewer.report", write_report=write_report)
    with pytest.raises(type(error), match="bug"):
        main(["report", "x"])


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["config"], ["train"], ["train", "debug", "--wet-run"], ["report", "a", "b"]],
)
def test_wrong_arguments_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """argparse's own answer, and the same code as ours."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: polyphony" in capsys.readouterr().err


def test_an_interrupt_before_the_run_exits_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while things are still being loaded: one line, no traceback."""

    def train(config: RunConfig, reporter: object, job: Job, sources: object) -> SimpleNamespace:
        raise KeyboardInterrupt

    replace_training(monkeypatch, train)
    assert main(["train", "debug"]) == 130
    assert capsys.readouterr().err == "polyphony: interrupted\n"
