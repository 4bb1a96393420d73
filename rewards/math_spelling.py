# ruff: noqa: RUF001 - signs that look alike are what this file is about
r"""Normalise the spelling of answers. In: an answer as written. Out: the same in plain TeX.

Unicode signs, TeX spacing and fonts, math delimiters, dollars and Markdown are brought to one form, so that
the readers of `rewards.math_values` get ``-3``, ``\frac{1}{2}``, ``30°`` and an amount in dollars for all
spellings of these. `DOLLAR`, the wide sign, is a currency; the narrow one delimits mathematics and is
removed.
"""

from __future__ import annotations

import functools
import re
import unicodedata

DOLLAR = "\uff04"
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_TO_DIGITS = str.maketrans(_SUPERSCRIPTS, "0123456789+-")
_FRACTIONS = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5",
    "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅐": "1/7",
    "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑‒―﹣", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\xad", ""),
        **dict.fromkeys("“”„«»", '"'),
        **dict.fromkeys("‘’", "'"),
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/",
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\neq ", "∅": r"\emptyset ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "ℝ": r"\mathbb{R}", "±": r"\pm ", "∓": r"\mp ", "∶": ":",
        "≈": r"\approx ", "→": r"\to ", "。": ".", "，": ",", "；": ";", "、": ",",
        "º": "°", "˚": "°",
        "\t": " ", "\n": " ", "\r": " ",
    }
)  # fmt: skip
_TEXT_COMMANDS = (
    r"(?:text(?:rm|bf|it|sf|tt|normal|up)?|math(?:rm|sf|tt|bf|it|normal)|mbox|hbox|boldsymbol|bm|emph"
    r"|underline)"
)
_REWRITES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"(?<!\w)\*\*(?=\S)([^*]+?)(?<=\S)\*\*(?!\w)", r"\1"),  # bold
        (r"(?<!\w)__(?=\S)([^_]+?)(?<=\S)__(?!\w)", r"\1"),
        (r"(?<=[\w)\]}])\*\*(?=[\w({\\-])", "^"),  # Python's power
        (r"\\text\s*\{\s*\\\$\s*\}|\\\$|\\(?:text|math)dollar(?![a-zA-Z])(?:\{\})?", DOLLAR),
        (r"\\(?:text)?(?:pounds|sterling)(?![a-zA-Z])(?:\{\})?", "£"),
        (r"\\(?:text)?euro(?![a-zA-Z])(?:\{\})?", "€"),
        (r"(?<!\\)\\[()\[\]]|\$\$", " "),  # \( \) \[ \]
        (r"(?<!\\)\$([^$]+)(?<!\\)\$(?![\d.])", r" \1 "),
        (r"(?<!\\)\$", DOLLAR),
        (r"\\!\s*|\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|[bB]igg?[lrm]?|limits|displaystyle|textstyle|mathstrut|nolimits)(?![a-zA-Z])", ""),
        (r"(?<=\d)\s*~\s*(?=\d)", "-"),
        (r"(?<!\\)\\[,;:> ~]|~|\\(?:q?quad|thinspace|enspace|hspace\{[^{}]*\}|space)(?![a-zA-Z])", " "),
        (r"\s*\{\s*,\s*\}\s*", ","),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\" + _TEXT_COMMANDS + r"\s*\{", r"\\text{"),
        (r"\{\\(?:rm|bf|it|sf|tt)(?![a-zA-Z])\s*", r"\\text{"),
        (r"\\text\{\s*([ei])\s*\}|(?:(?<=^)|(?<=[({$]))\\text\{\s*([A-Za-z])\s*\}", r"\1\2"),
        (r"\\text\{\s*\}", " "),
        (r"\s*\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\s*\\(?:degree|textdegree)s?(?![a-zA-Z])", "°"),
        (r"\\([%#_])", r"\1"),
        (r"\\&", " and "),
        (r"\\[lg]eqslant(?![a-zA-Z])|\\[lg]eq(?![a-zA-Z])", lambda match: match[0][:2] + "e"),
        (r"\\ne(?![a-zA-Z])", r"\\neq"),
        (r"\\pmod\s*(\w)", r"\\pmod{\1}"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\[lr]brace(?![a-zA-Z])", lambda match: r"\{" if match[0][1] == "l" else r"\}"),
        (r"\\(?:rightarrow|Rightarrow|longrightarrow)(?![a-zA-Z])", r"\\to"),
        (r"\\varnothing(?![a-zA-Z])|^\s*\\\{\s*\\\}\s*$", r"\\emptyset "),
        (r"\\(?:dots|cdots|dotsc|dotsb)(?![a-zA-Z])|\.\.\.+", r"\\ldots "),
        (r"(?<![A-Za-z\\])[Ii]nfinity(?![A-Za-z])|\\infin(?![a-zA-Z])", r"\\infty"),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi"),
        (r"√\s*\(([^()]*)\)|(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"√\s*\{?([0-9a-z.]+)\}?", r"\\sqrt{\1}"),
        (r"\s+", " "),
    )
)
_FRAME = re.compile(
    r"^(?:[\s=*`\"':,;]|\\approx(?![a-zA-Z]))+|(?:[\s*`\"',;:]|(?<![ap]\.m)\.|\\\\)+$"
)  # around an answer
_MAX_PASSES = 8
_NESTED_BOX = re.compile(r"^\\f?boxed\s*\{(.*)\}$")
_WHOLE_TEXT = re.compile(r"^\\text\{([^{}]*)\}$")


@functools.lru_cache(maxsize=64)
def plain(text: str) -> str:
    """`text` in the normal spelling, without spaces, delimiters, quotes and a full stop around it.

    Applying it twice changes nothing. Text that still changes after `_MAX_PASSES` passes is left as written.
    """
    spelled = text
    for _ in range(_MAX_PASSES):
        before, spelled = spelled, _rewritten(spelled)
        if spelled == before:
            return spelled
    return text


def _rewritten(text: str) -> str:
    """One pass of all rules; the result of a rule may match an earlier one, or the same again."""
    text = re.sub(r"\s+", " ", text)
    # Before NFKC, which would turn x² into x2 and 1½ into 11/2.
    text = re.sub(f"[{_SUPERSCRIPTS}]+", lambda match: "^{" + match[0].translate(_TO_DIGITS) + "}", text)
    text = re.sub(f"[{''.join(_FRACTIONS)}]", lambda match: " " + _FRACTIONS[match[0]], text)
    text = unicodedata.normalize("NFKC", text.replace(DOLLAR, r"\$")).translate(_SIGNS)
    # In a matrix or in cases, two backslashes end a row.
    if r"\begin" not in text:
        text = re.sub(r"\\{2,}(?=[a-zA-Z])", r"\\", text)  # escaped twice or more
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    return strip_frame(text)


def strip_frame(text: str) -> str:
    r"""Without the spaces, quotes, full stop, ``\text{...}`` and nested box around an answer."""
    for _ in range(4):
        before = text
        text = _FRAME.sub("", text)
        for frame in (_NESTED_BOX, _WHOLE_TEXT):
            inner = frame.match(text)
            if inner and braces_match(inner[1]):
                text = inner[1].strip()
        if text == before:
            break
    return text


def closing_brace(text: str, opening: int) -> int | None:
    r"""Where the brace that opens at `opening` closes; None if it does not.

    ``\{`` and ``\}`` do not count.
    """
    depth = 0
    position = opening
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def braces_match(text: str) -> bool:
    r"""Whether every ``{`` closes and no ``}`` comes too early."""
    depth = 0
    for brace in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


def split_outside(text: str, separator: re.Pattern[str]) -> list[str]:
    """`text` split at each match of `separator` outside all brackets; the pieces are stripped."""
    pieces, start, depth, position = [], 0, 0, 0
    while position < len(text):
        found = separator.match(text, position) if depth == 0 else None
        if found and found.end() > position:
            pieces.append(text[start:position])
            start = position = found.end()
            continue
        two = text[position : position + 2]
        sign = two if two in (r"\{", r"\}") else text[position]
        depth = max(0, depth + (sign in ("(", "[", "{", r"\{")) - (sign in (")", "]", "}", r"\}")))
        position += 2 if text[position] == "\\" and len(two) == 2 and not two[1].isalpha() else 1
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces]
