"""The rules of the source, checked by reading it: floors, light imports, sizes, types, no unsafe calls.

Each rule is a function over one parsed file, tried on snippets that break it before it reads the packages.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("configs", "rollouts", "rewards", "trainer", "actors", "cluster", "lab", "polyphony")
PACKAGES = (*FLOORS, "viewer")
ALLOWED = {
    **{name: set(FLOORS[: level + 1]) for level, name in enumerate(FLOORS)},
    "viewer": {"viewer", "rollouts", "configs"},
}
ALLOWED["lab"] |= {"viewer"}
ALLOWED["polyphony"] |= {"viewer"}
OWNERS = {
    "ray": {"cluster"},
    "vllm": {"actors"},
    "deepspeed": {"actors"},
    "torch": {"trainer", "actors", "cluster", "lab", "polyphony"},
    "transformers": {"trainer", "actors", "lab", "polyphony"},
}
"""The only packages that may import each heavy library."""
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 40
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tracked_files() -> tuple[str, ...]:
    """Python files of the packages, relative to the root: those git tracks, or all where there is no git."""
    listing = subprocess.run(["git", "ls-files", "--", *PACKAGES], cwd=ROOT, capture_output=True, text=True)
    paths = listing.stdout.split("\n") if listing.returncode == 0 else []
    if not any(paths):
        paths = [str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return tuple(sorted(path for path in paths if path.endswith(".py") and (ROOT / path).exists()))


@cache
def parse(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=path)


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every absolute import at any depth, ``import_module("name")`` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Call) and called_name(node) in {"import_module", "__import__"} and node.args
        ):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def called_name(call: ast.Call) -> str:
    """The last part of what is called: ``eval`` for eval(x), ``load`` for torch.load(x)."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def floor_breaks(package: str, tree: ast.Module) -> list[str]:
    """Imports that point up, or that reach for a library another package owns."""
    found = []
    for line, name in imported_modules(tree):
        top = name.partition(".")[0]
        if top in PACKAGES and top not in ALLOWED[package]:
            found.append(f"{line}: {package} imports {name}, which is above it")
        if top in OWNERS and package not in OWNERS[top]:
            found.append(f"{line}: {package} imports {name}; only {sorted(OWNERS[top])} may")
        if name == "ray.data" or name.startswith("ray.data."):
            found.append(f"{line}: nothing imports ray.data")
    return found


def import_circle(modules: Mapping[str, ast.Module]) -> list[str]:
    """Modules that import each other in a circle; imports under TYPE_CHECKING count."""
    imports = {
        name: {
            imported
            for _, dotted in imported_modules(tree)
            for imported in (dotted, dotted.rpartition(".")[0])
            if imported in modules and imported != name
        }
        for name, tree in modules.items()
    }
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def module_name(path: str) -> str:
    """The dotted name of the module in a file."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def unsafe_uses(tree: ast.Module) -> list[str]:
    """Ways of running code that came with data: pickle, torch.load, eval, exec, trust_remote_code=True."""
    found = [
        f"{line}: imports {name}" for line, name in imported_modules(tree) if name.split(".")[0] in PICKLES
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            plain = isinstance(node.func, ast.Name)
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            if called_name(node) in {"eval", "exec"} and (plain or owner == "builtins"):
                found.append(f"{node.lineno}: calls {called_name(node)}")
            if called_name(node) == "load" and owner == "torch":
                found.append(f"{node.lineno}: calls torch.load")
            found += [
                f"{node.lineno}: passes {word.arg}=True"
                for word in node.keywords
                if word.arg in {"trust_remote_code", "allow_pickle"}
                and isinstance(word.value, ast.Constant)
                and word.value.value is True
            ]
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [f"{node.lineno}: imports torch.load" for alias in node.names if alias.name == "load"]
        elif isinstance(node, ast.Dict):
            found += [
                f"{node.lineno}: trust_remote_code is True"
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code"
                if isinstance(value, ast.Constant) and value.value is True
            ]
    return found


def functions(tree: ast.Module) -> Iterator[tuple[Function, bool]]:
    """Every function, and whether it is a method with a bound first argument."""
    for parent in ast.walk(tree):
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, Function):
                static = any(ast.unparse(mark) == "staticmethod" for mark in node.decorator_list)
                yield node, isinstance(parent, ast.ClassDef) and not static


def length(function: Function) -> int:
    """Lines from `def` to the end, docstring included, decorators not."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def untyped_signatures(tree: ast.Module) -> list[str]:
    """Functions with an argument or a result that has no annotation."""
    found = []
    for function, bound in functions(tree):
        spec = function.args
        named = [*spec.posonlyargs, *spec.args][1 if bound else 0 :]
        arguments = [*named, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
        missing = [argument.arg for argument in arguments if argument.annotation is None]
        if function.returns is None:
            missing.append("return")
        if missing:
            found.append(f"{function.lineno}: {function.name} lacks types for {', '.join(missing)}")
    return found


def found_in_packages(rule: Callable[[ast.Module], list[str]]) -> list[str]:
    """What a rule finds in all tracked files, as path:line: message."""
    return [f"{path}:{message}" for path in tracked_files() for message in rule(parse(path))]


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("rollouts", "from rewards import formats"),
        ("configs", "def late():\n    import trainer.losses.per_token"),
        ("viewer", "import rewards.formats"),
        ("trainer", "import ray"),
        ("cluster", "import vllm"),
        ("lab", "from deepspeed import comm"),
        ("rewards", "import torch.nn"),
        ("viewer", "import importlib\nimportlib.import_module('transformers')"),
        ("cluster", "from ray import data"),
        ("cluster", "import ray.data.block"),
    ],
)
def test_floor_rule_sees_each_kind_of_break(package: str, source: str) -> None:
    """A rule that cannot fail keeps nothing: each snippet breaks exactly one floor."""
    assert len(floor_breaks(package, ast.parse(source))) == 1


