"""Untrusted scoring code: every way of going wrong becomes a status, in time, and nothing stays behind."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_scorers
import pytest
from blocking_scorer import BlockingScorer
from hypothesis import given
from hypothesis import strategies as st

from actors import sandbox
from actors.sandbox import KillablePool
from actors.sandbox_protocol import decode_judgement, encode_judgement
from configs.kinds.base import OwnOptions
from configs.kinds.scorers import ConstantOptions, CustomOptions, LabAnswerOptions
from rollouts.records import Completion, Judgement, Prompt, Span

PROMPT = Prompt(
    prompt_id="p1", messages=(("user", "3 + 4"),), answer="7", domain="arithmetic", extra={"level": "2"}
)
LIMIT_S = 1.0


def completion(text: str, number: int = 0) -> Completion:
    return Completion(
        sample_id=f"s{number}",
        seed=number,
        token_ids=(1, 2, 3),
        text=text,
        finish_reason="stop",
        behavior_logprobs=(-0.1, -0.2, -0.3),
        versions=((0, 4), (2, 5)),
    )


def completions(*texts: str) -> list[Completion]:
    return [completion(text, number) for number, text in enumerate(texts)]


def found(judgements: list[Judgement]) -> list[tuple[float | None, str]]:
    return [(judgement.score, judgement.status) for judgement in judgements]


def is_running(pid: int) -> bool:
    """Whether a process does anything still; a zombie that waits for its new parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: set[int], within_s: float = 5.0) -> bool:
    end = time.monotonic() + within_s
    while any(is_running(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def judge_children() -> set[int]:
    """Our own child processes that run the judge, from /proc."""
    children = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"actors.sandbox_worker" in (entry / "cmdline").read_bytes():
                children.add(int(entry.name))
        except OSError:
            continue
    return children


@pytest.fixture(scope="module")
def custom() -> Iterator[BlockingScorer]:
    """One actor with two processes for the tests that differ only in the text."""
    os.environ["SECRET_TOKEN"], os.environ["SERVICE_API_KEY"] = "hush", "hush"
    options = CustomOptions(function="hostile_scorers:compute_score", limit_s=LIMIT_S, num_processes=2)
    actor = BlockingScorer("custom", options)
    yield actor
    actor.close()
    del os.environ["SECRET_TOKEN"], os.environ["SERVICE_API_KEY"]


@pytest.mark.parametrize(
    ("text", "score", "status"),
    [
        ("plain", 0.5, "ok"),
        ("bool", 1.0, "ok"),
        ("echo", 1.0, "ok"),
        ("noise", 0.5, "ok"),
        ("secrets", 0.0, "ok"),
        ("memory_limit", 8.0, "ok"),
        ("heavy", 0.0, "ok"),
        ("length " + "\ud800é" * 500_000, 1_000_007.0, "ok"),
        ("nan", None, "invalid"),
        ("infinity", None, "invalid"),
        ("huge", None, "invalid"),
        ("text", None, "invalid"),
        ("none", None, "invalid"),
        ("list", None, "invalid"),
        ("no_score", None, "invalid"),
        ("raise", None, "error"),
        ("memory", None, "error"),
        ("exit", None, "crashed"),
        ("quit", None, "crashed"),
        ("segfault", None, "crashed"),
        ("real_time_signal", None, "crashed"),
        ("sleep", None, "timeout"),
        ("catastrophic", None, "timeout"),
    ],
)
def test_each_outcome_has_its_status(
    custom: BlockingScorer, text: str, score: float | None, status: str
) -> None:
    """A finite number is a score; everything else says what it was, and the next sample is judged as ever."""
    judged = custom.score(PROMPT, completions(text, "plain"))
    assert found(judged) == [(score, status), (0.5, "ok")]


def test_verl_dict_carries_answer_and_verdict(custom: BlockingScorer) -> None:
    """verl's own functions return pred and acc beside the score."""
    (judged,) = custom.score(PROMPT, completions("dict"))
    assert judged == Judgement(score=0.25, answer="7", answer_ok=True)


def test_the_values_of_a_row_reach_the_function_with_their_types(custom: BlockingScorer) -> None:
    """Through the process and back: a list, a boolean, an integer, null and a nested mapping."""
    extra: Any = {"strict": False, "n": 7, "none": None, "deep": {"a": [1, 2.5, {"b": True}]}}
    truth: Any = ["3", {"tests": [1, None]}]
    asked = dataclasses.replace(PROMPT, answer=None, ground_truth=truth, data_source="gsm8k", extra=extra)
    (judged,) = custom.score(asked, completions("types"))
    assert judged.answer == repr(("gsm8k", truth, extra))


def test_a_function_sees_the_gpus_of_its_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives a scorer with a share of a GPU its devices in this variable; without it all would be seen."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    options = CustomOptions(function="hostile_scorers:compute_score")
    pool = KillablePool("rewards.custom:custom", options, 1, 10.0)
    try:
        assert found(pool.score(PROMPT, completions("gpus"))) == [(3.0, "ok")]
    finally:
        pool.close()


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "actors.scorer_log"]


def test_why_there_is_no_score_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Type and value of a wrong result, file, line and traceback of an exception, the end of a process; each
    kind three times and no more."""
    options = CustomOptions(function="hostile_scorers:compute_score")
    pool = KillablePool("rewards.custom:custom", options, 1, LIMIT_S)
    caplog.clear()
    pool.score(PROMPT, completions(*["text"] * 5, "none", "raise_deep x", "exit", "segfault", "sleep"))
    pool.close()
    told, mark = logged(caplog), "[hostile_scorers:compute_score] "
    wanted = "compute_score returned str '1.0'; expected a finite number, a bool or a mapping with `score`"
    kind = [line for line in told if "returned str" in line]
    assert kind[0] == f"{mark}sample s0: invalid: {wanted}" and len(kind) == 3
    assert kind[2].endswith("(further ones of this kind are only counted)")
    assert any("returned NoneType None; expected" in line for line in told)
    (error,) = [line for line in told if "sample s6" in line]
    number = Path(hostile_scorers.__file__).read_text().splitlines().index("    return table[key]") + 1
    assert error.endswith(f"hostile_scorers.py:{number} in _look_up: KeyError: 'x'")
    trace = told[told.index(error) + 1 :]
    assert trace[0] == f"{mark}  Traceback (most recent call last):" and "in compute_score" in trace[1]
    assert any("s7: crashed: the process ended with exit code 3" in line for line in told)
    assert any("s8: crashed: the process was killed by SIGSEGV" in line for line in told)
    assert any("Segmentation fault" in line for line in told)  # and where, by faulthandler
    assert any("s9: timeout: the limit was exceeded" in line for line in told)


def test_what_a_function_prints_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Both streams, marked, before the process ends; a flood is cut off and a terminal is not commanded."""
    options = CustomOptions(function="hostile_scorers:compute_score")
    pool = KillablePool("rewards.custom:custom", options, 1, 10.0)
    caplog.clear()
    pool.score(PROMPT, completions("print this"))
    mark = "[hostile_scorers:compute_score] "
    told = [line for line in logged(caplog) if "sample" not in line]
    assert told == [f"{mark}seen this", f"{mark}to stderr", f"{mark}\ufffd[31mno newline"]
    caplog.clear()
    assert found(pool.score(PROMPT, completions("flood", "plain"))) == [(0.5, "ok")] * 2
    pool.close()
    told = logged(caplog)
    is_bounded = [max(map(len, told)) < 2100, 4_000_000 < sum(map(len, told)) < 6_000_000]
    assert is_bounded == [True, True]
    is_told = told[-1].endswith("its further output is not logged")
    assert is_told and not told[0].strip(mark + ".y")


def test_results_keep_their_order_around_failures(custom: BlockingScorer) -> None:
    """Two processes, one of which is replaced thrice: the order is the completions', and time is bounded."""
    start = time.monotonic()
    judged = custom.score(
        PROMPT, completions("bool", "catastrophic", "plain", "exit", "nan", "bool", "raise")
    )
    assert found(judged) == [
        (1.0, "ok"),
        (None, "timeout"),
        (0.5, "ok"),
        (None, "crashed"),
        (None, "invalid"),
        (1.0, "ok"),
        (None, "error"),
    ]
    assert time.monotonic() - start < 10.0


def test_everything_a_killed_sample_started_dies(custom: BlockingScorer, tmp_path: Path) -> None:
    """A timeout kills the process group, and what left it for a session of its own."""
    pid_file = tmp_path / "pids"
    assert found(custom.score(PROMPT, completions(f"spawn {pid_file}"))) == [(None, "timeout")]
    pids = {int(pid) for pid in pid_file.read_text().split()}
    assert len(pids) == 2
    assert gone(pids)


def test_close_leaves_no_process() -> None:
    """Idle children and one in the middle of a sample end with the pool; closing twice is fine."""
    before = judge_children()
    options = CustomOptions(function="hostile_scorers:compute_score")
    pool = KillablePool("rewards.custom:custom", options, 2, 30.0, "rewards.custom:warm_up")
    mine = judge_children() - before
    assert len(mine) == 2
    assert all(os.getsid(pid) == pid != os.getsid(0) for pid in mine)
    pool.score(PROMPT, completions("plain"))
    pool.close()
    pool.close()
    assert gone(mine)
    with pytest.raises(RuntimeError):
        pool.score(PROMPT, completions("plain"))


def test_import_time_is_not_the_samples() -> None:
    """A warm-up of 0.6 s against a limit of 0.3 s: still judged, at the start and after a replacement."""
    options = CustomOptions(function="hostile_scorers:compute_score")
    pool = KillablePool("rewards.custom:custom", options, 1, 0.3, "hostile_scorers:slow_import_only")
    judged = pool.score(PROMPT, completions("plain", "exit", "plain"))
    pool.close()
    assert found(judged) == [(0.5, "ok"), (None, "crashed"), (0.5, "ok")]


def test_a_users_own_kind_sees_its_whole_group() -> None:
    """Siblings, every field of the records and the options arrive; a hang is the whole group's timeout."""
    actor = BlockingScorer("hostile_scorers:rank_by_length", {"unit": "letters", "limit_s": 0.2})
    judged = actor.score(PROMPT, completions("ab", "abcd"))
    slow = actor.score(PROMPT, completions("ab", "sleep"))
    actor.close()
    assert [judgement.score for judgement in judged] == [0.0, 1.0]
    assert [judgement.tags for judgement in judged] == [{"rank": "short"}, {"rank": "long"}]
    assert judged[1].spans == (Span(label="all", start=0, end=3),)
    assert judged[1].answer == "3 + 4|2|letters"
    assert found(slow) == [(None, "timeout")] * 2


def test_a_users_own_kind_takes_its_limit_from_the_config() -> None:
    """`options: {limit_s: 0.2}` in the config, for two completions: far less than the default of 20 s."""
    actor = BlockingScorer("hostile_scorers:rank_by_length", OwnOptions({"limit_s": 0.2}))
    start = time.monotonic()
    judged = actor.score(PROMPT, completions("sleep", "ab"))
    actor.close()
    assert found(judged) == [(None, "timeout")] * 2
    assert time.monotonic() - start < 10.0


def test_wrong_numbers_of_judgements_are_invalid() -> None:
    """A list of the wrong length says nothing about anyone."""
    actor = BlockingScorer("hostile_scorers:too_few", OwnOptions({}))
    judged = actor.score(PROMPT, completions("a", "b", "c"))
    nobody = actor.score(PROMPT, [])
    actor.close()
    assert found(judged) == [(None, "invalid")] * 3
    assert nobody == []


def test_stray_bytes_on_the_reply_pipe_are_invalid() -> None:
    """Bytes that answer no request, or announce 4 GiB, cost one sample; a new process judges the next."""
    pool = KillablePool("hostile_scorers:forge_reply", {}, 1, 5.0)
    judged = pool.score(PROMPT, completions("forge", "flood"))
    pool.close()
    assert found(judged) == [(None, "invalid")] * 2


@pytest.mark.parametrize(
    ("function", "named"),
    [("hostile_scorers:absent", "absent"), ("no_such_module:f", "no_such_module"), ("noattr", "module:attr")],
)
def test_a_function_that_is_not_there_fails_at_the_start(function: str, named: str) -> None:
    """Not as a thousand samples with status error."""
    with pytest.raises(ValueError, match=named):
        BlockingScorer("custom", {"function": function})


def test_a_warm_up_that_raises_is_reported_with_its_reason() -> None:
    """The reason crosses the process boundary."""
    with pytest.raises(ValueError, match="no licence"):
        KillablePool("hostile_scorers:too_few", {}, 1, 1.0, "hostile_scorers:refuse_warm_up")


def test_bad_arguments_name_the_key() -> None:
    """One clear error each, before any process starts."""
    with pytest.raises(ValueError, match="num_processes must be at least 1, got 0"):
        KillablePool("hostile_scorers:too_few", {}, 0, 1.0)
    with pytest.raises(ValueError, match="limit_s must be a positive number"):
        KillablePool("hostile_scorers:too_few", {}, 1, float("nan"))
    with pytest.raises(ValueError, match="plain values"):
        KillablePool("hostile_scorers:too_few", {"key": object()}, 1, 1.0)
    with pytest.raises(ValueError, match="got 'no_such'"):
        BlockingScorer("no_such", {})
    with pytest.raises(ValueError, match="valeu"):
        BlockingScorer("constant", {"valeu": 1.0})


def test_kinds_in_process_never_raise_for_a_bad_sample() -> None:
    """An exception is everyone's `error`; NaN is that sample's `invalid`."""
    actor = BlockingScorer("lab_answer", LabAnswerOptions())
    assert found(actor.score(PROMPT, completions("so 7", "so 8"))) == [(1.0, "ok"), (0.0, "ok")]
    broken = dataclasses.replace(PROMPT, answer=None)
    judged = actor.score(broken, completions("7", "8"))
    assert found(judged) == [(None, "error")] * 2
    assert re.match(
        r".*rewards/lab\.py:\d+ in lab_answer: ValueError: lab_answer: answer of", judged[0].detail
    )
    actor.close()
    endless = BlockingScorer("constant", ConstantOptions(value=float("nan")))
    assert found(endless.score(PROMPT, completions("a", "b"))) == [(None, "invalid")] * 2


def test_results_of_the_wrong_type_are_invalid_one_by_one() -> None:
    """What is no judgement, or none with a finite score, does not spoil its siblings."""
    actor = BlockingScorer("hostile_scorers:not_even_judgements", OwnOptions({}))
    judged = actor.score(PROMPT, completions("a", "b", "c"))
    actor.close()
    assert found(judged) == [(None, "invalid"), (None, "invalid"), (0.5, "ok")]


def test_math_runs_isolated() -> None:
    """SymPy's hang on a tower of powers costs one sample; its neighbours are judged."""
    actor = BlockingScorer("math", {"limit_s": 1.0})
    judged = actor.score(
        PROMPT, completions(r"\boxed{7}", r"\boxed{9^{9^{9^{9}}}}", "so $8$", "x" * 1_000_000)
    )
    actor.close()
    assert found(judged)[0] == (1.0, "ok")
    assert judged[1].score in (None, 0.0)
    assert found(judged)[2:] == [(0.0, "ok")] * 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
REPLY = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["ok", "error", "invalid", "timeout"]) | JSON,
        "score": st.floats() | JSON,
        "spans": JSON,
        "tags": JSON,
        "answer": JSON,
        "answer_ok": JSON,
    }
)


@given(JSON | REPLY)
def test_any_reply_decodes_to_a_sound_judgement(reply: object) -> None:
    """The child is not trusted: whatever JSON it sends becomes a judgement whose parts have their types."""
    judged = decode_judgement(reply)
    assert judged.score is None or abs(judged.score) < float("inf")
    assert decode_judgement(encode_judgement(judged)) == judged


def test_a_process_that_cannot_be_replaced_now_is_replaced_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the machine has no room for a fork: samples are null until it has, and nothing is raised."""
    options = CustomOptions(function="hostile_scorers:compute_score")
    pool = KillablePool("rewards.custom:custom", options, 1, 20.0, "rewards.custom:warm_up")
    with monkeypatch.context() as patched:
        patched.setattr(sandbox, "_Child", _refuse)
        assert found(pool.score(PROMPT, completions("exit", "plain"))) == [(None, "crashed")] * 2
    assert found(pool.score(PROMPT, completions("plain"))) == [(0.5, "ok")]
    pool.close()


def _refuse(*_: object) -> None:
    raise BlockingIOError("no more processes")
