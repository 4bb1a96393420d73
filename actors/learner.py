"""One learner rank: a DeepSpeed engine that scores rollout rows, updates the policy, publishes weights.

A plain class. `cluster` starts `num_ranks` of them and calls every public method except `explain` on all
ranks at once, because under ZeRO each is a collective. Pretraining and SFT use it with rows of origin sft and
the nll loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from actors.adam_shares import Holdings, clear_moments, holdings_of, set_weight
from actors.anchor import Anchors
from actors.deepspeed_engine import full_parameters, init_distributed, start_engine
from actors.learner_state import file_name, load_state, save_state
from actors.requests import LocalMicrobatches, RankPlace, RankUpdate
from actors.teaching import Teaching
from configs.bound import BoundRun
from configs.kinds.base import load_target
from trainer.losses.batch_statistics import Prepared, TokenTable, prepare_origin
from trainer.losses.logprobs import TokenScores
from trainer.model.batch_plan import Microbatch, build_microbatch
from trainer.model.checkpoint_format import to_checkpoint_format
from trainer.model.policy import PolicyModel, load_policy
from trainer.model.rows import TEACHER_COLUMNS, RankRows, read_rows, score_columns
from trainer.objective import BoundLoss, Objective, bound_objective, microbatch_loss
from trainer.step_records import Probe
from trainer.token_advantages.transforms import prepare_transforms
from trainer.token_columns import cut_prepared, token_columns, token_table
from trainer.weights.diagnose import explain_mismatch, probe_logprobs
from trainer.weights.export import export_model
from trainer.weights.packed import PackedWeights, pack_weights


class LearnerRank:
    """See the docstring of the module. The rows and scores of a step are kept from `score` to `update`."""

    def __init__(self, run: BoundRun, place: RankPlace) -> None:
        torch.set_num_threads(place.num_threads)
        config = run.config
        self._config, self._objective, self._place = config, bound_objective(run), place
        self._device = torch.device(place.device)
        init_distributed(place, config.cluster.call_timeout_s)
        self._policy = self._start_policy().to(self._device)
        self._policy.clamp_entropy(config.entropy.clamp)
        self._engine = start_engine(self._policy, config.learner, config.model.dtype)
        self._anchors = Anchors(run, place)
        self._built: dict[tuple[int, ...], Microbatch] = {}
        self._forget()

    def _start_policy(self) -> PolicyModel:
        """The model of step 0. Weights that its folder lacks are drawn from the seed, equal on all ranks."""
        torch.manual_seed(self._config.seed)
        model, chunk_tokens = self._config.model, self._config.learner.logit_chunk_tokens
        return load_policy(model.path, model.dtype, chunk_tokens, model.trust_remote_code)

    def _forget(self) -> None:
        """Drop the last scored rows, whose scores belong to earlier weights."""
        self._rows: RankRows | None = None
        self._scored: dict[str, list[np.ndarray]] = {}
        self._teaching: Teaching | None = None
        self._scores_are_current = False
        self._built.clear()

    def ready(self) -> int:
        """Return the number of parameters of the whole model, once the rank has started."""
        return sum(int(getattr(p, "ds_numel", p.numel())) for _, p in self._policy.named_weights())

    # -- scoring ---------------------------------------------------------------------------------------------

    def _microbatch(self, rows: RankRows, chosen: Sequence[int]) -> Microbatch:
        """The padded microbatch of these rows, cached because scoring and updating use the same ones."""
        key = tuple(chosen)
        if key not in self._built:
            self._built[key] = build_microbatch(
                [rows.prompts[row] for row in chosen],
                [rows.tokens[row] for row in chosen],
                rows.temperature_N[list(chosen)],
                self._device,
            )
        return self._built[key]

    def compute_logprobs(self, shard: pa.RecordBatch, microbatches: LocalMicrobatches) -> pa.RecordBatch:
        """Compute logprobs and exact entropies of every completion token, and the anchors' logprobs.

        The teacher, where the run has one, scores its rows too; what it says is kept for the update. A
        forward pass only. Returns one row per shard row, keyed by sample_id; see
        `trainer.model.rows.score_columns`.
        """
        rows = read_rows(shard, self._config.rollout.temperature)
        self._built.clear()
        own = ("proximal_logprobs", "entropy", "entropy_t1", *self._anchors.columns)
        columns, said = _no_columns(own, rows), _no_columns(TEACHER_COLUMNS, rows)
        chosen_rows = [micro for update in microbatches for micro in update]
        teaching = self._new_teaching(rows)
        with torch.no_grad(), self._anchors.on_device():
            for chosen in chosen_rows:
                batch = self._microbatch(rows, chosen)
                scores = TokenScores(*self._engine(teaching.asking(batch, chosen) if teaching else batch))
                values = {
                    "proximal_logprobs": scores.logprobs,
                    "entropy": scores.entropy,
                    "entropy_t1": scores.entropy_t1,
                } | self._anchors.logprobs(batch)
                _scatter(columns, values, chosen, rows)
                if teaching:
                    _scatter(said, teaching.score(chosen, scores), teaching.taught(chosen), rows)
        self._rows, self._scored, self._scores_are_current = rows, columns, True
        self._teaching = teaching
        return score_columns(rows, columns | said)

    def _new_teaching(self, rows: RankRows) -> Teaching | None:
        """What the teacher will say of these rows; None if the run has no teacher."""

        def policy(batch: Microbatch) -> TokenScores:
            return TokenScores(*self._engine(batch))

        taught = next((loss.options for loss in self._objective.losses.values() if loss.kind.taught), None)
        if taught is None:
            return None
        top_k = min(taught.top_k, self._policy.num_words)
        return Teaching(rows, top_k, lambda batch: self._anchors.teacher_scores(batch, policy), self._device)

    # -- updating --------------------------------------------------------------------------------------------

    def update(self, batch: RankUpdate) -> list[dict[str, float]]:
        """Run the step's updates on the last scored rows, then move an ema teacher.

        Returns one dict of sums for each update, to be added over ranks.
        """
        assert self._rows is not None, "update follows score"
        results = []
        objective = self._objective.with_settings(batch.settings)
        for microbatches, lr in zip(batch.microbatches, batch.learning_rates, strict=True):
            for group in self._engine.optimizer.param_groups:
                group["lr"] = lr
            microbatches = _learned(microbatches, self._rows, objective)
            prepared = self._prepare(batch, microbatches, objective)
            sums = self._update_once(batch, microbatches, prepared, objective)
            results.append(sums | self._share_of_stats(prepared))
        for loss in objective.losses.values():
            if loss.kind.taught:
                self._anchors.move_teacher(self._policy.named_weights(), loss.options.teacher_rate)
        return results

    def learn(self, shard: pa.RecordBatch, batch: RankUpdate) -> list[dict[str, float]]:
        """Update on rows that need no scores (origin sft only), without the forward pass of `score`."""
        self._forget()
        self._rows = read_rows(shard)
        return self.update(batch)

    def _update_once(
        self,
        batch: RankUpdate,
        microbatches: Sequence[Sequence[int]],
        prepared: Mapping[str, Prepared],
        objective: Objective,
    ) -> dict[str, float]:
        assert self._rows is not None
        sums: dict[str, float] = {}
        done = 0
        for chosen in microbatches:
            micro, teacher = self._microbatch(self._rows, chosen), None
            if self._teaching:
                micro, teacher = self._teaching.lesson(micro, chosen)
            scores = TokenScores(*self._engine(micro))
            num_tokens = scores.logprobs.shape[0]
            of_update = cut_prepared(prepared, slice(done, done + num_tokens))
            columns = token_columns(self._rows, self._scored, batch, chosen, of_update, self._device)
            done += num_tokens
            loss, part = microbatch_loss(scores, replace(columns, teacher=teacher), objective)
            # DeepSpeed averages gradients over ranks; the row weights already count the rows of all ranks.
            self._engine.backward(loss * self._place.world_size, scale_wrt_gas=False)
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
        self._engine.step()
        self._scores_are_current = False
        applied = self._engine.was_step_applied()
        norm = float(self._engine.get_global_grad_norm() or 0.0) if applied else float("nan")
        return sums | {"rank/grad_norm": norm, "rank/applied": float(applied)}

    def _prepare(
        self, batch: RankUpdate, microbatches: Sequence[Sequence[int]], objective: Objective
    ) -> dict[str, Prepared]:
        """Batch statistics over the rows of all ranks, for the losses and transforms that need them.

        Keyed as `TokenColumns.prepared`.
        """
        assert self._rows is not None
        preparing = {origin: loss for origin, loss in objective.losses.items() if loss.kind.prepare}
        if not preparing and not any(each.kind.prepare for each in objective.transforms.values()):
            return {}
        order = [row for micro in microbatches for row in micro]
        scored = self._scored | self._scores_now(self._rows, microbatches)
        table = token_table(self._rows, scored, batch, order, self._config.seed)
        of_losses = {
            origin: prepare_origin(table, origin, _gather, partial(_call_prepare, loss))
            for origin, loss in preparing.items()
        }
        return of_losses | prepare_transforms(table, objective.transforms, _gather)

    def _scores_now(
        self, rows: RankRows, microbatches: Sequence[Sequence[int]]
    ) -> dict[str, list[np.ndarray]]:
        """Logprobs and entropies under the weights before this update.

        For the first update of a step these are the results of `score`. Later updates run one more forward
        pass over their microbatches; all ranks have the same number of them, as ZeRO-3's collectives need.
        """
        if self._scores_are_current:
            scored = self._scored
            return {"policy_logprobs": scored["proximal_logprobs"], "policy_entropy": scored["entropy"]}
        columns = _no_columns(("policy_logprobs", "policy_entropy"), rows)
        with torch.no_grad():
            for chosen in microbatches:
                scores = TokenScores(*self._engine(self._microbatch(rows, chosen)))
                values = {"policy_logprobs": scores.logprobs, "policy_entropy": scores.entropy}
                _scatter(columns, values, chosen, rows)
        return columns

    def _share_of_stats(self, prepared: Mapping[str, Prepared]) -> dict[str, float]:
        """Statistics divided by the number of ranks: they are equal on all, and the driver adds them up."""
        return {
            f"stat/{key}/{name}": value / self._place.world_size
            for key, of_key in prepared.items()
            for name, value in of_key.stats.items()
        }

    # -- weights ---------------------------------------------------------------------------------------------

    def publish(self, version: int) -> PackedWeights | None:
        """The policy's current weights, trained and frozen, in host memory of rank 0; None on other ranks."""
        first = self._place.rank == 0
        full = self._published(keep=first)
        return pack_weights(version, full.items()) if first else None

    def _published(self, keep: bool) -> dict[str, Tensor]:
        """All weights that engines and exports need, as in a model folder (a collective under ZeRO-3)."""
        stage = self._config.learner.zero_stage
        full = dict(full_parameters(self._policy.published_weights(), stage, keep))
        return to_checkpoint_format(self._policy.model, full) if keep else {}

    def probe(self, probes: Sequence[Probe]) -> np.ndarray:
        """Logprobs of the probes' tokens at temperature 1 under the current weights, concatenated."""
        return probe_logprobs(self._engine, probes, self._device)

    def explain(
        self,
        probes: Sequence[Probe],
        observed: np.ndarray,
        current: PackedWeights,
        previous: PackedWeights | None,
    ) -> str:
        """Which weights explain the probe result `observed` of an engine, as a sentence that names the fault.

        See `trainer.weights.diagnose.explain_mismatch`.
        """
        model, chunk_tokens = self._config.model, self._config.learner.logit_chunk_tokens
        policy = load_policy(model.path, model.dtype, chunk_tokens, model.trust_remote_code)
        return explain_mismatch(policy, probes, observed, current, previous)

    def export(self, folder: str) -> None:
        """Write the policy as a Hugging Face folder (all ranks gather, rank 0 writes)."""
        first = self._place.rank == 0
        full = self._published(keep=first)
        if first:
            export_model(Path(folder), full, self._config.model)

    # -- state -----------------------------------------------------------------------------------------------

    def _held(self) -> Holdings:
        return holdings_of(self._engine, self._policy.named_weights(), self._config.learner.zero_stage)

    def save(self, folder: str) -> dict[str, str]:
        """Write this rank's part of the learner's state into an existing folder; see `actors.learner_state`.

        Returns sha256 by file name. It is computed from the bytes in memory, so it detects failed writes.
        """
        name = file_name(self._place.rank, self._place.world_size)
        reference = self._anchors.save(Path(folder))
        return reference | {name: save_state(Path(folder), self._held(), self._place)}

    def load(self, folder: str) -> None:
        """Restore a state saved by any number of ranks under any ZeRO stage. The base does not change.

        Raises:
            ValueError: the files are not one complete state of this model. Nothing was changed.
        """
        load_state(Path(folder), self._held(), self._place)
        self._anchors.load(Path(folder))
        self._forget()

    def reset_reference(self, with_optimizer: bool) -> None:
        """Make the current policy the reference; `with_optimizer` also clears Adam's moments and count."""
        self._anchors.reset_reference(self._policy.named_weights())
        if with_optimizer:
            clear_moments(self._held(), steps=0)

    def reset(self, run: BoundRun) -> None:
        """Return to the weights of step 0 and a new optimizer, as if newly built for `run`.

        The DeepSpeed engine is kept, so `run` must have the settings that it was built with
        (`cluster.actor_pool.built_in`).
        """
        self._config, self._objective = run.config, bound_objective(run)
        self._policy.clamp_entropy(run.config.entropy.clamp)
        # Read again from the folder: the base may not be loaded, and under ZeRO-3 it is sharded.
        start = dict(self._start_policy().named_weights())
        held = self._held()
        for share in held.shares:
            set_weight(share, start[share.name])
        clear_moments(held, steps=0)
        self._anchors.reset(run)
        self._forget()


