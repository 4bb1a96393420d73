"""Strategic n-grams: mined, stored, matched; HICRA's mask and its random control; damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import planning_cases
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import loss_inputs
from planning_cases import KNOWN
from rollout_rows import make_batch

from cluster.job import local_model
from configs.bound import bind
from configs.kinds.token_advantages import TOKEN_ADVANTAGES, HicraOptions
from configs.load import load_config
from polyphony.cli import main
from rollouts.columns import ROLLOUT_SCHEMA
from rollouts.store import commit_step
from trainer.token_advantages.planning import hicra, locate_grams, mark_planning
from trainer.token_advantages.strategic_ngrams import correct_completions, find_grams, load_grams, write_grams
from trainer.token_advantages.transforms import BoundTransform, prepare_transforms

torch.set_num_threads(1)
CHECKS = planning_cases.GRAM_CHECKS | planning_cases.PLANNING_CHECKS


@pytest.mark.parametrize("name", CHECKS)
def test_by_hand(name: str) -> None:
    for check in CHECKS[name]:
        check()


def plain_find(ids: list[int], grams: set[tuple[int, ...]]) -> list[bool]:
    """Token by token: at each free place the longest n-gram that starts there, written independently."""
    inside, at = [False] * len(ids), 0
    while at < len(ids):
        hits = [n for n in (5, 4, 3) if at + n <= len(ids) and tuple(ids[at : at + n]) in grams]
        if not hits:
            at += 1
            continue
        inside[at : at + hits[0]] = [True] * hits[0]
        at += hits[0]
    return inside


WORDS = st.integers(0, 2)
GRAMS = st.sets(st.lists(WORDS, min_size=3, max_size=5).map(tuple), min_size=1, max_size=6)


@given(st.lists(st.lists(WORDS, max_size=14), max_size=5), GRAMS)
def test_the_mask_against_a_scalar_loop(rows: list[list[int]], grams: set[tuple[int, ...]]) -> None:
    """Concatenated rows give the same as single rows: no match crosses an end."""
    flat = np.array([token for row in rows for token in row], np.int64)
    ends = np.repeat(np.cumsum([len(row) for row in rows], dtype=np.int64), [len(row) for row in rows])
    inside, _ = find_grams(flat, ends, dict.fromkeys(grams, 1))
    assert inside.tolist() == [hit for row in rows for hit in plain_find(row, grams)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("grams") / "grams.json"
    write_grams(place, KNOWN)
    return place


@given(
    rows=st.lists(st.lists(st.integers(1, 5), max_size=12), min_size=1, max_size=5), seed=st.integers(0, 99)
)
def test_the_control_has_as_many_tokens_of_every_row(path: Path, rows: list[list[int]], seed: int) -> None:
    """For any ranks and order: the same masks, and per row the same number in both."""
    rng = np.random.default_rng(seed)
    names = [f"r{number}" for number in range(len(rows))]
    draws = [rng.random(len(row)) for row in rows]

    def table(of: list[int]) -> dict[str, np.ndarray]:
        counts = [len(rows[k]) for k in of]
        total = sum(counts)
        flat = [token for k in of for token in rows[k]]
        columns: dict[str, np.ndarray] = {
            "sample_id": np.repeat(np.array([names[k] for k in of], dtype=np.str_), counts),
            "position": np.array([at for count in counts for at in range(count)], np.int64),
            "token_ids": np.array(flat, np.int64),
            "origin": np.full(total, "policy"),
            "weight": np.ones(total),
            "entropy": np.ones(total),
            "draw": np.concatenate([draws[k] for k in of]) if of else np.zeros(0),
        }
        return columns | {"advantage": np.ones(total)}

    def masks(mask: str, shards: list[list[int]]) -> dict[str, list[bool]]:
        options = HicraOptions(path=str(path), mask=mask)
        shapes = {"plan": BoundTransform(kind=TOKEN_ADVANTAGES["hicra"], options=options)}
        tables = [table(of) for of in shards]
        found: dict[str, list[bool]] = {}
        for of, local in zip(shards, tables, strict=True):
            columns = prepare_transforms(local, shapes, lambda own: tables)["token_advantage.plan"].columns
            ends = np.cumsum([len(rows[k]) for k in of])[:-1]
            parts = np.split(columns["planning"], ends) if of else []
            found |= {names[k]: part.tolist() for k, part in zip(of, parts, strict=True)}
        return found

    everyone = list(range(len(rows)))
    dealt = [everyone[::-2], everyone[-2::-2], []]
    mined, random = masks("mined", [everyone]), masks("random", [everyone])
    assert masks("mined", dealt) == mined and masks("random", dealt) == random
    assert {name: sum(hits) for name, hits in mined.items()} == {
        name: sum(hits) for name, hits in random.items()
    }
    for number, row in enumerate(rows):
        assert mined[names[number]] == plain_find(row, set(KNOWN.documents))


@given(st.lists(st.tuples(st.booleans(), st.just(0.0) | st.floats(-5, 5)), max_size=6), st.floats(0, 0.99))
def test_hicra_against_a_scalar_loop(tokens: list[tuple[bool, float]], alpha: float) -> None:
    """A + alpha |A| on planning tokens; finite, no gradient, and no sign changes."""
    advantages = [a for _, a in tokens]
    planning = torch.tensor([p for p, _ in tokens], dtype=torch.bool)
    inputs = replace(
        loss_inputs([-1.0] * len(tokens), [-1.0] * len(tokens), advantages), prepared={"planning": planning}
    )
    found = hicra(inputs, HicraOptions(alpha=alpha)).advantages
    wanted = [a + alpha * abs(a) if plans else a for plans, a in tokens]
    assert found.tolist() == pytest.approx(wanted) and not found.requires_grad
    assert (found * inputs.advantages >= 0).all()


def commit_run(run: Path, rows: list[dict[str, Any]]) -> None:
    """A run of one step whose rows have these values; all else is null or a valid default."""
    run.mkdir(exist_ok=True)
    table = pa.Table.from_batches([make_batch(0, num_rows=len(rows))])
    count = len(rows)
    columns = {
        "token_ids": [row["ids"] for row in rows],
        "loss_mask": [row.get("mask", [True] * len(row["ids"])) for row in rows],
        "answer_ok": [row["ok"] for row in rows],
        "reward": [row.get("reward", 0.0) for row in rows],
        "origin": [row.get("origin", "policy") for row in rows],
        "step": [0] * count,
    }
    arrays = []
    for field in ROLLOUT_SCHEMA:
        if field.name in columns:
            arrays.append(pa.array(columns[field.name], field.type))
        elif field.name in table.column_names:
            arrays.append(table.column(field.name).combine_chunks())
        else:
            arrays.append(pa.nulls(count, field.type))
    commit_step(run, 0, pa.Table.from_arrays(arrays, schema=ROLLOUT_SCHEMA), {"metrics": {}})


def test_only_correct_completions_are_read(tmp_path: Path) -> None:
    """Correct by `answer_ok`, or else by a reward above 0; replayed rows are not counted twice.

    Tokens of the environment split a completion: 1 2 | 4 5, whose middle is not learned.
    """
    commit_run(
        tmp_path,
        [
            {"ids": [1, 2, 3, 4, 5], "ok": True, "mask": [True, True, False, True, True]},
            {"ids": [6, 7, 8], "ok": False, "reward": 1.0},
            {"ids": [9, 9, 9], "ok": None, "reward": 0.5},
            {"ids": [8, 8, 8], "ok": None, "reward": None},
            {"ids": [7, 7, 7], "ok": True, "origin": "replay"},
        ],
    )
    assert list(correct_completions(tmp_path)) == [[[1, 2], [4, 5]], [[9, 9, 9]]]
    with pytest.raises(ValueError, match="at least one committed step"):
        list(correct_completions(tmp_path / "none"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs of one correct completion each that share 1 2 3; then runs that cannot be mined."""
    for name, ids in (("one", [1, 2, 3]), ("two", [1, 2, 3, 4])):
        commit_run(tmp_path / name, [{"ids": ids, "ok": True}, {"ids": [5, 5, 5], "ok": False}])
    runs, out = [str(tmp_path / name) for name in ("one", "two")], str(tmp_path / "to" / "grams.json")
    assert main(["mine", *runs, "--out", out, "--share", "1"]) == 0
    found = load_grams(Path(out))
    assert dict(found.documents) == {(1, 2, 3): 2} and found.sources == ("one", "two")
    assert "1 n-grams of 2 correct completions" in capsys.readouterr().out
    assert main(["mine", runs[0], "--out", out]) == 2
    assert "none in 1 completions" in capsys.readouterr().err
    assert main(["mine", str(tmp_path), "--out", out]) == 2


