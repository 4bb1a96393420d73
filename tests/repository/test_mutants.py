"""Tables by hand notice every mutant: a changed sign, comparison or bound in any function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import cast

import covariance_tables
import credit_cases
import distillation_cases
import diversity_cases
import loss_cases
import mask_cases
import normalize_tables
import novelty_cases
import numpy as np
import planning_cases
import pytest
import refine_cases
import sampling_cases
import token_advantage_cases

from benchmarks.mutants import functions_of, is_caught, mutants_of

Tables = Mapping[str, tuple[Callable[[], None], ...]]

ROW_WEIGHT_CHECKS = {"row_weights": normalize_tables.CHECKS}
COVARIANCE_CHECKS = {
    it.__name__: covariance_tables.CHECKS for it in functions_of("trainer.losses.covariance")
}
TABLES: tuple[tuple[str, Tables], ...] = (
    ("trainer.losses.per_token", loss_cases.CHECKS),
    ("trainer.losses.distillation", distillation_cases.CHECKS),
    ("trainer.losses.clamping", loss_cases.CLAMPING_CHECKS),
    ("trainer.losses.covariance", COVARIANCE_CHECKS),
    ("trainer.token_advantages.transforms", loss_cases.TRANSFORM_CHECKS),
    ("trainer.token_advantages.entropy_transforms", token_advantage_cases.ENTROPY_CHECKS),
    ("trainer.token_advantages.off_policy", token_advantage_cases.OFF_POLICY_CHECKS),
    ("trainer.token_advantages.planning", planning_cases.PLANNING_CHECKS),
    ("trainer.token_advantages.strategic_ngrams", planning_cases.GRAM_CHECKS),
    ("trainer.losses.logprobs", token_advantage_cases.LOGPROB_CHECKS),
    *credit_cases.CHECKS.items(),
    ("trainer.credit.diversity", diversity_cases.DIVERSITY_CHECKS),
    *novelty_cases.CHECKS.items(),
    ("trainer.loss_tokens", mask_cases.MASK_CHECKS),
    ("trainer.losses.normalize", ROW_WEIGHT_CHECKS),
    ("trainer.rollout.dynamic_sampling", sampling_cases.CHECKS),
    ("trainer.rollout.tempered", sampling_cases.TEMPERED_CHECKS),
    ("trainer.rollout.refiner", refine_cases.REFINER_CHECKS),
    ("trainer.rollout.critique", refine_cases.CRITIQUE_CHECKS),
    ("trainer.credit.credit", refine_cases.CREDIT_CHECKS),
)
CASES = [
    pytest.param(function, checks[function.__name__], id=function.__name__)
    for module, checks in TABLES
    for function in functions_of(module)
    if function.__name__ in checks
]


@pytest.mark.slow
@pytest.mark.parametrize(("function", "checks"), CASES)
def test_no_mutant_survives(function: FunctionType, checks: tuple[loss_cases.Check, ...]) -> None:
    """All mutants of one function against its table, which itself holds."""

    def check() -> None:
        with np.errstate(all="ignore"):
            for one in checks:
                one()

    check()
    assert [mutant.change for mutant in mutants_of(function) if not is_caught(mutant, check)] == []


def test_the_functions_with_tables() -> None:
    """Whoever adds a loss here adds its table."""
    losses = {function.__name__ for function in functions_of("trainer.losses.per_token")}
    assert losses - loss_cases.CHECKS.keys() == {"nll"}
    transforms = {function.__name__ for function in functions_of("trainer.token_advantages.transforms")}
    assert transforms - loss_cases.TRANSFORM_CHECKS.keys() == {
        "bound_transforms",
        "start_transforms",
        "_call_prepare",
    }
    assert {
        it.__name__ for it in functions_of("trainer.token_advantages.entropy_transforms")
    } == token_advantage_cases.ENTROPY_CHECKS.keys()
    assert {
        it.__name__ for it in functions_of("trainer.token_advantages.off_policy")
    } == token_advantage_cases.OFF_POLICY_CHECKS.keys()
    complete: dict[str, Tables] = {
        **credit_cases.CHECKS,
        "trainer.credit.diversity": diversity_cases.DIVERSITY_CHECKS,
        "trainer.losses.normalize": ROW_WEIGHT_CHECKS,
        **novelty_cases.CHECKS,
        "trainer.losses.clamping": loss_cases.CLAMPING_CHECKS,
        "trainer.losses.distillation": distillation_cases.CHECKS,
        "trainer.loss_tokens": mask_cases.MASK_CHECKS,
    }
    for module, checks in complete.items():
        assert {function.__name__ for function in functions_of(module)} == checks.keys(), module
    sampling = {function.__name__ for function in functions_of("trainer.rollout.dynamic_sampling")}
    assert sampling == sampling_cases.CHECKS.keys()
    tempered = {function.__name__ for function in functions_of("trainer.rollout.tempered")}
    assert tempered - sampling_cases.TEMPERED_CHECKS.keys() == {"as_tempered", "temperature_of"}


def ratio_of(low: float, high: float) -> bool:
    """In place of a loss."""
    assert high > 0
    return low < high - 1.0


def test_mutants_by_hand() -> None:
    """One comparison and one sign; the assertion and the docstring are left alone."""
    changes = [mutant.change for mutant in mutants_of(cast(FunctionType, ratio_of))]
    assert changes == ["ratio_of: Gt in low < high - 1.0", "ratio_of: Add in high - 1.0"]


def test_the_original_comes_back() -> None:
    (first, _) = mutants_of(cast(FunctionType, ratio_of))
    assert not is_caught(first, lambda: ratio_of(5.0, 2.0) or 1 / 0)
    assert is_caught(first, lambda: ratio_of(0.0, 2.0) or 1 / 0)
    assert ratio_of(0.0, 2.0) and not ratio_of(5.0, 2.0)
