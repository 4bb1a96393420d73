"""The learner's use of DeepSpeed: start an engine, skip non-finite steps, read and write full parameters."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from actors.requests import RankPlace
from configs.schema import LearnerConfig
from trainer.model.policy import PolicyModel


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that skips a step whose gradients are not finite, and sets `overflow`, which DeepSpeed reads.

    ZeRO 1 to 3 have their own check. Without ZeRO, DeepSpeed would write NaN into every weight.
    """

    overflow: bool = False

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms = torch._foreach_norm(grads)
        self.overflow = not bool(torch.isfinite(torch.stack(norms)).all())
        return None if self.overflow else super().step(closure)  # type: ignore[arg-type]


def init_distributed(place: RankPlace, timeout_s: float) -> None:
    """Join the process group (gloo on CPU, NCCL on GPU). On one machine gloo uses the loopback only."""
    local = place.rendezvous.startswith(("file:", "tcp://127."))
    # If one of the five is missing, DeepSpeed searches for a launcher (MPI). Address and port are not used.
    os.environ.update(
        RANK=str(place.rank),
        WORLD_SIZE=str(place.world_size),
        LOCAL_RANK="0",
        MASTER_ADDR="",
        MASTER_PORT="0",
    )
    if local:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Compiling DeepSpeed's shared-memory extension takes 46 s on two cores, and does not speed up gloo.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed uses deprecated names of torch's collectives, and torch warns at every call.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.init_distributed(
        dist_backend="nccl" if place.device == "cuda" else "gloo",
        timeout=timedelta(seconds=timeout_s),
        verbose=False,
        init_method=place.rendezvous,
        rank=place.rank,
        world_size=place.world_size,
    )


def engine_config(config: LearnerConfig, dtype: str) -> dict[str, Any]:
    """DeepSpeed's configuration. The learner accumulates gradients: backward passes, then one `step()`."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # DeepSpeed would count backward passes and decide itself when to step; here an update says so.
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": dtype == "bf16", "check_grad_overflow": True},
        # Accumulated in bf16, small gradients would be rounded away, and the result would depend on how the
        # batch is split into microbatches. (Without ZeRO, DeepSpeed does not support this mix.)
        "data_types": {"grad_accum_dtype": "fp32" if config.zero_stage else None},
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            # By default ZeRO-3 keeps small parameters whole on every rank; `adam_shares` expects none.
            "stage3_param_persistence_threshold": 0,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def start_engine(model: PolicyModel, config: LearnerConfig, dtype: str) -> deepspeed.DeepSpeedEngine:
    """Wrap `model` with an AdamW optimizer of its trainable weights, under the configured ZeRO stage."""
    trained = [parameter for _, parameter in model.trainable_weights()]
    # As usual, no weight decay for biases and norms, which have one dimension.
    decayed = [p for p in trained if p.ndim > 1]
    plain = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, config.weight_decay), (plain, 0.0))
        if parameters
    ]
    optimizer = GuardedAdamW(groups, lr=config.lr, betas=tuple(config.betas), eps=config.eps)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=engine_config(config, dtype))
    if config.zero_stage == 0:
        _record_norm(engine, config.max_grad_norm)
        if dtype == "bf16":
            _undo_trial_step(engine.optimizer)
    return engine


def _record_norm(engine: deepspeed.DeepSpeedEngine, max_norm: float) -> None:
    """Make fp32 clipping without ZeRO store the gradient norm, which `get_global_grad_norm` returns.

    The gradients are already reduced, so every rank computes the same norm.
    """

    def clip() -> None:
        engine._global_grad_norm = float(clip_grad_norm_(engine.module.parameters(), max_norm))

    # Replaced on the instance: DeepSpeed calls this method in `step`, and has no hook for it.
    engine.clip_fp32_gradients = clip


def _undo_trial_step(optimizer: Any) -> None:
    """Undo the step on zero gradients that DeepSpeed takes to allocate Adam's moments (bf16 without ZeRO).

    That step counts in Adam's bias correction, which makes the first update a fifth too small, and it decays
    the weights.
    """
    optimizer.optimizer.state.clear()
    with torch.no_grad():
        for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            for master, weight in zip(masters, weights, strict=True):
                master.copy_(weight)


def start_frozen(model: nn.Module, zero_stage: int, dtype: str, offload: bool) -> nn.Module:
    """Freeze `model` for reference logprobs: sharded under ZeRO-3, whole on every rank otherwise."""
    model.requires_grad_(False)
    if zero_stage < 3:
        return model
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == "bf16"},
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "offload_param": {"device": "cpu" if offload else "none"},
        },
        "steps_per_print": None,
    }
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    return engine  # type: ignore[no-any-return]


def full_parameters(
    named: Iterator[tuple[str, Tensor]], zero_stage: int, keep: bool
) -> list[tuple[str, Tensor]]:
    """Copies of full tensors by name, on the CPU (a collective under ZeRO-3). Empty where `keep` is false."""
    pairs = list(named)
    gather = (
        deepspeed.zero.GatheredParameters([parameter for _, parameter in pairs])
        if zero_stage == 3
        else nullcontext()
    )
    with gather:
        # ZeRO-3 frees the gathered tensors on exit, so they are copied inside.
        return [(name, parameter.detach().cpu().clone()) for name, parameter in pairs] if keep else []


def write_parameters(
    named: Iterator[tuple[str, nn.Parameter]], values: Mapping[str, Tensor], zero_stage: int
) -> None:
    """Set parameters from full tensors of the same names; under ZeRO-3 a collective that uses rank 0's.

    Raises:
        ValueError: the names and shapes of `values` are not exactly those of the parameters.
    """
    pairs = list(named)
    # Under ZeRO-3 leaving the block broadcasts what rank 0 wrote, so the other ranks need no values.
    takes = zero_stage < 3 or dist.get_rank() == 0
    shapes = {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in pairs}
    if takes and {name: tuple(value.shape) for name, value in values.items()} != shapes:
        wrong = sorted(name for name in shapes.keys() ^ values.keys()) or "shapes"
        raise ValueError(
            f"weights must have exactly the names and shapes of this model, got a difference in {wrong}"
        )
    parameters = [parameter for _, parameter in pairs]
    whole = (
        deepspeed.zero.GatheredParameters(parameters, modifier_rank=0) if zero_stage == 3 else nullcontext()
    )
    with whole, torch.no_grad():
        for name, parameter in pairs if takes else ():
            parameter.copy_(values[name])
