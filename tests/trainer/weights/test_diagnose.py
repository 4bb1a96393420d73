"""Naming a fault by an engine's logprobs: each known fault is put into a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from trainer.model.policy import PolicyModel, load_policy
from trainer.step_records import Probe
from trainer.weights.diagnose import explain_mismatch, gap, probe_logprobs
from trainer.weights.packed import PackedWeights, pack_weights

torch.set_num_threads(1)
CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
PROBES = tuple(Probe(token_ids=tuple(RNG.integers(0, 32, 9).tolist())) for _ in range(6))
State = dict[str, Tensor]


def make_policy(folder: Path, tied: bool) -> PolicyModel:
    """A random Qwen3 of 3 layers and 32 tokens, through a folder as in a run."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return load_policy(str(folder), "fp32", 16, False)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def policy(tied: bool, tmp_path_factory: pytest.TempPathFactory) -> PolicyModel:
    return make_policy(tmp_path_factory.mktemp("model"), tied)


@pytest.fixture(scope="module")
def states(policy: PolicyModel) -> tuple[State, State]:
    """Weights of a step and of the step before, every tensor slightly changed."""
    before = {name: tensor.detach().clone() for name, tensor in policy.named_weights()}
    generator = torch.Generator().manual_seed(1)
    now = {name: t + 0.02 * torch.randn(t.shape, generator=generator) for name, t in before.items()}
    return before, now


def answers(policy: PolicyModel, state: State) -> np.ndarray:
    policy.model.load_state_dict(state, strict=False)
    return probe_logprobs(policy, PROBES, CPU)


def explain(
    policy: PolicyModel,
    states: tuple[State, State],
    observed: np.ndarray,
    known: bool = True,
    version_before: int = 4,
) -> str:
    before, now = states
    previous: PackedWeights | None = pack_weights(version_before, before.items()) if known else None
    return explain_mismatch(policy, PROBES, observed, pack_weights(5, now.items()), previous)


def swap_layers(state: State) -> State:
    swapped = dict(state)
    for name in state:
        if ".layers.0." in name:
            other = name.replace(".layers.0.", ".layers.2.")
            swapped[name], swapped[other] = state[other], state[name]
    return swapped


SKIPPED = "model.layers.1.mlp.up_proj.weight"
FAULTS: list[tuple[Callable[[State, State], State], str]] = [
    (lambda before, now: before, "all weights are one step old (version 4 instead of 5)"),
    (lambda before, now: now | {SKIPPED: before[SKIPPED]}, f"tensor {SKIPPED} was skipped"),
    (lambda before, now: swap_layers(now), "layers 0 and 2 are swapped"),
]


@pytest.mark.parametrize(("plant", "sentence"), FAULTS, ids=["stale", "skipped", "swapped"])
def test_a_planted_fault_is_named(
    policy: PolicyModel,
    states: tuple[State, State],
    plant: Callable[[State, State], State],
    sentence: str,
) -> None:
    """The engine's logprobs are computed with the fault; the explanation must begin with its name."""
    observed = answers(policy, plant(*states))
    assert gap(observed, answers(policy, states[1])) > 1e-4, "the fault must show on the probes"
    assert explain(policy, states, observed).startswith(sentence)


def test_stale_weights_of_a_run_that_was_set_back_are_named_by_their_version(
    policy: PolicyModel, states: tuple[State, State]
) -> None:
    """After a checkpoint of step 5 was restored at step 9, the engines had version 9, not 4."""
    observed = answers(policy, states[0])
    sentence = "all weights are those of the sync before (version 9 instead of 5)"
    assert explain(policy, states, observed, version_before=9).startswith(sentence)


def test_a_stale_head_is_named(policy: PolicyModel, states: tuple[State, State], tied: bool) -> None:
    """New weights everywhere but in the output head, which is no tensor of its own in a tied model."""
    before, now = states
    name = "model.embed_tokens.weight" if tied else "lm_head.weight"
    policy.model.load_state_dict(now, strict=False)
    head = policy.model.get_output_embeddings()
    weight = head.weight
    head.weight = torch.nn.Parameter(before[name].clone())
    observed = probe_logprobs(policy, PROBES, CPU)
    head.weight = weight
    sentence = "the tied output head is stale" if tied else "tensor lm_head.weight was skipped"
    assert explain(policy, states, observed).startswith(sentence)
    assert policy.model.get_output_embeddings().weight is weight, "the model stays tied afterwards"


def test_an_unknown_fault_is_called_unknown(policy: PolicyModel, states: tuple[State, State]) -> None:
    """Noise in every tensor is none of the faults; without the step before, neither is a stale engine."""
    before, now = states
    noisy = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in now.items()}
    unknown = "none of the known faults explains it"
    assert explain(policy, states, answers(policy, noisy)).startswith(unknown)
    assert explain(policy, states, answers(policy, before), known=False).startswith(unknown)


def test_answers_that_are_not_numbers_are_called_unknown(
    policy: PolicyModel, states: tuple[State, State]
) -> None:
    """Every comparison with NaN is false: it must not count as a match."""
    observed = np.full(48, np.nan, np.float32)
    assert explain(policy, states, observed).startswith("none of the known faults explains it")


def test_probe_logprobs_are_the_models_own(policy: PolicyModel, states: tuple[State, State]) -> None:
    """Against the plain logits of the same model, sequence by sequence without padding."""
    state = states[1]
    found = answers(policy, state)
    plain = Qwen3ForCausalLM(policy.model.config).eval()
    plain.load_state_dict(policy.model.state_dict())
    wanted = []
    for probe in PROBES:
        ids = torch.tensor([probe.token_ids])
        logp = plain(input_ids=ids).logits.double().log_softmax(-1)[0, :-1]
        wanted += logp.gather(1, ids[0, 1:, None]).squeeze(1).tolist()
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
