"""Real vLLM engines in Ray processes: determinism, limits, and weight syncs wrong in every known way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from engine_process import (
    PROBES,
    OwnLearner,
    engine_config,
    generate,
    private_cluster,
    small_base,
    start_engine,
    submission_of,
)
from rollouters import ENVIRONMENT, joined
from torch import Tensor
from transformers import AutoModelForCausalLM

from cluster.role_proxies import Engines
from cluster.spawn import RayHandle
from cluster.supervise import Supervised
from cluster.weight_transport import HostTransport
from rollouts.records import Completion
from trainer.weights.packed import PackedWeights, pack_weights
from trainer.weights.weight_sync import Published, WeightSyncError, publish

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with private_cluster():
        yield


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, RayHandle]]:
    folder = tmp_path_factory.mktemp("untied")
    path = small_base(folder / "model", tied=False)
    handle = start_engine(engine_config(path), folder / "engine.log")
    asyncio.run(handle.call("ready"))
    yield path, handle
    handle.kill()


def test_tokens_and_logprobs_do_not_depend_on_company_or_order(untied: tuple[str, RayHandle]) -> None:
    """Bitwise: a submission alone, among 20 others (more sequences than run at once), and reversed."""
    _, handle = untied
    submissions = [submission_of(i, 5 + 2 * i, range(100 * i, 100 * i + 8)) for i in range(20)]
    together = asyncio.run(generate(handle, submissions))
    backwards = asyncio.run(generate(handle, submissions[::-1]))[::-1]
    alone = asyncio.run(generate(handle, submissions[7:8]))[0]
    assert together == backwards
    assert together[7] == alone


def test_logprobs_are_the_models_at_the_sampling_temperature(untied: tuple[str, RayHandle]) -> None:
    """Against a plain Hugging Face forward; a prompt's seeds are all different, and so are its samples."""
    path, handle = untied
    submission = submission_of(3, 12, range(6))
    completions = asyncio.run(generate(handle, [submission]))[0]
    model = AutoModelForCausalLM.from_pretrained(path)
    assert len({completion.token_ids for completion in completions}) == 6
    for completion in completions:
        ids = torch.tensor([submission.prompt_ids + completion.token_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, len(submission.prompt_ids) - 1 : -1] / 0.9
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert np.abs(expected.numpy() - np.array(completion.behavior_logprobs)).max() < 1e-4
        assert completion.versions == ((0, 0),)


def test_a_later_turn_continues_token_ids(untied: tuple[str, RayHandle]) -> None:
    """Two turns with tokens of an environment between: every sampled token has the model's logprob in the
    whole row, ids are those asked for, and calls that differ in their limit alone are two calls."""
    path, handle = untied
    engines, submission = Engines([cast(Supervised, handle)]), submission_of(5, 12, [3], max_tokens=8)

    async def turns() -> tuple[Completion, Completion, list[Completion]]:
        shorter = replace(submission, sampling=replace(submission.sampling, max_tokens=4))
        (first,), (cut,) = await asyncio.gather(engines.generate(submission), engines.generate(shorter))
        context = (*submission.prompt_ids, *first.token_ids, *ENVIRONMENT)
        later = replace(submission, prompt_ids=context, seeds=(4,), sample_ids=("g5.0.1",))
        return first, cut, await engines.generate(later)

    first, cut, (then,) = asyncio.run(turns())
    assert (first.sample_id, then.sample_id) == ("g5.0", "g5.0.1")
    assert cut.token_ids == first.token_ids[:4] and len(cut.token_ids) == 4 < len(first.token_ids)
    row = joined(first, ENVIRONMENT, then)
    assert row.loss_mask is not None
    with torch.no_grad():
        ids = torch.tensor([submission.prompt_ids + row.token_ids])
        logits = (
            AutoModelForCausalLM.from_pretrained(path)(ids).logits[0, len(submission.prompt_ids) - 1 : -1]
            / 0.9
        )
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(row.token_ids)[:, None])[:, 0].numpy()
    sampled = np.array(row.loss_mask)
    assert np.abs(expected - np.array(row.behavior_logprobs))[sampled].max() < 1e-4


def _rename(weights: PackedWeights, change: Callable[[str, Tensor], tuple[str, Tensor]]) -> PackedWeights:
    from trainer.weights.packed import unpack_weights

    return pack_weights(weights.version, [change(name, tensor) for name, tensor in unpack_weights(weights)])


async def _sync_then_fault(
    path: str, handle: RayHandle, fault: Callable[[PackedWeights, PackedWeights], PackedWeights]
) -> tuple[dict[str, float], str]:
    """Two good syncs, then one with `fault(current, previous)`: metrics of the good ones, and the refusal."""
    learner, engines, config = OwnLearner(path), Engines([cast(Supervised, handle)]), engine_config(path)
    transport = HostTransport(learner, engines)  # type: ignore[arg-type]
    published: Published | None = None
    metrics: dict[str, float] = {}
    for version in (0, 1):
        learner.learn()
        published, metrics = await publish(version, transport, learner, engines, PROBES, published, config)  # type: ignore[arg-type]
    previous = learner.last
    assert previous is not None
    learner.spoil = lambda weights: fault(weights, previous)
    learner.learn()
    with pytest.raises(WeightSyncError) as refusal:
        await publish(2, transport, learner, engines, PROBES, published, config)  # type: ignore[arg-type]
    return metrics, str(refusal.value)


