"""Names and shapes of the tensors in a model folder's safetensors files, read from the headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

INDEX_FILE: Final = "model.safetensors.index.json"
_SINGLE_FILE: Final = "model.safetensors"


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers and vLLM load: ``model.safetensors``, or those listed in the index.

    Other files in the folder are ignored, such as the same weights in another layout
    (``consolidated.safetensors``).

    Raises:
        ValueError: there are none, the index cannot be read, or a listed file is missing.
    """
    single, index = folder / _SINGLE_FILE, folder / INDEX_FILE
    if not index.exists():
        if single.exists():
            return [single]
        other = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {other[0]} must be converted first (save_pretrained writes safetensors)" if other else ""
        raise ValueError(f"{folder}: must hold {_SINGLE_FILE} or {INDEX_FILE}, found neither{hint}")
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(listed["weight_map"].values()))
        listed["metadata"]  # transformers fails without this key
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: must have metadata and weight_map (tensor to file): {error!r}") from error
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ValueError(f"{index}: names {missing[0]}, which is not in that folder ({len(missing)} missing)")
    if single.exists() and names != [_SINGLE_FILE]:
        raise ValueError(
            f"{folder}: must hold {_SINGLE_FILE} or {INDEX_FILE}, got both: the learner would read the first "
            "and the engine the second"
        )
    return [folder / name for name in names]


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in the folder's files, by name.

    Raises:
        ValueError: see `weight_files`; or a file is damaged, or is only a Git LFS pointer.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(str(path), framework="numpy") as tensors:  # type: ignore[no-untyped-call]
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}: must be a whole safetensors file, got one of {path.stat().st_size} bytes that "
                f"cannot be read ({error}); is it a Git LFS pointer, or its download unfinished?"
            ) from error
    return shapes
