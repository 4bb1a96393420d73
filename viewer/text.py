"""Untrusted text made safe to show: model output, format tags and prompt ids may hold anything.

In: any string. Out: the same words without control characters, or escaped for HTML. Called by
`viewer.terminal` (which never parses markup, so `[/]` stays as it is) and by the report.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata

MISSING = "-"
_ANSI = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?")
_NOT_PLAIN = re.compile(r"[^\n\t -~]")
_JOINERS = frozenset("\u200c\u200d")


def clean(text: str) -> str:
    """`text` without ANSI codes, control characters, and invisible or direction-changing characters.

    Line feeds and tabs stay; a carriage return becomes a line feed, so nothing can overwrite what stands
    before it; a lone surrogate, which no encoding can write, becomes U+FFFD. Markup is left alone: it is
    text.
    """
    # Codes go as a whole first: without its escape character the rest of one would stay as text.
    without_codes = _ANSI.sub("", text)
    lines = (
        without_codes.replace("\r\n", "\n")
        .replace("\r", "\n")
        .replace("\u2028", "\n")
        .replace("\u2029", "\n")
    )
    return _NOT_PLAIN.sub(lambda match: _plain(match.group()), lines)


def _plain(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":
        return "\ufffd"
    # Joiners are format characters as well, but Persian and emoji need them.
    hidden = category in ("Cc", "Cf") and character not in _JOINERS
    return "" if hidden else character


def one_line(text: str, width: int) -> str:
    """`clean(text)` with white space folded to single spaces, cut to `width` characters (at least 1)."""
    folded = " ".join(clean(text).split())
    return folded if len(folded) <= width else folded[: max(width - 1, 0)] + "~"


def escape(text: str) -> str:
    """`clean(text)` for an HTML text node or a quoted attribute."""
    return html.escape(clean(text), quote=True)


def format_number(value: float) -> str:
    """Three significant digits: 0.831, 12,345, 1.2e-07; `-` for what is not a finite number."""
    if not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3:
        return f"{value:.1e}"
    if size >= 1e6:
        return f"{value:.2e}"
    if size >= 1000:
        return f"{value:,.0f}"
    digits = max(2 - math.floor(math.log10(size)), 0)
    return f"{value:.{digits}f}"


def format_share(value: float) -> str:
    """A share as a percentage: 97%, 0.4%; `-` for what is not a finite number."""
    if not math.isfinite(value):
        return MISSING
    percent = 100.0 * value
    if abs(percent) >= 1e4:  # no share at all
        return f"{percent:.1e}%"
    return f"{percent:.1f}%" if 0 < abs(percent) < 1 else f"{percent:.0f}%"
