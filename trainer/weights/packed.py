"""Full model weights as one packed buffer with a checksum per tensor. A publish sends it to the engines."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor inside the buffer: Hugging Face name, dtype name, shape, byte range, crc32 of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeights:
    """All weights of one policy version. `buffer` is uint8 numpy, which Ray's shared memory does not copy."""

    version: int
    entries: tuple[TensorEntry, ...]
    buffer: np.ndarray

    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.entries)


def _bytes_of(tensor: Tensor) -> np.ndarray:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def pack_weights(version: int, named: Iterable[tuple[str, Tensor]]) -> PackedWeights:
    """Copy full tensors, in order, into one buffer. `version` is the policy version."""
    entries: list[TensorEntry] = []
    parts: list[np.ndarray] = []
    start = 0
    for name, tensor in named:
        part = _bytes_of(tensor)
        end = start + part.size
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = tuple(tensor.shape)
        checksum = zlib.crc32(part.data)
        entries.append(
            TensorEntry(name=name, dtype=dtype, shape=shape, start=start, end=end, checksum=checksum)
        )
        parts.append(part)
        start = end
    return PackedWeights(version=version, entries=tuple(entries), buffer=np.concatenate(parts))


def unpack_weights(weights: PackedWeights) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors, copied from the (read-only) buffer one at a time.

    Raises:
        ValueError: a tensor's bytes do not match its checksum.
    """
    for entry in weights.entries:
        # Copied: the buffer is Ray's shared memory, which is read-only and may be freed.
        part = weights.buffer[entry.start : entry.end].copy()
        if zlib.crc32(part.data) != entry.checksum:
            raise ValueError(f"weights of version {weights.version}: tensor {entry.name} arrived damaged")
        yield entry.name, torch.from_numpy(part).view(DTYPES[entry.dtype]).reshape(entry.shape)
