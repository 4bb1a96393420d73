"""The recipe of a base model: corpus, model, training and measurement, read from one YAML file.

Inputs: a recipe file such as `lab/bases/voices.yaml` and `key.sub=value` overrides. Outputs: a checked
`Recipe` and its hash. Called by `lab.pretrain`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import yaml
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lab.base_model import ModelShape, check_shape
from lab.corpus import CorpusConfig, check_corpus


@dataclass
class TrainingConfig:
    """AdamW over the corpus, in repeated passes: linear warm-up, then cosine decay to `min_lr_ratio`."""

    seed: int = 0
    num_updates: int = 6000
    rows_per_update: int = 32
    updates_per_call: int = 100
    """Updates whose rows go to the learner at once, with a line of progress after each."""
    lr: float = 3.0e-3
    min_lr_ratio: float = 0.0
    warmup_updates: int = 50
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    num_threads: int = 1


@dataclass
class MeasureConfig:
    """How the finished base is sampled for its manifest: held-out prompts, temperature 1."""

    seed: int = 0
    num_prompts: int = 512
    num_samples: int = 8
    max_tokens: int = 40


@dataclass
class Recipe:
    """Everything that decides the weights of a base, apart from the versions of the libraries."""

    output: str = "lab/bases/voices"
    """Folder that is written; an existing one is replaced when the new one is complete."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelShape = field(default_factory=ModelShape)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)


def read_recipe(
    path: str, overrides: Sequence[str], defaults_for: Callable[[Container], DictConfig], inside: str
) -> object:
    """The recipe in a YAML file merged into its defaults, with overrides, as an object of its dataclass.

    A JSON file that was written beside weights contains its recipe; it is known by the key `inside`.

    Raises:
        ValueError: no such file, an unknown key, or a wrong type; names the file.
    """
    if not Path(path).is_file():
        raise ValueError(f"a recipe must be an existing YAML file, got {path!r}")
    try:
        written = OmegaConf.load(path)
        if inside in written:
            written = OmegaConf.select(written, "recipe")
        merged = OmegaConf.merge(defaults_for(written), written, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_object(merged)
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _defaults(written: Container) -> DictConfig:
    """The default recipe. A recipe's formats are all there are: merging would add the missing ones."""
    defaults = OmegaConf.structured(Recipe)
    if OmegaConf.select(written, "corpus.formats") is not None:
        defaults.corpus.formats = {}
    return defaults


def load_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` (or in the manifest.json of a base) with overrides: ``training.num_updates=100``.

    Raises:
        ValueError: no such file, an unknown key, or a value that makes no base; names file, key and rule.
    """
    recipe = cast(Recipe, read_recipe(path, overrides, _defaults, inside="recipe_sha256"))
    try:
        _check(recipe)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return recipe


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of everything but the output folder: two recipes with the same hash make the same base."""
    content = asdict(recipe)
    del content["output"]
    for part in (
        "critiques",
        "hard",
    ):  # without them, the hash is that of recipes before they could have them
        if not content["corpus"][part]["share"]:
            del content["corpus"][part]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check(recipe: Recipe) -> None:
    check_corpus(recipe.corpus)
    check_shape(recipe.model)
    training, measure = recipe.training, recipe.measure
    whole = {
        "training.num_updates": training.num_updates,
        "training.rows_per_update": training.rows_per_update,
        "training.updates_per_call": training.updates_per_call,
        "training.num_threads": training.num_threads,
        "measure.num_prompts": measure.num_prompts,
        "measure.num_samples": measure.num_samples,
        "measure.max_tokens": measure.max_tokens,
    }
    for key, value in whole.items():
        if value < 1:
            raise ValueError(f"{key} must be 1 or more, got {value}")
    if training.lr <= 0:
        raise ValueError(f"training.lr must be above 0, got {training.lr}")
    if training.warmup_updates < 0:
        raise ValueError(f"training.warmup_updates must be 0 or more, got {training.warmup_updates}")
