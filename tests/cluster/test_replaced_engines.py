"""An engine that is replaced in the middle of a run gets the weights, the pause and its submissions."""

from __future__ import annotations

from fake_actors import Lives, dies, run, supervise
from rollout_rows import make_group, make_sample

from cluster.role_proxies import Engines


def test_a_replaced_engine_gets_weights_pause_and_its_submissions() -> None:
    """The last weights, then the pause that all are in, then the same submission; the other is left."""
    lives = [Lives([{"generate": dies}, {}], label="engine 0"), Lives(label="engine 1")]
    submission = make_group(0, (make_sample("a", 1), make_sample("b", 2))).submission

    async def work() -> None:
        engines = Engines([supervise(each) for each in lives])
        engines.on_replaced = lambda handle: handle.call("load", "w2")
        for weights in ("w1", "w2"):
            await engines.load(weights)  # type: ignore[arg-type]
        await engines.pause()
        await engines.generate(submission)
        await engines.resume()

    run(work())
    calls = [("load", "w1"), ("load", "w2"), ("pause",)]
    assert lives[0].started[0].calls == [*calls, ("generate", submission)]
    assert lives[0].started[1].calls == [
        ("ready",), ("load", "w2"), ("pause",), ("generate", submission), ("resume",)
    ]  # fmt: skip
    assert lives[1].started[0].calls == [*calls, ("resume",)] and len(lives[1].started) == 1
