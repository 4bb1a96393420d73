"""The scorer `judge`: a language model rates each completion by a rubric. See docs/scorers/judge.md.

In: a prompt and its completions. Out: a Judgement each. What is no verdict (a refusal, a reply that is cut
off or cannot be parsed, a missing criterion, a timeout) is a null score with a status, never 0. Named in
`configs/kinds/scorers.py`; one instance is made per replica, by `actors.scorer`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from configs.kinds.judges import JudgeOptions
from rewards.call_limits import CallLimits
from rewards.endpoint_model import CHARS_PER_TOKEN, CallCounts, EndpointConfig, EndpointModel
from rewards.judge_cache import ReplyCache
from rewards.judge_canaries import Canary, make_canaries, probe_of
from rewards.judge_reply import NoVerdictError, Verdict, read_reply
from rewards.judge_request import JudgeRequest, make_request, question_of, reference_of, reply_schema
from rewards.judge_rubric import Probe, load_rubric
from rewards.model_calls import GenerateReply, GenerateRequest, Model, ModelCallError
from rewards.scorer_reports import ScorerEvent, ScorerReport
from rollouts.files import Json
from rollouts.records import Completion, Judgement, Prompt, Status

MAX_EVENTS: Final = 100
_LAB_JUDGE: Final = "lab-judge"
"""The name under which `polyphony lab judge-server` serves."""
MAX_EXPLANATION: Final = 300
"""Characters of the explanation in a reply that is held to a schema by an engine of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """A verdict or why there is none, and the reply, if there was one."""

    verdict: Verdict | None
    status: Status = "ok"
    reason: str = ""
    reply: GenerateReply | None = None


