"""A learner's checkpoint as safetensors: fp32 master weights, Adam's moments and step, random state.

`save_state` is a collective: every rank writes one file with whole tensors under Hugging Face names, so any
number of ranks under any ZeRO stage can read them. `load_state` is no collective: each rank reads its part.
Used by `actors.learner`.

    learner-00000-of-00002.safetensors   param/<name>, exp_avg/<name>, exp_avg_sq/<name> float32, rng/0 uint8

A frozen parameter is stored as float32, without moments.

The files are written while the tensors are gathered, so a save needs additional memory for one bucket only
(64 MiB, or the largest tensor). The digest is computed from the bytes in memory, before they are written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actors.adam_shares import MOMENTS, Holdings, Share, adam_steps, clear_moments, moment, set_weight
from actors.requests import RankPlace

FORMAT: Final = "1"
_KINDS: Final = ("param", *MOMENTS)
_FILE_NAME: Final = re.compile(r"learner-(\d{5})-of-(\d{5})\.safetensors")
_BUCKET_NUMEL: Final = 16 * 2**20
_DTYPES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}

Chunk = tuple[int, Tensor]
"""The rank that writes a gathered bucket, and the bucket's tensor (empty on other ranks)."""


def file_name(rank: int, world_size: int) -> str:
    """Name of the file that `rank` writes."""
    return f"learner-{rank:05d}-of-{world_size:05d}.safetensors"


# -- saving --------------------------------------------------------------------------------------------------


