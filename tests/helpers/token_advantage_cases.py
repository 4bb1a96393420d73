"""Token advantages of entropy, surprisal and the sampler by hand: any change in them must fail here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from loss_cases import loss_inputs

from configs.kinds.token_advantages import (
    EntropyAdvantageOptions,
    EntropyQuadrantsOptions,
    IcepopOptions,
    RejectionOptions,
    StareOptions,
    TisOptions,
    TopEntropyOptions,
)
from trainer.losses.logprobs import _clamped, _entropy_gradient
from trainer.losses.per_token import LossInputs
from trainer.token_advantages.entropy_transforms import (
    choose_surprising,
    entropy_advantage,
    entropy_quadrants,
    find_quantiles,
    num_top,
    select_entropy,
    stare,
    top_entropy,
)
from trainer.token_advantages.off_policy import (
    icepop,
    importance_ratio,
    rejection,
    sampler_drift,
    sum_by_row,
    tis,
)

Check = Callable[[], None]


def drifted(
    ratios: Sequence[float], advantages: Sequence[float], rows: Sequence[int] | None = None
) -> LossInputs:
    """Tokens whose proximal / behavior is `ratios`, sampled at log pi = -3."""
    sampled = [-3.0] * len(ratios)
    proximal = [-3.0 + math.log(ratio) for ratio in ratios]
    inputs = loss_inputs(proximal, proximal, advantages, rows)
    return replace(inputs, behavior_logprobs=torch.tensor(sampled, dtype=torch.float64))


def far(drifts: Sequence[float], rows: Sequence[int] | None = None) -> LossInputs:
    """Tokens of A = 2 with log proximal - log behavior as given."""
    inputs = loss_inputs([-1.0] * len(drifts), drifts, [2.0] * len(drifts), rows)
    return replace(inputs, behavior_logprobs=torch.zeros(len(drifts), dtype=torch.float64))


def check_entropy_advantage() -> None:
    """alpha 1/2, kappa 4. A = 8, H = 1: + min(1/2, 2); A = -4, H = 10: + min(5, 1); A = 0: nothing;
    A = -2, H = 1/2: + min(1/4, 1/2). Without gradient, though H has one.
    """
    entropy = torch.tensor([1.0, 10.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    inputs = replace(loss_inputs([-1.0] * 4, [-1.0] * 4, [8.0, -4.0, 0.0, -2.0]), entropy=entropy)
    found = entropy_advantage(inputs, EntropyAdvantageOptions(alpha=0.5, kappa=4.0))
    assert found.tolist() == [8.5, -3.0, 0.0, -1.75] and not found.requires_grad


def check_top_entropy() -> None:
    """Only what was selected keeps its advantage, and is marked."""
    kept = torch.tensor([True, False, True, False])
    inputs = replace(loss_inputs([-1.0] * 4, [-1.0] * 4, [2.0, -1.0, 0.0, 3.0]), prepared={"kept": kept})
    found = top_entropy(inputs, TopEntropyOptions())
    assert found.advantages.tolist() == [2.0, 0.0, 0.0, 0.0]
    assert found.marks["kept"].tolist() == kept.tolist()


def check_select_entropy() -> None:
    """Half of six: 0.9 and, of the three 0.5, the first two. Of 15 tokens 0.2 is 3 (not 4 by rounding), of
    16 it is 4, of one token one, of none none.
    """
    columns = {"entropy": np.array([0.5, 0.2, 0.5, 0.9, 0.1, 0.5])}
    found = select_entropy(columns, TopEntropyOptions(fraction=0.5))
    assert found.columns["kept"].tolist() == [True, False, True, True, False, False]
    assert found.stats == {"lowest_entropy": 0.5}
    assert [num_top(0.2, count) for count in (15, 16, 1, 0)] == [3, 4, 1, 0]
    none = select_entropy({"entropy": np.zeros(0, np.float32)}, TopEntropyOptions())
    assert none.columns["kept"].shape == (0,) and none.stats == {}


def check_entropy_quadrants() -> None:
    """strength 1/4: A = 2 is 5/2 where S is high, 3/2 where low; A = -2 the other way round; 0 stays."""
    advantages = [2.0, 2.0, 2.0, -2.0, -2.0, -2.0, 0.0]
    high = torch.tensor([True, False, False, True, False, False, True])
    low = torch.tensor([False, True, False, False, True, False, False])
    inputs = loss_inputs([-1.0] * 7, [-1.0] * 7, advantages)
    found = entropy_quadrants(
        replace(inputs, prepared={"high": high, "low": low}), EntropyQuadrantsOptions(strength=0.25)
    )
    assert found.advantages.tolist() == [2.5, 1.5, 2.0, -1.5, -2.5, -2.0, 0.0]
    assert found.marks["raised"].tolist() == [True, False, False, False, True, False, False]
    assert found.marks["shrunk"].tolist() == [False, True, False, True, False, False, False]


def check_stare() -> None:
    """amplify 3/2, damp 1/2: 2 becomes 3, -2 becomes -1; with half a gate 5/2 and -3/2; without, nothing."""
    inputs = loss_inputs([-1.0] * 5, [-1.0] * 5, [2.0, 2.0, -2.0, -2.0, 0.0])
    prepared = {
        "positive": torch.tensor([True, False, False, False, False]),
        "negative": torch.tensor([False, False, False, True, False]),
    }
    for gate, wanted in ((1.0, (3.0, -1.0)), (0.5, (2.5, -1.5)), (0.0, (2.0, -2.0))):
        options = StareOptions(amplify=1.5, damp=0.5, gate=gate)
        found = stare(replace(inputs, prepared=prepared), options)
        assert found.advantages.tolist() == [wanted[0], 2.0, -2.0, wanted[1], 0.0]
        assert {name: mark.tolist() for name, mark in found.marks.items()} == {
            "amplified": prepared["positive"].tolist(),
            "damped": prepared["negative"].tolist(),
        }


def check_choose_surprising() -> None:
    """Five with A > 0: of 0.3, so two, those of S 5 and the first of S 3. Two with A < 0: one. None at A = 0.

    An impossible token is the most surprising. Nothing to choose from: nothing is chosen, and no stat.
    """
    columns = {
        "policy_logprobs": np.array([-1.0, -3.0, -5.0, -3.0, -0.5, -9.0, -2.0, -math.inf], np.float32),
        "advantage": np.array([1.0, 1.0, 0.1, 2.0, 1.0, 0.0, -1.0, -3.0]),
    }
    found = choose_surprising(columns, StareOptions(share=0.3))
    assert np.flatnonzero(found.columns["positive"]).tolist() == [1, 2]
    assert np.flatnonzero(found.columns["negative"]).tolist() == [7]
    largest = float(np.finfo(np.float32).max)
    assert found.stats == {"surprisal_positive": 3.0, "surprisal_negative": largest}
    none = {"policy_logprobs": np.array([-1.0], np.float32), "advantage": np.array([0.0])}
    found = choose_surprising(none, StareOptions())
    assert not found.columns["positive"].any() and not found.columns["negative"].any() and not found.stats


def check_find_quantiles() -> None:
    """Surprisals 0 to 10, a fifth of them at either end: quantiles 2 and 8, above 9 and 10, below 0 and 1.

    An impossible token in the place of 10 is the largest. All alike, or none: nothing is at an end.
    """
    for last in (-10.0, -math.inf):
        columns = {"policy_logprobs": np.array([*range(0, -10, -1), last], np.float32)}
        found = find_quantiles(columns, EntropyQuadrantsOptions(fraction=0.2))
        assert np.flatnonzero(found.columns["high"]).tolist() == [9, 10]
        assert np.flatnonzero(found.columns["low"]).tolist() == [0, 1]
        assert found.stats == {"surprisal_lower": 2.0, "surprisal_upper": 8.0}
    for count in (0, 1, 5):
        found = find_quantiles(
            {"policy_logprobs": np.full(count, -2.0, np.float32)}, EntropyQuadrantsOptions()
        )
        assert not found.columns["high"].any() and not found.columns["low"].any()
        assert found.columns["high"].shape == found.columns["low"].shape == (count,)


def check_tis() -> None:
    """Cap 2: ratios 1, 3, 1/2 of tokens. Rows 5 and 3 mixed up: products 2 x 1/2 = 1 and 3/2 x 2 = 3."""
    found = tis(drifted([1.0, 3.0, 0.5], [2.0, 2.0, -2.0]), TisOptions())
    assert found.advantages.tolist() == pytest.approx([2.0, 4.0, -1.0])
    assert found.marks["truncated"].tolist() == [False, True, False]
    whole = tis(drifted([2.0, 1.5, 2.0, 0.5], [2.0] * 4, [5, 3, 3, 5]), TisOptions(level="sequence"))
    assert whole.advantages.tolist() == pytest.approx([2.0, 4.0, 4.0, 2.0])
    assert whole.marks["truncated"].tolist() == [False, True, True, False]
    assert not whole.advantages.requires_grad and whole.advantages.dtype == torch.float64


def check_tis_far() -> None:
    """Log-ratios, of a token or of a row, are clamped to +-20; a missing sampler's logprob is refused.

    A row's sum is taken before: -25 + 10 is -15, not -20 + 10.
    """
    e20 = math.exp(20)
    assert sampler_drift(far([1000.0, -1000.0, 1.5])).tolist() == [1000.0, -1000.0, 1.5]
    wanted = [e20, 1 / e20, math.exp(1.5)]
    assert importance_ratio(torch.tensor([1000.0, -1000.0, 1.5])).tolist() == pytest.approx(wanted)
    whole = tis(far([-25.0, 10.0], [0, 0]), TisOptions(level="sequence"))
    assert whole.advantages.tolist() == pytest.approx([2 * math.exp(-15)] * 2)
    assert tis(far([-1000.0]), TisOptions()).advantages.tolist() == pytest.approx([2 / e20])
    options = TisOptions(level="sequence", cap=1e12)
    found = tis(far([15.0, 15.0, -15.0, -15.0], [0, 0, 1, 1]), options)
    assert found.advantages.tolist() == pytest.approx([2 * e20, 2 * e20, 2 / e20, 2 / e20])
    with pytest.raises(AssertionError, match="behavior logprobs"):
        sampler_drift(loss_inputs([-1.0], [-1.0], [1.0]))


def check_sum_by_row() -> None:
    """Rows 2 and 0: 1 + 3 + 5 and 7; of no tokens none."""
    found = sum_by_row(torch.tensor([1.0, 7.0, 3.0, 5.0]), torch.tensor([2, 0, 2, 2]))
    assert found.tolist() == pytest.approx([9.0, 7.0, 9.0, 9.0])
    assert sum_by_row(torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)


def check_icepop() -> None:
    """Bounds 1/2 and 5: ratios 1/4 and 6 are dropped, 1, 3 and the bound 5 are weights (or are not)."""
    inputs = drifted([1.0, 3.0, 0.25, 6.0, 4.999999], [2.0, -2.0, 2.0, -2.0, 1.0])
    found = icepop(inputs, IcepopOptions())
    assert found.advantages.tolist() == pytest.approx([2.0, -6.0, 0.0, 0.0, 5.0])
    assert found.marks["dropped"].tolist() == [False, False, True, True, False]
    plain = icepop(inputs, IcepopOptions(weigh=False))
    assert plain.advantages.tolist() == [2.0, -2.0, 0.0, 0.0, 1.0]


def check_rejection() -> None:
    """Rows by their geometric mean, bounds 0.95 and 1.05: 1.2 and 1 / 1.2 make 1, 1.1 and 0.9 are out."""
    inputs = drifted([1.2, 1.1, 1 / 1.2, 1.1, 0.9], [2.0, 2.0, -2.0, -2.0, 2.0], [0, 1, 0, 1, 2])
    found = rejection(inputs, RejectionOptions(low=0.95, high=1.05))
    assert found.advantages.tolist() == [2.0, 0.0, -2.0, 0.0, 0.0]
    assert found.marks["dropped"].tolist() == [False, True, False, True, True]
    # -24 and +24 make a mean of 0, as -23.9 and 23.9 do; one at -30 of two tokens is exp(-15)
    mean = rejection(far([-24.0, 24.0, -30.0, 0.0], [0, 0, 1, 1]), RejectionOptions(low=2e-7, high=1.05))
    assert mean.marks["dropped"].tolist() == [False] * 4


def check_clamped() -> None:
    """(1/2, 1/4, 1/8, 1/16, 1/16) without the least two: (4/7, 2/7, 1/7, 0, 0)."""
    logp = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]], dtype=torch.float64).log()
    assert _clamped(logp, 2).exp().tolist()[0] == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0.0, 0.0])


def check_entropy_gradient() -> None:
    """-p (log p + H) of (1/4, 3/4, 0), H = ln 4 - 3/4 ln 3: by the first 3/16 ln 3, by the second less that.

    What has no probability has no gradient, and makes none NaN.
    """
    found = _entropy_gradient(torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64).log())
    assert found.tolist()[0] == pytest.approx([3 / 16 * math.log(3), -3 / 16 * math.log(3), 0.0])


LOGPROB_CHECKS: dict[str, tuple[Check, ...]] = {
    "_clamped": (check_clamped,),
    "_entropy_gradient": (check_entropy_gradient,),
}
"""By function of `trainer.losses.logprobs`."""
ENTROPY_CHECKS: dict[str, tuple[Check, ...]] = {
    "entropy_advantage": (check_entropy_advantage,),
    "top_entropy": (check_top_entropy,),
    "select_entropy": (check_select_entropy,),
    "num_top": (check_select_entropy,),
    "stare": (check_stare,),
    "choose_surprising": (check_choose_surprising,),
    "entropy_quadrants": (check_entropy_quadrants,),
    "find_quantiles": (check_find_quantiles,),
}
"""By function of `trainer.token_advantages.entropy_transforms`."""
OFF_POLICY_CHECKS: dict[str, tuple[Check, ...]] = {
    "sampler_drift": (check_tis, check_tis_far),
    "importance_ratio": (check_tis, check_tis_far),
    "tis": (check_tis, check_tis_far),
    "sum_by_row": (check_sum_by_row,),
    "icepop": (check_icepop,),
    "rejection": (check_rejection,),
}
"""By function of `trainer.token_advantages.off_policy`."""
