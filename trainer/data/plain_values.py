"""Dataset values as JSON types, so that they can be sent to the process of a reward function.

Used by `trainer.data.file_dataset` and, for a user's own dataset, by `trainer.data.prompts`.
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from rollouts.files import Json


def plain_value(value: object) -> Json:
    """`value` converted to JSON types.

    Text, numbers, booleans, null, lists and mappings are kept; numpy's and Arrow's types become these.
    Decimals become text ("0.10"), dates and times text in ISO 8601, durations seconds, and NaN (pandas' mark
    of a missing value) becomes null.

    Raises:
        ValueError: it contains another type (bytes, an infinity, a key that is not text) or is nested too
            deeply.
    """
    try:
        return _plain(value)
    except TypeError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("nested less deeply") from error


def _plain(value: object) -> Json:
    match value:
        case None | bool() | int():
            return value
        case str():
            return _unicode(value)
        case float():
            return _finite(float(value))
        # Text keeps all digits; a float would turn 0.10 into 0.1.
        case decimal.Decimal():
            return format(value, "f") if value.is_finite() else _finite(float(value))
        case datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case list() | tuple():
            return [_plain(item) for item in value]
        case Mapping():
            return {_key(key): _plain(item) for key, item in value.items()}
        case np.ndarray() | np.generic():
            return _plain(value.tolist())
        case pa.Scalar():
            return _plain(value.as_py())
    raise TypeError(f"no {type(value).__name__}")


def _finite(value: float) -> float | None:
    if math.isinf(value):
        raise ValueError("no infinity")
    return None if math.isnan(value) else value


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"keys that are text, no {type(key).__name__}")
    return _unicode(key)


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair, which UTF-8 cannot encode
        raise ValueError("no lone surrogates") from error
    return str(text)
