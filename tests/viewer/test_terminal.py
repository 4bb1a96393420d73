"""The step reporter: what a log file and a terminal get, and that model output can do nothing to either."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewer.terminal import StepReporter, clean, format_size, held_up_by, leading_format
from viewer.text import escape, format_number, format_share, one_line

METRICS = {
    "step": 12.0,
    "reward/mean": 0.8312,
    "entropy/token_mean": 0.1043,
    "entropy/format": 1.0214,
    "format/share/code": 0.61,
    "format/share/prose": 0.39,
    "kl/k3_policy_vs_base": 0.0131,
    "grad/norm": 0.52,
    "mismatch/mean_abs_behavior_vs_proximal": 2.14e-7,
    "throughput/tokens_per_s": 3342.4,
    "time/step_s": 2.13,
}
HOSTILE = (
    "[/] [bold red]x[/] \x1b[31mred\x1b[0m \x1b]0;title\x07 <script>alert(1)</script>\x9b2J\r\u202egnp.exe"
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def lines_of(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_log_line_names_every_value() -> None:
    """A log is searched with grep: each value is beside its name, rounded to three digits."""
    stream = io.StringIO()
    StepReporter(200, stream).step(METRICS)
    words = stream.getvalue().split()
    assert words == [
        "step",
        "12/200",
        "reward",
        "0.831",
        "entropy",
        "0.104",
        "format_entropy",
        "1.02",
        "lead",
        "code",
        "61%",
        "kl_base",
        "0.0131",
        "grad",
        "0.520",
        "mismatch",
        "2.1e-07",
        "tok/s",
        "3,342",
        "s",
        "2.13",
    ]


def test_log_columns_keep_their_place() -> None:
    """Lines of different values align, so a column can be read downwards."""
    stream = io.StringIO()
    reporter = StepReporter(200, stream)
    reporter.step(METRICS)
    reporter.step({"step": 113.0, "reward/mean": math.nan, "grad/norm": 12345.0})
    first, second = lines_of(stream)
    for name in ("reward ", "lead ", "grad ", "tok/s ", " s "):
        assert first.index(name) == second.index(name)
    assert second.split()[2:4] == ["reward", "-"]


@given(
    values=st.dictionaries(
        st.sampled_from(sorted(METRICS)), st.floats(allow_nan=True, allow_infinity=True, width=64)
    ),
    tag=st.text(max_size=40),
)
def test_log_line_is_one_short_plain_line(values: dict[str, float], tag: str) -> None:
    """Whatever the numbers and however odd the tag, a step is one line under 200 characters without ESC."""
    values.pop("step", None)
    stream = io.StringIO()
    StepReporter(1000, stream).step({**values, f"format/share/{tag}": 0.5})
    text = stream.getvalue()
    assert text.endswith("\n") and len(text.splitlines()) == 1
    assert len(text) < 200
    assert "\x1b" not in text


SLOW = {
    **METRICS,
    "time/step_s": 10.0,
    "time/score_s": 1.5,
    "health/judge/latency_p99_s": 1.0,
    "health/judge/queue_s": 0.7,
    "health/code/latency_p99_s": 1.6,
    "health/judge/tokens": 900.0,
    "health/late/queue_s": 9.0,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "waits 1.50 s for judge"),
        ({"health/judge/queue_s": 0.5}, "waits 1.50 s for code"),
        ({"time/score_s": 1.0}, ""),  # a tenth is no more than a tenth
        ({"time/score_s": math.nan}, ""),
        ({"time/step_s": math.nan}, ""),
        (
            {"health/judge/latency_p99_s": math.nan, "health/code/latency_p99_s": math.nan},
            "waits 1.50 s for scores",
        ),
    ],
)
def test_the_scorer_that_holds_up_a_step_is_named(changed: dict[str, float], said: str) -> None:
    """The longest wait and scoring together; only where the step waited for it, and in both forms."""
    metrics = {**SLOW, **changed}
    assert held_up_by(metrics) == said
    plain, coloured = io.StringIO(), Terminal()
    StepReporter(200, plain).step(metrics)
    StepReporter(200, coloured).step(metrics)
    (line,) = lines_of(plain)
    assert line.endswith(f"  {said}") if said else "waits" not in line and line == line.rstrip()
    assert said in coloured.getvalue() and ("waits" in coloured.getvalue()) == bool(said)


def test_missing_metrics_show_as_dashes() -> None:
    """A reporter must not end a run because a metric is off."""
    stream = io.StringIO()
    StepReporter(3, stream).step({})
    assert stream.getvalue().split() == [
        "step",
        "1/3",
        "reward",
        "-",
        "entropy",
        "-",
        "format_entropy",
        "-",
        "lead",
        "-",
        "kl_base",
        "-",
        "grad",
        "-",
        "mismatch",
        "-",
        "tok/s",
        "-",
        "s",
        "-",
    ]


def test_header_and_note() -> None:
    """The header names run, model and size; a note keeps its lines and loses its codes."""
    stream = io.StringIO()
    reporter = StepReporter(5, stream)
    reporter.header(run_dir=Path("runs/a"), model="lab/bases/voices", num_parameters=812_345)
    reporter.note("one\x1b[2J\ntwo [/]")
    assert lines_of(stream) == [
        "run runs/a | model lab/bases/voices (812 K parameters) | 5 steps",
        "one",
        "two [/]",
    ]


def test_terminal_rows_are_coloured_and_cut_to_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the names stand once above; what does not fit is left out, never wrapped."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    reporter = StepReporter(200, stream)
    reporter.step(METRICS)
    reporter.step(METRICS)
    assert "\x1b[" in stream.getvalue()
    rows = clean(stream.getvalue()).splitlines()
    assert len(rows) == 3
    assert rows[0].split()[:2] == ["step", "reward"]
    assert rows[1].split()[:2] == ["12/200", "0.831"]
    assert max(len(row) for row in rows) <= 60
    assert "mismatch" not in rows[0]


def test_terminal_shows_markup_as_text() -> None:
    """`[/]` raises in rich's markup parser and `[red]` would vanish: neither may happen."""
    stream = Terminal()
    StepReporter(2, stream).note("a [/] b [red]c")
    assert "a [/] b [red]c" in stream.getvalue()


