"""Whole folders: any change of any file, or of the list itself, is noticed and named."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rollouts.sums import DamagedError, check_sums, digest_file, read_summed, write_sums


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    for name in ("b.bin", "a é.txt", "empty"):
        (folder / name).write_bytes(b"" if name == "empty" else name.encode() * 100)
    write_sums(folder)
    return folder


def test_a_whole_folder_passes_here_and_with_sha256sum(tmp_path: Path) -> None:
    """The list is sorted by name and is what the coreutils' tool reads."""
    folder = make_folder(tmp_path / "x")
    check_sums(folder)
    assert read_summed(folder / "b.bin") == b"b.bin" * 100
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert [line.partition("  ")[2] for line in lines] == ["a é.txt", "b.bin", "empty"]
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def _rewrite(change: Callable[[str], str]) -> Callable[[Path], object]:
    """Change the text of the list."""

    def apply(folder: Path) -> None:
        path = folder / "SHA256SUMS"
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "b.bin").write_bytes(b"b.bin" * 99),
            r"b\.bin: must have SHA-256 .* \(495 b",
        ),
        (lambda folder: (folder / "b.bin").unlink(), r"b\.bin: is listed in SHA256SUMS but missing"),
        (lambda folder: (folder / "c").touch(), r"x/c: is not listed in SHA256SUMS"),
        (lambda folder: (folder / "c").mkdir(), r"x/c: must be a file, got something else"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), r"SHA256SUMS: must be present"),
        (_rewrite(lambda text: ""), r"is not listed in SHA256SUMS"),
        (_rewrite(lambda text: text[:-1]), r"SHA256SUMS, line 3: must be '<sha256>  <name>'"),
        (_rewrite(lambda text: text.replace("\n", " ", 1)), r"is listed in SHA256SUMS but missing"),
        (_rewrite(str.upper), r"SHA256SUMS, line 1"),
        (_rewrite(lambda text: text + text.splitlines()[0] + "\n"), r"SHA256SUMS, line 4"),
        (_rewrite(lambda text: text.replace("b.bin", "../b")), r"SHA256SUMS, line 2"),
    ],
)
def test_every_change_is_named(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    """A file altered, gone or added, and a list that is gone, cut or malformed."""
    folder = make_folder(tmp_path / "x")
    change(folder)
    with pytest.raises(DamagedError, match=message):
        check_sums(folder)


def test_every_bit_of_the_list_counts(tmp_path: Path) -> None:
    """No bit of the list may turn unnoticed."""
    folder = make_folder(tmp_path / "x")
    path = folder / "SHA256SUMS"
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            path.write_bytes(
                content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :]
            )
            with pytest.raises(DamagedError):
                check_sums(folder)


def test_one_file_is_checked_against_the_list(tmp_path: Path) -> None:
    """Reading one file needs no look at the others, but its line and its bytes must fit."""
    folder = make_folder(tmp_path / "x")
    (folder / "empty").write_bytes(b"no more")
    assert read_summed(folder / "b.bin") == b"b.bin" * 100
    with pytest.raises(DamagedError, match="empty: must have SHA-256"):
        read_summed(folder / "empty")
    with pytest.raises(DamagedError, match=r"c: must be listed in SHA256SUMS, got a é\.txt, b\.bin, empty"):
        read_summed(folder / "c")
    (folder / "b.bin").unlink()
    with pytest.raises(DamagedError, match=r"b\.bin: cannot be read"):
        read_summed(folder / "b.bin")
    with pytest.raises(FileNotFoundError):
        read_summed(tmp_path / "y" / "b.bin")


def test_the_writer_says_what_it_meant(tmp_path: Path) -> None:
    """Digests that are given are believed, so the first reader notices a file that was written wrong."""
    folder = make_folder(tmp_path / "x")
    meant = {name: digest_file(folder / name) for name in ("a é.txt", "b.bin", "empty")}
    (folder / "b.bin").write_bytes(b"written wrong")
    write_sums(folder, meant)
    with pytest.raises(DamagedError, match=r"b\.bin"):
        check_sums(folder)
    with pytest.raises(DamagedError, match=r"empty: is not listed"):
        write_sums(folder, {name: meant[name] for name in ("a é.txt", "b.bin")})
