"""Write the generated pages, or with `--check` say which are out of date. Called by the scripts beside it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_or_check(pages: Mapping[Path, str], arguments: Sequence[str]) -> int:
    """Write each page (path -> content); with `--check` among the arguments compare. The exit code."""
    code = 0
    for path, wanted in pages.items():
        if "--check" not in arguments:
            path.write_text(wanted, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != wanted:
            sys.stderr.write(f"{path.relative_to(ROOT)} is out of date: run `make docs`\n")
            code = 1
    return code
