"""The command as a user runs it, on real engines: train, stop, kill, resume, refuse, export, a job."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from leftovers import processes_mentioning
from matrices import quick_of
from run_files import damage
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.faults.common import actor_pids, read_events, wait_until
from rollouts.checkpoints import checkpoint_dir, checkpoint_steps
from rollouts.files import Json
from rollouts.store import committed_evals, committed_steps, read_step, read_summary
from trainer.metrics import is_timing

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]


def _command(runs: Path, name: str, *overrides: str) -> list[str]:
    fixed = [f"name={name}", f"runs_dir={runs}", "rollout.groups_per_step=8", "eval.num_prompts=8"]
    return [sys.executable, "-m", "polyphony", "train", "configs/debug.yaml", *fixed, *overrides]


def _train(runs: Path, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(runs, name, *overrides), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


WHOLE = ("num_steps=4", "eval.every=4", "generator.num_engines=2", "learner.updates_per_step=2")


@contextmanager
def _running(runs: Path, name: str, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """The command, ended when the test is done with it."""
    process = subprocess.Popen(
        _command(runs, name, *overrides),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait_until(process: subprocess.Popen[str], holds: Callable[[], bool]) -> None:
    """Wait for something that the running command will do."""
    deadline = time.monotonic() + 300
    while not holds():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.02)


def _metric_lines(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock measured; a line that is being written is not there yet."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{name: line[name] for name in line if not is_timing(name)} for line in lines]


def _events(run: Path, kind: str, actor: str = "") -> list[dict[str, Json]]:
    return [e for e in read_events(run) if e["kind"] == kind and (not actor or e.get("actor") == actor)]


def _kill_actor(run: Path, label: str) -> None:
    """SIGKILL to the process whose output goes to the actor's log."""
    pids = actor_pids(run)
    assert label in pids, f"{label} must be alive, found {pids}"
    os.kill(pids[label], signal.SIGKILL)


def _nothing_left(folder: Path) -> bool:
    """Whether every process that knows `folder` ends within seconds."""
    return wait_until(lambda: processes_mentioning(str(folder)) == [], 30.0, 0.5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A run of four steps with an evaluation, two engines and two updates a step, and what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    done = _train(runs, "whole", *WHOLE)
    assert done.returncode == 0, done.stderr[-2000:]
    yield runs / "whole", done.stdout


def test_a_run_leaves_every_sample_with_entropy_and_format(finished: tuple[Path, str]) -> None:
    run, printed = finished
    assert committed_steps(run) == [1, 2, 3, 4] and committed_evals(run) == [0, 4]
    for step in (1, 4):
        table = read_step(run, step)
        assert table.num_rows == 64
        for name in ("entropy", "proximal_logprobs", "behavior_logprobs", "base_logprobs"):
            assert pc.all(
                pc.equal(pc.list_value_length(table[name]), pc.list_value_length(table["token_ids"]))
            ).as_py()
        entropy = pc.list_flatten(table["entropy"]).to_numpy()
        assert np.isfinite(entropy).all() and entropy.min() >= 0
        assert table["format_tag"].null_count == 0 and table["reward"].null_count == 0
        versions = {span["version"] for spans in table["versions"].to_pylist() for span in spans}
        assert versions == {step - 1}, "samples of a synchronous step come from the weights before it"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["mismatch/mean_abs_behavior_vs_proximal"] < 1e-3 for line in lines)
    assert all(line["sync/probe_gap"] < 1e-5 and line["sync/proven"] == 1.0 for line in lines)
    assert sum(line.startswith("step ") for line in printed.splitlines()) == 4
    assert (run / "report.html").stat().st_size > 10_000 and not list((run / "journal").glob("*.arrow"))
    assert read_events(run) == [] and checkpoint_steps(run) == [4]
    assert read_summary(run, 4)["metrics"]