def _learned(
    microbatches: Sequence[Sequence[int]], rows: RankRows, objective: Objective
) -> Sequence[Sequence[int]]:
    """The microbatches without the rows of origins that have no loss, or one of weight 0.

    There are as many as before, because under ZeRO-3 every forward is a collective.
    """
    learned = {origin for origin, loss in objective.losses.items() if loss.common.weight > 0}
    return [[row for row in chosen if rows.origins[row] in learned] for chosen in microbatches]


def _no_columns(names: Sequence[str], rows: RankRows) -> dict[str, list[np.ndarray]]:
    return {name: [np.zeros(0, np.float32)] * len(rows) for name in names}


def _scatter(
    columns: dict[str, list[np.ndarray]], values: Mapping[str, Tensor], chosen: Sequence[int], rows: RankRows
) -> None:
    """Split tensors [T] of the chosen rows by row, into `columns`."""
    ends = np.cumsum([len(rows.tokens[row]) for row in chosen])[:-1]
    for name, tensor in values.items():
        # Not strict: without rows `np.split` still returns one part, which is empty.
        for row, part in zip(chosen, np.split(tensor.float().cpu().numpy(), ends), strict=False):
            columns[name][row] = part


def _gather(table: TokenTable) -> list[TokenTable]:
    tables: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(tables, table)
    return tables


def _call_prepare(loss: BoundLoss, union: Mapping[str, np.ndarray]) -> Prepared | Mapping[str, np.ndarray]:
    return load_target(loss.kind.prepare)(union, loss.options)  # type: ignore[no-any-return]
