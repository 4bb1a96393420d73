"""Seeds are pure and distinct; every epoch visits all prompts once, in an order of its own; token prompts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_fakes import token_prompts

from rollouts.records import Sampling
from trainer.data.prompts import PromptOrder, tokenize_prompts
from trainer.rollout.rollouter import make_submission
from trainer.seeds import derive_seed


def test_seeds_are_distinct_31_bit_and_pinned() -> None:
    """10,000 neighbouring (submission, sample) pairs share no seed; one is pinned: runs must repeat."""
    seeds = {derive_seed(0, index, sample) for index in range(1250) for sample in range(8)}
    assert len(seeds) >= 9_999  # 10,000 draws of 2^31: a clash is expected in 2 of 100 runs
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(0, 1, 2) == 1798632349
    assert len({derive_seed(1, 12), derive_seed(11, 2), derive_seed(1, 1, 2), derive_seed("1", "2")}) == 4


@given(st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**31), st.booleans())
def test_an_epoch_visits_every_prompt_once(size: int, epoch: int, seed: int, shuffle: bool) -> None:
    """Any slice of submissions [epoch x size, (epoch + 1) x size) is a permutation, marked with its epoch."""
    order = PromptOrder(token_prompts(size), seed, shuffle)
    visited = [order.at(index).prompt for index in range(epoch * size, (epoch + 1) * size)]
    assert sorted(prompt.prompt_id for prompt in visited) == sorted(f"p{k}" for k in range(size))
    assert {prompt.epoch for prompt in visited} == {epoch}
    if not shuffle:
        assert [prompt.prompt_id for prompt in visited] == [f"p{k}" for k in range(size)]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    """20 prompts have 2e18 orders: two epochs, or two seeds, do not share one; the same seed does."""

    def names(seed: int, epoch: int) -> list[str]:
        order = PromptOrder(token_prompts(20), seed, True)
        return [order.at(epoch * 20 + k).prompt.prompt_id for k in range(20)]

    assert names(0, 0) == names(0, 0)
    assert names(0, 0) != names(0, 1) and names(0, 0) != names(1, 0)


def test_submissions_of_the_same_prompt_have_other_seeds() -> None:
    """Epoch 2 of a prompt must not repeat the noise of epoch 1; the ids follow the index."""
    order = PromptOrder(token_prompts(1), 0, True)
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=4)
    first, second = (make_submission(index, order.at(index), 4, sampling, 0) for index in (0, 1))
    assert len({*first.seeds, *second.seeds}) == 8
    assert (first.group_id, second.group_id) == ("00000000", "00000001")


class FakeTokenizer:
    """One token per character after a start token (`doubled` adds it twice, as some templates do)."""

    bos_token_id, bos_token, chat_template, name_or_path = 1, "<s>", "chat", "fake"

    def __init__(self, doubled: bool = False) -> None:
        self.start = [1, 1] if doubled else [1]

    def apply_chat_template(self, messages: Sequence[dict[str, str]], **options: bool) -> list[int]:
        assert options == {
            "add_generation_prompt": True,
            "continue_final_message": False,
            "return_dict": False,
        }
        return self.start + [ord(letter) for message in messages for letter in message["content"]]


def test_long_prompts_are_left_out_and_counted() -> None:
    """ "p9" has 3 tokens, "p10" 4: with at most 3, ten of twelve stay."""
    prompts = [token_prompt.prompt for token_prompt in token_prompts(12)]
    kept, left_out = tokenize_prompts(prompts, FakeTokenizer(), 128, 3)  # type: ignore[arg-type]
    assert len(kept) == 10 and [prompt.prompt_id for prompt in left_out] == ["p10", "p11"]
    assert kept[0].token_ids == (1, ord("p"), ord("0"))


def test_prompts_that_cannot_be_used_are_refused() -> None:
    """All too long, or a template that adds the start token twice."""
    prompts = [token_prompt.prompt for token_prompt in token_prompts(2)]
    with pytest.raises(
        ValueError, match=r"data\.train: all 2 prompts are longer than .*prompts p0, p1.*longest has 3"
    ):
        tokenize_prompts(prompts, FakeTokenizer(), 128, 2, "data.train")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prompt p0: the chat template must put '<s>' once"):
        tokenize_prompts(prompts, FakeTokenizer(doubled=True), 128, 9)  # type: ignore[arg-type]