def test_the_export_loads_and_gives_the_same_logprobs(finished: tuple[Path, str], tmp_path: Path) -> None:
    """In transformers: the base moved, the chat template came along, and generation works."""
    run, _ = finished
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(run / "export"),
        AutoTokenizer.from_pretrained(run / "export"),
    )
    base = AutoModelForCausalLM.from_pretrained(ROOT / "lab/bases/voices")
    moved = [(a - b).abs().max().item() for a, b in zip(model.parameters(), base.parameters(), strict=True)]
    assert min(moved) > 0, "every tensor was trained"
    message = [{"role": "user", "content": "3 + 4 = ?"}]
    ids = tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=40, do_sample=False)
    assert tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_export_trains_again_in_one_process(finished: tuple[Path, str]) -> None:
    """vLLM and DeepSpeed load the export, here with every actor in the driver's process for a debugger."""
    run, _ = finished
    done = _train(
        run.parent,
        "again",
        "num_steps=1",
        "eval.every=0",
        "cluster.spawn=local",
        f"model.path={run / 'export'}",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert committed_steps(run.parent / "again") == [1]


def test_an_existing_run_and_a_cluster_too_small_are_refused_in_words(finished: tuple[Path, str]) -> None:
    """Another experiment under the name is; the same one, finished, is not and does nothing."""
    run, _ = finished
    again = _train(run.parent, "whole", *WHOLE[:3])
    assert again.returncode == 2 and "Traceback" not in again.stderr
    assert "learner.updates_per_step: the run has 2, this config has 1" in again.stderr
    same = _train(run.parent, "whole", *WHOLE)
    assert same.returncode == 0 and "has made its 4 steps" in same.stdout, same.stderr[-2000:]
    greedy = _train(
        run.parent, "greedy", "cluster.device=cuda", "learner.num_ranks=8", "generator.num_engines=8"
    )
    assert greedy.returncode == 2 and "Traceback" not in greedy.stderr, greedy.stderr[-2000:]
    assert "needed" in greedy.stderr and "GPU" in greedy.stderr
    assert not (run.parent / "greedy").exists()


def test_deaths_and_damage_leave_no_mark_on_the_result(finished: tuple[Path, str], tmp_path: Path) -> None:
    """An engine, the learner and then the driver are killed, and the newest checkpoint is damaged: the next
    driver goes on, and metrics, samples and the export are bit for bit those of a run left in peace."""
    reference, _ = finished
    run = tmp_path / "eventful"
    with _running(tmp_path, run.name, *WHOLE, "checkpoint.every=1") as driver:
        _wait_until(driver, lambda: len(_metric_lines(run)) >= 1)
        _kill_actor(run, "generator-1")
        _wait_until(driver, lambda: bool(_events(run, "actor_replaced", "generator-1")))
        _wait_until(driver, lambda: len(checkpoint_steps(run)) >= 2)
        _kill_actor(run, "learner-0")
        _wait_until(driver, lambda: bool(_events(run, "actor_replaced", "learner")))
        driver.kill()
    assert 2 <= len(committed_steps(run)) < 4
    newest = max(checkpoint_steps(run))
    damage(next(checkpoint_dir(run, newest).glob("learner-*")))

    done = _train(tmp_path, run.name, *WHOLE, "checkpoint.every=1")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert len(_events(run, "checkpoint_damaged")) == 1 and f"step-{newest:06d}" in done.stdout
    assert [event["step"] for event in _events(run, "resumed")][-1] == newest - 1
    assert _metric_lines(run) == _metric_lines(reference)
    for step in (1, 2, 3, 4):
        assert _rows(run, step).equals(_rows(reference, step)), f"step {step}"
    assert _export(run) == _export(reference)
    assert _nothing_left(tmp_path)


def _rows(run: Path, step: int) -> pa.Table:
    return read_step(run, step).drop_columns(["run_id"])


def _export(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "export").iterdir())}


STOPS = ((signal.SIGTERM, 143), (signal.SIGINT, 130))


@pytest.mark.parametrize("stops", quick_of([(STOPS[:1],), (STOPS,)], [(STOPS[:1],)]))
def test_a_run_that_is_stopped_resumes_where_it_was(
    tmp_path: Path, stops: tuple[tuple[signal.Signals, int], ...]
) -> None:
    """SIGTERM, then Ctrl-C: 143 and 130, each with a checkpoint of the last finished step; no step is made
    twice, no process is left. While it runs nobody else may."""
    run, num_steps = tmp_path / "stopped", 0
    endless = ("num_steps=500", "eval.every=0", "checkpoint.every=0")
    for number, code in stops:
        with _running(tmp_path, run.name, *endless) as driver:
            _wait_until(driver, lambda: len(_metric_lines(run)) >= num_steps + 2)  # noqa: B023
            if number == signal.SIGTERM:
                second = _train(tmp_path, run.name, *endless)
                assert second.returncode == 2 and "Traceback" not in second.stderr, second.stderr[-2000:]
                holder = f"run directory {run} is in use by polyphony train (pid {driver.pid}, "
                assert holder in second.stderr
            # To all processes of the job, as Slurm and `timeout` do: Ray's must not end before the driver.
            os.killpg(driver.pid, number)
            printed, _ = driver.communicate(timeout=120)
        assert driver.returncode == code, printed[-2000:]
        last = printed.strip().splitlines()[-1]
        assert last == f"stopped by {number.name}; the same command resumes the run: {run}"
        assert "stopping" in printed and "Traceback" not in printed
        num_steps = max(committed_steps(run))
        assert checkpoint_steps(run)[-1] == num_steps
    assert [line["step"] for line in _metric_lines(run)] == list(range(1, num_steps + 1))
    assert committed_steps(run) == list(range(1, num_steps + 1)) and not (run / "abandoned").exists()
    assert all(read_step(run, step).num_rows == 64 for step in committed_steps(run))
    assert _nothing_left(tmp_path)


