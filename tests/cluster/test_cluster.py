"""Where a run goes, without starting anything: placements, the model's folder, and metric sums over ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.job import local_model
from cluster.placement import Placement, plan, table
from cluster.role_proxies import add_sums, local_microbatches
from configs.bound import bind
from configs.schema import RunConfig
from trainer.model.batch_plan import plan_batch


def _config(**generator: int) -> RunConfig:
    config = RunConfig()
    return replace(
        config,
        generator=replace(config.generator, **generator),
        learner=replace(config.learner, num_ranks=generator.get("num_engines", 1)),
    )


def test_engines_and_ranks_take_turns_on_a_bundle() -> None:
    """Two engines and two ranks: two bundles of one CPU, on GPUs also of one GPU, each half of both."""
    placement = plan(bind(_config(num_engines=2)), "cpu")
    assert placement.totals() == {"CPU": 2.0, "GPU": 0.0}
    on_gpu = plan(bind(_config(num_engines=2)), "cuda")
    assert on_gpu.totals() == {"CPU": 2.0, "GPU": 2.0}
    assert [(share.bundle, share.num_gpus) for share in on_gpu.engines] == [(0, 0.5), (1, 0.5)]
    assert [(share.bundle, share.num_gpus) for share in on_gpu.ranks] == [(0, 0.5), (1, 0.5)]


def test_a_wide_engine_has_gpus_of_its_own() -> None:
    """Tensor parallel 4 beside one rank: bundles of four GPUs and of one."""
    placement = plan(bind(_config(tensor_parallel=4)), "cuda")
    assert placement.totals()["GPU"] == 5.0
    assert placement.engines[0].num_gpus == 4.0 and placement.ranks[0].bundle == 1


def _shares(placement: Placement) -> dict[str, list[tuple[int, float, float]]]:
    """(bundle, CPUs, GPUs) of every replica, by scorer."""
    return {
        name: [(share.bundle, share.num_cpus, share.num_gpus) for share in of_scorer]
        for name, of_scorer in placement.scorers.items()
    }


def _model(num_gpus: float, replicas: int = 1, num_cpus: float = 0.0) -> dict[str, object]:
    return {"kind": "lab_preference", "replicas": replicas, "num_gpus": num_gpus, "num_cpus": num_cpus}


def test_scorers_that_ask_for_cpus_or_whole_gpus_have_bundles_of_their_own() -> None:
    """After the bundles of engines and ranks, which they leave as they are; others ask for nothing."""
    scorers = {
        "free": {"kind": "length", "replicas": 3},
        "model": _model(1.0, replicas=2, num_cpus=1.0),
        "cpu": {"kind": "math", "num_cpus": 0.5},
    }
    placement = plan(bind(replace(_config(num_engines=2), scorers=scorers)), "cuda")
    assert placement.totals() == {"CPU": 4.5, "GPU": 4.0}
    assert placement.bundles[2:] == ({"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}, {"CPU": 0.5})
    assert _shares(placement) == {"model": [(2, 1.0, 1.0), (3, 1.0, 1.0)], "cpu": [(4, 0.5, 0.0)]}
    assert replace(placement, scorers={}).engines == plan(bind(_config(num_engines=2)), "cuda").engines


def test_shares_of_a_gpu_are_placed_beside_engines_and_ranks() -> None:
    """Utilization 0.45 and the learner's tenth leave 0.45 of one GPU: 0.25 fits, and 0.25 more does not.

    Engine and rank share what the scorer leaves of the GPU; its CPU is added to their bundle.
    """
    one = plan(bind(replace(_config(), scorers={"judge": _model(0.25, num_cpus=1.0)})), "cuda")
    assert one.bundles == ({"CPU": 2.0, "GPU": 1.0},) and _shares(one) == {"judge": [(0, 1.0, 0.25)]}
    assert (one.engines[0].num_gpus, one.ranks[0].num_gpus) == (0.375, 0.375)
    two = plan(bind(replace(_config(), scorers={"judge": _model(0.25, replicas=2)})), "cuda")
    assert two.totals()["GPU"] == 1.25 and [share[0] for share in _shares(two)["judge"]] == [0, 1]
    on_two = plan(bind(replace(_config(num_engines=2), scorers={"judge": _model(0.3, replicas=2)})), "cuda")
    assert on_two.totals()["GPU"] == 2.0 and [share[0] for share in _shares(on_two)["judge"]] == [0, 1]
    too_large = plan(bind(replace(_config(), scorers={"judge": _model(0.5)})), "cuda")
    assert too_large.totals()["GPU"] == 1.5 and too_large.engines[0].num_gpus == 0.5


def test_a_frozen_models_share_of_a_gpu_is_placed_as_a_scorers() -> None:
    """Beside engine and rank if there is room, which scorers take first; one that is not used has none."""
    rm = {"path": "somewhere", "task": "classify", "num_gpus": 0.25, "num_cpus": 1.0}
    scorers = {"judge": _model(0.2), "liked": {"kind": "reward_model", "model": "rm"}}
    config = replace(_config(), models={"rm": {**rm, "replicas": 2}, "other": rm}, scorers=scorers)
    placement = plan(bind(config), "cuda")
    assert [(each.bundle, each.num_cpus, each.num_gpus) for each in placement.models["rm"]] == [
        (0, 1.0, 0.25),
        (1, 1.0, 0.25),
    ]
    assert placement.bundles == ({"CPU": 2.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.25})
    assert _shares(placement) == {"judge": [(0, 0.0, 0.2)]} and set(placement.models) == {"rm"}
    assert (placement.engines[0].num_gpus, placement.ranks[0].num_gpus) == (0.275, 0.275)
    assert "models.rm shares GPUs with engines or learner (1 replica, 0.25 of a GPU each)" in (
        placement.describe()
    )


@pytest.mark.parametrize("utilization", [0.2, 0.45, 0.6, 0.9])
@pytest.mark.parametrize("schedule", ["take_turns", "overlap"])
@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.5, 0.7])
def test_the_shares_of_a_bundle_fit_into_it(utilization: float, schedule: str, share: float) -> None:
    """In Ray's units of 1e-4, whatever is placed there; engines and ranks keep some of each GPU."""
    config = _config(num_engines=2)
    config = replace(
        config,
        generator=replace(config.generator, gpu_memory_utilization=utilization),
        cluster=replace(config.cluster, schedule=schedule),
        scorers={"a": _model(share, replicas=3), "b": _model(0.15, replicas=2, num_cpus=0.5)},
    )
    placement = plan(bind(config), "cuda")
    used = {"CPU": [0.0] * len(placement.bundles), "GPU": [0.0] * len(placement.bundles)}
    scorers = [each for of_one in placement.scorers.values() for each in of_one]
    for each in (*placement.engines, *placement.ranks, *scorers):
        used["CPU"][each.bundle] += each.num_cpus
        used["GPU"][each.bundle] += each.num_gpus
    for index, bundle in enumerate(placement.bundles):
        for name, amounts in used.items():
            assert amounts[index] <= bundle.get(name, 0.0) + 1e-9
    assert all(each.num_gpus > 0.04 for each in (*placement.engines, *placement.ranks))


