"""Tables by hand notice every mutant: a changed sign, comparison or bound in any function."""

from __future__ import annotations

from types import FunctionType

import loss_cases
import pytest
import sampling_cases

from benchmarks.mutants import functions_of, is_caught, mutants_of

CASES = [
    pytest.param(function, checks[function.__name__], id=function.__name__)
    for module, checks in (
        ("trainer.losses", loss_cases.CHECKS),
        ("trainer.shapes", loss_cases.SHAPE_CHECKS),
        ("trainer.dynamic_sampling", sampling_cases.CHECKS),
        ("trainer.tempered", sampling_cases.TEMPERED_CHECKS),
    )
    for function in functions_of(module)
    if function.__name__ in checks
]


@pytest.mark.parametrize(("function", "checks"), CASES)
def test_no_mutant_survives(function: FunctionType, checks: tuple[loss_cases.Check, ...]) -> None:
    """All mutants of one function against its table, which itself holds."""

    def check() -> None:
        for one in checks:
            one()

    check()
    assert [mutant.change for mutant in mutants_of(function) if not is_caught(mutant, check)] == []


def test_the_functions_with_tables() -> None:
    """Whoever adds a loss here adds its table."""
    losses = {function.__name__ for function in functions_of("trainer.losses")}
    assert losses - loss_cases.CHECKS.keys() == {"nll"}
    shapes = {function.__name__ for function in functions_of("trainer.shapes")}
    assert shapes - loss_cases.SHAPE_CHECKS.keys() == {"bound_shapes"}
    sampling = {function.__name__ for function in functions_of("trainer.dynamic_sampling")}
    assert sampling == sampling_cases.CHECKS.keys()
    tempered = {function.__name__ for function in functions_of("trainer.tempered")}
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
