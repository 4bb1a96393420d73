"""What went wrong in a run, line by line; and asking for room on the disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from rollout_rows import DyingDisk

from benchmarks.faults.common import read_events
from rollouts.events import append_event
from rollouts.space import check_free_space, is_disk_full


def test_events_come_back_in_order(tmp_path: Path) -> None:
    """With a time each; a line cut short is passed over and the next event goes on after it."""
    assert read_events(tmp_path) == []
    append_event(tmp_path, "actor_died", actor="scorer-0", reason="a\nb é")
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"at": "2026')
    assert [event["kind"] for event in read_events(tmp_path)] == ["actor_died"]
    append_event(tmp_path, "resumed", step=3)
    first, second = read_events(tmp_path)
    assert first["reason"] == "a\nb é"
    assert (second["kind"], second["step"]) == ("resumed", 3)
    offset = datetime.fromisoformat(str(second["at"])).utcoffset()
    assert offset is not None and not offset


def test_events_that_cannot_be_written(tmp_path: Path) -> None:
    """Names that are taken, and numbers JSON has no words for; nothing is written then."""
    with pytest.raises(ValueError, match="event x: a field must not be named 'at'"):
        append_event(tmp_path, "x", at=1)
    with pytest.raises(ValueError, match="event x must have finite numbers"):
        append_event(tmp_path, "x", loss=float("nan"))
    assert read_events(tmp_path) == []


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line that was written before the disk was full is taken back; the error names the file."""
    append_event(tmp_path, "resumed", step=3)
    before = (tmp_path / "events.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        DyingDisk(patch, 0, lambda text: OSError(errno.ENOSPC, text), names=("write",))
        with pytest.raises(OSError, match=r"events\.jsonl") as caught:
            append_event(tmp_path, "resumed", step=4)
    assert is_disk_full(caught.value)
    assert (tmp_path / "events.jsonl").read_bytes() == before


def test_room_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the disk the folder will be on; the refusal has both amounts."""
    asked: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=3 * 1024**2)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    check_free_space(tmp_path / "runs" / "new", 3 * 1024**2, "a checkpoint")
    assert asked == [tmp_path]
    with pytest.raises(
        ValueError, match=r"runs/new: a checkpoint needs 1\.5 GiB, got 3\.0 MiB free: make room"
    ):
        check_free_space(tmp_path / "runs" / "new", 3 * 512 * 1024**2, "a checkpoint")
    with pytest.raises(ValueError, match=r"needs 2\.0 TiB"):
        check_free_space(tmp_path, 2 * 1024**4, "a checkpoint")


@pytest.mark.parametrize(
    ("numbers", "full"),
    [((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), True), ((errno.EIO, errno.EACCES, errno.ENOENT), False)],
)
def test_a_full_disk_is_recognised(numbers: Sequence[int], full: bool) -> None:
    """Disk, quota and file size; nothing else."""
    assert [is_disk_full(OSError(number, os.strerror(number))) for number in numbers] == [full] * 3