@pytest.mark.long
def test_demonstrations_are_mixed_in_and_drawn_again_by_who_resumes(tmp_path: Path) -> None:
    """A quarter of 64 rows is 16, whose loss is finite and which end as samples do. A run that stops after
    its second step and goes on later has the third step of one that did not stop."""
    shown = ("eval.every=0", "sft.share=0.25", "loss.sft={kind: nll, weight: 0.1}")
    for name, num_steps in (("cut", 2), ("cut", 3), ("whole", 3)):
        done = _train(tmp_path, name, *shown, f"num_steps={num_steps}")
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    run = tmp_path / "whole"
    names = set()
    for step, line in zip((1, 2, 3), _metric_lines(run), strict=True):
        rows = read_step(run, step)
        mine = rows.filter(pc.equal(rows["origin"], "sft"))
        assert (rows.num_rows, mine.num_rows, line["sft/num_rows"]) == (80, 16, 16.0)
        assert mine["reward"].null_count == mine["behavior_logprobs"].null_count == 16
        assert pc.all(pc.equal(mine["advantage"], 0.0)).as_py()
        ends = {ids[-1] for ids in mine["token_ids"].to_pylist()}
        stopped = rows.filter(
            pc.and_(pc.equal(rows["origin"], "policy"), pc.equal(rows["finish_reason"], "stop"))
        )
        assert ends == {ids[-1] for ids in stopped["token_ids"].to_pylist()}
        assert line["loss/sft"] == pytest.approx(0.1 * line["sft/nll"], rel=1e-4)
        assert 0 < line["sft/nll"] < 2 and line["reward/null_share"] == 0
        names |= set(mine["prompt_id"].to_pylist())
    assert len(names) > 40, "each step draws its own"
    assert _metric_lines(tmp_path / "cut") == _metric_lines(run)
    assert _rows(tmp_path / "cut", 3).equals(_rows(run, 3))
    assert _export(tmp_path / "cut") == _export(run)


def test_a_job_on_a_running_cluster(tmp_path: Path) -> None:
    """`ray start --head`, then `ray job submit` from a plain checkout: trains, and says its exit code."""
    with _head(tmp_path) as environment:
        overrides = [
            "name=job",
            f"runs_dir={tmp_path}",
            "num_steps=2",
            "eval.every=0",
            "rollout.groups_per_step=4",
        ]
        entry = ["python", "-m", "polyphony", "train", "configs/debug.yaml", *overrides]
        done = _ray("job", "submit", "--working-dir", ".", "--", *entry, env=environment)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        assert committed_steps(tmp_path / "job") == [1, 2]
        greedy = [
            *entry,
            "name=greedy",
            "cluster.device=cuda",
            "learner.num_ranks=8",
            "generator.num_engines=8",
        ]
        refused = _ray("job", "submit", "--working-dir", ".", "--", *greedy, env=environment)
        assert refused.returncode != 0 and "free now" in refused.stdout + refused.stderr


def _ray(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    ray = str(Path(sys.executable).with_name("ray"))
    return subprocess.run(
        [ray, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240, env=env, check=False
    )


class _head:
    """A Ray head node with free ports and a folder of its own; ends with its processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> dict[str, str]:
        from leftovers import free_ports

        gcs, dashboard, client, agent, metrics = free_ports(5)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        # Unix sockets have short paths only, so Ray's folder cannot be under pytest's.
        self._temp = Path("/tmp") / f"ray-head-{gcs}"
        self._env = os.environ | {"PATH": path, "RAY_TMPDIR": str(self._temp), "RAY_USAGE_STATS_ENABLED": "0"}
        self._env |= {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        self._env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        started = _ray(
            "start", "--head", "--num-cpus=2", f"--port={gcs}", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            f"--metrics-export-port={metrics}", "--node-ip-address=127.0.0.1", f"--temp-dir={self._temp}",
            env=self._env,
        )  # fmt: skip
        assert started.returncode == 0, started.stdout + started.stderr
        self._gcs = gcs
        return self._env

    def __exit__(self, *_: object) -> None:
        import shutil

        for pid in processes_mentioning(str(self._temp)):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while processes_mentioning(str(self._temp)) and time.monotonic() < deadline:
            time.sleep(0.5)
        for pid in processes_mentioning(str(self._temp)):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._temp, ignore_errors=True)
