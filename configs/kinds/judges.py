"""Options of the scorer `judge`: which model judges, by which rubric, within which limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from configs.errors import Broken
from configs.fields import NOT_EMPTY, NOT_NEGATIVE, NOTHING, POSITIVE, SHARE, Rule, one_of, option
from configs.kinds.base import Options, RunView
from configs.redact import VARIABLE_NAME

URL: Final = Rule(
    lambda value: not value or urlsplit(value).scheme in ("http", "https"),
    "must be a URL such as http://127.0.0.1:8900/v1",
)
VARIABLE: Final = Rule(
    lambda value: not value or bool(VARIABLE_NAME.fullmatch(value)),
    "must be the name of an environment variable (capitals, digits and _), not its value",
)


@dataclass
class JudgeOptions(Options):
    """A language model that rates each completion by a rubric, in [0, 1]. See docs/scorers/judge.md."""

    model: str = ""
    """A model of section `models`. Give either this or `endpoint`."""
    endpoint: str = option("", URL, NOTHING)
    """Base URL of an OpenAI-compatible server, such as http://127.0.0.1:8900/v1."""
    served_model: str = ""
    """The model's name at the endpoint."""
    api_key: str = option("", VARIABLE, NOTHING)
    """Environment variable with the endpoint's key; it must be among `secrets`. Empty sends none."""
    rubric: str = option("correctness", NOT_EMPTY)
    """A bundled rubric (correctness, quality) or the path of a YAML file."""
    system_message: bool = True
    """False puts the instructions into the user's message, for chat templates without a system role."""
    max_tokens: int = option(512, POSITIVE)
    """Of a reply. One that is cut off is no verdict."""
    response_format: str = option("auto", one_of("auto", "text", "json_schema"))
    """json_schema lets the judge write nothing but a verdict in the rubric's form (structured outputs); text
    lets it write anything. auto is json_schema with `model` and text with `endpoint`."""
    temperature: float = option(0.0, NOT_NEGATIVE)
    """Sampling temperature of the replies; 0 takes the likeliest token."""
    seed: int = 0
    """Sent with each request; -1 sends none."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request to the endpoint, such as {response_format: {type: json_object}}."""
    max_answer_chars: int = option(16_000, POSITIVE)
    """Of a longer answer the judge sees the first and the last half of so many characters."""
    call_timeout_s: float = option(15.0, POSITIVE, NOTHING)
    """Seconds for one call; then it is tried again."""
    deadline_s: float = option(50.0, POSITIVE, NOTHING)
    """Seconds for one completion, with all retries and waits. Then its score is null, status timeout."""
    max_retries: int = option(4, NOT_NEGATIVE, NOTHING)
    """Further tries after 429, 5xx, a broken connection or a broken reply."""
    max_concurrent: int = option(8, POSITIVE, NOTHING)
    """Calls at the same time, of all replicas together."""
    requests_per_minute: float = option(0.0, NOT_NEGATIVE, NOTHING)
    """Of all replicas together; 0 sets no limit."""
    tokens_per_minute: float = option(0.0, NOT_NEGATIVE, NOTHING)
    """Prompt and completion, of all replicas together; 0 sets no limit."""
    price_in: float = option(0.0, NOT_NEGATIVE, NOTHING)
    """Price of a million prompt tokens, in any currency."""
    price_out: float = option(0.0, NOT_NEGATIVE, NOTHING)
    """Price of a million completion tokens."""
    max_cost: float = option(0.0, NOT_NEGATIVE, NOTHING)
    """The run stops after the step in which it has paid more, by the prices; 0 sets no limit."""
    max_failure_share: float = option(0.25, SHARE, NOTHING)
    """The run stops if more of its recent scores are missing; 1 never stops it."""
    cache: str = option("runs/judge-cache", None, NOTHING)
    """Folder for the replies, by request, relative to the working directory and not to `runs_dir`: runs may
    share it. Empty (`cache=`) keeps none. Those of a `model` are in a folder inside it, named after the
    model's files."""
    canaries: str = option("warn", one_of("none", "warn", "stop"), NOTHING)
    """What happens if the judge fails an answer whose rating is known: nothing, an event, the run stops."""
    canary_every: int = option(200, NOT_NEGATIVE, NOTHING)
    """Groups between two trials with canaries; 0 tries them only at the start."""

    def check(self) -> Iterator[Broken]:
        if self.model and self.endpoint:
            yield "endpoint", "must be empty with model: a judge asks one of the two"
        if not (self.model or self.endpoint):
            yield "endpoint", "must be a server's URL: give endpoint and served_model, or model"
        if self.endpoint and not self.served_model:
            yield "served_model", "must be the model's name at the endpoint"
        if self.model and self.extra:
            yield "extra", "must be empty with model: it is for endpoints"
        if self.max_cost and not (self.price_in or self.price_out):
            yield "max_cost", "must be 0 without price_in and price_out"
        if self.call_timeout_s > self.deadline_s:
            yield "call_timeout_s", f"must be at most deadline_s ({self.deadline_s:g})"

    def check_run(self, key: str, run: RunView) -> Iterator[Broken]:
        limit_s = run.config.rollout.score_timeout_s
        if self.deadline_s >= limit_s:
            yield (
                f"{key}.deadline_s",
                f"must be below rollout.score_timeout_s ({limit_s:g}), which ends whole groups",
            )
        common = run.scorers[key.partition(".")[2]].common
        # The option's own rule refuses what is no variable.
        if VARIABLE_NAME.fullmatch(self.api_key) and self.api_key not in common.secrets:
            wanted = ", ".join((*common.secrets, self.api_key))
            known = ", ".join(common.secrets) or "none"
            yield f"{key}.api_key", f"must be among {key}.secrets ({known}): set {key}.secrets=[{wanted}]"
        # The limits on calls are shared out among the replicas, and each needs at least one call.
        if common.replicas > self.max_concurrent:
            yield f"{key}.max_concurrent", f"must be at least the number of replicas ({common.replicas})"

    def is_structured(self) -> bool:
        """Whether replies are held to the form of a verdict."""
        return self.response_format == "json_schema" or (self.response_format == "auto" and bool(self.model))

    def model_names(self) -> Mapping[str, str]:
        return {"model": self.model} if self.model else {}

    def model_tasks(self) -> Mapping[str, tuple[str, ...]]:
        return {"model": ("generate",)}

    def with_model_ids(self, ids: Mapping[str, str]) -> JudgeOptions:
        """The options with a cache of the model's own: a name may stand for another model tomorrow."""
        if not self.cache or self.model not in ids:
            return self
        return replace(self, cache=str(Path(self.cache) / f"model-{ids[self.model]}"))

    def files(self) -> tuple[str, ...]:
        return (self.rubric,)

    def failure_limit(self) -> float:
        return self.max_failure_share

    def for_replica(self, index: int, count: int) -> JudgeOptions:
        """Its share of the limits. Only the first replica tries canaries, for all of them."""
        if count == 1:
            return self
        extra_place = index < self.max_concurrent % count
        return replace(
            self,
            max_concurrent=self.max_concurrent // count + extra_place,
            max_cost=self.max_cost / count,
            requests_per_minute=self.requests_per_minute / count,
            tokens_per_minute=self.tokens_per_minute / count,
            canaries="none" if index else self.canaries,
            canary_every=max(1, self.canary_every // count) if self.canary_every else 0,
        )
