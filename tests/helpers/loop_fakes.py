"""Roles that note their calls, for the tests of the loop: in memory, but for the buffer, which is real."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.buffer import BufferActor
from configs.kinds.scorers import ScorerCommon
from configs.origins import ORIGINS
from rollouts.records import Completion, Judgement, Prompt, Submission
from rollouts.sums import digest_bytes
from trainer.data.prompts import TokenPrompt
from trainer.roles import Diagnosis
from trainer.rollout.rollouter import ScorerSet
from trainer.step_records import Batch, Learnable, Pick, Probe, Restored

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
    """Three tokens per completion, drawn from its seed and the version loaded, which they are marked with.

    `drift` is added to the probe's answer; a `stale` one keeps the weights of step 0.
    """

    calls: list[str] = field(default_factory=list)
    version: int = -1
    drift: float = 0.0
    stale: bool = False
    behavior_logprob: float = LOGPROB
    refuse: str = ""

    async def generate(self, submission: Submission) -> list[Completion]:
        self.calls.append(f"generate {submission.group_id}")
        version = max(self.version, 0)
        return [
            Completion(
                sample_id=submission.sample_id(number),
                seed=seed,
                token_ids=tuple(
                    int(token) for token in np.random.default_rng((seed, version)).integers(9, size=3)
                ),
                text=f"text {number}",
                finish_reason="stop",
                behavior_logprobs=(self.behavior_logprob,) * 3,
                versions=((0, version),),
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

    async def pause(self) -> None:
        self.calls.append("pause")

    async def resume(self) -> None:
        self.calls.append("resume")


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


class TokenScorer(FakeScorer):
    """1 if the first token is 0, 1 or 2 of the nine there are, else 0.

    So the two rewards of a pair are equal with probability (1/3)^2 + (2/3)^2 = 5/9.
    """

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        return [Judgement(score=float(completion.token_ids[0] < 3)) for completion in completions]


def scorers(scorer: FakeScorer | None = None) -> ScorerSet:
    """One scorer, `correct`, of weight 1."""
    common = ScorerCommon(kind="lab_answer", weight=1.0)
    return ScorerSet(scorers={"correct": scorer or FakeScorer()}, common_keys={"correct": common})


def _masks(index: pa.Table) -> list[list[bool]]:
    """The loss mask of every row: what is not sampled follows the third token, as `rollouters` has it."""
    counts = zip(
        index.column("num_tokens").to_pylist(), index.column("num_loss_tokens").to_pylist(), strict=True
    )
    return [[not 3 <= at < 3 + tokens - sampled for at in range(tokens)] for tokens, sampled in counts]


@dataclass
class FakeLearner:
    """Agrees with the sampler on every token; `nonfinite_steps` (from 0) have their update skipped.

    Its `state` is a hash of all that it was trained on, in order, and its losses are read off that.
    """

    calls: list[str] = field(default_factory=list)
    version: int = 0
    state: str = ""
    nonfinite_steps: frozenset[int] = frozenset()
    learned: list[Learnable] = field(default_factory=list)

    async def compute_logprobs(self, batch: Batch) -> pa.Table:
        self.calls.append("compute_logprobs")
        names, num_rows = batch.index.column("sample_id"), batch.index.num_rows
        counts = batch.index.column("num_tokens").to_pylist()
        floats = pa.array([[LOGPROB] * count for count in counts], pa.list_(pa.float32()))
        zeros = pa.array([0.0] * num_rows, pa.float64())
        origins = batch.index.column("origin").to_pylist()
        taught = pa.array([0.25 if ORIGINS[origin].taught else None for origin in origins], pa.float64())
        columns = {
            "sample_id": names,
            "loss_mask": pa.array(_masks(batch.index), pa.list_(pa.bool_())),
            **dict.fromkeys(("proximal_logprobs", "ref_logprobs", "base_logprobs", "entropy"), floats),
            "entropy_mean": pa.array([self._drawn("entropy")] * num_rows, pa.float32()),
            "entropy_mean_t1": pa.array([0.5] * num_rows, pa.float32()),
            "mismatch_abs": zeros,
            "mismatch_k3": zeros,
            "teacher_kl": taught,
            "teacher_gain": taught,
        }
        return pa.table(columns).take(np.arange(num_rows)[::-1])  # ranks answer in an order of their own

    def _drawn(self, name: str) -> float:
        """A number from 0 to 1 that depends on everything learned so far."""
        return int(hashlib.sha256(f"{self.state} {name}".encode()).hexdigest()[:8], 16) / 2**32

    async def update(self, batch: Batch, learnable: Learnable) -> list[dict[str, float]]:
        self.calls.append("update")
        self.learned.append(learnable)
        applied = self.version not in self.nonfinite_steps
        if applied:
            seen = (batch.index.column("sample_id").to_pylist(), learnable.advantage_N.tolist())
            self.state = hashlib.sha256(
                f"{self.state} {seen} {learnable.learning_rates}".encode()
            ).hexdigest()
        self.version += 1
        loss = self._drawn("loss")
        return [{"loss/policy": loss, "loss/total": loss, "grad/norm": 2.0, "grad/applied": float(applied)}]

    async def publish(self, version: int) -> object:
        self.calls.append(f"publish {version}")
        return version

    async def probe(self, probes: Sequence[Probe]) -> np.ndarray:
        count = sum(len(probe.token_ids) - 1 for probe in probes)
        return answer_of(self.version, count)

    async def save(self, folder: str) -> Mapping[str, str]:
        self.calls.append("save")
        content = f"{self.version} {self.state}".encode()
        (Path(folder) / "learner-00000-of-00001.safetensors").write_bytes(content)
        return {"learner-00000-of-00001.safetensors": digest_bytes(content)}

    async def load(self, folder: str) -> None:
        self.calls.append("load state")
        text = (Path(folder) / "learner-00000-of-00001.safetensors").read_text()
        version, self.state = text.split(" ")
        self.version = int(version)

    async def reset_reference(self, with_optimizer: bool) -> None:
        self.calls.append(f"reset reference {with_optimizer}")

    async def restart(self) -> None:
        self.calls.append("restart")
        self.version, self.state = 0, ""

    async def export(self, folder: str) -> None:
        self.calls.append("export")


class FakeTransport:
    """The learner publishes, then the engines load. After a sync to 3 that follows one to 2, the diagnosis is
    "explained 3 after 2"."""

    def __init__(self, learner: FakeLearner, generator: FakeGenerator, last: object = None) -> None:
        self._learner, self._generator, self._last = learner, generator, last

    async def sync(self, version: int) -> Diagnosis:
        before, self._last = self._last, await self._learner.publish(version)
        await self._generator.load(self._last)

        async def explain(probes: Sequence[Probe], observed: np.ndarray) -> str:
            return f"explained {version} after {before}"

        return explain


class FileBuffer:
    """The real buffer on real files, called where it is; `lags` are those of all rows that were taken."""

    def __init__(self, run_dir: Path, groups_per_step: int) -> None:
        run_dir.mkdir(exist_ok=True)
        (run_dir / "journal").mkdir(exist_ok=True)
        self.actor = BufferActor(str(run_dir), "run", groups_per_step, lock_wait_s=0.0)
        weakref.finalize(self, self.actor.close)  # a test that is over holds no lock
        self.calls: list[str] = []
        self.lags: list[int] = []
        self.committed: list[tuple[int, pa.Table, Mapping[str, object]]] = []

    async def rewind(self, step: int, attempt: int) -> Restored:
        self.calls.append(f"rewind {step}")
        return self.actor.rewind(step, attempt)

    async def add(self, batch: pa.RecordBatch) -> None:
        self.calls.append(f"add {batch.column('submission_index')[0].as_py()}")
        self.actor.add(batch)

    async def waiting(self) -> tuple[int, ...]:
        return self.actor.waiting()

    async def rewards(self, first: int, last: int) -> pa.Table:
        self.calls.append(f"rewards {first} to {last}")
        return self.actor.rewards(first, last)

    async def take(
        self,
        num_groups: int,
        min_version: int,
        replay: Sequence[Pick] = (),
        sft: pa.RecordBatch | None = None,
    ) -> pa.Table | None:
        self.calls.append(f"take {num_groups} from {min_version}")
        index = self.actor.take(num_groups, min_version, replay, sft)
        if index is not None:
            versions = pc.drop_null(index.column("min_version")).to_pylist()
            self.lags.extend(min_version - version for version in versions)
        return index

    async def commit(self, step: int, columns: pa.Table, summary: Mapping[str, object]) -> float:
        self.calls.append(f"commit {step}")
        self.committed.append((step, columns, summary))
        return self.actor.commit(step, columns, summary)  # type: ignore[arg-type]


class Observed:
    """A role whose every call goes through `observe`, which may do something before, after, or instead."""

    def __init__(
        self,
        role: object,
        name: str,
        observe: Callable[[str, Callable[[], Awaitable[object]]], Awaitable[object]],
    ) -> None:
        self._role, self._name, self._observe = role, name, observe

    def __getattr__(self, method: str) -> Callable[..., Awaitable[object]]:
        function = getattr(self._role, method)

        async def call(*arguments: object) -> object:
            return await self._observe(f"{self._name}.{method}", lambda: function(*arguments))

        return call
