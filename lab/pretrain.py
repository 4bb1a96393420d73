"""Train a base model from a recipe, with the learner of ordinary runs, and measure it.

Inputs: a recipe and overrides. Outputs: a Hugging Face folder, with a manifest.json that has the recipe and
the measurements. Called by the command line. The corpus is rows of origin sft, and the loss is nll.
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from actors.learner import LearnerRank
from actors.requests import RankPlace, RankUpdate
from configs.bound import bind
from configs.kinds.losses import LossCommon
from configs.origins import SFT
from configs.schema import LearnerConfig, ModelConfig, RunConfig
from lab.base_model import make_base
from lab.corpus import CREATIVE, CorpusRow, make_corpus
from lab.measure import BaseReport, measure_base
from lab.recipe import Recipe, TrainingConfig, load_recipe, recipe_hash
from lab.tokenizer import make_tokenizer
from rollouts.schema import sft_batch
from trainer.controllers.schedule import learning_rate
from trainer.losses.normalize import row_weights
from trainer.model.batch_plan import split_rows

MAX_WEIGHTS_BYTES = 4_000_000
_MICROBATCH_TOKENS = 65536
_ROWS_SORTED_TOGETHER = 16
"""Updates' worth of rows that are sorted by length, so that an update pads little."""
_LIBRARIES = ("torch", "transformers", "tokenizers", "deepspeed", "numpy")


@dataclass(frozen=True, slots=True)
class TokenRows:
    """The corpus in tokens: row i is `prompts[i]`, then `responses[i]`, which ends with the end token."""

    rows: Sequence[CorpusRow]
    prompts: Sequence[list[int]]
    responses: Sequence[list[int]]
    lengths_N: np.ndarray


