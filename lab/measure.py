"""Measure a base model before reinforcement learning: its shares of formats and the accuracy of each.

Inputs: a model, its tokenizer and held-out prompts. Outputs: a `BaseReport`. Called by `lab.pretrain`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from configs.kinds.datasets import LabOptions
from configs.kinds.scorers import LabAnswerOptions
from lab.corpus import FIRST_TOKENS, FORMATS
from lab.problems import load_prompts
from lab.recipe import MeasureConfig
from rewards.formats import MIXED, NONE, tag
from rewards.lab import SYLLABLES, lab_answer
from rollouts.records import Completion, Prompt

_PROMPTS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class BaseReport:
    """Shares are of all samples or of all probability; `accuracy` is among a format's samples (0 if none)."""

    first_token_share: dict[str, float]
    """Exact probability of each format's first token, mean over the held-out prompts."""
    sampled_share: dict[str, float]
    """Share of samples by format, including ``mixed`` and ``none``."""
    accuracy: dict[str, float]
    reward: float
    format_entropy: float
    """Entropy of `first_token_share`, normalized to sum to 1, over ln of the number of formats: in [0, 1]."""
    creative_share: float
    """Share of the answers to open-ended prompts that have syllables only."""
    mean_tokens: float
    """Mean completion tokens of the arithmetic samples, including the end token."""


def measure_base(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, corpus_seed: int, config: MeasureConfig
) -> BaseReport:
    """Sample the held-out problems and some open-ended prompts at temperature 1."""
    generator = torch.Generator().manual_seed(config.seed)
    options = LabOptions(split="heldout", corpus_seed=corpus_seed, limit=config.num_prompts)
    prompts = load_prompts(options)
    first = torch.zeros(len(FORMATS), dtype=torch.float64)
    tags: list[str] = []
    correct: list[float] = []
    num_tokens = 0
    for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
        part = prompts[start : start + _PROMPTS_AT_ONCE]
        tokens_NT, first_PV = sample(model, tokenizer, part, config, generator)
        first += first_PV[:, _first_ids(tokenizer)].double().sum(0)
        num_tokens += int((tokens_NT != tokenizer.pad_token_id).sum())
        texts = tokenizer.batch_decode(tokens_NT, skip_special_tokens=True)
        tags += [tag(text, FORMATS) for text in texts]
        correct += answer_scores(part, texts, config.num_samples)
    return _report(
        [value / len(prompts) for value in first.tolist()],
        tags,
        correct,
        _creative_share(model, tokenizer, corpus_seed, config, generator),
        num_tokens / len(tags),
    )


@torch.no_grad()
def sample(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: MeasureConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Completions [P x num_samples, T] (padded after the end token) and first-token probabilities [P, V]."""
    messages = [[{"role": role, "content": text} for role, text in prompt.messages] for prompt in prompts]
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    ids_NT = encoded["input_ids"].repeat_interleave(config.num_samples, 0)
    mask_NT = encoded["attention_mask"].repeat_interleave(config.num_samples, 0)
    # Prompts are padded on the left, so positions are counted from the first real token.
    positions_NT = (mask_NT.cumsum(1) - 1).clamp(min=0)
    done_N = torch.zeros(len(ids_NT), dtype=torch.bool)
    drawn: list[Tensor] = []
    cache, first_PV = None, torch.empty(0)
    for _ in range(config.max_tokens):
        output = model(
            ids_NT, attention_mask=mask_NT, position_ids=positions_NT, past_key_values=cache, use_cache=True
        )
        probabilities_NV = output.logits[:, -1].softmax(-1)
        if not drawn:
            # The samples of a prompt have the same first distribution; one of each is enough.
            first_PV = probabilities_NV[:: config.num_samples]
        # Also for rows that have ended, so that the draws of a row do not depend on the lengths of others.
        next_N = torch.multinomial(probabilities_NV, 1, generator=generator)[:, 0]
        next_N = next_N.masked_fill(done_N, tokenizer.pad_token_id)
        drawn.append(next_N)
        done_N |= next_N == tokenizer.eos_token_id
        if done_N.all():
            break
        cache, ids_NT = output.past_key_values, next_N[:, None]
        mask_NT = torch.cat([mask_NT, torch.ones_like(ids_NT)], 1)
        positions_NT = positions_NT[:, -1:] + 1
    return torch.stack(drawn, 1), first_PV


def _first_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(FIRST_TOKENS[name]) for name in FORMATS]


def answer_scores(prompts: Sequence[Prompt], texts: Sequence[str], num_samples: int) -> list[float]:
    """The lab's own scorer on every text; texts come `num_samples` per prompt."""
    scores: list[float] = []
    for index, prompt in enumerate(prompts):
        group = [
            Completion(
                sample_id=f"{prompt.prompt_id}-{number}",
                seed=number,
                token_ids=(),
                text=text,
                finish_reason="stop",
                behavior_logprobs=(),
                versions=(),
            )
            for number, text in enumerate(texts[index * num_samples : (index + 1) * num_samples])
        ]
        judged = lab_answer(prompt, group, LabAnswerOptions())
        scores += [judgement.score or 0.0 for judgement in judged]
    return scores


def _creative_share(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    corpus_seed: int,
    config: MeasureConfig,
    generator: torch.Generator,
) -> float:
    prompts = load_prompts(LabOptions(split="creative", corpus_seed=corpus_seed, limit=_PROMPTS_AT_ONCE))
    tokens_NT, _ = sample(model, tokenizer, prompts, config, generator)
    texts = tokenizer.batch_decode(tokens_NT, skip_special_tokens=True)
    return sum(bool(text) and set(text.split()) <= set(SYLLABLES) for text in texts) / len(texts)


def _report(
    first: Sequence[float], tags: Sequence[str], correct: Sequence[float], creative: float, mean_tokens: float
) -> BaseReport:
    counts = {name: tags.count(name) for name in (*FORMATS, MIXED, NONE)}
    right = {
        name: sum(c for c, t in zip(correct, tags, strict=True) if t == name) / max(1, counts[name])
        for name in FORMATS
    }
    # The four tokens have nearly all of the probability, but not all.
    shares = [value / sum(first) for value in first]
    entropy = -sum(share * math.log(share) for share in shares if share > 0) / math.log(len(FORMATS))
    return BaseReport(
        first_token_share=dict(zip(FORMATS, first, strict=True)),
        sampled_share={name: count / len(tags) for name, count in counts.items()},
        accuracy=right,
        reward=sum(correct) / len(correct),
        format_entropy=entropy,
        creative_share=creative,
        mean_tokens=mean_tokens,
    )
