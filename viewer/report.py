"""A run directory as one self-contained HTML page: no script, nothing fetched, all foreign text escaped.

In: runs/<name>/. Out: runs/<name>/report.html. Called by the command line, also at the end of a run.
What the run lacks is said on the page; only a folder that is no run at all is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from rollouts.files import write_bytes_atomic
from viewer.panels import PANELS, SECTIONS, draw_panel
from viewer.run_data import Curve, RunData, SampleRow, StepSamples, mean, read_run
from viewer.style import style_sheet
from viewer.text import MISSING, escape, format_number, format_share

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_WINDOW = 5
"""Headline numbers compare the mean of this many first steps with that of as many last ones."""
_MAX_NOTES = 20
_MAX_TEXT_CHARS = 2000
_MAX_CONFIG_CHARS = 100_000
_SHARE = "format/share/"


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html (replacing one that is there, in one rename) and return its path.

    Raises:
        ValueError: `run_dir` is not a folder with a config.yaml or a metrics.jsonl.
        OSError: the folder cannot be written.
    """
    page, path = render(read_run(run_dir)), run_dir / "report.html"
    # By a rename: someone may have the report of a running run open and reload it.
    write_bytes_atomic(path, page.encode())
    return path


def render(run: RunData) -> str:
    """The page for `run`."""
    sections = "".join(_section(section, run) for section in SECTIONS) if run.steps or run.eval_steps else ""
    body = _header(run) + _unrewarded(run) + _notes(run) + sections + _samples(run) + _config(run)
    return html_page(f"{run.name}: polyphony run report", body)