def spoil(record: dict[str, Any], key: str, value: object) -> None:
    record[key] = value


DAMAGE: dict[str, Callable[[dict[str, Any]], None]] = {
    "format must be": lambda record: spoil(record, "format", "other"),
    "version must be 1, got 2": lambda record: spoil(record, "version", 2),
    "grams must be a list": lambda record: spoil(record, "grams", []),
    r"grams\[1\].ids must be 3 to 5 token ids, got \[1\]": lambda record: spoil(
        record["grams"][1], "ids", [1]
    ),
    r"grams\[0\].ids must be": lambda record: spoil(record["grams"][0], "ids", [1, 2, 2**40]),
    r"grams\[2\].ids must be": lambda record: spoil(record["grams"], 2, "x"),  # type: ignore[arg-type]
    r"grams\[0\].documents must be": lambda record: spoil(record["grams"][0], "documents", True),
    "num_documents must be a whole number above 0, got None": lambda record: record.pop("num_documents"),
    "sha256 must be that of grams": lambda record: spoil(record["grams"][0], "documents", 4),
}


@pytest.mark.parametrize("rule", DAMAGE)
def test_a_damaged_file_is_refused_with_its_key(path: Path, tmp_path: Path, rule: str) -> None:
    record = json.loads(path.read_text())
    DAMAGE[rule](record)
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rule) as caught:
        load_grams(broken)
    assert str(broken) in str(caught.value)


