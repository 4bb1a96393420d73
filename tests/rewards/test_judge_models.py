"""Judges that are a frozen model of the run: their limits and their cache."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

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


def test_another_model_of_the_same_name_has_replies_of_its_own(tmp_path: Path) -> None:
    """The key of a reply has the model's name, which may stand for another folder in the next run."""
    folders = {name: tmp_path / name for name in ("a", "b", "copy")}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"b" if name == "b" else b"a")
    own = JudgeOptions(model="judge", cache=str(tmp_path / "cache"))
    caches = {name: own.with_folders({"judge": folder}).cache for name, folder in folders.items()}
    assert caches["a"] == caches["copy"] != caches["b"]
    assert all(Path(each).parent == tmp_path / "cache" for each in caches.values())
    assert replace(own, cache="").with_folders({"judge": folders["a"]}).cache == ""
    remote = JudgeOptions(endpoint="http://127.0.0.1:1", served_model="judge", cache="c")
    assert remote.with_folders({"judge": folders["a"]}) == remote
