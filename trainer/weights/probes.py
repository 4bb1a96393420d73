"""Probe sequences, scored by engines and learner after every publish. Made once, before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from configs.schema import RunConfig
from rollouts.records import Sampling
from trainer.data.prompts import TokenPrompt
from trainer.roles import Generator
from trainer.rollout.rollouter import make_submission
from trainer.seeds import derive_seed
from trainer.step_records import Probe


async def make_probes(
    config: RunConfig, prompts: Sequence[TokenPrompt], generator: Generator
) -> tuple[Probe, ...]:
    """Fixed sequences for the weight check: completions of the first prompts, sampled with the first weights.

    Returns `sync.num_probes` probes, or fewer if there are fewer prompts.
    """
    chosen = prompts[: config.sync.num_probes]
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=config.rollout.max_tokens)
    seed = derive_seed(config.seed, "probe")
    probes = []
    for index, prompt in enumerate(chosen):
        # One after the other, so that the result does not depend on how the engine batches.
        completions = await generator.generate(make_submission(index, prompt, 1, sampling, seed))
        probes.append(Probe(token_ids=prompt.token_ids + completions[0].token_ids))
    return tuple(probes)
