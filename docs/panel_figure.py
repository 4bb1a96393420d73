"""Draw the figure of the README: docs/images/panel.svg, from the results of docs/results/panel.

`python docs/panel_figure.py` rewrites it. A line is the mean of five seeds, its band their range.
"""

from __future__ import annotations

import json
from pathlib import Path

from viewer.svg import HEIGHT, WIDTH, Chart, Line, line_chart

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "panel" / "results"
FIGURE = ROOT / "docs" / "images" / "panel.svg"
ARMS = {"control": "plain GRPO", "kl_anchor": "KL anchor, 0.3", "controller": "entropy_bands"}
CURVES = {"format entropy": "Format entropy (nats)", "reward": "Reward (mean per completion)"}

COLOURS = ("#0072b2", "#d55e00", "#009e73")
MARKS = """
text { font-family: system-ui, sans-serif; } .head { fill: #1b1f24; font-size: 16px; font-weight: 600; }
.grid { stroke: #dfe3e8; } .axis { stroke: #5d6670; } .tick { fill: #5d6670; font-size: 12px; }
.name { fill: #1b1f24; font-size: 12.5px; } .line { fill: none; stroke-width: 2; }
.spread { fill-opacity: .17; } .hover { fill: transparent; }
""" + "".join(f".stroke{at}{{stroke:{it}}}.fill{at}{{fill:{it}}}" for at, it in enumerate(COLOURS))


def line(arm: str, name: str, curve: str, colour: int) -> tuple[Line, tuple[int, ...]]:
    """The arm's curve over all its seeds, and the steps it has."""
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{arm}_seed*.json"))]
    seeds = [run["curves"][curve] for run in runs]
    mean, low, high = (
        tuple(float(reduce(values)) for values in zip(*seeds, strict=True))
        for reduce in (lambda values: sum(values) / len(values), min, max)
    )
    return Line(name=name, values=mean, colour=colour, low=low, high=high), tuple(runs[0]["steps"])


def panel(curve: str, title: str) -> str:
    """One chart as an `<svg>` element."""
    drawn = [line(arm, name, curve, colour) for colour, (arm, name) in enumerate(ARMS.items())]
    chart = Chart(title=title, steps=drawn[0][1], lines=tuple(each for each, _ in drawn), floor=0.0)
    return line_chart(chart)


def figure() -> str:
    """Both charts side by side, each under its title, as one SVG document."""
    parts = []
    for place, (curve, title) in enumerate(CURVES.items()):
        left = place * WIDTH
        parts.append(f'<text class="head" x="{left + 58}" y="24">{title}</text>')
        parts.append(f'<svg x="{left}" y="30" width="{WIDTH}" height="{HEIGHT}"{panel(curve, title)[4:]}')
    size = f'viewBox="0 0 {WIDTH * len(CURVES)} {HEIGHT + 34}"'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{MARKS}</style>{ground}'
    return f"{head}{''.join(parts)}</svg>\n"


if __name__ == "__main__":
    FIGURE.parent.mkdir(exist_ok=True)
    FIGURE.write_text(figure(), encoding="utf-8")