def test_floor_rule_allows_downward_imports() -> None:
    """Down, inside the package, relative, and the libraries a package owns are all fine."""
    lines = (
        "import json",
        "from configs.kinds import base",
        "from . import roles",
        "import torch",
        "import rays",
    )
    assert floor_breaks("trainer", ast.parse("\n".join(lines))) == []


def test_imports_point_down() -> None:
    """The floors of all packages."""
    assert tracked_files()
    broken = [
        f"{path}:{message}"
        for path in tracked_files()
        for message in floor_breaks(path.split("/")[0], parse(path))
    ]
    assert broken == []


def test_circle_rule_sees_an_import_for_types_alone() -> None:
    """The second module imports the first only for a type checker, which closes the circle."""
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from one import Thing"
    circle = {"one": ast.parse("import two"), "two": ast.parse(guarded), "three": ast.parse("import one")}
    assert set(import_circle(circle)) == {"one", "two"}
    assert import_circle({**circle, "two": ast.parse("import json")}) == []


def test_no_modules_import_each_other() -> None:
    """Each module can be read after those that it imports."""
    assert import_circle({module_name(path): parse(path) for path in tracked_files()}) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('x = 1')",
        "import builtins\nbuiltins.eval('1')",
        "import pickle",
        "from cloudpickle import loads",
        "import torch\ntorch.load('weights.pt')",
        "from torch import load",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_safety_rule_sees_each_unsafe_use(source: str) -> None:
    """Each snippet would run code that came with data."""
    assert len(unsafe_uses(ast.parse(source))) == 1


def test_safety_rule_allows_their_namesakes() -> None:
    """`model.eval()`, safetensors' `load` and a flag passed on from the config are not what is meant."""
    lines = (
        "model.eval()",
        "safetensors.load(blob)",
        "load(path, trust_remote_code=config.trust_remote_code)",
    )
    assert unsafe_uses(ast.parse("\n".join(lines))) == []


def test_nothing_runs_code_that_came_with_data() -> None:
    """A model folder, a data set or a journal must never be able to run code here."""
    assert found_in_packages(unsafe_uses) == []


def test_signature_rule_sees_missing_types() -> None:
    """Arguments, results, star arguments and nested functions all count; self and cls do not."""
    source = """
class Thing:
    def good(self, x: int) -> int: ...
    @classmethod
    def made(cls) -> None: ...
    @staticmethod
    def free(x) -> None: ...
    def no_result(self): ...
def outer(*args, flag: bool = False, **options: int) -> None:
    async def inner(y): ...
"""
    assert [message.partition(": ")[2] for message in sorted(untyped_signatures(ast.parse(source)))] == [
        "inner lacks types for y, return",
        "free lacks types for x",
        "no_result lacks types for return",
        "outer lacks types for args",
    ]


