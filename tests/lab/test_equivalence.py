"""Pairs for an equivalence classifier, its calibration, its recipe, and a training of two updates."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen3ForSequenceClassification

from lab.calibration import Calibration, auc, expected_calibration_error, fit, measure, reliability
from lab.equivalence_pairs import KINDS, Step, _changed, make_easy_pairs, make_pairs, reworded
from lab.equivalence_recipe import load_equivalence_recipe
from lab.problems import ADD, MULTIPLY, SUBTRACT, problem_split
from lab.tokenizer import make_tokenizer
from lab.train_equivalence import TEMPLATE, margins, train_equivalence
from rewards.partition_pairs import read_calibration

PROBLEMS = problem_split("train", 0).take(np.arange(200))
NUMBER = re.compile(r"\d+")
ROOT = Path(__file__).resolve().parents[2]


def test_pairs_are_balanced_and_in_the_vocabulary() -> None:
    """Half equivalent; the rest half format, half steps; no pair of equal texts; the same for a seed."""
    pairs = make_pairs(PROBLEMS, 2000, 3)
    counts = Counter(pair.kind for pair in pairs)
    assert counts["equivalent"] == 1000 and set(counts) == set(KINDS)
    assert 430 < counts["format"] < 570 and all(120 < counts[kind] < 220 for kind in KINDS[2:])
    assert all(pair.first != pair.second for pair in pairs)
    assert pairs == make_pairs(PROBLEMS, 2000, 3) and pairs != make_pairs(PROBLEMS, 2000, 4)
    tokenizer = make_tokenizer()
    texts = [TEMPLATE.format(first=pair.first, second=pair.second) for pair in pairs]
    encoded = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in ids for ids in encoded) and max(map(len, encoded)) <= 128


def test_what_an_equivalent_pair_keeps() -> None:
    """All its numbers, whatever their order; so does a pair that differs in its format."""
    for pair in make_pairs(PROBLEMS, 400, 5):
        # "x" may stand for a number that was written before
        numbers = [set(NUMBER.findall(text)) for text in (pair.first, pair.second)]
        if pair.kind in ("equivalent", "format"):
            assert numbers[0] == numbers[1], pair


def test_how_much_of_the_second_text_is_common() -> None:
    """All of an equivalent one, nothing where the format differs; else up to a number, operator or x."""
    for pair in make_pairs(PROBLEMS, 400, 6):
        words = pair.second.split()
        if pair.kind == "equivalent":
            assert pair.common == len(words)
        elif pair.kind == "format":
            assert pair.common == 0
        else:
            assert 0 <= pair.common < len(words)
            assert re.fullmatch(r"\d+|[-+*]|plus|minus|times", words[pair.common]), pair


def test_easy_pairs_differ_in_their_steps_alone() -> None:
    """Equal texts, or texts of one wording with another number or operator from `common` on."""
    pairs = make_easy_pairs(PROBLEMS, 400, 7)
    assert Counter(pair.kind for pair in pairs)["equivalent"] == 200
    for pair in pairs:
        first, second = pair.first.split(), pair.second.split()
        assert len(first) == len(second) and first[: pair.common] == second[: pair.common]
        assert (pair.first == pair.second) == pair.is_equivalent == (pair.common == len(first))
        assert pair.is_equivalent or first[pair.common] != second[pair.common]
    assert pairs == make_easy_pairs(PROBLEMS, 400, 7)


def test_changes_by_hand() -> None:
    """One thing changes; a first result is carried into the next step."""
    steps = [Step(3, ADD, 4, 7), Step(7, MULTIPLY, 2, 14)]
    seen: dict[str, set[tuple[Step, ...]]] = {kind: set() for kind in KINDS[2:]}
    for seed in range(60):
        for kind, found in seen.items():
            found.add(tuple(_changed(steps, kind, np.random.default_rng(seed))))
    first, second = steps
    assert seen["result"] == {
        *((Step(3, ADD, 4, r), Step(r, MULTIPLY, 2, 14)) for r in (6, 8)),
        *((first, Step(7, MULTIPLY, 2, r)) for r in (13, 15)),
    }
    assert seen["operand"] == {
        *((Step(3, ADD, r, 7), second) for r in (3, 5)),
        *((first, Step(7, MULTIPLY, r, 14)) for r in (1, 3)),
    }
    assert seen["operator"] == {
        *((Step(3, op, 4, 7), second) for op in (SUBTRACT, MULTIPLY)),
        *((first, Step(7, op, 2, 14)) for op in (ADD, SUBTRACT)),
    }


def test_every_format_has_wordings() -> None:
    """At least eight of a solution, and a subtraction is never turned round."""
    steps = [Step(9, SUBTRACT, 4, 5), Step(5, ADD, 2, 7)]
    for name in ("code", "prose", "symbolic", "tagged"):
        texts = {reworded(name, steps, np.random.default_rng(seed)) for seed in range(200)}
        assert len(texts) >= 8, name
        assert not any(re.search(r"\b4 (-|minus) 9\b", text) for text in texts)


def test_platt_scaling_recovers_the_truth() -> None:
    """Labels drawn with probability 1 / (1 + exp(-(2 m - 1))): scale 2, shift -1, and hardly any error."""
    rng = np.random.default_rng(0)
    margins = rng.normal(0.5, 1.5, 20000)
    truth = 1 / (1 + np.exp(-(2 * margins - 1)))
    labels = rng.random(20000) < truth
    found = fit(margins, labels, 0.05)
    assert (found.scale, found.shift) == pytest.approx((2.0, -1.0), abs=0.08)
    assert expected_calibration_error(found.probability(margins), labels) < 0.01
    passed = found.probability(margins) >= found.threshold
    assert passed[~labels].mean() == pytest.approx(0.05, abs=1e-4)


def test_calibration_without_an_error_is_finite() -> None:
    """Separated margins; the threshold is just above the worst different pair that must not pass."""
    margins = np.array([-4.0, -3.0, -2.0, -1.0, 5.0, 6.0])
    labels = margins > 0
    found = fit(margins, labels, 0.25)
    assert math.isfinite(found.scale) and found.scale > 0
    assert (found.probability(margins) >= found.threshold).tolist() == [False, False, False, True, True, True]
    none = fit(margins, labels, 0.1)
    assert (none.probability(margins) >= none.threshold).tolist() == [False] * 4 + [True] * 2
    with pytest.raises(ValueError, match="pairs must be of both labels, got 2 equivalent and 0 different"):
        fit(np.zeros(2), np.array([True, True]), 0.1)


def test_measures_by_hand() -> None:
    """AUC against 1: below, tied, above. Two bins of two: |0.15 - 0.5| and |0.85 - 1|, mean 0.25."""
    labels = np.array([False, True, True, True])
    assert auc(np.array([1.0, 0.5, 1.0, 2.0]), labels) == pytest.approx((0 + 0.5 + 1) / 3)
    probability = np.array([0.12, 0.18, 0.82, 0.88])
    assert expected_calibration_error(probability, labels) == pytest.approx(0.25)
    assert [(row["from"], row["pairs"], row["share"]) for row in reliability(probability, labels)] == [
        (0.1, 2, 0.5),
        (0.8, 2, 1.0),
    ]
    report = measure(np.array([-2.0, -1.0, 1.0, 2.0]), labels, Calibration(1.0, 0.0, 0.5))
    assert report["accuracy"] == 0.75 and report["false_negative_rate"] == pytest.approx(1 / 3, abs=1e-5)
    assert report["false_positive_rate"] == 0.0 and report["auc"] == 1.0


def test_a_recipe_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for content, message in {
        "num_updates: 0": r"recipe\.yaml: num_updates must be 1 or more, got 0",
        "lr: 0": r"lr must be above 0",
        "calibration_problems: 99999": r"calibration_problems must be 1 to 12287",
        "false_positive_rate: 1": r"false_positive_rate must be above 0 and below 1",
        "updates: 3": r"recipe\.yaml: .*updates",
    }.items():
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_equivalence_recipe(str(path))
    with pytest.raises(ValueError, match="must be an existing YAML file"):
        load_equivalence_recipe(str(tmp_path / "none.yaml"))
    path.write_text("base: nowhere")
    with pytest.raises(ValueError, match="base must be a model's folder, got 'nowhere'"):
        train_equivalence(str(path), [])


def test_the_bundled_classifier_tells_unseen_pairs() -> None:
    """400 balanced hard pairs on held-out problems, in both orders: at least 99 % right."""
    folder = str(ROOT / "lab" / "bases" / "equivalence")
    model = Qwen3ForSequenceClassification.from_pretrained(folder)
    pairs = make_pairs(problem_split("heldout", 0), 400, 99)
    found = margins(model, AutoTokenizer.from_pretrained(folder), pairs).values > 0
    assert np.mean(found == [pair.is_equivalent for pair in pairs]) >= 0.99
    assert load_equivalence_recipe(f"{folder}/calibration.json") == load_equivalence_recipe(
        str(ROOT / "lab" / "bases" / "equivalence.yaml")
    )


@pytest.mark.slow
def test_a_small_training_is_repeatable_and_loads(tmp_path: Path) -> None:
    """Two updates: a folder that transformers loads, a calibration that the scorer reads, the same twice."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"base: {ROOT / 'lab/bases/voices'}\nnum_updates: 2\npairs_per_update: 4\nnum_threads: 1\n"
    )
    sizes = ["calibration_pairs=100", "test_pairs=100", "calibration_problems=64"]
    written = []
    for name in ("one", "two"):
        assert train_equivalence(str(path), [f"output={tmp_path / name}", *sizes]) == 0
        content = json.loads((tmp_path / name / "calibration.json").read_text())
        written.append({key: content[key] for key in ("scale", "shift", "threshold", "template")})
    assert written[0] == written[1]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    assert type(model).__name__ == "Qwen3ForSequenceClassification" and model.config.head_dim == 32
    assert model.config.id2label == {0: "different", 1: "equivalent"}
    assert AutoTokenizer.from_pretrained(tmp_path / "one").pad_token_id == model.config.pad_token_id
    assert read_calibration(str(tmp_path / "one" / "calibration.json")).template == TEMPLATE
