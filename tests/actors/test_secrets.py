"""Secrets reach the one process that they are for, and nothing that it writes or answers holds them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from blocking_scorer import BlockingScorer
from rollout_rows import make_sample

from actors.secrets import NO_SECRETS, Secrets
from configs.kinds.base import OwnOptions
from rollouts.records import Completion, Prompt

VALUE = "sk-live-0123456789"
SECRETS = Secrets({"JUDGE_API_KEY": VALUE})
PROMPT = Prompt(prompt_id="p1", messages=(("user", "3 + 4"),), answer="7", domain="arithmetic")
ROOT = Path(__file__).resolve().parents[2]


def completions(*texts: str) -> list[Completion]:
    return [replace(make_sample("s", 3).completion, text=text) for text in texts]


@pytest.fixture(autouse=True)
def other_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret of another scorer, and the environment of this one restored at the end."""
    monkeypatch.setenv("OTHER_API_KEY", "another-secret")
    monkeypatch.setenv("JUDGE_API_KEY", "of the driver")


def test_the_sandboxed_child_has_its_secrets_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    """It can use the value; what it prints, raises and answers is masked; /proc and ps do not show it."""
    scorer = BlockingScorer("scorer_forms:tells_secret", OwnOptions({}), 1, SECRETS)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            shown = command + (folder / "environ").read_bytes()
        except OSError:
            continue
        assert b"actors.sandbox_worker" not in command or VALUE.encode() not in shown
    (told,) = scorer.score(PROMPT, completions("tell"))
    (failed,) = scorer.score(PROMPT, completions("raise"))
    scorer.close()
    assert told.score == float(len(VALUE)) and told.answer == "<***>"
    assert told.tags == {"JUDGE_API_KEY": "True", "OTHER_API_KEY": "False"}
    assert failed.status == "error" and "401 for key ***" in failed.detail
    lines = [record.getMessage() for record in caplog.records]
    assert any("out: ***" in line for line in lines) and any("401 for key ***" in line for line in lines)
    assert not any(VALUE in line for line in lines)


def test_a_child_without_secrets_has_none() -> None:
    """The stripped environment of old."""
    scorer = BlockingScorer("scorer_forms:tells_secret", OwnOptions({}))
    (told,) = scorer.score(PROMPT, completions("tell"))
    scorer.close()
    assert told.tags == {"JUDGE_API_KEY": "False", "OTHER_API_KEY": "False"} and told.answer == "<none>"


def test_a_coroutine_in_the_actor_has_them_too(caplog: pytest.LogCaptureFixture) -> None:
    """Answers and errors are masked on their way out."""
    scorer = BlockingScorer("scorer_forms:tells_secret_async", OwnOptions({}), 1, SECRETS)
    (told,) = scorer.score(PROMPT, completions("tell"))
    (failed,) = scorer.score(PROMPT, completions("raise"))
    scorer.close()
    assert told.score == float(len(VALUE)) and told.answer == "<***>"
    assert failed.detail.endswith("ValueError: 401 for key ***")
    assert not any(VALUE in record.getMessage() for record in caplog.records)


def test_an_error_at_the_start_is_masked() -> None:
    """The message goes to the driver, its log and events.jsonl; nothing shown is chained to it."""
    with pytest.raises(ValueError, match=r"bonus must not be negative, got \*\*\*") as refused:
        BlockingScorer("scorer_forms:Client", OwnOptions({"bonus": -1}), 1, SECRETS)
    assert refused.value.__cause__ is None and refused.value.__suppress_context__


def test_text_shows_names_alone() -> None:
    """`repr` is what a log line or a traceback with local variables would show."""
    assert repr(SECRETS) == str(SECRETS) == f"{SECRETS}" == "Secrets(JUDGE_API_KEY)"
    assert repr(NO_SECRETS) == "Secrets()"
    both = Secrets({"A": "secret", "B": "secret-and-more"}) | SECRETS
    assert both.mask(f"secret-and-more, secret, {VALUE}") == "***, ***, ***"


def test_a_process_masks_what_it_prints_and_logs() -> None:
    """print, logging and an uncaught exception; a foreign secret is gone from its environment."""
    program = f"""
import logging, os, sys
from actors.secrets import Secrets
from cluster.actor_process import ProcessSetup, prepare_process
secrets = Secrets({{"JUDGE_API_KEY": {VALUE!r}}})
foreign = ("OTHER_API_KEY", "JUDGE_API_KEY")
prepare_process(ProcessSetup(label="x", log_file="", secrets=secrets, foreign_secrets=foreign))
assert "OTHER_API_KEY" not in os.environ
key = os.environ["JUDGE_API_KEY"]
print("printed", key)
sys.stdout.writelines(["line ", key, chr(10)])
logging.warning("logged %s", key)
raise ValueError("raised " + key)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.stdout == "printed ***\nline ***\n"
    assert "logged ***" in done.stderr and "ValueError: raised ***" in done.stderr
    assert VALUE not in done.stderr
