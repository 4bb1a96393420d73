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


# First, because xdist reads the groups in a hook of the same name.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep on one worker what shares live engines, and begin with it: those tests take longest.

    With `-n 2 --dist loadgroup` one worker then runs the learner's tests, the other those of the engines.
    """
    for item in items:
        if item.get_closest_marker("engine") is not None:
            shared = "learner" if "bench" in getattr(item, "fixturenames", ()) else item.path.stem
            item.add_marker(pytest.mark.xdist_group(shared))
    items.sort(key=lambda item: item.get_closest_marker("engine") is None)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The `Bench` of all tests of the real learner; its processes end with the session."""
    from learner_cases import make_bench

    made = make_bench(tmp_path_factory.mktemp("bench"))
    yield made
    made.stop()