def pretrain(path: str, overrides: Sequence[str]) -> int:
    """Train the base that `path` describes and write it to the recipe's output folder; returns 0.

    Raises:
        ValueError: the recipe cannot be used, or its weights would be larger than MAX_WEIGHTS_BYTES.
    """
    recipe = load_recipe(path, overrides)
    output = Path(recipe.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as staging:
        fresh, trained = Path(staging) / "fresh", Path(staging) / "trained"
        with_critiques = recipe.corpus.critiques.share > 0
        make_base(recipe.model, fresh, with_critiques)
        num_bytes = (fresh / "model.safetensors").stat().st_size
        if num_bytes > MAX_WEIGHTS_BYTES:
            raise ValueError(f"{path}: model must stay under {MAX_WEIGHTS_BYTES} bytes, got {num_bytes}")
        tokens = tokenize_rows(make_corpus(recipe.corpus), make_tokenizer(with_critiques))
        started = time.perf_counter()
        loss = _train(fresh, trained, tokens, recipe.training)
        seconds = time.perf_counter() - started
        report = _measure(trained, recipe)
        _write_manifest(trained, recipe, report, loss, seconds)
        _print_report(report, seconds)
        if output.exists():
            shutil.rmtree(output)
        trained.rename(output)
    print(f"wrote {output}")
    return 0


def tokenize_rows(rows: Sequence[CorpusRow], tokenizer: PreTrainedTokenizerBase) -> TokenRows:
    """Prompts under the chat template, generation prompt included; responses with the end token."""
    # A prompt has many rows, and the template is the slow part.
    distinct = list(dict.fromkeys(row.prompt for row in rows))
    messages = [[{"role": "user", "content": text}] for text in distinct]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    by_text = dict(zip(distinct, encoded, strict=True))
    responses = [
        [*ids, tokenizer.eos_token_id] for ids in tokenizer([row.response for row in rows])["input_ids"]
    ]
    prompts = [by_text[row.prompt] for row in rows]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    return TokenRows(rows, prompts, responses, np.array(lengths))


def plan_updates(lengths_N: np.ndarray, config: TrainingConfig) -> Iterator[np.ndarray]:
    """Row numbers of each update, without end: the corpus in a new order each time, like lengths together."""
    # Another stream than those of the corpus, which has the same seed.
    rng = np.random.default_rng([config.seed, 4])
    size = config.rows_per_update
    while True:
        order = rng.permutation(len(lengths_N))
        blocks = np.array_split(order, max(1, len(order) // (size * _ROWS_SORTED_TOGETHER)))
        updates: list[np.ndarray] = []
        for block in blocks:
            by_length = block[np.argsort(lengths_N[block], kind="stable")]
            updates += np.array_split(by_length, max(1, len(by_length) // size))
        # Shuffled again: sorted, the updates of a block would go from short rows to long ones.
        for index in rng.permutation(len(updates)).tolist():
            yield updates[index]


def _train(fresh: Path, trained: Path, tokens: TokenRows, config: TrainingConfig) -> float:
    """Train `fresh` into `trained`; returns the mean loss per token of the last call, in nats."""
    run = _run_config(fresh, config)
    place = RankPlace(
        rank=0,
        world_size=1,
        rendezvous=f"file://{trained.parent.resolve()}/rendezvous",
        device="cpu",
        num_threads=config.num_threads,
    )
    bound = bind(run)
    learner = LearnerRank(bound, place)
    print(f"pretraining {learner.ready()} parameters on {len(tokens.rows)} rows")
    updates = plan_updates(tokens.lengths_N, config)
    started, loss = time.perf_counter(), float("nan")
    # Several updates per call: a call of the learner has a fixed cost that a small model would mostly pay
    # for.
    for first in range(0, config.num_updates, config.updates_per_call):
        numbers = range(first, min(first + config.updates_per_call, config.num_updates))
        chosen = [next(updates) for _ in numbers]
        shard = _shard(tokens, np.concatenate(chosen))
        rates = tuple(learning_rate(run.learner, number, config.num_updates) for number in numbers)
        results = learner.learn(shard, _rank_update(tokens, chosen, bound.losses[SFT].common, rates))
        loss = sum(result["loss/total"] for result in results) / len(results)
        elapsed = time.perf_counter() - started
        print(f"update {numbers[-1] + 1}/{config.num_updates}  loss {loss:.4f}  {elapsed:.0f} s", flush=True)
    learner.export(str(trained))
    return loss


def _run_config(fresh: Path, config: TrainingConfig) -> RunConfig:
    learner = LearnerConfig(
        zero_stage=0,
        lr=config.lr,
        min_lr_ratio=config.min_lr_ratio,
        warmup_steps=config.warmup_updates,
        betas=config.betas,
        max_grad_norm=config.max_grad_norm,
        base_logprobs=False,
    )
    return RunConfig(
        name="pretrain",
        seed=config.seed,
        num_steps=config.num_updates,
        model=ModelConfig(path=str(fresh)),
        learner=learner,
        loss={SFT: {"kind": "nll"}},
    )


def _shard(tokens: TokenRows, chosen: np.ndarray) -> pa.RecordBatch:
    rows = [tokens.rows[index] for index in chosen.tolist()]
    return sft_batch(
        "pretrain",
        prompt_ids=[tokens.prompts[index] for index in chosen.tolist()],
        token_ids=[tokens.responses[index] for index in chosen.tolist()],
        text=[row.response for row in rows],
        domain=[CREATIVE if row.format == CREATIVE else "arithmetic" for row in rows],
        format_tag=[row.format for row in rows],
    )


def _rank_update(
    tokens: TokenRows, chosen: Sequence[np.ndarray], loss: LossCommon, rates: tuple[float, ...]
) -> RankUpdate:
    """Weights and microbatches of several updates whose rows lie end to end in one shard."""
    rows = np.concatenate(chosen)
    counts = np.array([len(tokens.responses[index]) for index in rows.tolist()])
    update_N = np.repeat(np.arange(len(chosen)), [len(update) for update in chosen])
    origins = np.full(len(rows), SFT, dtype=object)
    lengths = tokens.lengths_N[rows]
    return RankUpdate(
        microbatches=[
            split_rows(np.flatnonzero(update_N == update).tolist(), lengths, _MICROBATCH_TOKENS)
            for update in range(len(chosen))
        ],
        # nll reads no advantages, but a rank expects the columns.
        advantages_N=np.zeros(len(rows)),
        bonuses_N=np.zeros(len(rows)),
        row_weights_N=row_weights(counts, origins, update_N, {SFT: loss}, int(counts.max())),
        learning_rates=rates,
    )


def _measure(folder: Path, recipe: Recipe) -> BaseReport:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return measure_base(model, tokenizer, recipe.corpus.seed, recipe.measure)


def _write_manifest(folder: Path, recipe: Recipe, report: BaseReport, loss: float, seconds: float) -> None:
    manifest = {
        "recipe": asdict(recipe),
        "recipe_sha256": recipe_hash(recipe),
        "final_loss": loss,
        "training_s": round(seconds, 1),
        "measured": asdict(report),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        "num_threads": torch.get_num_threads(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _print_report(report: BaseReport, seconds: float) -> None:
    print(f"{seconds:.0f} s; reward {report.reward:.3f}, format entropy {report.format_entropy:.3f} of 1")
    for name, share in report.first_token_share.items():
        print(f"  {name:<10} share {share:.3f}  accuracy {report.accuracy[name]:.3f}")
    outside = 1 - sum(report.sampled_share[name] for name in report.first_token_share)
    print(f"  no format {outside:.3f}  creative answers that are creative {report.creative_share:.3f}")