def test_no_share_is_placed_on_a_wide_engine_or_without_gpus() -> None:
    """Ray gives an actor several GPUs whole; a learner on CPUs has none to share."""
    config = replace(_config(tensor_parallel=4), scorers={"judge": _model(0.25)})
    wide = plan(bind(config), "cuda")
    assert _shares(wide) == {"judge": [(1, 0.0, 0.25)]} and wide.engines[0].num_gpus == 4.0
    assert wide.ranks[0].num_gpus == 0.75
    assert _shares(plan(bind(config), "cpu")) == {"judge": [(1, 0.0, 0.25)]}


def test_a_placement_says_who_shares_a_gpu() -> None:
    """As `--dry-run` prints it."""
    scorers = {"judge": _model(0.2, replicas=2), "own": _model(1.0)}
    assert plan(bind(replace(_config(), scorers=scorers)), "cuda").describe() == (
        "1 CPU, 2 GPU; scorers.judge shares GPUs with engines or learner (2 replicas, 0.2 of a GPU each)"
    )
    assert plan(bind(_config()), "cpu").describe() == "1 CPU"


def test_the_table_names_what_is_asked_and_there() -> None:
    rows = [line.split() for line in table({"CPU": 8, "GPU": 8}, {"CPU": 2}, {"CPU": 1.5}).splitlines()]
    assert rows[1] == ["CPU", "8", "2", "1.5"] and rows[2] == ["GPU", "8", "0", "0"]


def test_a_model_is_found_here_or_beside_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed base is found from any folder; a folder here comes first; neither is a clear refusal."""
    monkeypatch.chdir(tmp_path)
    packages = Path(__file__).resolve().parents[2]
    assert local_model(bind(RunConfig())).config.model.path == str(packages / "lab/bases/voices")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    config = RunConfig()
    own = replace(config, model=replace(config.model, path="mine"))
    assert local_model(bind(own)).config.model.path == str(tmp_path / "mine")
    for path in ("absent/model", "/absent", "a b"):
        with pytest.raises(ValueError, match=r"model\.path = .*: no such folder in "):
            local_model(bind(replace(config, model=replace(config.model, path=path))))


def test_a_rank_numbers_its_rows_as_its_shard_holds_them() -> None:
    """Row k of the shard is the k-th of rows_of(rank), so numbers run on; empty microbatches stay."""
    batch_plan = plan_batch(np.array([9, 3, 5, 7, 4]), np.array([0, 0, 0, 1, 1]), 2, 2, 10)
    for rank in (0, 1):
        numbers = local_microbatches(batch_plan, rank)
        assert [n for update in numbers for micro in update for n in micro] == list(
            range(len(batch_plan.rows_of(rank)))
        )
        assert [[len(micro) for micro in update] for update in numbers] == [
            [len(micro) for micro in update] for update in batch_plan.microbatches[rank]
        ]


def test_sums_add_over_ranks_and_the_norm_does_not() -> None:
    """1 + 2 tokens, 0.5 + 0.25 of the loss; the gradient norm is global already."""
    one = {"loss/total": 0.5, "tokens/policy": 1.0, "rank/grad_norm": 3.0, "rank/applied": 1.0}
    two = {"loss/total": 0.25, "tokens/policy": 2.0, "rank/grad_norm": 3.0, "rank/applied": 1.0}
    total = add_sums([one, two])
    assert total == {"loss/total": 0.75, "tokens/policy": 3.0, "grad/norm": 3.0, "grad/applied": 1.0}