def _stale(current: PackedWeights, previous: PackedWeights) -> PackedWeights:
    return replace(previous, version=current.version)


def _one_stale(current: PackedWeights, previous: PackedWeights) -> PackedWeights:
    from trainer.weights.packed import unpack_weights

    old = dict(unpack_weights(previous))
    name = "model.layers.1.mlp.up_proj.weight"
    return _rename(current, lambda n, t: (n, old[n] if n == name else t))


def _swapped(current: PackedWeights, previous: PackedWeights) -> PackedWeights:
    moves = {".layers.0.": ".layers.2.", ".layers.2.": ".layers.0."}

    def change(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        for old, new in moves.items():
            if old in name:
                return name.replace(old, new), tensor
        return name, tensor

    return _rename(current, change)


def _dropped(current: PackedWeights, previous: PackedWeights) -> PackedWeights:
    kept = tuple(entry for entry in current.entries if entry.name != "model.layers.2.self_attn.k_proj.weight")
    return replace(current, entries=kept)


def _damaged(current: PackedWeights, previous: PackedWeights) -> PackedWeights:
    buffer = current.buffer.copy()
    buffer[current.entries[5].start + 3] ^= 64
    return replace(current, buffer=buffer)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (_dropped, "tensor model.layers.2.self_attn.k_proj.weight was skipped"),
        (_one_stale, "tensor model.layers.1.mlp.up_proj.weight was skipped"),
        (_stale, "all weights are one step old"),
        (_swapped, "layers 0 and 2 are swapped"),
        (_damaged, "arrived damaged"),
    ],
)
def test_a_bad_sync_is_caught_by_name(
    tmp_path: Path,
    fault: Callable[[PackedWeights, PackedWeights], PackedWeights],
    name: str,
    untied: tuple[str, RayHandle],
) -> None:
    """Good syncs agree to 1e-5 nats, a stale step would show 100 times that; a fault stops by its name."""
    path, handle = untied
    if fault in (_dropped, _damaged):  # these leave the engine unusable, as documented: give them their own
        handle = start_engine(engine_config(path), tmp_path / "engine.log")
    metrics, refusal = asyncio.run(_sync_then_fault(path, handle, fault))
    gap, power = metrics["sync/probe_gap"], metrics["sync/probe_power"]
    assert gap < 1e-5 and 100 * gap + 1e-3 < power
    assert name in refusal
    if fault in (_dropped, _damaged):
        handle.kill()


def test_an_engine_of_two_workers_syncs_and_samples_alike(
    tmp_path: Path, untied: tuple[str, RayHandle]
) -> None:
    """Tensor parallel over two processes: both load the weights, and a stale sync is still caught."""
    path, _ = untied
    config = engine_config(path)
    wide = replace(config, generator=replace(config.generator, tensor_parallel=2))
    handle = start_engine(wide, tmp_path / "engine.log")
    submissions = [submission_of(i, 9, range(4)) for i in range(3)]
    groups = asyncio.run(generate(handle, submissions))
    metrics, refusal = asyncio.run(_sync_then_fault(path, handle, _stale))
    assert metrics["sync/probe_gap"] < 1e-5 and "all weights are one step old" in refusal
    assert {len(group) for group in groups} == {4}
    handle.kill()


def test_a_tied_head_is_repacked_and_a_stale_one_is_named(tmp_path: Path) -> None:
    """On CPU vLLM leaves a tied head at the old weights: ours repacks it, and the probe would tell."""
    path = small_base(tmp_path / "model", tied=True)
    good = start_engine(engine_config(path), tmp_path / "good.log")
    metrics, refusal = asyncio.run(_sync_then_fault(path, good, _stale))
    assert metrics["sync/probe_gap"] < 1e-5 and "one step old" in refusal
    good.kill()
    bad = start_engine(
        engine_config(path), tmp_path / "bad.log", "tests.helpers.faulty_generator:StaleHeadGenerator"
    )

    async def sync() -> None:
        learner, engines, config, published = (
            OwnLearner(path),
            Engines([cast(Supervised, bad)]),
            engine_config(path),
            None,
        )
        transport = HostTransport(learner, engines)  # type: ignore[arg-type]
        for version in range(3):
            published, _ = await publish(version, transport, learner, engines, PROBES, published, config)  # type: ignore[arg-type]
            learner.learn()

    with pytest.raises(WeightSyncError, match="the tied output head is stale"):
        asyncio.run(sync())
    bad.kill()
