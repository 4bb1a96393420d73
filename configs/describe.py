"""Docstrings and defaults of options classes, for docs/config.md and `polyphony rewards`."""

from __future__ import annotations

import ast
import inspect
from dataclasses import MISSING, is_dataclass
from typing import Any


def attribute_docs(cls: type) -> dict[str, str]:
    """Field -> the string literal below it, on one line."""
    docs: dict[str, str] = {}
    for owner in reversed([each for each in cls.__mro__ if is_dataclass(each)]):
        body = ast.parse(inspect.cleandoc(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                docs[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[attr-defined]
    return docs


def default_of(field: Any) -> str:
    """The default as a config would write it."""
    value = field.default_factory() if field.default is MISSING else field.default
    if isinstance(value, bool) or value is None:
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value}`" if value != "" else '`""`'


def about(cls: Any) -> str:
    """The docstring, a line for each paragraph."""
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
