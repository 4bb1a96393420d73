"""Does a step change entropy as the covariance of logprob and advantage says? True and random rewards.

    python -m benchmarks.entropy_identity [--base lab/bases/voices] [--repeats 3]

arXiv 2505.22617: to first order in the logits z of a state, dH = -Cov_a~pi(log pi, dz); if every state had
logits of its own, a policy-gradient step of size eta would have dz = eta pi A. Printed as Markdown: how much
of the change of entropy at fixed states each reading explains, on a table of logits, where it holds by
construction, and on a small transformer, whose states share their weights. A minus before R-squared says that
the line through prediction and measurement falls.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM

from configs.kinds.datasets import LabOptions
from lab.measure import answer_scores, sample
from lab.problems import load_prompts
from lab.recipe import MeasureConfig
from rollouts.records import Prompt

NUM_PROMPTS, NUM_SAMPLES, MAX_TOKENS = 32, 16, 48
STATES, ACTIONS, TABLE_SAMPLES = 500, 16, 8
SGD_LR, ADAM_LR, TABLE_LR = 0.02, 1e-5, 0.1
Changes = dict[str, tuple[np.ndarray, np.ndarray]]
"""By reading: what it predicts and what was measured, one entry per state or prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """Completions of P prompts, laid out [P x samples, length]; `mask` marks the T sampled tokens."""

    ids: Tensor
    attention: Tensor
    mask: Tensor
    correct: Tensor


def entropies(logp: Tensor) -> Tensor:
    """[..., V] of log pi to [...]"""
    return -(logp.exp() * logp).sum(-1)


def first_order(logp: Tensor, step: Tensor) -> Tensor:
    """-Cov_a~pi(log pi, dz) of each state. [..., V], [..., V] -> [...]"""
    p = logp.exp()
    return -(p * (logp + entropies(logp)[..., None]) * (step - (p * step).sum(-1, keepdim=True))).sum(-1)


def explained(predicted: np.ndarray, measured: np.ndarray) -> float:
    """R-squared of a line through prediction and measurement, negative where the line falls."""
    if predicted.std() == 0 or measured.std() == 0:
        return 0.0
    correlation = float(np.corrcoef(predicted, measured)[0, 1])
    return correlation * abs(correlation)


def centred(values: Tensor) -> Tensor:
    """Minus the mean over the last axis."""
    return values - values.mean(-1, keepdim=True)


def table_changes(seed: int, is_random: bool) -> Changes:
    """One step on a table of logits: a state each, its gradient from a few samples."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(STATES, ACTIONS, generator=generator, dtype=torch.float64) * 1.5
    logp = logits.log_softmax(-1)
    actions = torch.multinomial(logp.exp(), TABLE_SAMPLES, replacement=True, generator=generator)
    worth = (torch.rand(STATES, ACTIONS, generator=generator) < 0.3).double()
    coins = (torch.rand(STATES, TABLE_SAMPLES, generator=generator) < 0.5).double()
    advantages = centred(coins if is_random else worth.gather(1, actions))
    step = torch.zeros_like(logits).scatter_add(1, actions, advantages)
    step = TABLE_LR * (step - advantages.sum(1, keepdim=True) * logp.exp()) / TABLE_SAMPLES
    measured = entropies((logits + step).log_softmax(-1)) - entropies(logp)
    expected = torch.zeros_like(worth) if is_random else worth - (logp.exp() * worth).sum(1, keepdim=True)
    readings = {
        "the step taken, dz": first_order(logp, step),
        "expected step, dz = eta pi A": first_order(logp, TABLE_LR * logp.exp() * expected),
        "samples' Cov_i, mean of the state": -(centred(logp.gather(1, actions)) * advantages).mean(1),
    }
    return {name: (value.numpy(), measured.numpy()) for name, value in readings.items()}


def roll_out(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, seed: int) -> Rollouts:
    """Sample the prompts from the model at temperature 1 and judge the answers."""
    prompts = load_prompts(LabOptions())[seed * NUM_PROMPTS : (seed + 1) * NUM_PROMPTS]
    config = MeasureConfig(num_samples=NUM_SAMPLES, max_tokens=MAX_TOKENS)
    tokens, _ = sample(model, tokenizer, prompts, config, torch.Generator().manual_seed(seed))
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    correct = torch.tensor(answer_scores(prompts, texts, NUM_SAMPLES), dtype=torch.float64)
    encoded = encode(tokenizer, prompts)
    before = encoded["input_ids"].repeat_interleave(NUM_SAMPLES, 0)
    seen = encoded["attention_mask"].repeat_interleave(NUM_SAMPLES, 0)
    is_token = (tokens != tokenizer.pad_token_id).long()
    return Rollouts(
        ids=torch.cat([before, tokens], 1),
        attention=torch.cat([seen, is_token], 1),
        mask=torch.cat([torch.zeros_like(seen), is_token], 1).bool(),
        correct=correct,
    )


def encode(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Prompts as the model sees them, padded on the left."""
    messages = [[{"role": role, "content": text} for role, text in prompt.messages] for prompt in prompts]
    encoded: dict[str, Tensor] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    return encoded


