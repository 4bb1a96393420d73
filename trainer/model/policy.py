"""The learner's model: a Hugging Face causal LM that returns token scores instead of logits.

`load_policy` builds it from a local folder, and DeepSpeed wraps the `PolicyModel`. The output head becomes a
`ScoringHead` with the same parameter name, so ZeRO-3 gathers its weight through the module's own hooks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from trainer.losses.logprobs import score_tokens
from trainer.model.batch_plan import Microbatch
from trainer.model.checkpoint_format import ATTENTION, published_tensors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ScoringHead(nn.Linear):
    """An output head that returns `TokenScores` instead of logits [T, V]."""

    chunk_tokens: int = 1024
    entropy_clamp: float = 0.0
    """Share of the vocabulary that the clamped entropy leaves out."""

    def forward(  # type: ignore[override]
        self,
        hidden_TD: Tensor,
        targets_T: Tensor,
        tau_T: Tensor,
        support_Tk: Tensor | None = None,
        top_k: int = 0,
    ) -> tuple[Tensor, ...]:
        # A plain tuple: ZeRO-3 attaches its backward hooks to the tensors of a tuple, list or dict.
        scores = score_tokens(
            hidden_TD,
            self.weight,
            targets_T,
            tau_T,
            self.chunk_tokens,
            self.entropy_clamp,
            support_Tk,
            top_k,
        )
        return tuple(column for column in scores if column is not None)


class PolicyModel(nn.Module):
    """`forward(microbatch)` returns the columns of `TokenScores` for all completion tokens, [T] each."""

    def __init__(self, model: PreTrainedModel, logit_chunk_tokens: int) -> None:
        super().__init__()
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Linear) and head.bias is None, (
            "the output head must be a Linear without bias"
        )
        # The class is exchanged in place: a new module would lose weight tying and the parameter's name.
        head.__class__ = ScoringHead
        head.chunk_tokens = logit_chunk_tokens  # type: ignore[assignment]
        self.model = model

    @property
    def num_words(self) -> int:
        """The number of tokens that the head scores."""
        return int(self.model.get_output_embeddings().out_features)  # type: ignore[arg-type]

    def clamp_entropy(self, share: float) -> None:
        """Leave this share of the vocabulary, in [0, 1), out of `TokenScores.entropy_clamped`."""
        self.model.get_output_embeddings().entropy_clamp = share  # type: ignore[assignment]

    def forward(self, batch: Microbatch) -> tuple[Tensor, ...]:
        hidden_BTD = self.model.base_model(
            input_ids=batch.ids_BT,
            attention_mask=batch.attention_BT,
            position_ids=batch.positions_BT,
            use_cache=False,
        ).last_hidden_state
        # Only positions that predict a completion token: the head is the largest matrix of a small model.
        hidden_TD = hidden_BTD[batch.source_rows_T, batch.source_positions_T]
        head = self.model.get_output_embeddings()
        more = {"support_Tk": batch.support_Tk, "top_k": batch.top_k}
        return head(hidden_TD, batch.targets_T, batch.tau_T, **more)  # type: ignore[no-any-return]

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters by their names in the model; a tied head is listed once."""
        yield from self.model.named_parameters()

    def published_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that engines and exports get, trained or not, before `to_checkpoint_format`."""
        return published_tensors(self.model)

    def trainable_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that the optimizer updates; the others are frozen (`requires_grad` false)."""
        yield from ((name, weight) for name, weight in self.named_weights() if weight.requires_grad)


def load_policy(path: str, dtype: str, logit_chunk_tokens: int, trust_remote_code: bool) -> PolicyModel:
    """Load a Hugging Face folder in eval mode: with dropout, learner and sampler would disagree.

    Raises:
        ValueError: the folder holds no causal language model.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation=ATTENTION,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except OSError as error:
        raise ValueError(
            f"model.path must be a Hugging Face causal LM folder, got {path!r}: {error}"
        ) from error
    return PolicyModel(model.eval(), logit_chunk_tokens)
