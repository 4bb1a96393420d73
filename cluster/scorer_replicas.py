"""The replicas of a scorer as one `trainer.roles.Scorer`: places, limits, replacement and times of calls."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from actors.requests import CallStuckError
from cluster.calls import ScorerActor, call_once
from cluster.spawn import ActorLostError
from cluster.supervise import Supervised
from rewards.scorer_reports import NO_REPORT, ScorerReport, combined
from rollouts.records import Completion, Judgement, Prompt
from trainer.rollout.rollouter import ScorerSet
from trainer.rollout.scorer_calls import ScorerCall, ScorerCalls

_ATTEMPTS: Final = 2
_ANSWER_S: Final = 10.0
"""Extra time after a group's limit for the replica to answer that it has stopped; after that it is stuck."""
_REPORT_S: Final = 5.0
"""Time that a replica has to report of itself."""


@dataclass(slots=True, eq=False)
class _Replica:
    """A replica of a scorer, and how many of its `concurrency` places are taken."""

    actor: Supervised
    num_active: int = 0
    num_parked: int = 0
    """Free places that are held back until the replica is replaced."""
    stuck: str = ""
    """Why it must be replaced once its other groups have ended; "" if it need not be."""
    stuck_life: int = 0
    """The actor's life (`Supervised.settled`) in which it got stuck."""


class ScorerReplicas:
    """The replicas of one scorer. Each scores up to `concurrency` groups at a time, each with its own limit.

    A group's time limit begins when its scoring begins. Failures become a status: a group whose replica died
    twice has null scores with status "crashed", one that took longer than `limit_s` with "timeout". The
    replica itself stops a group at its limit and continues with the others. A replica that cannot stop a
    group is replaced: it gets no new groups, and is killed once its other groups have ended.
    """

    def __init__(
        self, replicas: Sequence[Supervised], limit_s: float, concurrency: int = 1, reports: bool = False
    ) -> None:
        """`reports`: whether the scorer's class may have a method `take_report`."""
        self.limit_s = limit_s
        self.calls = ScorerCalls()
        """The times of the calls of `score`."""
        self._replicas, self._reports = tuple(replicas), reports
        self._places: asyncio.Queue[_Replica] = asyncio.Queue()
        every = [_Replica(replica) for replica in replicas]
        # Round-robin, so that the first groups go to different replicas.
        for replica in every * concurrency:
            self._places.put_nowait(replica)

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        return await self.score_timed(prompt, completions, self.calls)

    async def score_timed(
        self, prompt: Prompt, completions: Sequence[Completion], calls: ScorerCalls
    ) -> list[Judgement]:
        """As `score`; the call is added to `calls` when the replica's place is free again."""
        asked = time.perf_counter()
        try:
            replica = await self._take_place()
        except asyncio.CancelledError:  # the group's time is over
            calls.add(ScorerCall(time.perf_counter() - asked, math.nan))
            raise
        began = time.perf_counter()
        work = asyncio.ensure_future(self._score(replica, prompt, completions))
        work.add_done_callback(lambda _: self._free_place(replica))
        work.add_done_callback(lambda _: calls.add(ScorerCall(began - asked, time.perf_counter() - began)))
        # If the caller is cancelled, the scoring goes on in the replica: its place stays taken until then.
        return await asyncio.shield(work)

    async def take_report(self) -> ScorerReport:
        """The combined report of the replicas; without those that do not answer or have none."""
        if not self._reports:
            return NO_REPORT
        answers = (call_once(each, ScorerActor.take_report) for each in self._replicas)
        reports = await asyncio.gather(
            *(asyncio.wait_for(answer, _REPORT_S) for answer in answers), return_exceptions=True
        )
        return combined([report for report in reports if isinstance(report, ScorerReport)])

    async def _take_place(self) -> _Replica:
        while True:
            replica = await self._places.get()
            if not replica.stuck:
                replica.num_active += 1
                return replica
            replica.num_parked += 1

    def _free_place(self, replica: _Replica) -> None:
        replica.num_active -= 1
        replica.num_parked += 1
        if replica.stuck and replica.num_active:
            return  # the other groups may still end in time
        if replica.stuck:
            replica.actor.replace(replica.stuck, counted=False, life=replica.stuck_life)
            replica.stuck = ""
        for _ in range(replica.num_parked):
            self._places.put_nowait(replica)
        replica.num_parked = 0

    async def _score(
        self, replica: _Replica, prompt: Prompt, completions: Sequence[Completion]
    ) -> list[Judgement]:
        actor, limit_s = replica.actor, self.limit_s
        failed = Judgement(
            score=None, status="crashed", detail=f"{actor.label} died {_ATTEMPTS} times while it scored"
        )
        for _ in range(_ATTEMPTS):
            life = await actor.settled()  # the limit covers scoring, not the start of a replacement
            try:
                answer = call_once(actor, ScorerActor.score, prompt, completions, limit_s)
                return await asyncio.wait_for(answer, limit_s + _ANSWER_S)
            except (TimeoutError, CallStuckError):
                replica.stuck = f"{actor.label} took more than {limit_s:g} s for a group and cannot stop it"
                replica.stuck_life = life
                failed = Judgement(score=None, status="timeout", detail=replica.stuck)
                break
            except ActorLostError:
                continue
        return [failed for _ in completions]


@dataclass(frozen=True, slots=True)
class _Apart:
    """A scorer whose calls are not added to its times."""

    replicas: ScorerReplicas

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        return await self.replicas.score_timed(prompt, completions, ScorerCalls())


def for_evaluation(scorers: ScorerSet) -> ScorerSet:
    """The same scorers for evaluations, whose waits are not those of a step."""
    apart = {
        name: _Apart(scorer) if isinstance(scorer, ScorerReplicas) else scorer
        for name, scorer in scorers.scorers.items()
    }
    return replace(scorers, scorers=apart, calls={})