def state_logits(model: Qwen3ForCausalLM, rollouts: Rollouts) -> Tensor:
    """Logits of the T states that a token was sampled in, [T, V]."""
    positions = (rollouts.attention.cumsum(1) - 1).clamp(min=0)
    output = model(rollouts.ids, attention_mask=rollouts.attention, position_ids=positions)
    logits: Tensor = output.logits[:, :-1][rollouts.mask[:, 1:]]
    return logits


def network_changes(base: Path, seed: int, is_random: bool, optimizer: str) -> Changes:
    """One step of the mean over tokens of -A log pi; advantages are rewards less their group's mean."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    # In double: the changes of entropy are near the rounding of single precision.
    model = Qwen3ForCausalLM.from_pretrained(base).double().eval()
    rollouts = roll_out(model, tokenizer, seed)
    generator = torch.Generator().manual_seed(seed)
    rewards = rollouts.correct
    if is_random:
        rewards = (torch.rand(len(rewards), generator=generator) < 0.5).double()
    per_row = centred(rewards.reshape(NUM_PROMPTS, NUM_SAMPLES)).reshape(-1)
    rows = rollouts.mask[:, 1:].nonzero()[:, 0]
    tokens, advantages = rollouts.ids[:, 1:][rollouts.mask[:, 1:]], per_row[rows]
    before = state_logits(model, rollouts)
    logp_T = before.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    (-(advantages * logp_T).mean()).backward()
    kinds: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "SGD": lambda: torch.optim.SGD(model.parameters(), lr=SGD_LR),
        "AdamW": lambda: torch.optim.AdamW(model.parameters(), lr=ADAM_LR, weight_decay=0.0),
    }
    kinds[optimizer]().step()
    with torch.no_grad():
        after = state_logits(model, rollouts)
        return network_readings(before.detach(), after, tokens, advantages, rows // NUM_SAMPLES)


def network_readings(
    before: Tensor, after: Tensor, tokens: Tensor, advantages: Tensor, prompts: Tensor
) -> Changes:
    """Per state (with the step taken, and with the step a state of its own would take), then per prompt."""
    logp = before.log_softmax(-1)
    measured = entropies(after.log_softmax(-1)) - entropies(logp)
    own_step = advantages[:, None] * (torch.nn.functional.one_hot(tokens, logp.shape[1]) - logp.exp())
    taken = logp.gather(1, tokens[:, None])[:, 0]
    # Over all tokens at once, as Clip-Cov and KL-Cov compute it, and not state by state.
    cov = (taken - taken.mean()) * (advantages - advantages.mean())

    def by_prompt(values: Tensor) -> np.ndarray:
        sums = torch.zeros(NUM_PROMPTS, dtype=values.dtype).index_add(0, prompts, values)
        found: np.ndarray = (sums / prompts.bincount(minlength=NUM_PROMPTS)).numpy()
        return found

    alone = first_order(logp, own_step)
    return {
        "the step taken, dz (states)": (first_order(logp, after - before).numpy(), measured.numpy()),
        "own sampled step, dz = eta A (1_a - pi) (states)": (alone.numpy(), measured.numpy()),
        "samples' Cov_i (states)": (-cov.numpy(), measured.numpy()),
        "own sampled step (means of prompts)": (by_prompt(alone), by_prompt(measured)),
        "samples' Cov_i (means of prompts)": (by_prompt(-cov), by_prompt(measured)),
    }


def print_table(title: str, change: Callable[[int, bool], Changes], repeats: int) -> None:
    """R-squared of every reading, mean and range over the repeats, for both rewards."""
    print(f"\n{title}\n\n| prediction -Cov(log pi, ...) | true rewards | random rewards |\n|---|---|---|")
    found = {is_random: [change(seed, is_random) for seed in range(repeats)] for is_random in (False, True)}
    for name in found[False][0]:
        cells = []
        for runs in found.values():
            values = np.array([explained(*run[name]) for run in runs])
            cells.append(f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})")
        print(f"| {name} | {' | '.join(cells)} |")
    sizes = [
        float(np.mean([np.abs(next(iter(run.values()))[1]).mean() for run in runs]))
        for runs in found.values()
    ]
    drifts = [float(np.mean([next(iter(run.values()))[1].mean() for run in runs])) for runs in found.values()]
    print(f"| mean change of entropy, nats | {drifts[0]:.2e} | {drifts[1]:.2e} |")
    print(f"| mean absolute change, nats | {sizes[0]:.2e} | {sizes[1]:.2e} |", flush=True)


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=Path("lab/bases/voices"))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    # So that sums have one order, and the table the same digits in every run.
    torch.set_num_threads(1)
    print_table(f"A table of logits, SGD {TABLE_LR:g}", table_changes, arguments.repeats)
    for optimizer, lr in (("SGD", SGD_LR), ("AdamW", ADAM_LR)):

        def change(seed: int, is_random: bool, optimizer: str = optimizer) -> Changes:
            return network_changes(arguments.base, seed, is_random, optimizer)

        print_table(f"{arguments.base.name}, {optimizer} {lr:g}", change, arguments.repeats)


if __name__ == "__main__":
    main()
