"""Import the modules of this repository anew, for what happens on import; libraries stay loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def own_modules() -> list[str]:
    """Names of the imported modules of this repository, tests and helpers included."""
    files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
    places = {name: Path(file) for name, file in files.items() if file.startswith(f"{ROOT}/")}
    return [name for name, place in places.items() if ".venv" not in place.parts]


@contextmanager
def fresh_imports() -> Iterator[None]:
    """Within it nothing of the repository is imported yet; afterwards the modules of before are back.

    A tenth of a second, where another process takes several for torch alone.
    """
    kept = {name: sys.modules.pop(name) for name in own_modules()}
    try:
        yield
    finally:
        for name in own_modules():
            del sys.modules[name]
        sys.modules.update(kept)
