"""A world of words for refiners: a tokenizer, a policy that answers by its context, and a scorer.

The policy answers every question wrong, and knows better once its context says "wrong": it then answers right
for the samples in `fixes`. A token is a word's place in `words`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loop_fakes import FakeGenerator, FakeScorer

from configs.kinds.scorers import ScorerCommon
from rollouts.records import Completion, Group, Judgement, Prompt, Sampling, Submission
from trainer.data.prompts import TokenPrompt
from trainer.rollout.pausable_clock import Clock
from trainer.rollout.rollouter import Encoders, RolloutTools, ScorerSet, make_submission

END = 0
USER = 1
VOCABULARY = (
    *("<end>", "<user>", "1", "+", "2", "?", "it", "p0", "p1", "p2", "p3", "p4"),
    *("is", "3", "4", "wrong", "right", "again", "critique", ",", "the", "answer", ":", "so"),
)
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=8)


@dataclass
class Words:
    """Ids of words: their places in the list. 0 ends a text, 1 begins a message."""

    words: list[str] = field(default_factory=lambda: list(VOCABULARY))

    def text(self, text: str) -> tuple[int, ...]:
        return tuple(self.words.index(word) for word in text.split())

    def prompt(self, prompt: Prompt) -> tuple[int, ...]:
        return (USER, *self.text(" ".join(content for _, content in prompt.messages)))

    def read(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[token] for token in ids)

    @property
    def encoders(self) -> Encoders:
        return Encoders(text=self.text, prompt=self.prompt, end_ids=(END,))


@dataclass
class WordPolicy(FakeGenerator):
    """Answers "it is 4" where 3 is right, and "it is 3" after a critique that says wrong, in `fixes`.

    `asked` has every context, as text; `temperatures` that of each call.
    """

    words: Words = field(default_factory=Words)
    fixes: Callable[[int], bool] = lambda number: number % 2 == 1
    asked: list[str] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)

    async def generate(self, submission: Submission) -> list[Completion]:
        self.calls.append(f"generate {submission.group_id}")
        self.temperatures.append(submission.sampling.temperature)
        found = []
        for place, seed in enumerate(submission.seeds):
            context = self.words.read(submission.prompt_ids)
            self.asked.append(context)
            sample_id = submission.sample_id(place)
            fixed = "wrong" in context and self.fixes(int(sample_id.split(".")[1]))
            ids = (*self.words.text(f"it is {3 if fixed else 4}"), END)
            found.append(
                Completion(
                    sample_id=sample_id,
                    seed=seed,
                    token_ids=ids,
                    text=self.words.read(ids[:-1]),
                    finish_reason="stop",
                    behavior_logprobs=(-0.5,) * len(ids),
                    versions=((0, max(self.version, 0)),),
                )
            )
        return found


@dataclass
class LastWord(FakeScorer):
    """1 if the last word is the answer, else 0; null where `fails` says so."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        found = []
        for completion in completions:
            answer = completion.text.split()[-1]
            right = answer == prompt.answer
            found.append(
                Judgement(score=None, status="timeout")
                if self.fails(completion)
                else Judgement(score=float(right), answer=answer, answer_ok=right)
            )
        return found


def word_scorers(scorer: FakeScorer | None = None) -> ScorerSet:
    common = ScorerCommon(kind="lab_answer", weight=1.0)
    return ScorerSet(scorers={"correct": scorer or LastWord()}, common_keys={"correct": common})


def word_prompt(words: Words, **changes: object) -> TokenPrompt:
    """What is 1 + 2?"""
    given: dict[str, object] = {"prompt_id": "p", "answer": "3", "domain": "math"}
    prompt = Prompt(messages=(("user", "1 + 2 ?"),), **(given | changes))  # type: ignore[arg-type]
    return TokenPrompt(prompt, words.prompt(prompt))


def tools_of(
    policy: WordPolicy, prompt: TokenPrompt, num_samples: int = 4, longest: int = 64, **more: object
) -> tuple[Submission, RolloutTools]:
    """A submission of the prompt, and what a refiner may call for it."""
    submission = make_submission(2, prompt, num_samples, SAMPLING, 0)
    scorers = more.pop("scorers", None) or word_scorers()
    tools = RolloutTools(
        submission,
        policy,
        scorers,  # type: ignore[arg-type]
        longest=longest,
        limit_s=60.0,
        clock=Clock(),
        encoders=policy.words.encoders,
        **more,  # type: ignore[arg-type]
    )
    return submission, tools


def rewards_of(group: Group) -> list[float | None]:
    return [sample.reward for sample in group.samples]
