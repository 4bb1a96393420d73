"""The journal and the file helpers under it: a group is on disk whole, or it is not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_rows import RUN, DyingDisk, groups, make_batch, make_group, make_sample, snapshot

from rollouts.files import append_line, write_bytes_atomic, write_json_atomic
from rollouts.journal import CorruptJournalError, Journal, decode_batch, encode_batch
from rollouts.records import Group
from rollouts.schema import group_to_batch


@given(groups())
def test_any_group_survives_the_encoding(group: Group) -> None:
    """Every group reads back equal, whole and as a slice of a larger batch."""
    batch = group_to_batch(group, RUN)
    assert decode_batch(bytes(encode_batch(batch)), Path("x")).equals(batch)
    last = batch.slice(batch.num_rows - 1, 1)
    assert decode_batch(bytes(encode_batch(last)), Path("x")).to_pylist() == last.to_pylist()


def test_append_read_drop(tmp_path: Path) -> None:
    """Groups come back by index, in ascending order whatever the order of arrival, until they are dropped."""
    journal = Journal(tmp_path / "journal")
    for index in (12, 3):
        journal.append(index, make_batch(index))
    assert journal.indexes() == [3, 12]
    assert (tmp_path / "journal" / "000000000012.arrow").is_file()
    assert journal.read(12).equals(make_batch(12), check_metadata=True)
    journal.drop([3, 99])
    assert Journal(tmp_path / "journal").indexes() == [12]
    with pytest.raises(ValueError, match="no group is journaled for submission 3"):
        journal.read(3)


def test_the_same_group_twice_is_one_another_group_is_an_error(tmp_path: Path) -> None:
    """A repeated append (a retry) changes nothing; a second group must not replace the first."""
    journal = Journal(tmp_path / "journal")
    journal.append(3, make_batch(3))
    before = snapshot(tmp_path)
    journal.append(3, make_batch(3))
    other = make_batch(3)
    position = other.schema.get_field_index("group_id")
    other = other.set_column(position, other.schema.field(position), pa.array(["h", "h"]))
    with pytest.raises(ValueError, match="must keep its group 'g3', got 'h'"):
        journal.append(3, other)
    with pytest.raises(ValueError, match="submission_index must be 4 in every row"):
        journal.append(4, make_batch(3))
    mixed = pa.concat_batches([make_batch(3), other])
    with pytest.raises(ValueError, match="must be one group"):
        journal.append(5, mixed.set_column(1, mixed.schema.field(1), pa.array([5] * 4, pa.int64())))
    assert snapshot(tmp_path) == before


def test_a_truncated_file_is_always_detected(tmp_path: Path) -> None:
    """Cut at any byte at all (every one of the last 600, every 7th before), the file is refused by name."""
    content = bytes(encode_batch(make_batch(1)))
    path = tmp_path / "cut.arrow"
    offsets = [*range(0, len(content) - 600, 7), *range(len(content) - 600, len(content))]
    for offset in offsets:
        with pytest.raises(CorruptJournalError, match=r"cut\.arrow"):
            decode_batch(content[:offset], path)
    assert decode_batch(content, path).num_rows == 2


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_an_altered_byte_is_always_detected(position: int, flip: int) -> None:
    """Flipping bits anywhere is noticed, also where no value would change (padding, Arrow's headers)."""
    content = bytearray(encode_batch(make_batch(1)))
    content[position % len(content)] ^= flip
    with pytest.raises(CorruptJournalError, match="SHA-256"):
        decode_batch(bytes(content), Path("x"))


def test_a_text_that_looks_like_a_digest_is_a_text() -> None:
    """The digest is found by its place, so rows may quote one."""
    sample = make_sample("s", 1)
    quote = "polyphony-sha256:" + "0" * 64
    sample = replace(sample, answer=quote, completion=replace(sample.completion, text=quote))
    batch = group_to_batch(make_group(1, (sample,)), RUN)
    assert decode_batch(encode_batch(batch), Path("x")).equals(batch, check_metadata=True)


def test_recover_sets_damaged_files_aside(tmp_path: Path) -> None:
    """Whole groups stay, damaged files get another name (their bytes kept), unfinished ones go."""
    journal = Journal(tmp_path / "journal")
    for index in (1, 2, 3):
        journal.append(index, make_batch(index))
    cut = journal.path(2).read_bytes()[:700]
    journal.path(2).write_bytes(cut)
    journal.path(3).rename(journal.path(4))  # a whole file, but of another submission
    (journal.folder / ".000000000009.arrow.77.partial").write_bytes(b"half")
    with pytest.raises(CorruptJournalError, match=r"000000000002\.arrow"):
        journal.read(2)
    with pytest.raises(CorruptJournalError, match=r"000000000002\.arrow"):
        journal.append(2, make_batch(2))
    bad = journal.recover()
    assert [path.name for path in bad] == ["000000000002.arrow.bad", "000000000004.arrow.bad"]
    assert bad[0].read_bytes() == cut
    assert journal.indexes() == [1]
    assert sorted(path.name for path in journal.folder.iterdir()) == [
        "000000000001.arrow",
        "000000000002.arrow.bad",
        "000000000004.arrow.bad",
    ]
    journal.append(2, make_batch(2))
    assert journal.read(2).equals(make_batch(2))
    assert journal.recover() == []


def test_an_append_that_dies_anywhere_leaves_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every system call of an append: ending there never leaves half a group to be read."""
    fatal, outcomes = 0, []
    while True:
        folder = tmp_path / str(fatal)
        journal = Journal(folder)
        journal.append(1, make_batch(1))
        with monkeypatch.context() as patch:
            disk = DyingDisk(patch, fatal)
            try:
                journal.append(2, make_batch(2))
                died = False
            except OSError:
                died = True
        if not died:
            break
        again = Journal(folder)
        assert again.recover() == []
        outcomes.append((disk.calls[fatal], again.indexes()))
        for index in again.indexes():
            assert again.read(index).equals(make_batch(index))
        assert [path.name for path in folder.iterdir() if "partial" in path.name] == []
        again.append(2, make_batch(2))
        assert again.indexes() == [1, 2]
        fatal += 1
    # only after the rename can the group be there; the last fsync is that of the folder
    assert outcomes == [("write", [1]), ("fsync", [1]), ("replace", [1]), ("fsync", [1, 2])]


def test_atomic_files_keep_the_old_content_when_they_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed replacement leaves the former content; and an error that is not a crash leaves no litter."""
    path = tmp_path / "config.json"
    write_json_atomic(path, {"a": "é", "b": [1, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é", "b": [1, None]}
    before = snapshot(tmp_path)
    for fatal in range(3):
        with monkeypatch.context() as patch:
            DyingDisk(patch, fatal)
            with pytest.raises(OSError, match="injected"):
                write_bytes_atomic(path, b"new content")
        assert path.read_bytes() == before["config.json"]
    with pytest.raises(ValueError, match=r"config\.json must have finite numbers"):
        write_json_atomic(path, {"a": float("nan")})
    target = tmp_path / "taken"
    (target / "child").mkdir(parents=True)
    for litter in tmp_path.glob(".*"):
        litter.unlink()
    with pytest.raises(OSError):
        write_bytes_atomic(target, b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "taken"]


def test_append_line_repairs_a_torn_tail(tmp_path: Path) -> None:
    """A line cut short by a crash is removed by the next append, however long it is; whole lines stay."""
    path = tmp_path / "log.jsonl"
    append_line(path, "one")
    append_line(path, "two é")
    with path.open("ab") as file:
        file.write(b"x" * 10_000)
    append_line(path, "three")
    assert path.read_bytes() == "one\ntwo é\nthree\n".encode()
    path.write_bytes(b"torn from the start")
    append_line(path, "one")
    assert path.read_bytes() == b"one\n"
    with pytest.raises(ValueError, match="newline"):
        append_line(path, "a\nb")
