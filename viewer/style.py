"""The report's style sheet: light and dark, a colour-blind-safe palette (after Okabe and Ito).

In: nothing. Out: one CSS text that fetches nothing: system fonts, no images. Used by
`viewer.report`; the classes `stroke0`, `fill0`, ... are those that `viewer.svg` writes.
"""

from __future__ import annotations

from viewer.svg import REST

_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b5b95", "#9aa0a6")
_DARK = ("#4aa8e8", "#f07f3c", "#2fc79a", "#e29cc4", "#f0b73a", "#8fd0f5", "#a594d8", "#7d848c")
assert len(_LIGHT) == len(_DARK) == REST + 1, "one colour per line and one for the rest"

_PAGE = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 27px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 38px 0 12px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 14.5px; font-weight: 600; margin: 0 0 6px; }
p { margin: 4px 0; } .quiet, figcaption { color: var(--quiet); }
figcaption { font-size: 12.5px; min-height: 1.5em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px;
  margin: 20px 0 6px; }
.tile, figure, .notes { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px; }
.tile b { display: block; font-size: 20px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tile span { color: var(--quiet); font-size: 12.5px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 500px), 1fr)); gap: 14px; }
figure { margin: 0; min-width: 0; } svg { display: block; width: 100%; height: auto; }
.empty { height: 90px; display: grid; place-items: center; color: var(--quiet);
  border: 1px dashed var(--line);
  border-radius: 8px; }
.notes { margin-top: 14px; } .notes ul { margin: 4px 0 0; padding-left: 20px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
caption { text-align: left; padding: 10px 14px; font-weight: 600; }
th, td { text-align: left; vertical-align: top; padding: 7px 14px; border-top: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 500; white-space: nowrap; } .scroll + .scroll { margin-top: 14px; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { text-align: right; }
td.id { max-width: 170px; overflow-wrap: anywhere; }
td pre { margin: 0; max-height: 260px; overflow: auto; min-width: 240px; }
pre { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap;  overflow-wrap: anywhere; unicode-bidi: isolate; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 16px; }
summary { cursor: pointer; font-weight: 600; }
.grid { stroke: var(--line); } .axis { stroke: var(--quiet); }
.rule { stroke: var(--ink); stroke-dasharray: 5 4; }
.tick { fill: var(--quiet); font-size: 12px; } .name { fill: var(--ink); font-size: 12.5px; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.spread { fill-opacity: .17; } .band { stroke: var(--card); stroke-width: .8; } .hover { fill: transparent; }
.hover:hover { fill: var(--ink); fill-opacity: .09; }
"""
_LIGHT_PAGE = "--page:#f6f7f9;--card:#fff;--ink:#1b1f24;--quiet:#5d6670;--line:#dfe3e8;"
_DARK_PAGE = "--page:#14171b;--card:#1c2026;--ink:#e8ebef;--quiet:#9aa4af;--line:#333a43;"


def _variables(colours: tuple[str, ...]) -> str:
    return "".join(f"--c{index}:{colour};" for index, colour in enumerate(colours))


def style_sheet() -> str:
    """The whole CSS text. It has no characters that would end a style element."""
    classes = "".join(
        f".stroke{at}{{stroke:var(--c{at})}}.fill{at}{{fill:var(--c{at})}}" for at in range(REST + 1)
    )
    light = f":root{{color-scheme:light dark;{_LIGHT_PAGE}{_variables(_LIGHT)}}}"
    dark = f"@media (prefers-color-scheme: dark){{:root{{{_DARK_PAGE}{_variables(_DARK)}}}}}"
    return light + dark + _PAGE + classes