def html_page(title: str, body: str) -> str:
    """A page that runs no script and fetches nothing; `body` is markup already, `title` is escaped here."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style_sheet()}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _header(run: RunData) -> str:
    if not run.steps:
        return f'<h1>{escape(run.name)}</h1><p class="quiet">No step of this run has metrics yet.</p>'
    # At most half of the steps, so that the first and the last window do not overlap.
    size = min(_WINDOW, max(len(run.steps) // 2, 1))
    if len(run.steps) == 1:
        span = f"1 step (step {run.steps[0]:,}): there is nothing to compare it with yet"
    else:
        window = f"the first {size} steps and the last {size}" if size > 1 else "the first step and the last"
        span = f"{len(run.steps):,} steps ({run.steps[0]:,} to {run.steps[-1]:,}). Numbers: mean of {window}"
    tiles = "".join(_tile(label, value) for label, value in _headlines(run, size))
    return f'<h1>{escape(run.name)}</h1><p class="quiet">{span}.</p><div class="tiles">{tiles}</div>'


def _tile(label: str, value: str) -> str:
    return f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b></div>'


def _headlines(run: RunData, size: int) -> list[tuple[str, str]]:
    """(label, "first → last") of the numbers a reader wants before any chart."""
    tag = _leading_format(run, size)
    share = _change(run.curve(_SHARE + tag), size, format_share) if tag else "not recorded"
    # The bound keeps a damaged value from overflowing.
    formats = tuple(math.exp(min(value, 50.0)) for value in run.curve("entropy/format"))
    return [
        ("reward", _change(run.curve("reward/mean"), size, format_number)),
        (f"leading format: {tag}" if tag else "leading format", share),
        ("token entropy, nats", _change(run.curve("entropy/token_mean"), size, format_number)),
        ("effective formats, exp(entropy)", _change(formats, size, format_number)),
        ("KL to base, nats per token", _change(run.curve("kl/k3_policy_vs_base"), size, format_number)),
    ]


def _leading_format(run: RunData, size: int) -> str:
    """The tag with the largest mean share over the last `size` steps; "" when no share was recorded."""
    tags = sorted(key.removeprefix(_SHARE) for key in run.curves if key.startswith(_SHARE) and run.has(key))
    shares = {tag: mean(run.curve(_SHARE + tag)[-size:]) for tag in tags}
    return max(tags, key=lambda tag: shares[tag] if math.isfinite(shares[tag]) else -1.0, default="")


def _change(curve: Curve, size: int, show: Callable[[float], str]) -> str:
    first, last = mean(curve[:size]), mean(curve[-size:])
    if not math.isfinite(first) and not math.isfinite(last):
        return "not recorded"
    return show(last) if len(curve) == 1 else f"{show(first)} \u2192 {show(last)}"


def _unrewarded(run: RunData) -> str:
    """A note on steps in which no completion had a reward, so that nothing could be learned from them."""
    shares = zip(run.steps, run.curve("reward/null_share"), strict=True)
    steps = [f"{step:,}" for step, share in shares if share == 1.0]
    if not steps:
        return ""
    if len(steps) == len(run.steps):
        which = "No completion of this run has a reward."
    else:
        which = f"No completion of step {', '.join(steps[:_MAX_NOTES])} has a reward."
        if len(steps) > _MAX_NOTES:
            which = f"{which[:-1]}, nor of {len(steps) - _MAX_NOTES:,} other steps."
    why = "Rows without one are never trained on. The scorers' logs in logs/ have the reasons."
    return f'<div class="notes"><b>{which}</b> {why}</div>'


def _notes(run: RunData) -> str:
    if not run.notes:
        return ""
    shown = list(run.notes[:_MAX_NOTES])
    if len(run.notes) > _MAX_NOTES:
        # A run with a thousand damaged files must still have a report that can be read.
        shown.append(f"and {len(run.notes) - _MAX_NOTES:,} more of the kind")
    items = "".join(f"<li>{escape(note)}</li>" for note in shown)
    return f'<div class="notes"><b>What is missing or could not be read</b><ul>{items}</ul></div>'


def _section(section: str, run: RunData) -> str:
    figures = "".join(draw_panel(panel, run) for panel in PANELS if panel.section == section)
    return f'<section><h2>{escape(section)}</h2><div class="charts">{figures}</div></section>'


def _samples(run: RunData) -> str:
    if not run.samples:
        return "<section><h2>Completions</h2><p>No completions could be read from rollouts/.</p></section>"
    tables = "".join(_table(samples) for samples in run.samples)
    return f"<section><h2>Completions</h2>{tables}</section>"


def _table(samples: StepSamples) -> str:
    which = f"the first completion of each of the first {len(samples.rows)} prompts"
    caption = f"Step {samples.step:,}: {which}, out of {samples.num_rows:,} completions"
    rows = "".join(_row(row) for row in samples.rows)
    names = (
        ("prompt", ""),
        ("completion", ""),
        ("format", ""),
        ("answer", ""),
        ("reward", "number"),
        ("entropy, nats per token", "number"),
    )
    heads = "".join(f'<th scope="col" class="{kind}">{name}</th>' for name, kind in names)
    table = f"<caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll"><table>{table}</table></div>'


def _row(row: SampleRow) -> str:
    cells = (
        ("id", escape(_cut(row.prompt_id, 80))),
        ("", f"<pre>{escape(_cut(row.text, _MAX_TEXT_CHARS))}</pre>"),
        ("", escape(_cut(row.format_tag, 40)) or MISSING),
        ("", row.answer_ok or MISSING),
        ("number", format_number(row.reward)),
        ("number", format_number(row.entropy)),
    )
    joined = "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in cells)
    return f"<tr>{joined}</tr>"


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[:size]} \u2026 ({len(text) - size:,} more characters)"


def _config(run: RunData) -> str:
    if not run.config_text:
        return "<section><h2>Config</h2><p>The run has no readable config.yaml.</p></section>"
    text = escape(_cut(run.config_text, _MAX_CONFIG_CHARS))
    details = f"<details><summary>config.yaml</summary><pre>{text}</pre></details>"
    return f"<section><h2>Config</h2>{details}</section>"
