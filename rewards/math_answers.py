r"""Where the answer is in a text. In: a text. Out: the answer as written, or None.

The places, in order: the last ``<answer>`` tag, the last ``\boxed``, a line ``#### 72``, the last sentence
that says "answer is" or "Answer:", a last line that is nothing but an answer, and the last number or formula.
A tag or a box that is not closed, or is empty, means that there is no answer: an earlier one was not the last
word.
"""

from __future__ import annotations

import itertools
import re

from rewards.math_engine import parse_expression
from rewards.math_spelling import closing_brace, plain
from rewards.math_units import read_unit
from rewards.math_values import Expression, Label, Listing, Named, Number, Parts, Table, Value, Words, read

_MAX_LINE = 160
_THOUGHT = re.compile(r"</think(?:ing)?>", re.I)
_TAG = re.compile(r"<(/?)answer>", re.I)
_BOX = re.compile(r"\\(?:f?boxed|fbox)(?![a-zA-Z])\s*")
_BETWEEN_BOXES = re.compile(
    r"[\s$.]*(?:\\[()\[\]]|[\s$])*(?:\s*[A-Za-z]+){0,2}\s*(?:,|;|\band\b|\bor\b|\\text\{\s*(?:and|or)\s*\}|\\quad|&|\\\\|[\s$])+"
    r"(?:\\[()\[\]]|[\s$])*(?:[A-Za-z](?:_\{?\w+\}?)?\s*=\s*)?"
)
_MARKED_LINE = re.compile(r"^[ \t]*####[ \t]*(\S[^\n]*)$", re.M)
_STATED = re.compile(
    r"""(?ix)
    (?:\banswers?\b (?:\s+(?:to|of|for|in)\s[^.\n:=]{0,80}?)? [\s*_"]*
        (?:is|are|was|(?:will|would|should|must)\ be|equals|comes\ out\ to|:|=|\uff1a|(?=\$|\\[\[(]))
      | \b(?:correct\s+)?(?:option|choice)\s+(?:is|:)
      | 答案\s*(?:应?该?[是为])?\s*[:\uff1a]?  | 故?选\s*[:\uff1a]?(?=\s*\(?[A-J])
      | \b(?:ответ|respuesta|réponse|antwort|risposta|resposta)\b [\s*]* (?:[:\uff1a]|is|es|est|ist|è|é)
      | 答え\s*(?:は|[:\uff1a]) | 정답\s*(?:은|[:\uff1a])
    )
    (?:[\s*_]*[:\uff1a])? [\s*_]*
    """
)
_CHOSEN = re.compile(
    r"(?:\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+)?(?<![A-Za-z])\(?([A-J])\)?\*{0,2}\s+is\s+(?:the\s+)?(?:correct|right|best)\b"
)
_SENTENCE_END = re.compile(r"[.!?;。\uff1b](?=[\s\"'*)]|$)|[。\uff1b]")
_CLAUSE = re.compile(
    r",?\s+(?i:because|since|as|which|where|so|for|when|if|after|but|by|based|given|therefore|thus|that"
    r"|and\s+(?:the|this|so|we))\s|\s*\((?=[a-z])|\s+(?:—|–|--)\s|,\s+(?=not\s)"
)
_FILLER = re.compile(
    r"^(?:(?:therefore|thus|so|then|hence|simply|equal to|about|approximately|approx\.|exactly|given by"
    r"|just|indeed|clearly|now|also|still|either|option|choice|是|为|就是)[\s,:]+)+",
    re.I,
)
_PROSE = re.compile(r"[A-Za-z]{4,}|\b(?:so|is|it|we|the|get|of|by|on|be|are|was|has|not|hence|thus)\b", re.I)
_MATH = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\\d])\$([^$\n]+?)(?<!\\)\$(?!\d)", re.DOTALL
)
_AMOUNT = re.compile(r"\$\s?\d[\d,.]*(?:[\s,.;)]+[A-Za-z]{2,}|\s*$)")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?|(?<!\d)\.\d+"
_FRAC = r"\\[dtc]?frac\s*(?:\{[^{}]*\}\s*\{[^{}]*\}|\d\s*\d)"
_ATOM = (
    rf"(?:(?:[-+−]\s?)?(?:(?:US)?(?:\\?\$|[€£¥₹\uff04])\s?)?(?:{_DIGITS}|{_FRAC})(?:\s*\\?%|°(?:[CF]\b)?)?)"
)
_DAY_AND_MONTH = (
    r"(?:{month}\s+\d{{1,2}}(?:st|nd|rd|th)?|\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{month})(?:,?\s+\d{{4}})?"
).format(month=r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?")
_MEASURE = (
    r"(?:hours?|hrs?|h|minutes?|mins?|feet|foot|ft|pounds?|lbs?|years?|months?|weeks?|days?|dollars?"
    r"|meters?|m|kg|km)"
)
_TWO_MEASURES = rf"{_ATOM}\s*{_MEASURE},?\s+(?:and\s+)?{_ATOM}\s*[a-z]+"
_JOINT = (
    r"(?:\s*[:/^_]\s*\{?|\s*[-–](?=\d)|\s+(?=[\d\\])|\s*(?:\\times|\\cdot|×|\*|x)\s*(?=10\s*\^)"
    r"|\s+(?:to|and|or)\s+(?=[-$\d\\])|,\s+(?:(?:and|or)\s+)?(?=[-$\d\\]))"
)
_CHAIN = rf"{_ATOM}(?:{_JOINT}{_ATOM}\}}?)*"
_ENDING = r"(?:\s*[ap]\.?m\b\.?|\s+(?:million|billion|trillion|thousand|hundred|dozen)\b)?"
_TUPLE = rf"(?<![A-Za-z0-9_])[(\[]\s*{_ATOM}(?:\s*,\s*{_ATOM})+\s*[)\]]"
_TOKEN = re.compile(rf"{_DAY_AND_MONTH}|{_TUPLE}|{_TWO_MEASURES}|{_CHAIN}{_ENDING}", re.I)
"""A number with all that belongs to it: a date, a point, a range, a mixed number, ``2 h 30 min``."""


def find_answer(text: str) -> str | None:
    """The answer that `text` ends on; None if it gives none, or none that can be read as a whole.

    Text before ``</think>`` is not searched, unless nothing follows it.
    """
    # Repeated spaces are joined first: several patterns take quadratic time on them.
    thoughts = _THOUGHT.split(re.sub(r"([ \t])[ \t]+|(\n)\s*\n", r"\1\2", text))
    text = thoughts[-1] if thoughts[-1].strip() else text
    tags = list(_TAG.finditer(text))
    if len(tags) == 1 and tags[0][1]:  # the prompt has opened it
        return _find_untagged(text[: tags[0].start()])
    if tags:
        # The last tag must be a closing one whose opening one is directly before it.
        if not tags[-1][1] or len(tags) < 2 or tags[-2][1]:
            return None
        inside = text[tags[-2].end() : tags[-1].start()].strip()
        return _find_untagged(inside) if inside else None
    return _find_untagged(text)


def marked_answer(text: str) -> str | None:
    r"""The answer in a ``\boxed``, an ``<answer>`` tag or a ``####`` line of `text`, and nowhere else."""
    if _TAG.search(text):
        return find_answer(text)
    if _BOX.search(text):
        return _boxed(text)
    lines = text.rpartition("####")[2].strip().splitlines()
    return lines[0] if lines else None


def is_definite(value: Value) -> bool:
    """Whether a value is certainly an answer: no prose, and nothing that math-verify cannot read."""
    if isinstance(value, (Number, Parts)):
        return True
    if isinstance(value, (Label, Named)):
        return is_definite(value.content)
    if isinstance(value, Words):
        return (len(value.words) == 1 and len(value.words[0]) == 1) or _is_compound(value)
    if isinstance(value, Listing):
        return all(is_definite(item) for item in value.items)
    if isinstance(value, Table):
        return True
    assert isinstance(value, Expression)
    return (
        not _PROSE.search(re.sub(r"\\[A-Za-z]+(?:\{[A-Za-z ]*\})?", " ", value.latex))
        and parse_expression(value.latex) is not None
    )


def _is_compound(words: Words) -> bool:
    """``2 h 30 min``: numbers and units in turn."""
    kinds = [word[0].isdigit() for word in words.words if word != "and"]
    return len(kinds) >= 4 and all(first != second for first, second in itertools.pairwise(kinds))


def _find_untagged(text: str) -> str | None:
    boxes = list(_BOX.finditer(text))
    if boxes:
        content, end = _content(text, boxes[-1].end())
        # A correction after the box counts: "... so the answer is 7, not 5".
        later = list(_STATED.finditer(text, end)) if content else []
        last_word = _stated(text[later[-1].end() :]) if later else None
        return last_word if last_word is not None and is_definite(read(last_word)) else _boxed(text)
    # From the end: a worked example before it may have a mark of its own.
    for line in reversed(_MARKED_LINE.findall(text)):
        if is_definite(read(line)):
            return str(line)
    stated, chosen = list(_STATED.finditer(text)), list(_CHOSEN.finditer(text))
    # Whichever comes last in the text is the final word.
    if chosen and (not stated or stated[-1].start() < chosen[-1].start()):
        return str(chosen[-1][1])
    if stated:
        return _stated(text[stated[-1].end() :])
    lines = text.strip().splitlines() or [""]
    line = _FILLER.sub("", lines[-1].strip())
    if len(line) <= _MAX_LINE and _is_answer_alone(line, len(lines) == 1):
        return line
    return _last(text)


def _is_answer_alone(line: str, is_only_line: bool) -> bool:
    value = read(line)
    return is_definite(value) or (
        is_only_line
        and isinstance(value, Words)
        and (len(value.words) <= 3 and all(word.isalpha() for word in value.words))
    )


def _boxed(text: str) -> str | None:
    """The content of the last box, with boxes joined by a comma, "and" or "or"; or of a box around it."""
    contents: list[str] = []
    start_of_next = len(text)
    for box in reversed(list(_BOX.finditer(text))):
        content, end = _content(text, box.end())
        if content is None:
            break
        content = _signed(text, content, box.start(), end)
        if end > start_of_next:
            contents = [_BOX.sub("", content)]
        elif contents and not _joined(text[end:start_of_next]):
            break
        elif content not in contents:
            contents.insert(0, content)
        start_of_next = box.start()
    return ", ".join(contents) or None


def _signed(text: str, content: str, start: int, end: int) -> str:
    r"""With the minus or the percent sign that a formula has around its box: ``$-\boxed{12}$``."""
    minus = re.search(r"[$=({]\s*-\s*$", text[max(0, start - 8) : start])
    percent = re.match(r"\s*\\?%", text[end : end + 4])
    return ("-" if minus else "") + content + (r"\%" if percent else "")


def _content(text: str, start: int) -> tuple[str | None, int]:
    r"""The content of a box and where it ends: the group in braces, or one token, as in ``\boxed 5``."""
    if text[start : start + 1] == "{":
        end = closing_brace(text, start)
        content = text[start + 1 : end].strip() if end is not None else ""
        return (content or None), (len(text) if end is None else end + 1)
    token = re.compile(r"\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])").match(text, start)
    return (token[0], token.end()) if token else (None, len(text))


def _joined(between: str) -> bool:
    return not between.strip(" $\n") or (len(between) <= 40 and _BETWEEN_BOXES.fullmatch(between) is not None)


def _stated(text: str) -> str | None:
    """The answer at the start of what follows "the answer is"."""
    lines = text.lstrip().splitlines()
    if not lines or re.match(r"(?:not|n't|unknown|unclear)\b", lines[0], re.I):
        return None
    opened = re.match(r"\s*(?:\$\$|\\\[)", text)
    line = " ".join(lines[:6]) if opened else lines[0]
    sentence = _FILLER.sub("", _first_sentence(line)[: 4 * _MAX_LINE].strip("*_ "))
    clause = _CLAUSE.split(sentence)[0]
    options = [sentence, clause]
    # "the answer is x = 5" and "the answer is that the sum is 5".
    options += [clause.rpartition(sign)[2] for sign in ("=", " is ") if sign in clause]
    for option in options:
        if len(option) <= _MAX_LINE and is_definite(read(option)):
            return option
    formulas = [found[0] for found in _formulas(clause) or _formulas(sentence)]
    if formulas:
        # With several formulas or numbers it is unclear which one is the answer.
        return formulas[0] if len(formulas) == 1 and not _digits_outside(sentence, formulas[0]) else None
    if re.search(r"\d", clause):
        return _only_number(clause)
    return clause or None


def _digits_outside(sentence: str, formula: str) -> bool:
    return re.search(r"\d", sentence.replace(formula, "")) is not None


def _only_number(clause: str) -> str | None:
    """The number of a clause that has only one: "5 apples in the basket"."""
    tokens = list(_TOKEN.finditer(clause))
    return _checked(clause, tokens[0]) if len(tokens) == 1 else None


def _formulas(text: str) -> list[re.Match[str]]:
    """The parts in math delimiters; a dollar before an amount is no delimiter: "$5 and then $6"."""
    found: list[re.Match[str]] = []
    position = 0
    while formula := _MATH.search(text, position):
        amount = formula[0].startswith("$") and _AMOUNT.match(formula[0][:-1])
        position = formula.start() + 1 if amount else formula.end()
        if not amount:
            found.append(formula)
    return found


def _first_sentence(line: str) -> str:
    """Up to the first full stop outside formulas that ends a sentence."""
    masked = line
    for found in _formulas(line):
        # A full stop inside a formula is a decimal point.
        masked = masked[: found.start()] + "x" * len(found[0]) + masked[found.end() :]
    for end in _SENTENCE_END.finditer(masked):
        before = masked[: end.start()]
        if not re.search(r"\b(?:[ap]\.m|approx|[A-Za-z]\.[A-Za-z]|ca)$", before, re.I) and before.strip(
            "*_ "
        ):
            return line[: end.start()]
    return line


def _last(text: str) -> str | None:
    """The last number or formula of a text that does not state its answer."""
    tokens, formulas = list(_TOKEN.finditer(text)), _formulas(text)
    if formulas and (not tokens or formulas[-1].end() >= tokens[-1].end()):
        rest = text[formulas[-1].end() :]
        unit = re.match(r"\s*(?:\\?%|percent|°|[A-Za-z]+(?:/[A-Za-z]+)?)", rest)
        whole = formulas[-1][0] + unit[0] if unit else formulas[-1][0]
        return whole if unit and isinstance(read(whole), Number) else formulas[-1][0]
    return _checked(text, tokens[-1]) if tokens else None


def _checked(text: str, token: re.Match[str]) -> str | None:
    """A number that is not part of a word or of an expression, with its unit; else None."""
    before, after = text[: token.start()][-40:], text[token.end() :][:40]
    if re.search(r"[A-Za-z0-9_.\\^{(]$", before) and not re.search(r"(?:^|\s)\($", before):
        return None
    if re.search(r"[\w)}\]]\s*(?:[+*/^×÷·]|\\times|\\cdot|\\div)\s*$|[\w)}\]]\s+[-−–]\s+$", before):
        return None
    if re.match(
        r"\s*(?:[+*/^×÷=]\s*|\\times|\\cdot|[-−]\s*[\w(\\])[\w(\\-]?", after
    ) and not after.startswith("*"):
        return None
    spaced = re.match(r"[-+−](\s?)", token[0])
    if spaced and re.search(r"[A-Za-z0-9)}\]]\s+$" if spaced[1] else r"[A-Za-z0-9)}\]]$", before):
        return None  # x - 5, x-5
    number = token[0]
    letters = re.match(r"[A-Za-z]+(?:[²³]|\^\{?\d\}?)?", after)
    if letters and read_unit(plain(letters[0])) is None:
        return None
    unit = re.match(r"\s*(?:\\?%|percent|(?:[A-Za-z]+|[^\W\d_])(?:\^\{?\d\}?)?)", after)
    whole = number + unit[0] if unit else number
    return whole if unit and isinstance(read(whole), Number) else number


def readable(text: str) -> bool:
    """Whether an answer has anything to compare: a letter, a digit or a mathematical sign."""
    spelled = plain(text)
    return (
        re.search(r"[^\W_]|\\(?:infty|emptyset|pi)(?![a-zA-Z])", re.sub(r"\\text|\\ldots", "", spelled))
        is not None
    )
