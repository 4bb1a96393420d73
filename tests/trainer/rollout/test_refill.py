"""Refill: the loop with roles in memory, on real files, interrupted anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from loop_fakes import FakeScorer, TokenScorer
from matrices import parts
from run_files import damage
from trial import Killed, Result, Trial, result_of

from rollouts.journal import Journal
from rollouts.records import Completion, Judgement, Prompt
from rollouts.store import committed_steps, read_step, read_summary, step_dir


class EqualScorer(FakeScorer):
    """Every completion is right: zero variance everywhere."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Judgement]:
        return [(await super(EqualScorer, self).score(prompt, completions[:1]))[0] for _ in completions]


def refill(folder: Path, attempt: int = 1, scorer: FakeScorer | None = None) -> Trial:
    return Trial(folder, attempt=attempt, zero_variance_groups="refill", scorer=scorer or TokenScorer())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, Result]:
    """A run that is not interrupted."""
    trial = refill(tmp_path_factory.mktemp("whole") / "run")
    assert trial.train()
    return trial, result_of(trial)


def test_every_step_has_its_groups(whole: tuple[Trial, Result]) -> None:
    """Of each step, from its first submission 6 s on: the groups that the rewards ask for, all of them
    committed.

    Two wanted, three rounds. A pair is learned if its rewards differ; learned ones have weights (update_count
    1), others none. Some step needed every round, and some step only one.
    """
    trial, result = whole
    rounds_seen, short = set(), []
    for step, (table, line) in enumerate(zip(result.steps, result.metrics, strict=True)):
        rows = table.select(["submission_index", "reward", "update_count"]).to_pylist()
        pairs: dict[int, list[dict[str, float]]] = {}
        for row in rows:
            pairs.setdefault(row["submission_index"], []).append(row)
        differing = {index: pair[0]["reward"] != pair[1]["reward"] for index, pair in pairs.items()}
        for index, pair in pairs.items():
            assert [row["update_count"] for row in pair] == [int(differing[index])] * 2
        kept, sampled, rounds = 0, 0, 0
        while kept < 2 and rounds < 3:
            asked = 2 - kept
            kept += sum(differing[6 * step + sampled + number] for number in range(asked))
            sampled, rounds = sampled + asked, rounds + 1
        assert sorted(pairs) == list(range(6 * step, 6 * step + sampled))
        assert line["sampling/kept_groups"] == kept and line["sampling/rounds"] == rounds
        assert line["sampling/zero_variance_share"] == pytest.approx(1 - kept / sampled)
        assert line["reward/mean"] == pytest.approx(sum(row["reward"] for row in rows) / len(rows))
        rounds_seen.add(rounds)
        if kept < 2:
            short.append(f"groups_short step={step + 1} kept={kept} wanted=2 rounds=3")
    assert rounds_seen == {1, 2, 3} and short and trial.events == short
    assert Journal(trial.folder / "journal").indexes() == []


def prompts_of(table: pa.Table) -> dict[int, str]:
    """submission_index -> prompt_id"""
    columns = (table.column(name).to_pylist() for name in ("submission_index", "prompt_id"))
    return dict(zip(*columns, strict=True))


def test_the_prompts_in_turn_do_not_shift(whole: tuple[Trial, Result], tmp_path: Path) -> None:
    """The first two groups of every step have the prompts of a run without refill, and step 1, of the same
    weights, has the same rows.
    """
    _, result = whole
    plain = Trial(tmp_path, scorer=TokenScorer())
    assert plain.train()
    for step, (table, other) in enumerate(zip(result.steps, result_of(plain).steps, strict=True)):
        mine, theirs = prompts_of(table), prompts_of(other)
        in_turn = [theirs[2 * step + place] for place in range(2)]
        assert [mine[6 * step + place] for place in range(2)] == in_turn
        assert len(set(mine.values())) == min(5, len(mine)), "no prompt twice while there are others"
    names = ["sample_id", "token_ids", "reward"]
    first = result.steps[0].select(names).slice(0, 4)
    assert first == result_of(plain).steps[0].select(names)


