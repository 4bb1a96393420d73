"""The check after a weight sync: it accepts good ones and stops on stale, wrong or refused weights."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from loop_fakes import FakeGenerator, FakeLearner, FakeTransport, answer_of

from configs.schema import ModelConfig, RolloutConfig, RunConfig, SyncConfig
from trainer.step_records import Probe
from trainer.weights.weight_sync import Published, WeightSyncError, check_mismatch, publish, tolerance

PROBES = (Probe(token_ids=(1, 2, 3)), Probe(token_ids=(4, 5)))
CONFIG = RunConfig()


def previous(version: int = 2) -> Published:
    return Published(version=version, expected=answer_of(version, 3), noise=0.0)


def run_publish(
    version: int,
    generator: FakeGenerator,
    probes: Sequence[Probe],
    before: Published | None,
    config: RunConfig = CONFIG,
) -> tuple[Published, dict[str, float]]:
    """`publish` of a learner that has `version`."""
    learner = FakeLearner(version=version)
    transport = FakeTransport(learner, generator, last=before.version if before is not None else None)
    return asyncio.run(publish(version, transport, learner, generator, probes, before, config))


def sync(generator: FakeGenerator, before: Published | None, config: RunConfig = CONFIG) -> dict[str, float]:
    """Publish version 3 of a learner whose weights changed the probe by 0.1 nats in this step."""
    published, metrics = run_publish(3, generator, PROBES, before, config)
    assert published.version == 3
    np.testing.assert_array_equal(published.expected, answer_of(3, 3))
    return metrics


def test_a_good_sync_is_proven() -> None:
    """No gap, and a stale engine would have had 0.1."""
    metrics = sync(FakeGenerator(drift=1e-4), previous())
    assert metrics == pytest.approx(
        {"sync/probe_gap": 1e-4, "sync/probe_power": 0.1, "sync/proven": 1.0}, rel=1e-2
    )


def test_the_first_sync_has_nothing_to_compare_with() -> None:
    """It is checked, but its power is unknown, so it is not called proven."""
    metrics = sync(FakeGenerator(), None)
    assert metrics["sync/probe_gap"] == 0.0 and np.isnan(metrics["sync/probe_power"])
    assert metrics["sync/proven"] == 0.0


def test_no_probes_no_claim() -> None:
    """sync.num_probes = 0 sends the weights and reports no metrics about them."""
    generator = FakeGenerator()
    published, metrics = run_publish(1, generator, (), None)
    assert metrics == {} and len(published.expected) == 0 and generator.calls == ["load 1"]


def test_a_gap_above_the_tolerance_raises_with_the_explanation() -> None:
    """2e-3 nats where fp32 allows 1e-3."""
    with pytest.raises(
        WeightSyncError, match=r"version 3, engine 0 .* 2\.00e-03 nats.*explained 3 after None"
    ):
        sync(FakeGenerator(drift=2e-3), None)


def test_a_stale_engine_raises() -> None:
    """The engine accepted the new weights and has the logprobs of version 2."""
    with pytest.raises(
        WeightSyncError, match=r"1\.00e-01 nats .*one stale step would show 1\.00e-01.*after 2"
    ):
        sync(FakeGenerator(version=2, stale=True), previous())


def test_a_stale_engine_raises_under_the_tolerance() -> None:
    """A tolerance of 1 nat would accept a gap of 0.1, but 0.1 is exactly how far one step changed the
    weights.
    """
    loose = RunConfig(sync=SyncConfig(tolerance=1.0))
    with pytest.raises(WeightSyncError, match="explained 3 after 2"):
        sync(FakeGenerator(version=2, stale=True), previous(), loose)
    assert sync(FakeGenerator(drift=0.02), previous(), loose)["sync/proven"] == 1.0


def test_a_step_that_moved_nothing_is_not_proven() -> None:
    """If the probe did not change, a stale engine cannot be detected: report it, and do not raise on
    rounding.
    """
    still = Published(version=2, expected=answer_of(3, 3), noise=0.0)
    metrics = sync(FakeGenerator(drift=1e-6), still)
    assert metrics["sync/proven"] == 0.0 and metrics["sync/probe_power"] == 0.0


def test_every_engine_is_checked() -> None:
    """The second of two engines is the wrong one."""

    class TwoEngines(FakeGenerator):
        async def probe(self, probes: object) -> list[np.ndarray]:
            return [answer_of(3, 3), answer_of(2, 3)]

    with pytest.raises(WeightSyncError, match="engine 1 and learner differ"):
        sync(TwoEngines(), previous())


def test_answers_that_are_not_numbers_raise() -> None:
    """NaN is not above the tolerance, and must still fail."""
    with pytest.raises(WeightSyncError, match="differ by nan"):
        sync(FakeGenerator(drift=float("nan")), previous())


def test_names_or_checksums_that_an_engine_refuses_raise() -> None:
    """The engine's own message, with the version."""
    refused = "tensor model.norm.weight is unknown"
    with pytest.raises(WeightSyncError, match=f"weight sync to version 3 failed: {refused}"):
        sync(FakeGenerator(refuse=refused), previous())


def test_the_mismatch_gate() -> None:
    """At lag 0 the logprobs of the training tokens must agree; with lag they need not."""
    check_mismatch(9e-4, CONFIG)
    with pytest.raises(WeightSyncError, match=r"1\.10e-03 nats on the training tokens"):
        check_mismatch(1.1e-3, CONFIG)
    check_mismatch(5.0, RunConfig(rollout=RolloutConfig(max_lag=1)))


@pytest.mark.parametrize(
    ("dtype", "given", "wanted"), [("fp32", 0.0, 1e-3), ("bf16", 0.0, 5e-2), ("bf16", 0.2, 0.2)]
)
def test_tolerance(dtype: str, given: float, wanted: float) -> None:
    """sync.tolerance, or the default of the dtype."""
    assert tolerance(RunConfig(model=ModelConfig(dtype=dtype), sync=SyncConfig(tolerance=given))) == wanted
