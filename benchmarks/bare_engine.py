"""Baseline of generation: vLLM's `LLM` with the generator's engine arguments, given all prompts in one call.

In: overrides.json and prompts.json (token ids and seed per request) of its folder. Run by
`benchmarks.engines`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from vllm import LLM
from vllm.inputs import TokensPrompt

from actors.generator import engine_args, sampling_params
from benchmarks.bare import Answer, read_config, serve
from rollouts.records import Sampling


class BareEngine:
    """The engine alone. Its outputs stay vLLM's: no text is decoded, no record is made."""

    def __init__(self, folder: Path) -> None:
        config = read_config(folder)
        rollout = config.rollout
        self._llm = LLM.from_engine_args(engine_args(config, "cpu"))
        sampling = Sampling(
            temperature=rollout.temperature, top_p=rollout.top_p, max_tokens=rollout.max_tokens
        )
        rows = json.loads((folder / "prompts.json").read_text())
        self._prompts = [TokensPrompt(prompt_token_ids=row["prompt_ids"]) for row in rows]
        self._params = [sampling_params(sampling, row["seed"]) for row in rows]

    def round(self) -> Answer:
        """Seconds of one `generate`, and the token ids of each request."""
        began = time.perf_counter()
        outputs = self._llm.generate(self._prompts, self._params, use_tqdm=False)
        seconds = time.perf_counter() - began
        return {"generate": seconds, "token_ids": [list(output.outputs[0].token_ids) for output in outputs]}


if __name__ == "__main__":
    serve(BareEngine)
