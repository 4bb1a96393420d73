"""Refiners by name. A target is ``async fn(group, tools, options) -> list[Attempt]`` for a judged group.

See `trainer.rollout.refiner` for what it gets and what becomes of its rows. Training alone refines;
evaluations never do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from configs.errors import Broken
from configs.fields import NOT_EMPTY, NOT_NEGATIVE, POSITIVE, SHARE_ABOVE_ZERO, one_of, option
from configs.kinds.base import Kind, Options, OwnModelOptions
from configs.kinds.models import GENERATE, example
from configs.origins import DISTILLED
from configs.templates import FIELDS, load_prompt_set, prompt_folder

_CRITICS: Final = one_of("policy", "rule", "model")
_STYLES: Final = one_of("indicative", "with_truth", "cot")
_FEEDBACK: Final = one_of("none", "indicative", "with_truth", "rule", "policy", "model")


@dataclass
class NoRefinerOptions(Options):
    """Groups are trained on as the rollouter made them."""


@dataclass
class RefinerOptions(Options):
    """Which groups are refined; every refiner has these."""

    groups: str = option("failed", one_of("failed", "all"))
    """failed (groups in which every policy row has a reward, and none is right) or all."""
    threshold: float = 0.5
    """A reward of at least this is right."""


@dataclass
class AnswerOptions(RefinerOptions):
    """How refined rows are trained on: options of every refiner that adds further answers."""

    keep: int = option(1, NOT_NEGATIVE)
    """Refined rows that a group keeps: the best rewards first, then the lowest samples. 0 keeps all."""
    baseline: str = option("joined", one_of("joined", "policy"))
    """joined (the refined rows are compared with the policy rows as one group, by `advantage`) or policy
    (a refined row has its reward minus the mean reward of the policy rows, which it does not change)."""


@dataclass
class OwnRefinerOptions(OwnModelOptions, AnswerOptions):
    """Options of a user's own refiner: those of the others, `models`, and `options`, passed on unchanged."""


@dataclass
class CriticOptions(RefinerOptions):
    """Options of a refiner that says something about an answer: who writes it, and the templates."""

    rule: str = option("lab.critic:first_wrong_step", NOT_EMPTY)
    """For a critic that is a rule: "module:attr" of ``fn(prompt, text) -> (verdict, critique)``."""
    model: str = ""
    """For a critic that is a model: its name in section `models`."""
    critic_tokens: int = option(256, POSITIVE)
    """The longest critique of a policy or model, in tokens."""
    critic_temperature: float = option(0.7, NOT_NEGATIVE)
    """Of a model. The policy criticises at rollout.temperature."""
    prompts: str = option("critique", NOT_EMPTY)
    """The templates: `critique` or `lab`, which come with the package, or the path of a folder."""

    @property
    def writer(self) -> str:
        """Who writes: none, indicative, with_truth (by the verdict), rule, policy or model."""
        raise NotImplementedError

    def check(self) -> Iterator[Broken]:
        try:
            load_prompt_set(self.prompts)
        except ValueError as error:
            yield "prompts", str(error)
        if self.writer == "model" and not self.model:
            how = f"such as {example(GENERATE, 'critic')}"
            yield "model", f"must name a model under models, {how}: the critic is a model"

    def model_names(self) -> Mapping[str, str]:
        return {"model": self.model} if self.writer == "model" else {}

    def model_tasks(self) -> Mapping[str, tuple[str, ...]]:
        return {"model": ("generate",)}

    def files(self) -> tuple[str, ...]:
        folder = prompt_folder(self.prompts)
        return tuple(str(folder / f"{part}.txt") for part in FIELDS)

    def own_code(self) -> Mapping[str, str]:
        return {"rule": self.rule} if self.writer == "rule" and self.rule not in RULES else {}


