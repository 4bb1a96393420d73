"""Roles in memory that note their calls: generator, scorer, learner and buffer, for the tests of the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.kinds.scorers import ScorerCommon
from rollouts.records import Completion, Judgement, Prompt, Submission
from trainer.collate import Batch, Learnable
from trainer.diagnose import Probe
from trainer.prompts import TokenPrompt
from trainer.rollout import Judges

LOGPROB = -0.5


def token_prompts(count: int) -> list[TokenPrompt]:
    """p0, p1, ... whose text is their name."""
    return [
        TokenPrompt(
            Prompt(prompt_id=f"p{k}", messages=(("user", f"p{k}"),), answer="3", domain="math"), (5, 6, 7 + k)
        )
        for k in range(count)
    ]


def answer_of(weights: object, num_tokens: int) -> np.ndarray:
    """Probe logprobs under weights of a version (an int): each version moves them by 0.1."""
    assert isinstance(weights, int)
    return np.full(num_tokens, -1.0 - 0.1 * weights, np.float32)


@dataclass
class FakeGenerator:
    """Three tokens per completion, marked with the version loaded; `drift` is added to the probe's answer."""

    calls: list[str] = field(default_factory=list)
    version: int = -1
    drift: float = 0.0
    stale: bool = False
    behavior_logprob: float = LOGPROB
    refuse: str = ""

    async def generate(self, submission: Submission) -> list[Completion]:
        self.calls.append(f"generate {submission.group_id}")
        return [
            Completion(
                sample_id=f"{submission.group_id}-{number}",
                seed=seed,
                token_ids=(1, 2, 3),
                text=f"text {number}",
                finish_reason="stop",
                behavior_logprobs=(self.behavior_logprob,) * 3,
                versions=((0, max(self.version, 0)),),
            )
            for number, seed in enumerate(submission.seeds)
        ]

    async def load(self, weights: object) -> None:
        assert isinstance(weights, int)
        if self.refuse:
            raise ValueError(self.refuse)
        self.calls.append(f"load {weights}")
        if not (self.stale and weights):
            self.version = weights

    async def probe(self, probes: Sequence[Probe]) -> list[np.ndarray]:
        count = sum(len(probe.token_ids) - 1 for probe in probes)
        return [answer_of(self.version, count) + np.float32(self.drift)]


@dataclass
class FakeScorer:
    """1 for even sample numbers, 0 for odd ones; null where `fails` says so."""

    fails: Callable[[Completion], bool] = lambda completion: False

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        return [
            Judgement(score=None, status="timeout")
            if self.fails(completion)
            else Judgement(score=float(number % 2 == 0), answer_ok=number % 2 == 0)
            for number, completion in enumerate(completions)
        ]


def judges(scorer: FakeScorer | None = None) -> Judges:
    """One scorer, `correct`, of weight 1."""
    common = ScorerCommon(kind="lab_answer", weight=1.0)
    return Judges(scorers={"correct": scorer or FakeScorer()}, commons={"correct": common})


@dataclass
class FakeLearner:
    """Agrees with the sampler on every token; `nonfinite_steps` (from 0) have their update skipped."""

    calls: list[str] = field(default_factory=list)
    version: int = 0
    nonfinite_steps: frozenset[int] = frozenset()
    learned: list[Learnable] = field(default_factory=list)

    async def score(self, batch: Batch) -> pa.Table:
        self.calls.append("score")
        names, num_rows = batch.index.column("sample_id"), batch.index.num_rows
        floats = pa.array([[LOGPROB] * 3] * num_rows, pa.list_(pa.float32()))
        zeros = pa.array([0.0] * num_rows, pa.float64())
        columns = {
            "sample_id": names,
            **dict.fromkeys(("proximal_logprobs", "ref_logprobs", "base_logprobs", "entropy"), floats),
            "entropy_mean": pa.array([0.5] * num_rows, pa.float32()),
            "entropy_mean_t1": pa.array([0.5] * num_rows, pa.float32()),
            "mismatch_abs": zeros,
            "mismatch_k3": zeros,
        }
        return pa.table(columns).take(np.arange(num_rows)[::-1])  # ranks answer in an order of their own

    async def update(self, batch: Batch, learnable: Learnable) -> list[dict[str, float]]:
        self.calls.append("update")
        self.learned.append(learnable)
        applied = float(self.version not in self.nonfinite_steps)
        self.version += 1
        return [{"loss/policy": 0.25, "loss/total": 0.25, "grad/norm": 2.0, "grad/applied": applied}]

    async def publish(self, version: int) -> object:
        self.calls.append(f"publish {version}")
        return version

    async def probe(self, probes: Sequence[Probe]) -> np.ndarray:
        count = sum(len(probe.token_ids) - 1 for probe in probes)
        return answer_of(self.version, count)

    async def explain(
        self, probes: Sequence[Probe], observed: np.ndarray, current: object, previous: object | None
    ) -> str:
        return f"explained {current} after {previous}"

    async def export(self, folder: str) -> None:
        self.calls.append("export")


@dataclass
class FakeBuffer:
    """Groups in a dict; the index has the columns that the loop and its metrics read."""

    calls: list[str] = field(default_factory=list)
    waiting: dict[int, pa.RecordBatch] = field(default_factory=dict)
    lags: list[int] = field(default_factory=list)
    committed: list[tuple[int, pa.Table, Mapping[str, object]]] = field(default_factory=list)

    async def add(self, batch: pa.RecordBatch) -> None:
        index = batch.column("submission_index")[0].as_py()
        self.calls.append(f"add {index}")
        self.waiting[index] = batch

    async def take(self, num_groups: int, min_version: int) -> pa.Table | None:
        self.calls.append(f"take {num_groups} from {min_version}")
        if len(self.waiting) < num_groups:
            return None
        chosen = sorted(self.waiting)[:num_groups]
        rows = pa.Table.from_batches([self.waiting.pop(index) for index in chosen])
        versions = [spans[0]["version"] for spans in rows.column("versions").to_pylist()]
        self.lags.extend(min_version - version for version in versions)
        lengths = pc.list_value_length(rows.column("token_ids"))
        return (
            rows.append_column("num_prompt_tokens", pc.list_value_length(rows.column("prompt_ids")))
            .append_column("num_tokens", lengths)
            .append_column("num_loss_tokens", lengths)
        )

    async def commit(self, step: int, columns: pa.Table, summary: Mapping[str, object]) -> float:
        self.calls.append(f"commit {step}")
        self.committed.append((step, columns, summary))
        return 0.0