def test_every_signature_is_typed() -> None:
    """Arguments and results of every function in the packages carry a type."""
    assert found_in_packages(untyped_signatures) == []


def test_files_are_short() -> None:
    """A file has one subject and at most 450 lines: those of the packages, tests, benchmarks and docs."""
    places = [ROOT / name for name in (*PACKAGES, "tests", "benchmarks", "docs")]
    files = [path for place in places for path in place.rglob("*.py")]
    assert len(files) > len(tracked_files()), "tests are counted too"
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files
    }
    assert {path: size for path, size in sizes.items() if size > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    """A function is one verb: at most 40 lines, docstring included."""

    def long(tree: ast.Module) -> list[str]:
        sizes = [(function, length(function)) for function, _ in functions(tree)]
        return [f"{each.lineno} {each.name}: {size}" for each, size in sizes if size > MAX_FUNCTION_LINES]

    lines = "\n".join("    pass" for _ in range(MAX_FUNCTION_LINES))
    assert len(long(ast.parse(f"class A:\n  def f():\n{lines}"))) == 1  # the rule sees one line too many
    assert found_in_packages(long) == []


@pytest.mark.parametrize("package", ["configs", "rollouts", "rewards", "viewer", "polyphony"])
def test_light_packages_import_no_heavy_library(package: str) -> None:
    """`polyphony --help` answers at once and a killed reward process is cheap to start: no torch, no ray."""
    modules = [module_name(path) for path in tracked_files() if path.startswith(f"{package}/")]
    if package == "polyphony":
        modules = ["polyphony.cli"]  # its verbs import what they need when they are used
    assert heavy_imports_of(modules) == []


def test_a_record_of_the_roles_loads_no_torch() -> None:
    """The buffer's process and every binding of a role need the records alone."""
    assert heavy_imports_of(["trainer.step_records", "trainer.roles", "actors.buffer"]) == []
    assert heavy_imports_of(["ray"]) == ["ray"]  # the rule sees what is loaded


def heavy_imports_of(modules: list[str]) -> list[str]:
    """The heavy libraries that importing `modules` loads, in a process of its own."""
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(*sorted(set({list(OWNERS)!r}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_file_table_is_up_to_date() -> None:
    """docs/files.md has one row with a purpose for each Python file of the packages."""
    command = [sys.executable, "docs/file_table.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_file_says_its_purpose() -> None:
    """A module opens with a docstring: what it is for, and who calls it."""
    assert [path for path in tracked_files() if not ast.get_docstring(parse(path))] == []


def test_pyproject_lists_every_package() -> None:
    """A package that is not listed by name is missing from the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = sorted(
        str(Path(path).parent).replace("/", ".") for path in tracked_files() if path.endswith("__init__.py")
    )
    assert project["tool"]["setuptools"]["packages"] == found


def test_base_install_is_light_and_engines_exclude_each_other() -> None:
    """Viewing and submitting need no torch or vllm; the two engines share an import name, so never both."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    base = {distribution(line) for line in project["project"]["dependencies"]}
    assert base == {"jsonschema", "numpy", "omegaconf", "pyarrow", "pyyaml", "ray", "referencing", "rich"}
    assert project["tool"]["uv"]["conflicts"] == [[{"extra": "cpu"}, {"extra": "gpu"}]]


def test_constraints_pin_what_the_cpu_extra_needs() -> None:
    """Every direct requirement has one exact, tested version; torch's is without "+cpu"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    extras = project["optional-dependencies"]
    wanted = {distribution(line) for line in [*project["dependencies"], *extras["cpu"], *extras["dev"]]}
    assert wanted - {name.replace("_", "-") for name in pins} == set()
    assert pins["torch"] == "2.13.0"


def distribution(requirement: str) -> str:
    """The name in a requirement line: "ray" of "ray[default]==2.60.0"."""
    return re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0].lower()
