"""Do the tests notice every changed sign, comparison and bound? `python -m benchmarks.mutants`.

Each function of a module in SUITES is changed in one place at a time (+ to -, < to >, min to max, low to
high, a dropped minus or detach) and put in the place of the original while the tests that must notice run.
Prints the mutants that no test noticed, and how many were caught. Takes minutes, less if functions are named.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import inspect
import io
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SUITES = {
    "trainer.losses.per_token": (
        "tests/trainer/losses/test_losses.py",
        "tests/trainer/losses/test_per_token_losses.py",
    ),
    "trainer.losses.clamping": ("tests/trainer/losses/test_per_token_losses.py",),
    "trainer.losses.covariance": ("tests/trainer/losses/test_covariance.py",),
    "trainer.token_advantages.transforms": ("tests/trainer/token_advantages/test_transforms.py",),
    "trainer.token_advantages.entropy_transforms": (
        "tests/trainer/token_advantages/test_token_advantages.py",
    ),
    "trainer.token_advantages.off_policy": ("tests/trainer/token_advantages/test_token_advantages.py",),
    "trainer.token_advantages.planning": ("tests/trainer/token_advantages/test_planning.py",),
    "trainer.token_advantages.strategic_ngrams": ("tests/trainer/token_advantages/test_planning.py",),
    "trainer.credit.advantages": ("tests/trainer/credit/test_advantages.py",),
    "trainer.credit.bonuses": ("tests/trainer/credit/test_bonuses.py",),
    "trainer.credit.reward_shapes": ("tests/trainer/credit/test_reward_shapes.py",),
    "trainer.losses.normalize": ("tests/trainer/losses/test_normalize.py",),
    "trainer.credit.prompt_weights": ("tests/trainer/credit/test_prompt_weights.py",),
    "trainer.rollout.dynamic_sampling": ("tests/trainer/rollout/test_dynamic_sampling.py",),
    "trainer.rollout.tempered": ("tests/trainer/rollout/test_tempered.py",),
}
"""By module: the test files that must notice."""
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.Gt,
    ast.Gt: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
NAMES = {
    "minimum": "maximum",
    "maximum": "minimum",
    "clip_low": "clip_high",
    "clip_high": "clip_low",
    "beta_low": "beta_high",
    "beta_high": "beta_low",
    "proximal_logprobs": "behavior_logprobs",
    "behavior_logprobs": "proximal_logprobs",
}
"""Attributes, variables and texts that name the other bound."""
DROPPED = {"detach", "abs", "clamp", "exp", "double"}
"""Methods that a mutant leaves out: x.exp() becomes x."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A function with one change; `code` fits into the original."""

    function: FunctionType
    change: str
    code: CodeType


def _changed(node: ast.AST) -> tuple[str, ast.AST] | None:
    """The mutants of this node alone, each with a short description; None if it has none."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        return "dropped the sign of", node.operand
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OPERATORS:
        other = copy.copy(node)
        other.op = OPERATORS[type(node.op)]()  # type: ignore[assignment]
        return f"{type(other.op).__name__} in", other
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
        other_compare = copy.copy(node)
        other_compare.ops = [OPERATORS[type(node.ops[0])](), *node.ops[1:]]  # type: ignore[list-item]
        return f"{type(other_compare.ops[0]).__name__} in", other_compare
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        return f"{NAMES[node.attr]} for", ast.Attribute(node.value, NAMES[node.attr], node.ctx)
    elif isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
        return f"{NAMES[node.id]} for", ast.Name(NAMES[node.id], node.ctx)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in NAMES:
        return f"{NAMES[node.value]} for", ast.Constant(NAMES[node.value])
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED:
        return "dropped the call of", node.func.value
    return None


class _Swap(ast.NodeTransformer):
    """Replaces the node `old`, compared by identity, with `new`."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> Any:
        return ast.copy_location(self._new, node) if node is self._old else self.generic_visit(node)


def mutants_of(function: FunctionType) -> Iterator[Mutant]:
    """Every mutant of a function, one change each; assertions, signature and docstring are left alone."""
    source = textwrap.dedent(inspect.getsource(function))
    for place in range(sum(1 for _ in _body_nodes(ast.parse(source)))):
        tree = ast.parse(source)
        node = next(islice(_body_nodes(tree), place, None))
        change = _changed(node)
        if change is None:
            continue
        words = f"{function.__name__}: {change[0]} {ast.unparse(node)}"
        fixed: ast.Module = ast.fix_missing_locations(_Swap(node, change[1]).visit(tree))
        space: dict[str, object] = {}
        exec(compile(fixed, f"<{words}>", "exec"), function.__globals__, space)
        made = space[function.__name__]
        assert isinstance(made, FunctionType)
        yield Mutant(function, words, made.__code__)


def _body_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    for statement in definition.body:
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        # Assertions state what callers guarantee; no test calls a function against its contract.
        if not isinstance(statement, ast.Assert) and not is_docstring:
            yield from ast.walk(statement)


def functions_of(module_name: str) -> list[FunctionType]:
    """The functions that a module defines itself."""
    members = vars(import_module(module_name)).values()
    return [it for it in members if inspect.isfunction(it) and it.__module__ == module_name]


def is_caught(mutant: Mutant, check: Callable[[], object]) -> bool:
    """Whether `check` raises while the mutant's code is in the function, which all importers then see."""
    original = mutant.function.__code__
    # The code is exchanged and not the name: modules that imported the function have it too.
    mutant.function.__code__ = mutant.code
    try:
        check()
    except Exception:
        return True
    finally:
        mutant.function.__code__ = original
    return False


def _run_tests(files: tuple[str, ...]) -> None:
    """The test files in this process, up to the first failure, with few examples per property.

    Raises:
        AssertionError: a test failed.
    """
    import pytest
    from hypothesis import Phase, settings

    # The same examples for every mutant, and none from the database: chance must not catch one.
    settings.register_profile(
        "mutants", deadline=None, max_examples=25, derandomize=True, database=None, phases=[Phase.generate]
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        arguments = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants", "--no-header"]
        status = pytest.main([*arguments, *(str(ROOT / file) for file in files)])
    assert status == 0, said.getvalue()[-2000:]


def main(arguments: list[str]) -> int:
    """Print what survived, then how many of how many were caught; 1 if anything survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("functions", nargs="*", help="only these functions (default: all)")
    wanted = parser.parse_args(arguments).functions
    num_caught = num_all = 0
    for module_name, files in SUITES.items():
        functions = [it for it in functions_of(module_name) if not wanted or it.__name__ in wanted]
        if functions:
            _run_tests(files)
        for function in functions:
            check = partial(_run_tests, files)
            results = [(mutant, is_caught(mutant, check)) for mutant in mutants_of(function)]
            for mutant, caught in results:
                if not caught:
                    print(f"survived: {mutant.change}", flush=True)
            found = sum(caught for _, caught in results)
            print(f"{module_name}.{function.__name__}: {found} of {len(results)} caught", flush=True)
            num_caught, num_all = num_caught + found, num_all + len(results)
    print(f"{num_caught} of {num_all} mutants caught")
    return int(num_caught < num_all)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
