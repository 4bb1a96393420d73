"""Tables by hand notice every mutant: a changed sign, comparison or bound in any function."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType

import credit_cases
import diversity_cases
import loss_cases
import mask_cases
import numpy as np
import planning_cases
import pytest
import sampling_cases
import shape_cases
import test_covariance
import test_normalize

from benchmarks.mutants import functions_of, is_caught, mutants_of

Check = Callable[[], object]

REDUCE_CHECKS = {
    "row_weights": (
        test_normalize.test_token_mean_by_hand,
        test_normalize.test_sequence_mean_by_hand,
        test_normalize.test_sequence_sum_by_hand,
        test_normalize.test_origins_and_updates_are_normalised_apart,
    )
}


def each_case(test: Callable[..., None]) -> Check:
    """A parametrised test as one check of all its cases."""
    (mark,) = (mark for mark in test.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    return lambda: [test(*case) for case in mark.args[1]]


OF_COVARIANCE: tuple[Check, ...] = (
    test_covariance.test_covariances_by_hand,
    test_covariance.test_what_is_not_known_enters_no_mean,
    test_covariance.test_where_the_ratio_has_stopped_a_token,
    test_covariance.test_kl_cov_takes_the_highest,
    test_covariance.test_clip_cov_takes_the_smallest_draws_within_the_band,
    each_case(test_covariance.test_clip_cov_leaves_what_the_ratio_has_stopped),
    test_covariance.test_with_old_behavior_the_sampler_decides_what_is_stopped,
    test_covariance.test_ties_go_to_the_first_sample_and_position,
    test_covariance.test_no_least_of_one_token,
    each_case(test_covariance.test_clip_regions),
    test_covariance.test_the_published_clip_is_zero_to_two,
    test_covariance.test_marks,
)
COVARIANCE_CHECKS = {it.__name__: OF_COVARIANCE for it in functions_of("trainer.losses.covariance")}
CASES = [
    pytest.param(function, checks[function.__name__], id=function.__name__)
    for module, checks in (
        ("trainer.losses.per_token", loss_cases.CHECKS),
        ("trainer.losses.clamping", loss_cases.CLAMPING_CHECKS),
        ("trainer.losses.covariance", COVARIANCE_CHECKS),
        ("trainer.token_advantages.transforms", loss_cases.SHAPE_CHECKS),
        ("trainer.token_advantages.entropy_transforms", shape_cases.ENTROPY_CHECKS),
        ("trainer.token_advantages.off_policy", shape_cases.OFF_POLICY_CHECKS),
        ("trainer.token_advantages.planning", planning_cases.PLANNING_CHECKS),
        ("trainer.token_advantages.strategic_ngrams", planning_cases.GRAM_CHECKS),
        ("trainer.losses.logprobs", shape_cases.LOGPROB_CHECKS),
        *credit_cases.CHECKS.items(),
        ("trainer.credit.diversity", diversity_cases.DIVERSITY_CHECKS),
        ("trainer.loss_tokens", mask_cases.MASK_CHECKS),
        ("trainer.losses.normalize", REDUCE_CHECKS),
        ("trainer.rollout.dynamic_sampling", sampling_cases.CHECKS),
        ("trainer.rollout.tempered", sampling_cases.TEMPERED_CHECKS),
    )
    for function in functions_of(module)
    if function.__name__ in checks
]


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
    shapes = {function.__name__ for function in functions_of("trainer.token_advantages.transforms")}
    assert shapes - loss_cases.SHAPE_CHECKS.keys() == {
        "bound_transforms",
        "start_transforms",
        "_call_prepare",
    }
    assert {
        it.__name__ for it in functions_of("trainer.token_advantages.entropy_transforms")
    } == shape_cases.ENTROPY_CHECKS.keys()
    assert {
        it.__name__ for it in functions_of("trainer.token_advantages.off_policy")
    } == shape_cases.OFF_POLICY_CHECKS.keys()
    complete = {
        **credit_cases.CHECKS,
        "trainer.credit.diversity": diversity_cases.DIVERSITY_CHECKS,
        "trainer.losses.normalize": REDUCE_CHECKS,
        "trainer.losses.clamping": loss_cases.CLAMPING_CHECKS,
        "trainer.loss_tokens": mask_cases.MASK_CHECKS,
    }
    for module, checks in complete.items():
        assert {function.__name__ for function in functions_of(module)} == checks.keys(), module
    sampling = {function.__name__ for function in functions_of("trainer.rollout.dynamic_sampling")}
    assert sampling == sampling_cases.CHECKS.keys()
    tempered = {function.__name__ for function in functions_of("trainer.rollout.tempered")}
    assert tempered - sampling_cases.TEMPERED_CHECKS.keys() == {"as_tempered", "temperature_of"}


def ratio_of(low: float, high: float) -> bool:
    """Stands in for a loss."""
    assert high > 0
    return low < high - 1.0


def test_mutants_by_hand() -> None:
    """One comparison and one sign; the assertion and the docstring are left alone."""
    changes = [mutant.change for mutant in mutants_of(ratio_of)]
    assert changes == ["ratio_of: Gt in low < high - 1.0", "ratio_of: Add in high - 1.0"]


def test_the_original_comes_back() -> None:
    (first, _) = mutants_of(ratio_of)
    assert not is_caught(first, lambda: ratio_of(5.0, 2.0) or 1 / 0)
    assert is_caught(first, lambda: ratio_of(0.0, 2.0) or 1 / 0)
    assert ratio_of(0.0, 2.0) and not ratio_of(5.0, 2.0)
