"""The tag of a completion's plan, from n-grams by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.kinds.text_scorers import PlanTagsOptions
from rollouts.records import Completion, Prompt
from trainer.token_advantages.plan_tags import locate_grams, plan_tags
from trainer.token_advantages.strategic_ngrams import Grams, write_grams

PROMPT = Prompt(prompt_id="p", messages=(("user", "?"),), answer=None, domain="d")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """g0 = 1 2 3, g1 = 4 5 6, g2 = 7 8 9 7."""
    documents = {(1, 2, 3): 9, (4, 5, 6): 5, (7, 8, 9, 7): 2}
    write_grams(tmp_path / "grams.json", Grams(documents=documents, num_documents=9, sources=()))
    return str(tmp_path / "grams.json")


def tag(
    path: str, ids: list[int], mask: list[bool] | None = None, **options: object
) -> tuple[str, float | None]:
    completion = Completion(
        sample_id="s",
        seed=0,
        token_ids=tuple(ids),
        text="",
        finish_reason="stop",
        behavior_logprobs=(0.0,) * len(ids),
        versions=((0, 0),),
        loss_mask=None if mask is None else tuple(mask),
    )
    (found,) = plan_tags(PROMPT, [completion], PlanTagsOptions(path=path, **options))  # type: ignore[arg-type]
    return found.tags["strategy"], found.score


def test_plans_by_hand(path: str) -> None:
    twice = [4, 5, 6, 0, 1, 2, 3, 4, 5, 6]
    assert tag(path, twice) == ("g0 g1", 1.0)
    assert tag(path, twice, ordered=True) == ("g1 g0 g1", 1.0)
    assert tag(path, twice, ordered=True, max_grams=2) == ("g1 g0", 1.0)
    assert tag(path, twice, max_grams=1) == ("g0", 1.0)
    assert tag(path, [1, 2, 0, 3]) == ("none", 0.0)
    assert tag(path, []) == ("none", 0.0)


def test_an_environments_tokens_are_no_plan(path: str) -> None:
    """Neither its own n-grams nor those that would begin before and end after it."""
    assert tag(path, [1, 2, 3, 4, 5, 6], [False, False, False, True, True, True]) == ("g1", 1.0)
    assert tag(path, [1, 2, 0, 3], [True, True, False, True]) == ("none", 0.0)


def test_the_file_is_found_before_a_run(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(path).parent)
    assert locate_grams(PlanTagsOptions(path="grams.json")).path == path
    with pytest.raises(ValueError, match=r"must be a file of `polyphony mine`"):
        locate_grams(PlanTagsOptions(path="gram.json"))
