"""Calls to actors are checked by the type checker, so none may go round it by a method's name."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from fake_actors import FakeHandle, run

import actors.buffer
from cluster import calls
from cluster.actor_process import Blueprint
from cluster.calls import RemoteClass, blueprint, call, call_ref
from cluster.spawn import ActorLostError, RayHandle

ROOT = Path(__file__).resolve().parents[2]
REMOTE = [value for value in vars(calls).values() if isinstance(value, RemoteClass)]
BY_NAME = {"call", "call_ref", "once", "_all", "_each"}
WIRE = {"cluster/calls.py", "cluster/spawn.py", "cluster/supervise.py", "cluster/actor_process.py"}
"""Where names are passed on as names."""


def calls_by_name(source: str) -> list[int]:
    """Lines that give a method of an actor as a string."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in BY_NAME
        and any(isinstance(each, ast.Constant) and isinstance(each.value, str) for each in node.args[:2])
    ]


def test_no_call_goes_by_name() -> None:
    """Outside the files that pass names on; the search finds each way of doing it."""
    for broken in ('h.call("load", 1)', 'self._all("x")', 'once(h, "x")', 'await_(h.call_ref("x", 2))'):
        assert calls_by_name(broken) == [1]
    assert calls_by_name("call(h, LearnerRank.load, folder)") == []
    for path in sorted((ROOT / "cluster").glob("*.py")):
        name = f"cluster/{path.name}"
        assert name in WIRE or calls_by_name(path.read_text()) == [], name


@pytest.mark.parametrize("remote", REMOTE, ids=lambda remote: remote.__qualname__)
def test_a_remote_class_is_where_it_says(remote: RemoteClass) -> None:
    """Read from the source, since the modules are too heavy to import."""
    tree = ast.parse((ROOT / (remote.__module__.replace(".", "/") + ".py")).read_text())
    assert remote.__qualname__ in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_the_actors_are_remote() -> None:
    assert len(REMOTE) == 6
    assert blueprint(calls.BufferActor, "dir", "run", 2) == Blueprint(
        target="actors.buffer:BufferActor", arguments=("dir", "run", 2)
    )
    assert blueprint(actors.buffer.BufferActor, "dir", "run", 2).target == "actors.buffer:BufferActor"


def test_the_name_and_the_arguments_travel() -> None:
    """A method of a real class and of a remote one are called alike."""
    handle = FakeHandle()

    async def work() -> None:
        await call(handle, calls.LearnerRank.load, "folder")
        await call(handle, actors.buffer.BufferActor.rewind, 3, 1)
        assert await call_ref(handle, calls.BufferActor.shard, [0, 1]) == ("kept", ([0, 1],))

    asyncio.run(work())
    assert handle.calls == [("load", "folder"), ("rewind", 3, 1), ("shard", [0, 1])]


WRONG = """
from cluster.calls import BufferActor, GeneratorActor, LearnerRank, blueprint, call
from cluster.spawn import Handle

async def wrong(handle: Handle) -> None:
    await call(handle, LearnerRank.lode, "folder")
    await call(handle, LearnerRank.load)
    await call(handle, LearnerRank.load, "folder", 1)
    await call(handle, LearnerRank.load, 1)
    number: str = await call(handle, GeneratorActor.ready)
    blueprint(BufferActor, "dir", 2)

async def right(handle: Handle) -> None:
    await call(handle, LearnerRank.load, "folder")
    number: int = await call(handle, GeneratorActor.ready)
    blueprint(BufferActor, "dir", "run", 2)
"""


@pytest.mark.slow
def test_the_type_checker_refuses_a_wrong_call(tmp_path: Path) -> None:
    """An unknown method, arguments too few, too many and of another type, and another result."""
    (tmp_path / "wrong.py").write_text(WRONG)
    checker = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(tmp_path / "wrong.py")]
    output = subprocess.run(checker, cwd=ROOT, capture_output=True, text=True, timeout=300).stdout
    lines = {
        int(line.split(":")[1]) for line in output.splitlines() if "error" in line and "wrong.py" in line
    }
    assert lines == {6, 7, 8, 9, 10, 11}, output


def test_an_actor_that_died_names_its_log() -> None:
    """The reader is sent to a file; without one the message ends."""

    class Dead:
        class call:
            @staticmethod
            def remote(*arguments: object) -> object:
                return gone()

    async def gone() -> None:
        raise ray.exceptions.ActorDiedError()

    log = "/runs/a/logs/buffer.log"
    for log_file, ending in ((log, f"; see {log}"), ("", "")):
        handle = RayHandle("buffer", Dead(), 5.0, log_file)
        with pytest.raises(ActorLostError) as raised:
            run(handle.call("add"))
        assert str(raised.value) == f"buffer died during add: its process has ended{ending}"
