"""The messages between `actors.sandbox` and its children: length-prefixed JSON, and never pickle.

Records to JSON values, and back. A reply comes from a process that ran untrusted code, so every value in it
is checked. Used by `actors.sandbox`, `actors.sandbox_worker` and, for `check_judgements`, `actors.scorer`.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from configs.kinds.base import load_target
from rewards.custom import finite_or_none, one_element
from rollouts.files import unicode_text
from rollouts.records import Completion, Judgement, Partition, Prompt, Span, Status

HEADER = struct.Struct(">I")
"""The number of bytes of JSON that follow."""
MAX_REPLY_BYTES = 1 << 24
MAX_DETAIL_CHARS = 300
MAX_TRACEBACK_CHARS = 4000
MAX_SPAN_END = (1 << 31) - 1

JsonObject = dict[str, object]
_INVALID = Judgement(score=None, status="invalid", detail="the reply is not a judgement")


def pack(message: JsonObject) -> bytes:
    """One message, header included. Lone surrogates survive, as ASCII escapes."""
    body = json.dumps(message).encode("ascii")
    return HEADER.pack(len(body)) + body


def encode_options(options: object) -> JsonObject:
    """A dataclass as its type ("module:name") and fields; a mapping as fields alone."""
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        kind = type(options)
        return {"type": f"{kind.__module__}:{kind.__qualname__}", "fields": dataclasses.asdict(options)}
    if isinstance(options, Mapping):
        return {"type": "", "fields": dict(options)}
    raise ValueError(f"options must be a dataclass or a mapping, got {type(options).__name__}")


def decode_options(kind: str, fields: Mapping[str, object]) -> object:
    """The inverse of `encode_options`. Lists in the fields of a dataclass become tuples, which JSON lacks."""
    if not kind:
        return dict(fields)
    return load_target(kind)(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    )


def encode_group(prompt: Prompt, completions: Sequence[Completion]) -> JsonObject:
    """A prompt and its completions as JSON values."""
    return {
        "prompt": {each.name: getattr(prompt, each.name) for each in dataclasses.fields(prompt)}
        | {"extra": dict(prompt.extra)},
        "completions": [
            dataclasses.asdict(completion)
            | {"judgements": {name: dataclasses.asdict(each) for name, each in completion.judgements.items()}}
            for completion in completions
        ],
    }


def decode_prompt(fields: JsonObject) -> Prompt:
    """The inverse of `encode_group` for the prompt. The sender is trusted."""
    messages = fields.pop("messages")
    assert isinstance(messages, list)
    return Prompt(messages=tuple((role, content) for role, content in messages), **fields)  # type: ignore[arg-type]


def decode_completion(fields: JsonObject) -> Completion:
    """The inverse of `encode_group` for one completion. The sender is trusted."""
    versions, judgements = fields.pop("versions"), fields.pop("judgements", {})
    assert isinstance(versions, list) and isinstance(judgements, dict)
    said = {name: _decode_earlier(each) for name, each in judgements.items()}
    flat = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    spans = tuple((start, version) for start, version in versions)
    return Completion(versions=spans, judgements=said, **flat)  # type: ignore[arg-type]


def _decode_earlier(fields: JsonObject) -> Judgement:
    """The inverse of `dataclasses.asdict` for a judgement that was checked before. The sender is trusted."""
    spans, partition = fields.pop("spans"), fields.pop("partition")
    assert isinstance(spans, list)
    return Judgement(
        spans=tuple(Span(**span) for span in spans),
        partition=Partition(**partition) if isinstance(partition, dict) else None,
        **fields,  # type: ignore[arg-type]
    )


def encode_judgement(judgement: Judgement) -> JsonObject:
    """A judgement as JSON values."""
    return {
        "score": judgement.score,
        "status": judgement.status,
        "tags": dict(judgement.tags),
        "spans": [[span.label, span.start, span.end] for span in judgement.spans],
        "answer": judgement.answer,
        "answer_ok": judgement.answer_ok,
        "partition": [judgement.partition.partition_id, judgement.partition.size]
        if judgement.partition
        else None,
        "numbers": dict(judgement.numbers),
        "texts": dict(judgement.texts),
        "detail": judgement.detail[:MAX_DETAIL_CHARS],
    }


def decode_judgement(fields: object) -> Judgement:
    """The inverse of `encode_judgement`. Accepts any value; ``invalid`` unless every part has its type."""
    if not isinstance(fields, dict):
        return _INVALID
    status, score = fields.get("status"), fields.get("score")
    if status in ("error", "invalid") and score is None:
        detail = fields.get("detail")
        return Judgement(score=None, status=status, detail=_short(detail) if isinstance(detail, str) else "")
    spans = fields.get("spans")
    if status != "ok" or not isinstance(score, float) or not isinstance(spans, list):
        return _INVALID
    try:
        decoded = tuple(Span(label=label, start=start, end=end) for label, start, end in spans)
        partition = _decode_partition(fields.get("partition"))
    except (TypeError, ValueError):
        return _INVALID
    judgement = Judgement(
        score=score,
        tags=fields.get("tags"),  # type: ignore[arg-type]
        spans=decoded,
        answer=fields.get("answer"),
        answer_ok=fields.get("answer_ok"),
        partition=partition,
        numbers=fields.get("numbers", {}),
        texts=fields.get("texts", {}),
    )
    return check_judgements([judgement], 1)[0]


def _decode_partition(given: object) -> Partition | None:
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != 2:
        raise ValueError(f"a partition must be [partition_id, size], got {given!r}")
    partition_id, size = given
    return Partition(partition_id=partition_id, size=size)


def check_judgements(results: object, count: int) -> list[Judgement]:
    """Check what a scorer function returned; gives `count` judgements with finite scores and declared types.

    A judgement that does not fit becomes ``invalid``. If the result is not a list of `count`, all of them do.
    """
    if not isinstance(results, (list, tuple)):
        return [_invalid(f"the scorer returned {_quoted(results)}; expected a list of judgements")] * count
    if len(results) != count:
        return [_invalid(f"the scorer returned {len(results)} judgements for {count} completions")] * count
    return [_checked(result) for result in results]


def _invalid(detail: str) -> Judgement:
    return Judgement(score=None, status="invalid", detail=_short(detail))


def _short(text: str) -> str:
    return text if len(text) <= MAX_DETAIL_CHARS else text[: MAX_DETAIL_CHARS - 3] + "..."


def _quoted(value: object) -> str:
    """The type of a value, and its repr, shortened."""
    try:
        return f"{type(value).__name__} {reprlib.repr(value)}"
    except Exception:  # raised by its __repr__, which may be the user's
        return type(value).__name__


def _checked(result: object) -> Judgement:
    if not isinstance(result, Judgement):
        return _invalid(f"the scorer returned {_quoted(result)}; expected a Judgement")
    # What a completion says may hold lone surrogates, and quoting it does not make its score a wrong one.
    result = dataclasses.replace(
        result,
        answer=_as_unicode(result.answer),
        tags=_as_unicode(result.tags),
        texts=_as_unicode(result.texts),
    )
    if not _extras_ok(result):
        return _invalid(
            f"the scorer returned a partition, numbers or texts of a wrong type: {_quoted(result)}"
        )
    # Floats as in the column: Arrow refuses an integer that no float equals, and the whole step with it.
    result = dataclasses.replace(result, numbers={name: float(each) for name, each in result.numbers.items()})
    if result.score is None:
        known = result.status in get_args(Status)
        if not known:
            return _invalid(f"the scorer returned status {_quoted(result.status)}")
        return dataclasses.replace(result, detail=_short(str(result.detail)))
    score, verdict = finite_or_none(result.score), one_element(result.answer_ok)
    tags_ok = isinstance(result.tags, Mapping) and all(
        isinstance(key, str) and isinstance(value, str) for key, value in result.tags.items()
    )
    spans_ok = isinstance(result.spans, tuple) and all(_is_span(span) for span in result.spans)
    answer_ok = isinstance(result.answer, (str, type(None)))
    if score is None:
        return _invalid(f"the scorer returned score {_quoted(result.score)}; expected a finite number")
    is_verdict = verdict is None or isinstance(verdict, bool)
    if not (is_verdict and tags_ok and spans_ok and answer_ok and _is_storable(result)):
        return _invalid(f"the scorer returned tags, spans or an answer of a wrong type: {_quoted(result)}")
    return dataclasses.replace(result, score=score, answer_ok=None if verdict is None else bool(verdict))


def _extras_ok(judgement: Judgement) -> bool:
    """Whether `partition`, `numbers` and `texts` can be stored: whole numbers, finite numbers, Unicode."""
    partition, numbers, texts = judgement.partition, judgement.numbers, judgement.texts
    if partition is not None and not (
        isinstance(partition, Partition)
        and all(
            # Not isinstance: True and False are ints too.
            type(value) is int and 0 <= value <= MAX_SPAN_END
            for value in (partition.partition_id, partition.size)
        )
    ):
        return False
    if not (isinstance(numbers, Mapping) and isinstance(texts, Mapping)):
        return False
    if not all(
        # An integer of 400 digits is no number of a row, and has no float that could be looked at.
        isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
        for value in numbers.values()
    ):
        return False
    strings = [*numbers, *texts, *texts.values()]
    return all(isinstance(each, str) for each in strings) and _is_unicode("".join(strings))


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which Arrow cannot store."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_unicode(value: Any) -> Any:
    """The value with U+FFFD for lone surrogates in its texts; what is neither text nor mapping as it is."""
    if isinstance(value, str):
        return value if _is_unicode(value) else unicode_text(value)
    if isinstance(value, Mapping):
        return {_as_unicode(key): _as_unicode(each) for key, each in value.items()}
    return value


def _is_storable(judgement: Judgement) -> bool:
    """Whether its texts are Unicode and its spans fit a row's columns."""
    texts = [judgement.answer or "", *judgement.tags, *judgement.tags.values()]
    texts += [span.label for span in judgement.spans]
    return _is_unicode("".join(texts)) and all(span.end <= MAX_SPAN_END for span in judgement.spans)


def _is_span(span: object) -> bool:
    return (
        isinstance(span, Span)
        and isinstance(span.label, str)
        and isinstance(span.start, int)
        and isinstance(span.end, int)
        and 0 <= span.start <= span.end
    )
