"""What a teacher says of a rank's rows: asked when the rows are scored, kept in memory for their update.

Rows of a taught origin hold the prompt that the teacher reads (`teacher_prompt_ids`). Policy and teacher are
compared at the policy's most likely tokens before the step's updates. Used by `actors.learner`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trainer.losses.distillation import teacher_columns
from trainer.losses.logprobs import TokenScores
from trainer.model.batch_plan import Microbatch, build_microbatch
from trainer.model.rows import RankRows

Scores = Callable[[Microbatch], TokenScores]


class Teaching:
    """Token ids [T, k] and the teacher's logprobs [T, k + 1] of each taught row, on the CPU.

    `top_k` is k: at most the vocabulary.
    """

    def __init__(self, rows: RankRows, top_k: int, teacher: Scores, device: torch.device) -> None:
        self._rows, self._top_k, self._teacher, self._device = rows, top_k, teacher, device
        self._ids: dict[int, Tensor] = {}
        self._logprobs: dict[int, Tensor] = {}

    def taught(self, chosen: Sequence[int]) -> list[int]:
        """Those of the rows that have a teacher."""
        return [row for row in chosen if len(self._rows.teacher_prompts[row])]

    def asking(self, batch: Microbatch, chosen: Sequence[int]) -> Microbatch:
        """The microbatch of these rows, which asks for the most likely tokens if one of them is taught."""
        return replace(batch, top_k=self._top_k) if self.taught(chosen) else batch

    def score(self, chosen: Sequence[int], scores: TokenScores) -> dict[str, Tensor]:
        """Ask the teacher about these rows, whose `scores` are the policy's; see `teacher_columns`.

        The columns are of the tokens of the taught rows alone. Under ZeRO-3 every forward is a collective, so
        every rank asks as often, about no row if it must.
        """
        mine = self.taught(chosen)
        is_taught = self._of_taught(chosen).to(self._device)
        ids = torch.zeros((0, self._top_k), dtype=torch.int64, device=self._device)
        if mine:
            assert scores.support is not None and scores.support_ids is not None
            ids = scores.support_ids[is_taught]
        rows = self._rows
        batch = build_microbatch(
            [rows.teacher_prompts[row] for row in mine],
            [rows.tokens[row] for row in mine],
            rows.temperature_N[mine],
            self._device,
        )
        said = self._teacher(replace(batch, support_Tk=ids))
        if not mine:
            return {}
        assert scores.support is not None and said.support is not None
        counts = [len(rows.tokens[row]) for row in mine]
        for kept, values in ((self._ids, ids.int()), (self._logprobs, said.support)):
            kept |= dict(zip(mine, values.cpu().split(counts), strict=True))
        own = scores.support[is_taught], scores.logprobs[is_taught]
        return teacher_columns(own[0], said.support, own[1], said.logprobs)

    def lesson(self, batch: Microbatch, chosen: Sequence[int]) -> tuple[Microbatch, Tensor]:
        """The microbatch of these rows asking for the kept ids, and the teacher's logprobs there [T, k + 1].

        Tokens of rows without a teacher have 0 in both. They are asked for in every microbatch: under ZeRO-3
        each output of the head that a loss uses is a step of the backward pass, and all ranks take the same.
        """
        mine, is_taught = self.taught(chosen), self._of_taught(chosen)
        ids = torch.zeros((len(is_taught), self._top_k), dtype=torch.int64)
        logprobs = torch.zeros((len(is_taught), self._top_k + 1))
        for column, kept in ((ids, self._ids), (logprobs, self._logprobs)):
            if mine:
                column[is_taught] = torch.cat([kept[row] for row in mine]).to(column.dtype)
        return replace(batch, support_Tk=ids.to(self._device)), logprobs.to(self._device)

    def _of_taught(self, chosen: Sequence[int]) -> Tensor:
        """bool [T]: the tokens of taught rows among those of the rows `chosen`."""
        mine, counts = set(self.taught(chosen)), [len(self._rows.tokens[row]) for row in chosen]
        return torch.from_numpy(np.repeat(np.array([row in mine for row in chosen], np.bool_), counts))
