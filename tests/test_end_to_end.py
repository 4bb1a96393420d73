"""The command as a user runs it, on real engines: train, stop, refuse, export, a job on a running cluster."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rollouts.store import committed_evals, committed_steps, read_step, read_summary
from tests.leftovers import processes_mentioning

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parent.parent


def _command(runs: Path, name: str, *overrides: str) -> list[str]:
    fixed = [f"name={name}", f"runs_dir={runs}", "rollout.groups_per_step=8", "eval.num_prompts=8"]
    return [sys.executable, "-m", "polyphony", "train", "configs/debug.yaml", *fixed, *overrides]


def _train(runs: Path, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(runs, name, *overrides), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A run of four steps with an evaluation, two engines and two updates a step, and what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    overrides = ("num_steps=4", "eval.every=4", "generator.num_engines=2", "learner.updates_per_step=2")
    done = _train(runs, "whole", *overrides)
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
    run, _ = finished
    again = _train(run.parent, "whole", "num_steps=1")
    assert again.returncode == 2 and "whole" in again.stderr and "Traceback" not in again.stderr
    began = time.monotonic()
    greedy = _train(
        run.parent, "greedy", "cluster.device=cuda", "learner.num_ranks=8", "generator.num_engines=8"
    )
    assert greedy.returncode == 2 and "Traceback" not in greedy.stderr, greedy.stderr[-2000:]
    assert "asked" in greedy.stderr and "GPU" in greedy.stderr and time.monotonic() - began < 60
    assert not (run.parent / "greedy").exists()


def test_ctrl_c_stops_cleanly(tmp_path: Path) -> None:
    """Exit code 130 within seconds, every finished step readable, no process left."""
    process = subprocess.Popen(
        _command(tmp_path, "stopped", "num_steps=500", "eval.every=0"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        metrics = tmp_path / "stopped" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, printed[-2000:]
    steps = committed_steps(tmp_path / "stopped")
    assert len(steps) >= 2 and all(read_step(tmp_path / "stopped", step).num_rows == 64 for step in steps)
    deadline = time.monotonic() + 15
    while processes_mentioning(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert processes_mentioning(str(tmp_path)) == []


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
        from tests.leftovers import free_ports

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
