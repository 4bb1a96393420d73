"""Weights of prompts: by hand, the expectation by numeric integration, and normalisation."""

from __future__ import annotations

import credit_cases
import numpy as np
import pytest
import reference_credit as papers
from credit_cases import rewarded
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.kinds.prompt_weights import PassAtKValueOptions
from configs.load import load_config
from trainer.credit.prompt_weights import pass_at_k_value


@pytest.mark.parametrize("name", credit_cases.PROMPT_WEIGHT_CHECKS)
def test_by_hand(name: str) -> None:
    for check in credit_cases.PROMPT_WEIGHT_CHECKS[name]:
        check()


@examples(20)
@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 12))
def test_against_the_integral(k: int, right: int, wrong: int) -> None:
    """E over Beta(1 + s, 1 + f), to the midpoint rule's error."""
    rows = rewarded([0.0], [0], successes=[right], failures=[wrong])
    found = pass_at_k_value(rows, PassAtKValueOptions(k=k, normalise=False))
    assert found[0] == pytest.approx(papers.pass_at_k_value(k, 1.0 + right, 1.0 + wrong, 4000), rel=1e-5)


COUNTS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 400), st.integers(0, 400)), min_size=1, max_size=5
)


@given(COUNTS, st.integers(1, 16))
def test_normalised_weights_have_mean_one_over_groups(groups: list[tuple[int, int, int]], k: int) -> None:
    """For any group sizes; and more successes never weigh more."""
    sizes = [size for size, _, _ in groups]
    names = np.repeat(np.arange(len(groups)), sizes).tolist()
    rows = rewarded(
        [0.0] * len(names),
        names,
        successes=[groups[name][1] for name in names],
        failures=[groups[name][2] for name in names],
    )
    found = pass_at_k_value(rows, PassAtKValueOptions(k=k))
    assert np.isfinite(found).all() and (found >= 0).all()
    starts = np.cumsum([0, *sizes[:-1]])
    assert found[starts].mean() == pytest.approx(1.0)
    more = rewarded(
        [0.0] * len(names),
        names,
        successes=(rows.successes_N + 1).tolist(),
        failures=rows.failures_N.tolist(),
    )
    plain = PassAtKValueOptions(k=k, normalise=False)
    assert (pass_at_k_value(more, plain) <= pass_at_k_value(rows, plain) + 1e-12).all()


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["prompt_weight.x={kind: pass_at_k_value, k: 0}"], "must be above 0"),
        (["prompt_weight.x={kind: pass_at_k_value, prior_failures: 0}"], "must be above 0"),
        (["prompt_weight.x={kind: value}"], "must be one of pass_at_k_value"),
        (["prompt_weight.x={kind: pass_at_k_value}", "loss.policy.kind=nll"], "nll does not"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        load_config("debug", overrides)