@dataclass
class CritiqueOptions(CriticOptions, AnswerOptions):
    """Options of a refiner that criticises an answer and asks for a better one."""

    style: str = option("indicative", _STYLES)
    """indicative (whether the answer is right), with_truth (that, and the right answer) or cot (a critic
    writes; answers that are right get indicative)."""
    critic: str = option("policy", _CRITICS)
    """Who writes with style cot: policy, rule (a function) or model (a frozen model of section `models`)."""
    mentions: tuple[str, ...] = ("critique", "ground truth", "earlier solution", "previous solution")
    """Phrases by which a refined answer betrays its context; rows with one are counted."""

    @property
    def writer(self) -> str:
        return self.critic if self.style == "cot" else self.style


@dataclass
class CritiqueGrpoOptions(CritiqueOptions):
    """A = r - mean(r over policy and refined rows of the group); refined rows by -p / (p + gamma) A

    Critique-GRPO, arXiv 2506.03106: answers refined after a critique, trained under the original prompt.
    Defaults are the paper's (v6): groups in which all fail, one refined row, compared with the group.
    """


@dataclass
class RltfSdOptions(CritiqueOptions):
    """RLTF-SD, arXiv 2602.02482: every answer's second turn, trained under the original prompt with the mean
    reward of the first turns as its baseline."""

    groups: str = option("all", one_of("failed", "all"))
    """As in critique_grpo."""
    keep: int = option(0, NOT_NEGATIVE)
    """As in critique_grpo."""
    baseline: str = option("policy", one_of("joined", "policy"))
    """As in critique_grpo."""


@dataclass
class SdpoOptions(CriticOptions):
    """SDPO, arXiv 2601.20802: a row for every answer that a teacher can score under feedback or a sibling's
    success; no new sample. `loss.distilled` of kind sdpo trains them."""

    groups: str = option("all", one_of("failed", "all"))
    """failed (groups in which every policy row has a reward, and none is right) or all."""
    solutions: bool = True
    """Show the teacher the first right answer among the other answers of the group."""
    drop_thinking: bool = True
    """Leave <think>...</think> out of an answer that the teacher is shown."""
    feedback: str = option("none", _FEEDBACK)
    """What the teacher is told of answers that are not right: none, indicative (that they are wrong),
    with_truth (the right answer too), or what a critic writes: rule, policy or model."""
    feedback_with_solution: bool = False
    """Give feedback also where there is a solution to show."""

    @property
    def writer(self) -> str:
        return self.feedback

    def check(self) -> Iterator[Broken]:
        yield from super().check()
        if not self.solutions and self.feedback == "none":
            yield "feedback", "must not be none without solutions: the teacher would know nothing more"
        if self.solutions and self.groups == "failed" and self.feedback == "none":
            yield "groups", "must be all without feedback: a group that failed has no solution to show"


@dataclass
class GoldInjectionOptions(AnswerOptions):
    """Control: the dataset's own solution as a refined row, without any critique."""

    field: str = option("solution", NOT_EMPTY)
    """The field of the dataset's row that holds the solution as text."""
    share: float = option(1.0, SHARE_ABOVE_ZERO)
    """Share of the groups that get it, drawn from the seed: set it to the refine/fixed_share of the refiner
    that this is the control of, so that both add as many right rows."""

    def row_fields(self) -> Mapping[str, str]:
        return {"field": self.field}


@dataclass
class ResampleHotOptions(AnswerOptions):
    """Control: as many answers again at another temperature, without any critique."""

    temperature: float = option(1.5, POSITIVE)
    """Sampling temperature of the answers that are sampled again."""


RULES: Final = ("lab.critic:first_wrong_step",)
"""Rule critics that come with the package."""
NONE: Final = "none"

REFINERS: dict[str, Kind] = {
    NONE: Kind(NoRefinerOptions, ""),
    "critique_grpo": Kind(CritiqueGrpoOptions, "trainer.rollout.critique:refine_by_critique"),
    "rltf_sd": Kind(RltfSdOptions, "trainer.rollout.critique:refine_by_critique"),
    "sdpo": Kind(SdpoOptions, "trainer.rollout.self_distillation:add_taught_rows", adds=DISTILLED),
    "gold_injection": Kind(GoldInjectionOptions, "trainer.rollout.refine_controls:gold_injection"),
    "resample_hot": Kind(ResampleHotOptions, "trainer.rollout.refine_controls:resample_hot"),
}
