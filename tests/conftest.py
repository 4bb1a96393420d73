"""What holds for every test: no cluster of the user's, no network, and property tests without a clock."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Before anything imports ray or transformers: a test must start its own cluster and read only local files.
os.environ.pop("RAY_ADDRESS", None)
os.environ["HF_HUB_OFFLINE"] = "1"

# Two shared cores make any per-example deadline a coin flip; failures print the code that replays them.
settings.register_profile("polyphony", max_examples=100, deadline=None, print_blob=True)
# For `make test-quick`: a fifth of the examples (see tests/helpers/examples.py).
settings.register_profile("quick", settings.get_profile("polyphony"), max_examples=20)
settings.load_profile("polyphony")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With `-n 2`: each file on one worker, and all tests of the learner's ranks on one, which they share.

    One worker then runs the learner's tests, the other those of the engines. xdist's own `loadgroup` does not
    see groups under pytest 9.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByEngine(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "learner" if path.startswith("tests/engine/test_learner") else path

    return ByEngine(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the engines' tests: they take longest."""
    items.sort(key=lambda item: item.get_closest_marker("engine") is None)


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Wait for no disk: tests end processes, not machines. Calls of fsync can still be counted and failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def learners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The `Learners` of all tests of the real learner; its processes end with the session."""
    from learner_cases import start_learners

    made = start_learners(tmp_path_factory.mktemp("learners"))
    yield made
    made.stop()
