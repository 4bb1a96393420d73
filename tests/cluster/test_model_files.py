"""Which models the names of a config stand for, and what depends on it."""

from __future__ import annotations

from pathlib import Path

from cluster.model_files import local_models, model_ids
from configs.bound import BoundRun, bind
from configs.load import load_config


def run_with(model: str, cache: str) -> BoundRun:
    """A run whose judge asks the model called `m`."""
    judge = f"scorers.judge={{kind: judge, model: m, cache: {cache!r}}}"
    return bind(load_config("debug", [f"models.m={model}", judge]))


def cache_of(model: str, cache: str = "c") -> str:
    return str(local_models(run_with(model, cache)).scorers["judge"].options.cache)


def test_another_model_of_the_same_name_has_replies_of_its_own(tmp_path: Path) -> None:
    """The key of a reply has the model's name, which may stand for another folder in the next run."""
    for name in ("a", "b", "copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"b" if name == "b" else b"a")
    found = {name: cache_of(f"{{path: {tmp_path / name}}}") for name in ("a", "b", "copy")}
    assert found["a"] == found["copy"] != found["b"]
    assert all(Path(each).parent == Path("c") for each in found.values())
    assert cache_of(f"{{path: {tmp_path / 'a'}}}", cache="") == ""


def test_a_model_at_an_endpoint_is_known_by_its_name_there() -> None:
    """Another name is another model; another URL is the same one that has moved."""
    one, moved, other = (
        f"{{path: {path}, endpoint: 'http://127.0.0.1:{port}/v1'}}"
        for path, port in (("large", 1), ("large", 2), ("small", 1))
    )
    assert cache_of(one) == cache_of(moved) != cache_of(other)
    assert set(model_ids(run_with(one, "c"))) == {"m"} and cache_of(one) != "c"
