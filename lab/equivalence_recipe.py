"""The recipe of an equivalence classifier: its start, training and calibration, read from one YAML file.

Inputs: a file such as `lab/bases/equivalence.yaml` and `key=value` overrides. Outputs: a checked
`EquivalenceRecipe`. Called by `lab.train_equivalence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from omegaconf import OmegaConf

from lab.problems import NUM_TRAIN
from lab.recipe import read_recipe


@dataclass
class EquivalenceRecipe:
    """Everything that decides the classifier's weights, apart from the versions of the libraries."""

    output: str = "lab/bases/equivalence"
    """Folder that is written; an existing one is replaced when the new one is complete."""
    base: str = "lab/bases/voices"
    """The model whose tokenizer and sizes it has. Its weights are new: in a model that computes, the vectors
    of neighbouring numbers are alike (cosine 0.7), and a classifier that begins with them overlooks an error
    of 1."""
    num_layers: int = 6
    corpus_seed: int = 0
    """Seed of the problems' splits; that of the base's corpus."""
    seed: int = 0
    num_updates: int = 6000
    pairs_per_update: int = 32
    easy_share: float = 0.5
    """Share of the updates, the first ones, whose pairs have both texts in one wording."""
    lr: float = 2.5e-3
    warmup_updates: int = 50
    max_grad_norm: float = 1.0
    weight_decay: float = 0.01
    prefix_weight: float = 1.0
    """Weight of the label so far after each word of the second text, beside the pair's label."""
    copy_weight: float = 0.5
    """Weight of predicting the second text of equivalent pairs, beside the label's loss."""
    num_threads: int = 1
    calibration_problems: int = 1024
    """The last problems of the train split: kept from training, for the calibration."""
    calibration_pairs: int = 4000
    test_pairs: int = 4000
    """Balanced hard pairs on held-out problems, which neither base nor classifier has seen."""
    false_positive_rate: float = 0.01
    """The threshold is the lowest at which at most this share of different pairs passes, in calibration."""


def load_equivalence_recipe(path: str, overrides: Sequence[str] = ()) -> EquivalenceRecipe:
    """The recipe in `path`, a YAML file or the calibration.json of a classifier, with overrides.

    Raises:
        ValueError: no such file, an unknown key, or a value that cannot be used; names file, key and rule.
    """
    read = read_recipe(path, overrides, lambda _: OmegaConf.structured(EquivalenceRecipe), inside="recipe")
    recipe = cast(EquivalenceRecipe, read)
    _check(recipe, path)
    return recipe


def _check(recipe: EquivalenceRecipe, path: str) -> None:
    limits = {
        "corpus_seed": (0, None),
        "seed": (0, None),
        "num_layers": (1, None),
        "num_updates": (1, None),
        "pairs_per_update": (2, None),
        "warmup_updates": (0, None),
        "num_threads": (1, None),
        "calibration_problems": (1, NUM_TRAIN - 1),
        "calibration_pairs": (100, None),
        "test_pairs": (100, None),
    }
    for key, (low, high) in limits.items():
        value = getattr(recipe, key)
        if value < low or (high is not None and value > high):
            rule = f"{low} or more" if high is None else f"{low} to {high}"
            raise ValueError(f"{path}: {key} must be {rule}, got {value}")
    for key in ("prefix_weight", "copy_weight"):
        if not getattr(recipe, key) >= 0:
            raise ValueError(f"{path}: {key} must be 0 or more, got {getattr(recipe, key)}")
    for key in ("lr", "max_grad_norm"):
        if not getattr(recipe, key) > 0:
            raise ValueError(f"{path}: {key} must be above 0, got {getattr(recipe, key)}")
    if not 0 <= recipe.easy_share <= 1:
        raise ValueError(f"{path}: easy_share must be between 0 and 1, got {recipe.easy_share}")
    if not 0 < recipe.false_positive_rate < 1:
        rate = recipe.false_positive_rate
        raise ValueError(f"{path}: false_positive_rate must be above 0 and below 1, got {rate}")