def test_stream_that_cannot_encode() -> None:
    """LANG=C: a note in another script becomes question marks instead of an exception in step 900."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    StepReporter(1, stream).note("r\u00e9sum\u00e9 \u4e2d")
    assert raw.getvalue() == b"r?sum? ?\n"


def test_num_steps_is_checked() -> None:
    """A wrong count is refused where it enters."""
    with pytest.raises(ValueError, match="num_steps must be 0 or more, got -1"):
        StepReporter(-1, io.StringIO())


def test_clean_keeps_words_and_drops_codes() -> None:
    """Colour and cursor codes go, the text between them and all markup stays readable."""
    assert clean(HOSTILE) == "[/] [bold red]x[/] red ]0;title <script>alert(1)</script>\ngnp.exe"
    assert clean("a\r\nb\tc\x00\x08") == "a\nb\tc"
    assert clean("\ud800") == "\ufffd"
    assert clean("\u0645\u06cc\u200c\u062e") == "\u0645\u06cc\u200c\u062e"  # a joiner that spelling needs


@given(st.text(st.characters(), max_size=80))
def test_clean_is_safe_and_settled(text: str) -> None:
    """Nothing that steers a terminal survives, removal makes no new code, and the result can be encoded."""
    shown = clean(text)
    assert all(
        character in "\n\t" or (character >= " " and not "\x7f" <= character <= "\x9f") for character in shown
    )
    assert clean(shown) == shown
    shown.encode("utf-8")
    assert not set("<>\"'") & set(escape(text))


def test_one_line_folds_and_cuts() -> None:
    """A completion of many lines takes one, with a mark where it was cut."""
    assert one_line(" a\n\n b\tc ", 20) == "a b c"
    assert one_line("abcdef", 4) == "abc~"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.83124, "0.831"),
        (-0.05, "-0.0500"),
        (12.345, "12.3"),
        (999.4, "999"),
        (3342.4, "3,342"),
        (2.14e-7, "2.1e-07"),
        (1.5e9, "1.50e+09"),
        (math.inf, "-"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    """Three significant digits, thousands separated, powers of ten only where zeros would hide the value."""
    assert format_number(value) == shown


def test_shares_and_sizes() -> None:
    """A share under one percent keeps a digit: 0.4% of completions is not none."""
    assert [format_share(share) for share in (0.0, 0.004, 0.974, 1.0, math.nan)] == [
        "0%",
        "0.4%",
        "97%",
        "100%",
        "-",
    ]
    assert [format_size(count) for count in (12, 812_345, 4_800_000, 7_600_000_000)] == [
        "12",
        "812 K",
        "4.8 M",
        "7.6 B",
    ]


def test_leading_format_breaks_ties_by_name() -> None:
    """Equal shares must not make the leader flicker between runs."""
    assert leading_format({"format/share/b": 0.5, "format/share/a": 0.5, "format/share/c": math.nan}) == (
        "a",
        0.5,
    )
    tag, share = leading_format({"reward/mean": 1.0})
    assert tag == "" and math.isnan(share)
