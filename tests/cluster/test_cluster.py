"""Where a run goes, without starting anything: placements, the model's folder, and metric sums over ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.job import local_model
from cluster.placement import plan, table
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


def test_scorers_that_ask_have_bundles_of_their_own() -> None:
    """Two replicas with a quarter of a GPU and a CPU each, after the bundles of engines and ranks."""
    scorers = {
        "free": {"kind": "length", "replicas": 3},
        "model": {"kind": "lab_preference", "replicas": 2, "num_gpus": 0.25, "num_cpus": 1.0},
        "cpu": {"kind": "math", "num_cpus": 0.5},
    }
    placement = plan(bind(replace(_config(num_engines=2), scorers=scorers)), "cuda")
    assert placement.totals() == {"CPU": 4.5, "GPU": 2.5}
    assert placement.bundles[2:] == ({"CPU": 1.0, "GPU": 0.25}, {"CPU": 1.0, "GPU": 0.25}, {"CPU": 0.5})
    shares = {
        name: [(share.bundle, share.num_cpus, share.num_gpus) for share in of_scorer]
        for name, of_scorer in placement.scorers.items()
    }
    assert shares == {"model": [(2, 1.0, 0.25), (3, 1.0, 0.25)], "cpu": [(4, 0.5, 0.0)]}
    assert replace(placement, scorers={}).engines == plan(bind(_config(num_engines=2)), "cuda").engines


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
