"""The engine side of a weight sync through host memory, registered with vLLM's weight-transfer API as "host".

Importing this module registers the transfer engine. Used by `actors.generator`, on CPUs and on GPUs; the
learner's side is `cluster.weight_transport.HostTransport`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from trainer.weights.packed import PackedWeights, unpack_weights

BACKEND = "host"


@dataclass
class HostInitInfo(WeightTransferInitInfo):
    """`expected_names` are the tensors of an update. An update with more or fewer tensors is an error."""

    expected_names: list[str] = field(default_factory=list)


@dataclass
class HostUpdateInfo(WeightTransferUpdateInfo):
    """All weights of one version."""

    weights: PackedWeights


class HostWeightTransferEngine(WeightTransferEngine[HostInitInfo, HostUpdateInfo]):
    """Loads a `PackedWeights` in checkpoint format, layer by layer."""

    init_info_cls = HostInitInfo
    update_info_cls = HostUpdateInfo

    def init_transfer_engine(self, init_info: HostInitInfo) -> None:
        self._expected = frozenset(init_info.expected_names)
        if self.device.type == "cpu":
            repack_experts_on_updates(self.model)

    def start_weight_update(self) -> None:
        # vLLM changes weights after loading (packing, fusing): this restores the layout that `load_weights`
        # expects.
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, PackedWeights]) -> None:
        # The inherited method synchronizes an accelerator, which a CPU engine does not have.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: HostUpdateInfo) -> None:
        check_names(update_info.weights, self._expected)
        self.model.load_weights(unpack_weights(update_info.weights))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Nothing to release: no state is held between updates."""


class HostTransferWorker:
    """A mixin of every vLLM worker: its process imports this module, which registers the backend."""


def check_names(weights: PackedWeights, expected: frozenset[str]) -> None:
    """Check that `weights` has exactly the expected tensors.

    Raises:
        ValueError: one is missing or unknown; the message names the first.
    """
    names = set(weights.names())
    missing, unknown = sorted(expected - names), sorted(names - expected)
    if missing:
        raise ValueError(
            f"weights of version {weights.version}: tensor {missing[0]} was skipped ({len(missing)} missing)"
        )
    if unknown:
        raise ValueError(f"weights of version {weights.version}: tensor {unknown[0]} is not of this model")


def repack_experts_on_updates(model: nn.Module) -> None:
    """Pack the weights of experts at every update, for the CPU kernel.

    vLLM 0.32 packs them at the first load only; later the kernel would read plain weights as packed.
    """
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.process_weights_after_loading = partial(  # type: ignore[union-attr]
                _process_and_pack,
                method,
                method.process_weights_after_loading,  # type: ignore[union-attr]
            )


def _process_and_pack(method: Any, process: Callable[[nn.Module], None], layer: nn.Module) -> None:
    process(layer)
    method.moe_kernel.fused_experts.process_weights_after_loading(layer)


def repack_tied_head(model: nn.Module) -> None:
    """Repack a tied head: CPU linear layers use a packed copy, which a layerwise update does not renew."""
    head = model.get_submodule("lm_head") if hasattr(model, "lm_head") else None
    if head is None or not hasattr(head, "cpu_linear") or not hasattr(head, "quant_method"):
        return
    head.quant_method.process_weights_after_loading(head)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, HostWeightTransferEngine)

TRANSFER_CONFIG = WeightTransferConfig(backend=BACKEND)