class Judge:
    """Rates completions with the model that the options name: one of `models`, or an endpoint.

    Raises:
        ValueError: the rubric cannot be used.
    """

    def __init__(self, options: JudgeOptions, models: Mapping[str, Model] | None = None) -> None:
        self._options, self._rubric = options, load_rubric(options.rubric)
        self._name = options.model or options.served_model
        self._counts, self._events, self._stop = CallCounts(), list[ScorerEvent](), ""
        limits = CallLimits(options.max_concurrent, options.requests_per_minute, options.tokens_per_minute)
        self._endpoint: EndpointModel | None = None
        if options.endpoint:
            self._endpoint = EndpointModel(_endpoint_config(options), limits, self._counts)
        self._model = self._endpoint or _LimitedModel(
            (models or {})[options.model], limits, self._counts, options
        )
        self._cache = ReplyCache(options.cache)
        self._in_flight: dict[str, asyncio.Task[_Outcome]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._num_groups, self._tried = 0, False

    async def start(self) -> None:
        """Try the rubric's canaries, which also shows that the judge can be reached.

        Raises:
            ValueError: the judge gives no verdict on the known good answer, or it fails a canary and
                `canaries` is stop.
        """
        if self._rubric.probe is None or self._options.canaries == "none":
            return
        await self._try_canaries(self._rubric.probe, at_start=True)
        if self._stop:
            raise ValueError(self._stop)

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        """One judgement per completion. Equal completions are judged once."""
        self._begin_canaries(prompt)
        return list(await asyncio.gather(*(self._judgement(prompt, each.text) for each in completions)))

    def take_report(self) -> ScorerReport:
        """What was called, paid and seen since the last report."""
        sums, slowest_s = self._counts.take()
        events, self._events = tuple(self._events), []
        stop = self._stop or self._too_dear()
        return ScorerReport(sums=sums, maxima={"slowest_call_s": slowest_s}, events=events, stop=stop)

    def _too_dear(self) -> str:
        """Why the run must stop if this process has paid more than `max_cost`; earlier ones do not count."""
        paid, most = self._counts.total_cost, self._options.max_cost
        if not most or paid <= most:
            return ""
        return (
            f"judge {self._name} has cost {paid:.4g}, more than its share of max_cost, {most:.4g}. Run the "
            "same command again to spend as much once more; replies in the cache cost nothing"
        )

    async def close(self) -> None:
        """Cancel what is in flight, and close the connections."""
        for task in [*self._in_flight.values(), *self._background]:
            task.cancel()
        if self._endpoint is not None:
            await self._endpoint.close()

    async def _judgement(self, prompt: Prompt, answer: str) -> Judgement:
        # Without a call: an empty answer meets no criterion, and some models refuse to rate one.
        if not answer.strip():
            return Judgement(score=self._rubric.lowest(), tags={"judge": "empty"})
        try:
            request = self._request(question_of(prompt), reference_of(prompt), answer)
        except ValueError as error:
            return Judgement(score=None, status="error", detail=f"{prompt.prompt_id}: {error}")
        outcome = await self._shared(request)
        numbers = self._numbers(outcome, request)
        if outcome.verdict is None:
            self._counts.add("failed")
            return Judgement(score=None, status=outcome.status, detail=outcome.reason, numbers=numbers)
        numbers |= {f"criterion/{name}": value for name, value in outcome.verdict.values.items()}
        texts = {"explanation": outcome.verdict.explanation} if outcome.verdict.explanation else {}
        return Judgement(score=outcome.verdict.score, numbers=numbers, texts=texts)

    def _numbers(self, outcome: _Outcome, request: JudgeRequest) -> dict[str, float]:
        """What this judgement took, whether it was paid now or before: a resumed run stores the same."""
        options, reply = self._options, outcome.reply
        num_prompt = reply.num_prompt_tokens if reply else 0
        num_completion = reply.num_completion_tokens if reply else 0
        numbers = {
            "prompt_tokens": float(num_prompt),
            "completion_tokens": float(num_completion),
            "cost": (num_prompt * options.price_in + num_completion * options.price_out) / 1e6,
        }
        return numbers | ({"cut_chars": float(request.num_cut)} if request.num_cut else {})

    def _request(self, question: str, reference: str | None, answer: str) -> JudgeRequest:
        request = make_request(self._rubric, question, reference, answer, self._options.max_answer_chars)
        return request if self._options.system_message else request.as_one_message()

    async def _shared(self, request: JudgeRequest) -> _Outcome:
        """The outcome of a request; equal requests in flight are one call, which nobody's timeout cancels."""
        key = request.key(self._name, self._sampling())
        task = self._in_flight.get(key)
        if task is None:
            task = asyncio.create_task(self._cached(key, request))
            self._in_flight[key] = task
            task.add_done_callback(lambda _: self._in_flight.pop(key, None))
        else:
            self._counts.add("shared")
        # Other completions may wait for the same call: the timeout of one must not cancel it for all.
        return await asyncio.shield(task)

    async def _cached(self, key: str, request: JudgeRequest) -> _Outcome:
        stored = self._cache.read(key)
        if stored is not None and (outcome := self._outcome(stored, request)).verdict is not None:
            self._counts.add("cached")
            return outcome
        outcome = await self._asked(request)
        if outcome.reply is not None and outcome.verdict is not None:  # failures are asked again
            self._cache.write(key, outcome.reply)
        return outcome

    async def _asked(self, request: JudgeRequest) -> _Outcome:
        """The outcome of a call; what fails becomes a status."""
        options = self._options
        call = GenerateRequest(
            prompt=request.messages,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            seed=max(options.seed, 0),
            json_schema=self._schema(request),
        )
        try:
            (reply,) = await self._model.generate([call])
        except TimeoutError as error:
            self._counts.add("timed_out")
            return _Outcome(verdict=None, status="timeout", reason=str(error) or "the deadline passed")
        except (ModelCallError, ValueError) as error:
            return _Outcome(verdict=None, status="error", reason=str(error))
        outcome = self._outcome(reply, request)
        if outcome.verdict is None:
            self._counts.add("unusable")
        return outcome

    def _outcome(self, reply: GenerateReply, request: JudgeRequest) -> _Outcome:
        # A reply that was cut off may still have a verdict in its reasoning, which the model would have
        # revised.
        if reply.finish_reason != "stop":
            why = f"the reply was cut off ({reply.finish_reason}; max_tokens {self._options.max_tokens})"
            return _Outcome(verdict=None, status="invalid", reason=why, reply=reply)
        try:
            return _Outcome(verdict=read_reply(reply.text, request.tag, self._rubric), reply=reply)
        except NoVerdictError as error:
            return _Outcome(verdict=None, status="invalid", reason=str(error), reply=reply)

    def _schema(self, request: JudgeRequest) -> str:
        """The form of the reply, if it is held to one."""
        if not self._options.is_structured():
            return ""
        # A small model may write its explanation until it is cut off. Endpoints may refuse such a limit.
        longest = 0 if self._options.endpoint else min(MAX_EXPLANATION, max(1, self._options.max_tokens // 2))
        return reply_schema(self._rubric, request.tag, longest)

    def _sampling(self) -> dict[str, Json]:
        options = self._options
        form: dict[str, Json] = {"response_format": "json_schema"} if options.is_structured() else {}
        return form | {
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "seed": options.seed,
            "extra": options.extra,
        }

    def _begin_canaries(self, prompt: Prompt) -> None:
        """Try the canaries beside the scoring, if it is time: at the start and as `canary_every` says."""
        options, first = self._options, not self._tried
        self._num_groups += 1
        due = options.canary_every and self._num_groups % options.canary_every == 0
        if options.canaries == "none" or not (first or due):
            return
        probe = self._rubric.probe or probe_of(question_of(prompt), reference_of(prompt), prompt)
        if probe is not None:
            self._tried = True
            self._spawn(self._try_canaries(probe, at_start=False))

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        # asyncio keeps only a weak reference to a task; one that nobody holds may vanish in the middle.
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _try_canaries(self, probe: Probe, at_start: bool) -> None:
        """Judge all canaries, past the cache: the model behind an endpoint may have become another."""
        self._tried = True
        canaries = make_canaries(self._rubric, probe)
        outcomes = await asyncio.gather(*(self._try(each) for each in canaries))
        for canary, outcome in zip(canaries, outcomes, strict=True):
            self._counts.add("canaries")
            if outcome.verdict is None:
                self._unjudged(canary, outcome, at_start)
            elif canary.fooled(outcome.verdict.score):
                self._fooled(canary, outcome.verdict.score)

    async def _try(self, canary: Canary) -> _Outcome:
        request = self._request(canary.question, canary.reference or None, canary.answer)
        return await self._asked(request)

    def _fooled(self, canary: Canary, score: float) -> None:
        self._counts.add("canaries_failed")
        event = canary.event(self._name, score)
        # A judge that fails every canary would otherwise fill the log.
        if len(self._events) < MAX_EVENTS:
            self._events.append(event)
        if self._options.canaries == "stop":
            wanted = event.fields["wanted"]
            self._stop = (
                f"judge {self._name} gave the canary {canary.name!r} a score of {score:.3g}, not {wanted}: "
                "take another judge or rubric, or set canaries=warn"
            )

    def _unjudged(self, canary: Canary, outcome: _Outcome, at_start: bool) -> None:
        """A canary without a verdict is no alarm; but a judge that cannot rate the good answer is none."""
        self._counts.add("canaries_unjudged")
        if at_start and canary.name == "good":
            raise ValueError(self._why_unusable(outcome))

    def _why_unusable(self, outcome: _Outcome) -> str:
        """Why the known good answer has no verdict, and what to do."""
        if outcome.reply is not None:
            return f"judge {self._name} gave the rubric's good answer no verdict: {outcome.reason}"
        remedy = ""
        if self._options.endpoint:
            remedy = "; see that its server runs, and check endpoint, served_model and api_key"
            if self._name == _LAB_JUDGE:
                remedy = "; start it with `polyphony lab judge-server`"
        return f"judge {self._name} gave no reply: {outcome.reason}{remedy}"


class _LimitedModel:
    """A model of the run with the judge's limits and deadline; its calls are counted as an endpoint's."""

    def __init__(self, model: Model, limits: CallLimits, counts: CallCounts, options: JudgeOptions) -> None:
        self._model, self._limits, self._counts, self._options = model, limits, counts, options

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateReply]:
        clock = asyncio.get_running_loop().time
        return [await self._one(request, clock() + self._options.deadline_s) for request in requests]

    async def _one(self, request: GenerateRequest, deadline: float) -> GenerateReply:
        clock, options = asyncio.get_running_loop().time, self._options
        estimated = int(sum(len(str(each)) for each in request.prompt) / CHARS_PER_TOKEN) + request.max_tokens
        async with self._limits.place(estimated, deadline):
            began = clock()
            try:
                async with asyncio.timeout_at(deadline):
                    (reply,) = await self._model.generate([request])
            finally:
                self._counts.call(clock() - began)
        num_prompt, num_completion = reply.num_prompt_tokens, reply.num_completion_tokens
        self._limits.correct(estimated, num_prompt + num_completion)
        self._counts.add("prompt_tokens", num_prompt)
        self._counts.add("completion_tokens", num_completion)
        self._counts.add("cost", (num_prompt * options.price_in + num_completion * options.price_out) / 1e6)
        return reply


def _endpoint_config(options: JudgeOptions) -> EndpointConfig:
    """Where and how the endpoint is called; the key is read from the scorer's own environment."""
    return EndpointConfig(
        url=options.endpoint,
        model=options.served_model,
        api_key=os.environ.get(options.api_key, "") if options.api_key else "",
        call_timeout_s=options.call_timeout_s,
        deadline_s=options.deadline_s,
        max_retries=options.max_retries,
        price_in=options.price_in,
        price_out=options.price_out,
        send_seed=options.seed >= 0,
        extra=options.extra,
    )
