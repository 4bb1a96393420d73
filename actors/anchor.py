"""The frozen models of a learner rank, base, reference and teacher: their scores. Used by `actors.learner`.

The base is the model of step 0. The reference is the base until it is reset to the policy of some step; only
then is there a second copy. A teacher of kind ema is a copy from the start. All are sharded under ZeRO-3, and
whole on every rank otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from actors.deepspeed_engine import full_parameters, start_frozen, write_parameters
from actors.learner_state import save_tensors
from actors.moving_average import MovingAverage
from actors.requests import RankPlace
from configs.bound import BoundRun
from configs.schema import RunConfig
from trainer.losses.logprobs import TokenScores
from trainer.model.batch_plan import Microbatch
from trainer.model.policy import load_policy

REFERENCE_FILE: Final = "reference.safetensors"
TEACHER_FILE: Final = "teacher.safetensors"


class Anchor:
    """One frozen copy. With `learner.offload_anchor` it is in host memory between uses."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        model, learner = config.model, config.learner
        policy = load_policy(model.path, model.dtype, learner.logit_chunk_tokens, model.trust_remote_code)
        # ZeRO-3 offloads its shards itself; a whole copy is moved in `on_device`.
        self._moves = learner.offload_anchor and learner.zero_stage < 3
        self._device, self._zero_stage = device, learner.zero_stage
        self._policy = policy.to(torch.device("cpu") if self._moves else device)
        self._model = start_frozen(self._policy, learner.zero_stage, model.dtype, learner.offload_anchor)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Keep an offloaded copy on the device during the block."""
        if self._moves:
            self._model.to(self._device)
        yield
        if self._moves:
            self._model.to("cpu")

    def logprobs(self, batch: Microbatch) -> Tensor:
        """Logprobs [T] of the microbatch's completion tokens, at the rows' temperatures."""
        return self.scores(batch).logprobs

    def scores(self, batch: Microbatch) -> TokenScores:
        """All scores of the microbatch's completion tokens."""
        with torch.no_grad():
            return TokenScores(*self._model(batch))

    def averaging(self, place: RankPlace) -> MovingAverage:
        """A moving average whose values this copy has from now on."""
        return MovingAverage(self._policy.named_weights(), place)

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Replace all weights, by Hugging Face name; under ZeRO-3 a collective that uses rank 0's values."""
        write_parameters(self._policy.named_weights(), weights, self._zero_stage)

    def read(self, keep: bool) -> dict[str, Tensor]:
        """All weights by name (a collective under ZeRO-3); empty where `keep` is false."""
        return dict(full_parameters(self._policy.named_weights(), self._zero_stage, keep))


class Anchors:
    """Base, reference and teacher, where the config needs them. `columns` names what `logprobs` returns.

    Raises:
        ValueError: (from `load`) a saved reference or teacher does not belong to this model, or is missing.
    """

    def __init__(self, run: BoundRun, place: RankPlace) -> None:
        self._place, self._rank, self._device = place, place.rank, torch.device(place.device)
        self._base: Anchor | None = None
        self._reference: Anchor | None = None
        self.reset(run)

    def reset(self, run: BoundRun) -> None:
        """Load what `run` needs, as if newly built for it. A base that is already loaded is reused."""
        self._config = run.config
        always = run.config.learner.base_logprobs
        self._wants_base = always or run.is_anchored("kl_base")
        self._wants_ref = always or run.needs_reference()
        needed = {"base_logprobs": self._wants_base, "ref_logprobs": self._wants_ref}
        self.columns = tuple(name for name, is_needed in needed.items() if is_needed)
        # Only one origin is taught, so there is one teacher or none.
        self._taught_by = next((loss.options.teacher for loss in run.taught_losses().values()), "")
        self._keeps_base = self._wants_base or self._taught_by == "base"
        # One copy serves as base and as reference until the reference is reset.
        needs_base = self._keeps_base or bool(self.columns)
        self._base, self._reference = (self._base or self._new()) if needs_base else None, None
        self._teacher = self._new() if self._taught_by == "ema" else None
        self._average = self._teacher.averaging(self._place) if self._teacher is not None else None

    def _new(self) -> Anchor:
        return Anchor(self._config, self._device)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Keep offloaded copies on the device during the block."""
        with ExitStack() as stack:
            for anchor in (self._base, self._reference, self._teacher):
                if anchor is not None:
                    stack.enter_context(anchor.on_device())
            yield

    def logprobs(self, batch: Microbatch) -> dict[str, Tensor]:
        """Logprobs [T] of the microbatch's completion tokens, by column."""
        base = self._base.logprobs(batch) if self._base is not None and self.columns else None
        # While the reference is still the base, one forward pass gives both columns.
        reference = self._reference.logprobs(batch) if self._reference is not None else base
        columns = {"base_logprobs": base, "ref_logprobs": reference}
        return {name: values for name in self.columns if (values := columns[name]) is not None}

    def teacher_scores(self, batch: Microbatch, policy: Callable[[Microbatch], TokenScores]) -> TokenScores:
        """The teacher's scores of the microbatch; `policy` are those of the current policy."""
        if self._taught_by == "live":
            return policy(batch)
        teacher = self._teacher if self._taught_by == "ema" else self._base
        assert teacher is not None, "only runs with a teacher ask it"
        return teacher.scores(batch)

    def move_teacher(self, policy: Iterable[tuple[str, nn.Parameter]], rate: float) -> None:
        """Move a teacher of kind ema towards the current policy by the share `rate`; others do not move."""
        if self._average is not None:
            self._average.move(policy, rate)

    def reset_reference(self, policy: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Make the current policy the reference (a collective under ZeRO-3)."""
        stage = self._config.learner.zero_stage
        keep = stage < 3 or self._rank == 0
        self._own_reference().write(dict(full_parameters(iter(policy), stage, keep)))

    def _own_reference(self) -> Anchor:
        """The reference as a separate copy. If the base is not needed, its model becomes the reference."""
        if self._reference is None and not self._keeps_base:
            self._reference, self._base = self._base, None
        if self._reference is None:
            self._reference = self._new()
        return self._reference

    def forget_reference(self) -> None:
        """Make the base the reference again."""
        if self._reference is not None and self._base is None:
            self._base = self._new()
        self._reference = None

    def save(self, folder: Path) -> dict[str, str]:
        """Write the reference if it is not the base, and an ema teacher (rank 0); sha256 by file name."""
        first, found = self._rank == 0, {}
        if self._reference is not None:
            found[REFERENCE_FILE] = self._reference.read(keep=first)
        if self._average is not None:
            found[TEACHER_FILE] = self._average.full(keep=first)
        return {name: save_tensors(folder / name, weights) for name, weights in found.items() if first}

    def load(self, folder: Path) -> None:
        """Load the reference of a saved state, or the base if it has none; and the teacher of kind ema."""
        if self._average is not None:
            path = folder / TEACHER_FILE
            if not path.exists():
                raise ValueError(f"{path}: must be there, as this run has a teacher of kind ema")
            self._average.load(path)
        path = folder / REFERENCE_FILE
        if not path.exists():
            self.forget_reference()
            return
        try:
            self._own_reference().write(load_file(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
