"""What one rank holds of every parameter: weight and, if trained, Adam's moments, under any ZeRO stage.

DeepSpeed stores them in a different place for each stage. Its own getters sum floats over ranks, do not work
for stage 0, and cannot set the forward weight. `holdings_of` reads an engine of `actors.deepspeed_engine`.
Call it again before each use, because DeepSpeed moves parameters. Used by `actors.learner_state` and
`actors.learner`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, nn

MOMENTS: Final = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Elements [start, start + length) of the flattened parameter, at `offset` in the flattened `master`.

    `forward` is the tensor that the forward pass reads: the whole parameter, or its flat partition under
    ZeRO-3. It is the only weight of a frozen parameter (`requires_grad` false), which has no master and no
    moments.
    """

    name: str
    shape: tuple[int, ...]
    master: Tensor | None
    """float32; the key of the optimizer's state. May hold many parameters and padding. None if frozen."""
    offset: int
    start: int
    length: int
    forward: Tensor
    replicated: bool
    """Whether every rank holds the whole parameter (no ZeRO; or frozen, below ZeRO-3)."""

    @property
    def numel(self) -> int:
        """Number of elements of the whole parameter."""
        return prod(self.shape)

    @property
    def is_trained(self) -> bool:
        """Whether the optimizer updates it."""
        return self.master is not None

    def values(self, flat_owner: Tensor) -> Tensor:
        """This share's elements of the master or of a moment, flat, as a view."""
        return flat_owner.detach().view(-1)[self.offset : self.offset + self.length]

    def weight(self) -> Tensor:
        """This share's elements of the weight, flat, float32."""
        if self.master is not None:
            return self.values(self.master)
        return self.forward.detach().view(-1)[: self.length].float()

    def part(self, full: Tensor) -> Tensor:
        """This share's elements of a whole parameter-shaped tensor, flat."""
        return full.reshape(-1)[self.start : self.start + self.length]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Everything that one rank holds. `shares` are in the same order on all ranks."""

    shares: tuple[Share, ...]
    masters: tuple[Tensor, ...]
    """Every master of the rank, including one that is all padding."""
    adam: torch.optim.AdamW


def holdings_of(engine: Any, named: Iterable[tuple[str, nn.Parameter]], zero_stage: int) -> Holdings:
    """What this rank holds of the parameters in `named`. Under ZeRO-3 none of them may be gathered."""
    outer = engine.optimizer
    # DeepSpeed wraps our optimizer in one of its own, except for fp32 without ZeRO.
    adam = outer if isinstance(outer, torch.optim.AdamW) else outer.optimizer
    masters: Sequence[Tensor]
    share_of: Callable[[str, nn.Parameter], Share]
    if zero_stage == 3:
        masters, share_of = outer.fp32_partitioned_groups_flat, partial(_partition, outer)
    else:
        masters = [master for group in adam.param_groups for master in group["params"]]
        if zero_stage:
            share_of = partial(_fragment, masters)
        else:
            parameters = masters if outer is adam else [p for group in outer.fp16_groups for p in group]
            by_parameter = {id(p): master for p, master in zip(parameters, masters, strict=True)}
            share_of = partial(_whole, by_parameter)
    assert all(master.dtype == torch.float32 for master in masters)
    shares = tuple(share_of(name, parameter) for name, parameter in named)
    return Holdings(shares=shares, masters=tuple(masters), adam=adam)


def _whole(masters: Mapping[int, Tensor], name: str, parameter: nn.Parameter) -> Share:
    """No ZeRO: in fp32 the parameter is its own master, in bf16 DeepSpeed keeps a separate one.

    `masters` maps the id of each trained parameter to its master. ZeRO 1 and 2 hold frozen parameters this
    way too.
    """
    master = masters[id(parameter)] if parameter.requires_grad else None
    return Share(
        name=name,
        shape=tuple(parameter.shape),
        master=master,
        offset=0,
        start=0,
        length=parameter.numel(),
        forward=parameter.data,
        replicated=True,
    )


def _fragment(masters: Sequence[Tensor], name: str, parameter: Any) -> Share:
    """ZeRO 1, 2: each rank has a range of the parameter group's concatenated elements, with one master.

    The range may begin or end inside a parameter. Only private fields give the same answer for all four
    combinations of stage and dtype: for bf16 under ZeRO-1 DeepSpeed has a separate optimizer class.
    """
    if not parameter.requires_grad:
        return _whole({}, name, parameter)
    mapping = parameter._hp_mapping
    if mapping is None:  # this rank's range has no element of the parameter
        # An empty share, because the rank takes part in the collectives over this parameter all the same.
        master, offset, start, length = masters[0], 0, 0, 0
    else:
        master, offset = masters[mapping.param_group_index], mapping.hp_fragment_address.start
        start, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
    return Share(
        name=name,
        shape=tuple(parameter.shape),
        master=master,
        offset=offset,
        start=start,
        length=length,
        forward=parameter.data,
        replicated=False,
    )


def _partition(optimizer: Any, name: str, parameter: Any) -> Share:
    """ZeRO 3: each rank has an equal part of every parameter, trained or frozen; the last are padded."""
    assert parameter.data.numel() == 0, f"{name} must not be gathered"
    master, offset, numel = None, 0, parameter.ds_tensor.numel()
    if parameter.requires_grad:
        group, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
        master = optimizer.fp32_partitioned_groups_flat[group]
    # The last ranks may hold nothing but padding: their part would begin after the end of the parameter.
    start = min(optimizer._get_param_partition_rank(parameter) * numel, parameter.ds_numel)
    return Share(
        name=name,
        shape=tuple(parameter.ds_shape),
        master=master,
        offset=offset,
        start=start,
        length=min(numel, parameter.ds_numel - start),
        forward=parameter.ds_tensor.data,
        replicated=False,
    )


@torch.no_grad()
def set_weight(share: Share, full: Tensor) -> None:
    """Set this rank's master and forward weight from the whole parameter, rounded as by an update."""
    mine = share.part(full)
    if share.master is not None:
        share.values(share.master).copy_(mine)
    # Below ZeRO-3 every rank has the whole weight for its forward pass; under ZeRO-3 only its partition.
    if share.forward.shape == share.shape:
        share.forward.copy_(full)
    else:
        share.forward.view(-1)[: share.length].copy_(mine)


# -- Adam ----------------------------------------------------------------------------------------------------


def adam_steps(held: Holdings) -> int:
    """Number of updates that Adam has counted; 0 before the first, or if all were skipped.

    The maximum over parameters: without ZeRO, a weight without a gradient in some updates has a lower count.
    """
    return max((int(state["step"]) for state in held.adam.state.values()), default=0)


def moment(held: Holdings, share: Share, name: str) -> Tensor | None:
    """This share's elements of a moment, as a view; None before the first update, or if frozen."""
    state = held.adam.state.get(share.master) if share.master is not None else None
    return share.values(state[name]) if state else None


def clear_moments(held: Holdings, steps: int) -> None:
    """Set Adam's moments to zero and its count to `steps`; with 0 it behaves like a new optimizer."""
    for master in held.masters:
        if not steps and master not in held.adam.state:
            continue  # Adam creates them at the first update
        state = held.adam.state[master]
        state["step"] = torch.tensor(float(steps), dtype=torch.float32)
        for name in MOMENTS:
            if name in state:
                state[name].zero_()  # in place: DeepSpeed keeps views of them
            else:
                state[name] = torch.zeros_like(master, requires_grad=False)