def save_state(folder: Path, held: Holdings, place: RankPlace) -> str:
    """Write and fsync this rank's file into an existing folder; returns the sha256 of the bytes in memory.

    A rank that cannot write still takes part in the collectives, so that the others do not hang.

    Raises:
        OSError: the file could not be written.
    """
    steps = adam_steps(held)
    kinds = _KINDS if steps else _KINDS[:1]
    plan = [_buckets(owned) for owned in _owned(held.shares, place.world_size)]
    entries = [
        (f"{kind}/{share.name}", torch.float32, share.shape)
        for bucket in plan[place.rank]
        for kind in kinds
        for share in _having(bucket, kind)
    ]
    random = _random_state(place)
    entries += [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in random.items()]
    metadata = {
        "format": FORMAT,
        "adam_steps": str(steps),
        "rank": str(place.rank),
        "world_size": str(place.world_size),
    }
    gathered = _gather(plan, kinds, held, place)

    def chunks() -> Iterator[bytes | memoryview]:
        yield _header(entries, metadata)
        yield from (_bytes_of(tensor) for owner, tensor in gathered if owner == place.rank)
        yield from (_bytes_of(tensor) for tensor in random.values())

    try:
        return _write_hashed(folder / file_name(place.rank, place.world_size), chunks())
    finally:
        for _ in gathered:  # the collectives that are left if writing failed
            pass


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write and fsync whole tensors in host memory as safetensors; returns the sha256 of the bytes in memory.

    Raises:
        OSError: the file could not be written.
    """
    entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    header = _header(entries, {"format": "pt"})
    return _write_hashed(path, chain([header], map(_bytes_of, tensors.values())))


def _owned(shares: Sequence[Share], world_size: int) -> list[list[Share]]:
    """The parameters that each rank writes: consecutive ones, with about equal numbers of elements."""
    total = sum(share.numel for share in shares)
    owned: list[list[Share]] = [[] for _ in range(world_size)]
    done = 0
    for share in shares:
        # By its middle, so that a large parameter goes to the rank that it overlaps most.
        middle = done + share.numel / 2
        owned[min(int(middle * world_size / total), world_size - 1)].append(share)
        done += share.numel
    return owned


def _buckets(shares: Sequence[Share]) -> list[list[Share]]:
    """Groups of consecutive parameters to gather together: one collective per small tensor would be slow."""
    buckets: list[list[Share]] = []
    size = _BUCKET_NUMEL
    for share in shares:
        if size + share.numel > _BUCKET_NUMEL:
            buckets.append([])
            size = 0
        buckets[-1].append(share)
        size += share.numel
    return buckets


def _gather(
    plan: Sequence[Sequence[Sequence[Share]]],
    kinds: Sequence[str],
    held: Holdings,
    place: RankPlace,
) -> Iterator[Chunk]:
    """Every bucket of every kind, concatenated on its owner.

    Owners alternate, so that one rank writes its bucket while the next one is gathered.
    """
    for round_of_buckets in zip_longest(*plan):
        for owner, bucket in enumerate(round_of_buckets):
            for kind in kinds if bucket else ():
                yield owner, _gather_bucket(_having(bucket, kind), kind, held, owner, place)


def _having(shares: Sequence[Share], kind: str) -> list[Share]:
    """The shares that have a tensor of this kind: frozen parameters have no moments."""
    return [share for share in shares if kind == "param" or share.is_trained]


def _gather_bucket(
    bucket: Sequence[Share], kind: str, held: Holdings, owner: int, place: RankPlace
) -> Tensor:
    # Gathered by a sum in which other ranks have zeros. Summed as integers, since -0.0 + 0.0 is +0.0.
    device = torch.device(place.device)
    whole = torch.zeros(sum(share.numel for share in bucket), dtype=torch.int32, device=device)
    at = 0
    for share in bucket:
        if owner == place.rank or not share.replicated:
            mine = share.weight() if kind == "param" else moment(held, share, kind)
            if mine is not None:
                whole[at + share.start : at + share.start + share.length] = mine.view(torch.int32)
        at += share.numel
    if place.world_size > 1 and not all(share.replicated for share in bucket):
        dist.reduce(whole, dst=owner)
    return whole.cpu() if owner == place.rank else whole[:0]


def _random_state(place: RankPlace) -> dict[str, Tensor]:
    states = {f"rng/{place.rank}": torch.get_rng_state()}
    if place.device == "cuda":
        states[f"rng_cuda/{place.rank}"] = torch.cuda.get_rng_state()
    return states


def _header(
    entries: Iterable[tuple[str, torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """The safetensors header: its length in 8 bytes, then JSON, padded so that the data is aligned.

    Written here because the library's own writer needs all tensors in memory at once.
    """
    fields: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, dtype, shape in entries:
        end = at + torch.Size(shape).numel() * dtype.itemsize
        fields[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")


def _write_hashed(path: Path, chunks: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for chunk in chunks:
            digest.update(chunk)
            rest = memoryview(chunk)
            while rest:  # an unbuffered write may be partial: Linux writes at most 2 GiB at once
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    return digest.hexdigest()


# -- loading -------------------------------------------------------------------------------------------------


def load_state(folder: Path, held: Holdings, place: RankPlace) -> None:
    """Read this rank's state from the files that any number of ranks wrote into `folder`.

    All names, shapes and types are checked before anything is changed. The random state is restored only if
    the number of ranks is that of the save.

    Raises:
        ValueError: a file or tensor is missing, unknown, duplicate, damaged or of another shape; the message
            names it.
    """
    with ExitStack() as stack:
        files = _open_files(folder, stack)
        steps = _common(files, "adam_steps")
        kinds = _KINDS if steps else _KINDS[:1]
        file_of = _check_tensors(folder, files, held.shares, kinds)

        def read(name: str) -> Tensor:
            tensor: Tensor = files[file_of[name]].get_tensor(name)
            return tensor

        clear_moments(held, steps)
        for share in held.shares:
            set_weight(share, read(f"param/{share.name}"))
            for kind in kinds[1:] if share.is_trained else ():
                into = moment(held, share, kind)
                assert into is not None
                into.copy_(share.part(read(f"{kind}/{share.name}")))
        if len(files) == place.world_size:
            torch.set_rng_state(read(f"rng/{place.rank}"))
            if place.device == "cuda" and f"rng_cuda/{place.rank}" in file_of:
                torch.cuda.set_rng_state(read(f"rng_cuda/{place.rank}"))


def _open_files(folder: Path, stack: ExitStack) -> list[Any]:
    """Open the folder's learner files, which must all be of one save. (The handles have no public type.)"""
    names = sorted(path.name for path in folder.glob("learner-*.safetensors"))
    if not names:
        raise ValueError(f"{folder} must have files learner-*.safetensors, got none")
    match = _FILE_NAME.fullmatch(names[0])
    expected = [file_name(rank, int(match[2])) for rank in range(int(match[2]))] if match else []
    if names != expected:
        wrong = sorted(set(names) ^ set(expected))
        raise ValueError(
            f"{folder} must have one learner file for each rank of one save, got {names}: see {wrong}"
        )
    files = []
    for name in names:
        try:
            file: Any = stack.enter_context(safe_open(folder / name, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{folder / name} must be a complete safetensors file: {error}") from error
        if (file.metadata() or {}).get("format") != FORMAT:
            raise ValueError(
                f"{folder / name} must be a learner's state of format {FORMAT}, got {file.metadata()}"
            )
        files.append(file)
    return files


def _common(files: Sequence[Any], key: str) -> int:
    """The integer `key` in the metadata of the files, which must be the same in all of them."""
    given = {str(file.metadata().get(key)) for file in files}
    (text,) = given if len(given) == 1 else ("",)
    if not text.isdecimal():
        raise ValueError(f"{key} must be the same integer in all learner files, got {sorted(given)}")
    return int(text)


def _check_tensors(
    folder: Path, files: Sequence[Any], shares: Sequence[Share], kinds: Sequence[str]
) -> dict[str, int]:
    """The index of the file that has each tensor. The files must have exactly what this learner needs."""
    expected = {f"{kind}/{share.name}": share.shape for kind in kinds for share in _having(shares, kind)}
    file_of: dict[str, int] = {}
    for number, file in enumerate(files):
        for name in file.keys():  # noqa: SIM118 - the handle is no dict
            if name in file_of:
                raise ValueError(f"{folder}: tensor {name} must be in one file, got it in two")
            file_of[name] = number
            if name.split("/")[0] in ("rng", "rng_cuda"):
                continue
            if name not in expected:
                raise ValueError(f"{folder}: tensor {name} is not expected: this learner has no such tensor")
            view = file.get_slice(name)
            if tuple(view.get_shape()) != expected[name] or view.get_dtype() != "F32":
                raise ValueError(
                    f"{folder}: tensor {name} must be F32 {list(expected[name])}, "
                    f"got {view.get_dtype()} {list(view.get_shape())}"
                )
    missing = sorted((expected.keys() | {f"rng/{rank}" for rank in range(len(files))}) - file_of.keys())
    if missing:
        raise ValueError(f"{folder}: tensor {missing[0]} is missing ({len(missing)} in all)")
    return file_of