def test_a_run_finds_out_at_its_start(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2 with entry, file and key; a valid file is replaced by its absolute path."""
    half = tmp_path / "half.json"
    half.write_bytes(path.read_bytes()[:-40])
    for place in (str(half), "nowhere.json"):
        arguments = [
            "configs/debug.yaml",
            f"token_advantage.plan={{kind: hicra, path: {place}}}",
            f"runs_dir={tmp_path}",
        ]
        assert main(["train", *arguments, "--dry-run"]) == 2
        assert (
            f"token_advantage.plan: {tmp_path if place == str(half) else Path.cwd()}"
            in capsys.readouterr().err
        )
    monkeypatch.chdir(path.parent)
    config = load_config("debug", ["token_advantage.plan={kind: hicra, path: grams.json}"])
    run = local_model(bind(config))
    assert run.config.token_advantage["plan"]["path"] == str(path)
    assert run.token_advantages["plan"].options.path == str(path)
    assert config.token_advantage["plan"]["path"] == "grams.json"
    assert locate_grams(HicraOptions(path="grams.json", alpha=0.5)) == HicraOptions(str(path), 0.5)


def test_a_file_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every update asks for it; a file that was replaced is read again."""
    reads: list[Path] = []

    def counted(place: Path) -> object:
        reads.append(place)
        return load_grams(place)

    monkeypatch.setattr("trainer.token_advantages.planning.load_grams", counted)
    place = path.parent / "other.json"
    write_grams(place, KNOWN)
    columns = {name: np.zeros(0) for name in ("sample_id", "position", "token_ids", "entropy", "draw")}
    columns |= {name: np.zeros(0, np.int64) for name in ("position", "token_ids")}
    for _ in range(3):
        mark_planning(columns, HicraOptions(path=str(place)))
    assert len(reads) == 1
    place.unlink()
    write_grams(place, replace(KNOWN, num_documents=9))
    mark_planning(columns, HicraOptions(path=str(place)))
    assert len(reads) == 2
