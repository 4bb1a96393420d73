"""A moving average of the policy's weights, in the parameters of a frozen copy. Used by `actors.anchor`.

Each rank averages what it holds, whole parameters or its ZeRO-3 shards, so a move needs no collective and its
result does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from actors.requests import RankPlace


def held(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a parameter: under ZeRO-3 its shard, flat and padded, else all of it."""
    shard: Tensor | None = getattr(parameter, "ds_tensor", None)
    return parameter.data if shard is None else shard.data


class MovingAverage:
    """e <- (1 - rate) e + rate w for each weight w of the policy.

    The average is kept in float32, for one move in bfloat16 would round away: the parameters of the copy are
    the average itself, or its rounded values.
    """

    def __init__(self, weights: Iterable[tuple[str, nn.Parameter]], place: RankPlace) -> None:
        """`weights` are those of the copy, equal to the policy's as yet."""
        self._weights, self._place = dict(weights), place
        self._average = {name: _in_float32(held(weight)) for name, weight in self._weights.items()}

    def move(self, policy: Iterable[tuple[str, nn.Parameter]], rate: float) -> None:
        """One move towards the weights of `policy`, which has the same names in any order."""
        with torch.no_grad():
            for name, weight in policy:
                average, now = self._average[name], held(weight)
                assert average.shape == now.shape, f"{name}: copy and policy are sharded alike"
                average.lerp_(now.to(average.device, torch.float32), rate)
        self._show()

    def _show(self) -> None:
        """Write the average into the parameters of the copy."""
        for name, weight in self._weights.items():
            # Without an effect in float32, where the two are one tensor.
            held(weight).copy_(self._average[name])

    def full(self, keep: bool) -> dict[str, Tensor]:
        """The whole average by name, float32 on the CPU (a collective under ZeRO-3); empty without `keep`."""
        whole = ((name, self._whole(name)) for name in self._weights)
        return {name: average.cpu().clone() for name, average in whole if keep}

    def _whole(self, name: str) -> Tensor:
        average, weight = self._average[name], self._weights[name]
        if not hasattr(weight, "ds_tensor"):
            return average
        # NCCL sends only what is on the device, and the shards of an offloaded copy are not.
        mine = average.to(self._place.device)
        shards = [torch.empty_like(mine) for _ in range(self._place.world_size)]
        dist.all_gather(shards, mine)
        return torch.cat(shards)[: weight.ds_numel].view(weight.ds_shape)

    def load(self, path: Path) -> None:
        """Set the average to a saved one; every rank reads its own part.

        Raises:
            ValueError: the names and shapes are not exactly those of this model. Nothing was changed.
        """
        shapes = {name: list(getattr(each, "ds_shape", each.shape)) for name, each in self._weights.items()}
        with safe_open(path, framework="pt") as file:
            saved = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if saved != shapes:
                wrong = sorted(name for name in shapes.keys() | saved if shapes.get(name) != saved.get(name))
                raise ValueError(
                    f"{path}: weights must be those of this model, got a difference in {wrong[:5]}"
                )
            for name, average in self._average.items():
                self._set(name, average, file.get_tensor(name))
        self._show()

    def _set(self, name: str, average: Tensor, whole: Tensor) -> None:
        if not hasattr(self._weights[name], "ds_tensor"):
            average.copy_(whole)
            return
        # Rank r holds the r-th of equal parts; the last ones may be padded, or nothing but padding.
        mine = whole.flatten()[self._place.rank * average.numel() :][: average.numel()]
        average[: mine.numel()].copy_(mine)


def _in_float32(shown: Tensor) -> Tensor:
    """The tensor itself if it is float32, so that it is no second copy."""
    return shown if shown.dtype == torch.float32 else shown.float()
