"""How many examples a property test takes: as many as it says, a fifth of them in `make test-quick`."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import HealthCheck, settings

USUAL = 100
"""Examples of a test without a number of its own in `make test`; tests/conftest.py has the profiles."""


def examples(number: int, suppress: Collection[HealthCheck] = ()) -> settings:
    """Settings with `number` examples, scaled as the profile in use scales the usual number."""
    scaled = max(2, number * settings().max_examples // USUAL)
    return settings(max_examples=scaled, suppress_health_check=suppress)