@pytest.mark.parametrize("part", parts(17))
def test_killed_at_every_call(whole: tuple[Trial, Result], tmp_path: Path, part: int) -> None:
    """Two processes give what one gives, bit for bit, whichever call is the last of the first process (before
    or after it has its effect, alternating); no stored group is sampled again.
    """
    reference, expected = whole
    for fatal, name in list(enumerate(reference.calls))[part::17]:
        folder, where = tmp_path / str(fatal), f"killed at call {fatal}, {name}"
        first = refill(folder)
        first.kill_at(fatal, before=fatal // 17 % 2 == 0)
        with pytest.raises(Killed):
            first.train()
        durable = set(Journal(folder / "journal").indexes())
        for step in committed_steps(folder):
            durable |= set(read_step(folder, step).column("submission_index").to_pylist())
        second = refill(folder, attempt=2)
        assert second.train()
        assert result_of(second) == expected, where
        again = {int(call.split()[1]) for call in second.generator.calls[1:] if call.startswith("generate 0")}
        assert not again & durable, where


def test_killed_between_the_rounds(whole: tuple[Trial, Result], tmp_path: Path) -> None:
    """The first round of step 3 is stored, and one group of the second: only the missing ones are sampled."""
    reference, expected = whole
    sizes = [table.num_rows // 2 for table in expected.steps]
    step = next(step for step, size in enumerate(sizes) if size > 3)
    added = sum(sizes[:step]) + 3
    first = refill(tmp_path)
    adds = [number for number, name in enumerate(reference.calls) if name == "buffer.add"]
    first.kill_at(adds[added - 1], before=False)
    with pytest.raises(Killed):
        first.train()
    waiting = Journal(tmp_path / "journal").indexes()
    assert waiting[-3:] == [6 * step, 6 * step + 1, 6 * step + 2]
    second = refill(tmp_path, attempt=2)
    assert second.train() and result_of(second) == expected
    again = [call for call in second.generator.calls[1:] if call.startswith("generate 0")]
    made = range(6 * step, 6 * step + sizes[step])
    assert [int(call.split()[1]) for call in again][: sizes[step] - 3] == list(made)[3:]


def test_a_damaged_step_is_sampled_again(whole: tuple[Trial, Result], tmp_path: Path) -> None:
    """With all its rounds, and the result is the same."""
    reference, expected = whole
    first = refill(tmp_path)
    commits = [number for number, name in enumerate(reference.calls) if name == "buffer.commit"]
    first.kill_at(commits[5], before=True)
    with pytest.raises(Killed):
        first.train()
    damage(next(step_dir(tmp_path, "rollouts", 5).glob("*.parquet")))
    second = refill(tmp_path, attempt=2)
    assert second.train() and result_of(second) == expected
    assert second.events[0].startswith("rollouts_damaged reason=")


def test_the_buffer_lost_at_a_take(whole: tuple[Trial, Result], tmp_path: Path) -> None:
    """Groups missing from the buffer when a step is taken are sampled again, in any round."""
    _, expected = whole
    sizes = [table.num_rows // 2 for table in expected.steps]
    step = next(step for step, size in enumerate(sizes) if size > 2)
    trial = refill(tmp_path)

    def lose(number: int, name: str, before: bool) -> None:
        if name == "buffer.take" and before and trial.learner.version == step:
            trial.act = lambda number, name, before: None
            held = trial.buffer.actor._waiting
            for index in (6 * step, 6 * step + sizes[step] - 1):
                del held[index], trial.buffer.actor._seen[index]
                trial.buffer.actor._journal.drop([index])

    trial.act = lose
    assert trial.train() and result_of(trial) == expected
    assert f"groups_missing step={step + 1} groups=2" in trial.events


def test_nothing_to_learn_from_ends_each_step_with_its_reason(tmp_path: Path) -> None:
    """Every reward is 1: three rounds of two groups, no weight, and an event; the run ends normally."""
    trial = refill(tmp_path, scorer=EqualScorer())
    assert trial.train()
    result = result_of(trial)
    assert trial.events == [f"groups_short step={step} kept=0 wanted=2 rounds=3" for step in range(1, 7)]
    assert [table.num_rows for table in result.steps] == [12] * 6
    assert {line["sampling/zero_variance_share"] for line in result.metrics} == {1.0}
    assert all(not learned.row_weight_N.any() for learned in trial.learner.learned)
    assert all(not learned.advantage_N.any() for learned in trial.learner.learned)


def test_dropped_groups_stay_in_the_rollouts(tmp_path: Path) -> None:
    """One round: groups without variance are committed with update_count 0 and without an event."""
    trial = Trial(tmp_path, zero_variance_groups="drop", scorer=TokenScorer())
    assert trial.train() and trial.events == []
    result = result_of(trial)
    counts = [count for table in result.steps for count in table.column("update_count").to_pylist()]
    assert set(counts) == {0, 1} and [table.num_rows for table in result.steps] == [4] * 6
    assert {line["sampling/rounds"] for line in result.metrics} == {1.0}


def test_a_step_says_which_groups_it_used(whole: tuple[Trial, Result]) -> None:
    """step.json lists every group sampled, used or not; the next step begins at its own index."""
    trial, _ = whole
    for step in committed_steps(trial.folder):
        used: Any = read_summary(trial.folder, step)["groups_used"]
        assert used[0]["submission_index"] == 6 * (step - 1)
        assert not read_summary(trial.folder, step)["groups_dropped"]
