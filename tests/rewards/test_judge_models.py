"""Judges that are a frozen model of the run: their limits and their cache."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from judge_model import FakeModel
from rollout_rows import make_sample

from configs.kinds.judges import JudgeOptions
from rewards.judge import Judge
from rollouts.records import Prompt

PROMPT = Prompt(prompt_id="p7", messages=(("user", "What is 2 + 2?"),), answer="4", domain="math")


def test_the_prompts_of_a_model_of_the_run_count_as_tokens_a_minute() -> None:
    """A request has over 600 characters: at 100 tokens a second the second call waits for 2 s."""
    own = JudgeOptions(
        model="judge", cache="", canaries="none", max_tokens=1, deadline_s=1.0, call_timeout_s=1.0
    )

    completions = [replace(make_sample(f"g.{k}", 1).completion, text=text) for k, text in enumerate("45")]

    async def run(per_minute: float) -> list[str]:
        judge = Judge(replace(own, tokens_per_minute=per_minute), {"judge": FakeModel(wait_s=0.05)})
        found = await judge.score(PROMPT, completions)
        await judge.close()
        return sorted(each.status for each in found)

    assert asyncio.run(run(6_000)) == ["ok", "timeout"]
    assert asyncio.run(run(600_000)) == ["ok", "ok"]
