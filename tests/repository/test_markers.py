"""Which tests run where: those of `tests/engine` need engines, all of them, and no others do."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def has_engine_marker(path: Path) -> bool:
    """Whether `pytest.mark.engine` is written in the code of a file."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == "engine"
        and ast.unparse(node) == "pytest.mark.engine"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )


def is_marked_whole(path: Path) -> bool:
    """Whether all tests of a file have the marker, by its `pytestmark`."""
    return any(
        isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "pytestmark"
        and "pytest.mark.engine" in ast.unparse(node.value)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


def test_engines_are_used_in_one_folder() -> None:
    """`make test-quick` does not even import it, so a test without an engine would never run there."""
    files = sorted(TESTS.rglob("test_*.py"))
    engine = [path for path in files if path.parent.name == "engine"]
    assert len(engine) > 10 and [path.name for path in engine if not is_marked_whole(path)] == []
    others = set(files) - set(engine)
    assert len(others) > 100 and [path.name for path in others if has_engine_marker(path)] == []
