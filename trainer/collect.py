"""Rollouts without learning: every group that a run would ask for, judged and in the journal."""

from __future__ import annotations

from configs.schema import RunConfig
from rollouts.records import Group
from trainer.evaluate import eval_metrics
from trainer.loop import Reports
from trainer.roles import Buffer
from trainer.rollout.producer import Producer


async def collect(
    config: RunConfig, producer: Producer, buffer: Buffer, attempt: int, reports: Reports
) -> None:
    """Generate and judge num_steps x groups_per_step groups with the starting model.

    Groups that the journal holds from before are not made again.
    """
    restored = await buffer.rewind(0, attempt)
    for message in restored.damaged:
        reports.event("rollouts_damaged", reason=message)
    await producer.restart(0, restored.waiting)
    if restored.waiting:
        reports.event("resumed", step=0, groups_waiting=len(restored.waiting), steps_to_train_again=0)
    groups: list[Group] = []
    producer.on_group = groups.append
    for step in range(config.num_steps):
        producer.top_up(step)
        times = await producer.settle(step)
        if groups:
            reports.step(_line(groups) | times | {"step": float(step + 1)})
        groups.clear()


def _line(groups: list[Group]) -> dict[str, float]:
    named = {"reward": "reward/mean", "format_share": "format/share", "entropy_format": "entropy/format"}
    found: dict[str, float] = {}
    for name, value in eval_metrics(groups, ()).items():
        area, _, rest = name.removeprefix("eval/").partition("/")
        if area in named:
            found[named[area] + (f"/{rest}" if rest else "")] = value
    return found
