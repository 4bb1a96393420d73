"""What every test stands on: no cluster of the user's, no network, and property tests without a clock."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Before anything imports ray or transformers: a test must start its own cluster and read only local files.
os.environ.pop("RAY_ADDRESS", None)
os.environ["HF_HUB_OFFLINE"] = "1"

# Two shared cores make any per-example deadline a coin flip; failures print the code that replays them.
settings.register_profile("polyphony", deadline=None, print_blob=True)
settings.load_profile("polyphony")


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The `Bench` of all tests of the real learner; its processes end with the session."""
    from learner_cases import make_bench

    made = make_bench(tmp_path_factory.mktemp("bench"))
    yield made
    made.stop()
