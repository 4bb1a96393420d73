"""Rollouts without training: every group of a run, scored and stored in the journal."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from configs.schema import RunConfig
from rollouts.records import Group
from trainer.evaluate import eval_metrics
from trainer.reports import Reports
from trainer.reward_watch import FAILED, RewardWatch
from trainer.roles import Buffer
from trainer.rollout.dynamic_sampling import submissions_per_step
from trainer.rollout.producer import Producer
from trainer.rollout.refiner import policy_samples
from trainer.rollout.rollouter import ScorerSet
from trainer.scorer_watch import ScorerReports


async def collect(
    config: RunConfig,
    producer: Producer,
    buffer: Buffer,
    attempt: int,
    reports: Reports,
    scorers: ScorerSet,
) -> None:
    """Generate and score num_steps x groups_per_step groups with the initial model.

    Groups that are already in the journal are not sampled again.

    Raises:
        NoRewardError: several steps in a row, or all steps, had no reward.
        ScorerStoppedError: a scorer fails too often, or says itself that the run must stop.
    """
    restored = await buffer.rewind(0, attempt)
    for message in restored.damaged:
        reports.event("rollouts_damaged", reason=message)
    await producer.restart(0, restored.waiting)
    if restored.waiting:
        reports.event("resumed", step=0, groups_waiting=len(restored.waiting), steps_to_train_again=0)
    groups, stride = list[Group](), submissions_per_step(config)
    rewards = RewardWatch(config.num_steps, reports.note, reports.scorer_log)
    producer.on_group = lambda group: groups.append(_own_rows(group))
    watch = ScorerReports(scorers.scorers, reports.event)
    await watch.look()
    for step in range(config.num_steps):
        producer.top_up(step)
        watch.check()
        times = await producer.settle(step)
        health = await watch.take()
        if groups:
            reports.step(_line(groups) | times | health | {"step": float(step + 1)})
        # From the buffer, because groups of an earlier attempt count too and are not in `groups`.
        rows = await buffer.rewards(step * stride, (step + 1) * stride)
        share = rows.column("reward").null_count / max(rows.num_rows, 1)
        rewards.observe({"reward/null_share": share} | _failed(groups), step + 1)
        groups.clear()
    watch.check()


def _own_rows(group: Group) -> Group:
    """The group without refined rows: lines are of policy rows, as the metrics of a training step."""
    return replace(group, samples=tuple(policy_samples(group)))


def _failed(groups: list[Group]) -> dict[str, float]:
    """The counts failed/<scorer>/<status>, as in the metrics of a step."""
    statuses = [item for group in groups for sample in group.samples for item in sample.score_status.items()]
    failed = Counter(f"{FAILED}{name}/{status}" for name, status in statuses if status != "ok")
    return {name: float(count) for name, count in sorted(failed.items())}


def _line(groups: list[Group]) -> dict[str, float]:
    """The metrics of an evaluation under the names that they have in a training step."""
    names = {"reward": "reward/mean", "format_share": "format/share", "entropy_format": "entropy/format"}
    metrics: dict[str, float] = {}
    for name, value in eval_metrics(groups, ()).items():
        area, _, rest = name.removeprefix("eval/").partition("/")
        if area in names:
            metrics[names[area] + (f"/{rest}" if rest else "")] = value
    return metrics
