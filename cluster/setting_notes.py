"""Settings that are allowed but may not be what was meant: a note for each before a run starts.

In: a bound run. Out: notes. Called by `cluster.train`, with and without `--dry-run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from configs.bound import BoundRun

_LAB = "lab"


def scorer_notes(run: BoundRun) -> Iterator[tuple[str, str]]:
    """(key of a scorer, what its options say that a user must know)."""
    for entry in run.scorers.values():
        for words in entry.options.notes():
            yield entry.key, words


def note_settings(run: BoundRun, note: Callable[[str], None]) -> None:
    """Note what scorers say of their options, and evaluations on other data or by a scorer without weight."""
    for key, words in scorer_notes(run):
        note(f"{key}: {words}")
    for name in sorted(run.models.keys() - run.used_models()):
        note(f"models.{name}: no option names it, so it is not started")
    if not run.config.eval.every:
        return
    if run.single["data.train"].kind_name != _LAB and run.single["data.eval"].kind_name == _LAB:
        note(
            "data.eval is still {kind: lab}: evaluations use the lab's prompts; set data.eval, or "
            "eval.every=0"
        )
    # pass@k takes the first verdict in the order of the config (`rewards.combine`).
    judge = next((entry for entry in run.scorers.values() if entry.kind.answers), None)
    if judge is not None and judge.common.weight == 0 and judge.common.combine == "sum":
        note(
            f"{judge.key} ({judge.kind_name}) has weight 0, but pass@k of evaluations uses its verdict: it "
            "is the first scorer that can say whether an answer is right"
        )
