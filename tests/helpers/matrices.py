"""Matrices in parts: `make test-quick` and `make test` run a slice of each, `make test-long` the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def parts(count: int, quick: int = 1) -> list[Any]:
    """The numbers 0 to `count` - 1 for a test's parameter; all after the first `quick` carry the marker long.

    A test takes every `count`-th case from its number on. A `count` without a factor in common with the
    length of a step's pattern makes each part meet cases of all kinds.
    """
    return [pytest.param(number, marks=() if number < quick else pytest.mark.long) for number in range(count)]


def quick_of(cases: Sequence[Any], quick: Sequence[Any], rest: str = "long") -> list[Any]:
    """`cases` as parameters, tuples as several; those that are not in `quick` carry the marker `rest`.

    `make test` runs those that are `slow`, only `make test-long` those that are `long`.
    """
    assert all(case in cases for case in quick), f"{quick} must be among {cases}"
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    marks = [() if case in quick else getattr(pytest.mark, rest) for case in cases]
    return [pytest.param(*each, marks=mark) for each, mark in zip(values, marks, strict=True)]
