"""Probe logprobs, which identify a set of weights, and the diagnosis of a mismatch after a weight sync.

`probe_logprobs` is the learner's side of the check after each weight sync. `explain_mismatch` runs only if
the check fails: it simulates the known faults one by one and names the one closest to the engine's logprobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np
import torch
from torch import Tensor, nn

from trainer.model.batch_plan import build_microbatch
from trainer.model.checkpoint_format import load_checkpoint_format
from trainer.model.policy import PolicyModel
from trainer.step_records import Probe
from trainer.weights.packed import PackedWeights, unpack_weights

_MAX_LAYERS_FOR_ALL_SWAPS = 12


def probe_logprobs(
    model: Callable[..., tuple[Tensor, ...]], probes: Sequence[Probe], device: torch.device
) -> np.ndarray:
    """Logprobs (nats, temperature 1, float32) of all probe tokens but each probe's first, concatenated."""
    batch = build_microbatch(
        [np.array(probe.token_ids[:1]) for probe in probes],
        [np.array(probe.token_ids[1:]) for probe in probes],
        np.ones(len(probes)),
        device,
    )
    with torch.no_grad():
        return model(batch)[0].float().cpu().numpy()


def gap(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference of two arrays of logprobs, in nats."""
    return float(np.abs(one.astype(np.float64) - other).mean())


def _swapped(state: dict[str, Tensor], i: int, j: int) -> dict[str, Tensor]:
    """The weights with layers i and j exchanged."""
    swapped = dict(state)
    for name in state:
        if f".layers.{i}." in name:
            partner = name.replace(f".layers.{i}.", f".layers.{j}.")
            swapped[name], swapped[partner] = state[partner], state[name]
    return swapped


def _hypotheses(
    current: dict[str, Tensor], previous: dict[str, Tensor], version: int, version_before: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The known faults: a sentence, and the weights that an engine with this fault would hold."""
    if previous:
        age = "one step old" if version_before == version - 1 else "those of the sync before"
        yield f"all weights are {age} (version {version_before} instead of {version})", previous
        for name in current:
            yield (
                f"tensor {name} was skipped: it still holds version {version_before}",
                current | {name: previous[name]},
            )
    layers = sorted({int(name.split(".layers.")[1].split(".")[0]) for name in current if ".layers." in name})
    # All pairs of a deep model would take minutes, so only neighbours are tried there.
    pairs = combinations(layers, 2) if len(layers) <= _MAX_LAYERS_FOR_ALL_SWAPS else pairwise(layers)
    for i, j in pairs:
        yield f"layers {i} and {j} are swapped", _swapped(current, i, j)


def _stale_head_gap(
    policy: PolicyModel, probes: Sequence[Probe], observed: np.ndarray, head: Tensor
) -> float:
    """The gap if only the output head were `head`. For tied models, whose head has no tensor of its own."""
    module = policy.model.get_output_embeddings()
    assert isinstance(module, nn.Linear)
    tied = module.weight
    # A tied head has no tensor of its own, so it cannot be loaded like the others.
    module.weight = nn.Parameter(head.clone())
    stale_gap = gap(probe_logprobs(policy, probes, head.device), observed)
    module.weight = tied  # the next hypothesis loads into the embedding and must reach the head too
    return stale_gap


def explain_mismatch(
    policy: PolicyModel,
    probes: Sequence[Probe],
    observed: np.ndarray,
    current: PackedWeights,
    previous: PackedWeights | None,
) -> str:
    """One sentence that names the fault which best reproduces `observed`, or says that none does.

    A fault is named if it explains at least 90 % of the gap. `policy` is overwritten with the weights of each
    hypothesis; `observed` are the engine's probe logprobs.
    """
    now = dict(unpack_weights(current))
    before = dict(unpack_weights(previous)) if previous is not None else {}
    version_before = previous.version if previous is not None else current.version
    load_checkpoint_format(policy.model, now)
    whole = gap(probe_logprobs(policy, probes, torch.device("cpu")), observed)
    best, best_gap = "none of the known faults", whole
    tied = bool(policy.model.config.tie_word_embeddings)
    shared = policy.model.get_input_embeddings().weight
    embedding = next(name for name, weight in policy.model.named_parameters() if weight is shared)
    if tied and embedding in before:
        stale = _stale_head_gap(policy, probes, observed, before[embedding])
        if stale < best_gap:
            best, best_gap = (
                f"the tied output head is stale: it still holds version {version_before}",
                stale,
            )
    for sentence, state in _hypotheses(now, before, current.version, version_before):
        load_checkpoint_format(policy.model, state)
        hypothesis_gap = gap(probe_logprobs(policy, probes, torch.device("cpu")), observed)
        if hypothesis_gap < best_gap:
            best, best_gap = sentence, hypothesis_gap
    if not best_gap <= 0.1 * whole:  # `not <=`: a NaN gap explains nothing
        return f"none of the known faults explains it (closest: {best}, gap {best_gap:.2e} nats)"
    return f"{best} (this reproduces the engine's logprobs to {best_gap:.1e} nats)"
