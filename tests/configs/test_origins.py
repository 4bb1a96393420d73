"""The table of origins: what is derived from it, and that nothing lists origins beside it."""

from __future__ import annotations

import ast
from pathlib import Path

from configs.origins import ORIGINS, POLICY, origins_where, parts

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rollouts", "rewards", "trainer", "actors", "cluster", "lab", "viewer")


def test_what_is_derived() -> None:
    """Refined and distilled rows join the policy's groups; the others have groups of their own, in order."""
    assert parts() == (("policy", "refined", "distilled"), ("replay",), ("tempered",), ("sft",))
    assert origins_where(lambda spec: spec.sampled == "same_context") == (
        "policy",
        "distilled",
        "replay",
        "tempered",
    )
    assert origins_where(lambda spec: spec.learned == "by_advantage") == ("policy", "refined", "replay")
    assert origins_where(lambda spec: spec.transformed) == (POLICY,)
    assert all(spec.journaled for spec in ORIGINS.values() if spec.replayable)


def compared_with_origins(tree: ast.Module) -> list[int]:
    """Lines that compare something with an origin written out, or list two of them."""
    names = {*ORIGINS}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            found += [node.lineno for side in sides if isinstance(side, ast.Constant) and side.value in names]
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            listed = [each for each in node.elts if isinstance(each, ast.Constant) and each.value in names]
            found += [node.lineno] * (len(listed) > 1)
    return found


def test_the_rule_sees_both_kinds() -> None:
    """A comparison and a list; one name in a list, or as an argument, is something else."""
    lines = (
        "a = x == 'policy'\nb = {'replay', 'sft'}\nc = ('policy', 1)\nd = f('sft')\ne = x not in ('a', 'b')"
    )
    assert compared_with_origins(ast.parse(lines)) == [1, 2]


def test_nothing_else_says_what_an_origin_is() -> None:
    """Above configs every question about an origin is put to the table."""
    paths = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    broken = {
        str(path.relative_to(ROOT)): compared_with_origins(ast.parse(path.read_text())) for path in paths
    }
    assert len(paths) > 50 and {path: lines for path, lines in broken.items() if lines} == {}
