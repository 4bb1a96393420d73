"""The user's own code is tried in a killable process before anything starts: names, files, limits."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matrices import quick_of

import actors.sandbox
from cluster.base_check import check_without_engines
from cluster.train import dry_run, train
from cluster.user_code import check_user_code, own_targets
from configs.bound import bind
from configs.load import load_config, load_with_sources
from configs.schema import RunConfig

REWARD = """
import helpers_of_mine

def compute_score(data_source, solution_str, ground_truth, extra_info):
    return 1.0

LIMIT = 3
"""


class Notes:
    """A reporter that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def header(self, **fields: object) -> None: ...

    def step(self, metrics: object) -> None: ...

    def phase(self, step: int, name: str) -> None: ...


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a reward module, which imports another of the user's."""
    (tmp_path / "mine_rewards.py").write_text(REWARD)
    (tmp_path / "helpers_of_mine.py").write_text("A = 1\n")
    (tmp_path / "mine_broken.py").write_text("import os\nimport no_such_library\n")
    (tmp_path / "mine_raising.py").write_text("\n\nTABLE = {}['key']\n")
    (tmp_path / "mine_typo.py").write_text("def f(:\n")
    (tmp_path / "mine_ending.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "mine_hanging.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def config_with(function: str, *overrides: str) -> RunConfig:
    allow = "allow=[mine_rewards, mine_rewads, helpers_of_mine, mine_broken, mine_raising, mine_typo, "
    scorer = f'scorers.mine={{kind: custom, function: "{function}", weight: 1.0}}'
    return load_config("debug", [allow + "mine_ending, mine_hanging]", scorer, *overrides])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("mine_rewards:compute_scor", "has no attribute 'compute_scor' (did you mean compute_score?)"),
        ("mine_rewads:compute_score", "there is no module 'mine_rewads' in"),
        ("mine_rewads:compute_score", "(did you mean mine_rewards?)"),
        ("mine_rewards:LIMIT", "must name a callable, got int"),
        (
            "mine_broken:f",
            "mine_broken.py:2 in <module>: ModuleNotFoundError: No module named 'no_such_library'",
        ),
        ("mine_raising:f", "mine_raising.py:3 in <module>: KeyError: 'key'"),
        ("mine_typo:f", "mine_typo.py:1: SyntaxError: invalid syntax"),
        ("mine_ending:f", "the process ended with exit code 0"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(folder: Path, function: str, expected: str) -> None:
    """One line with the key, the value and the reason; the driver imports nothing."""
    with pytest.raises(ValueError) as error:
        check_user_code(bind(config_with(function)), pytest.fail)
    message = str(error.value)
    assert message.startswith(f"scorers.mine.function = {function!r}: ") and expected in message
    assert message.count(repr(function)) == 1
    assert len(message.splitlines()) == 1 and function.partition(":")[0] not in sys.modules


def test_an_import_that_hangs_ends_at_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said what is waited for; then the process is killed."""
    monkeypatch.setattr(actors.sandbox, "START_LIMIT_S", 2.0)
    monkeypatch.setattr(actors.sandbox, "_LONG_S", 0.1)
    notes: list[str] = []
    began = time.monotonic()
    with pytest.raises(ValueError, match="its import did not end within 2 s"):
        check_user_code(bind(config_with("mine_hanging:f")), notes.append)
    assert time.monotonic() - began < 10.0
    assert notes == ["importing mine_hanging:f (at most 2 s)"]


FORMS = """
from rewards.target_forms import batched

def trl(completions, solution, **kwargs): ...
def verl(data_source, solution_str, ground_truth, extra_info=None): ...
def verl_with_depth(data_source, solution_str, ground_truth, extra_info, *, depth): ...
def anything(*args, **kwargs): ...
def keywords(**kwargs): ...
def own(prompt, completions, options): ...
def two(one, other): ...
def one(options): ...
async def own_async(prompt, completions, options): ...
@batched
def served(items, options): ...

class Judge:
    def __init__(self, options): ...
    def score(self, prompt, completions): ...

@batched
class Model:
    def __init__(self, options): ...
    async def score(self, items): ...

class Asks:
    def __init__(self, options, models): ...
    async def score(self, prompt, completions): ...

class NoOptions:
    def score(self, prompt, completions): ...

class OldScore:
    def __init__(self, options): ...
    def score(self, completions): ...
"""
VERL_FORM = "must accept (data_source, solution_str, ground_truth, extra_info) by name, it takes "
CUSTOM = "scorers.mine={{kind: custom, function: 'mine_rewards:{}', weight: 1.0}}"
OWN = "scorers.mine={{kind: 'mine_rewards:{}', weight: 1.0}}"
ASKS = "scorers.mine={{kind: 'mine_rewards:{}', weight: 1.0, models: {{judge: helper}}}}"
HELPER = "models.helper={path: a}"
NEEDS_CLASS = "must be a class whose constructor takes (options, models), because the entry names models"
DATA = "data.train={{kind: 'mine_rewards:{}'}}"
DEEP = "scorers.mine={{kind: custom, function: 'mine_rewards:{}', weight: 1.0, options: {{depth: 1}}}}"
REFUSED_CALLS = [
    (
        CUSTOM,
        "trl",
        f"scorers.mine.function = 'mine_rewards:trl': {VERL_FORM}(completions, solution, **kwargs); "
        "a scorer of a whole group, (prompt, completions, options), is given as "
        'kind: "mine_rewards:trl" (docs/scorers.md)',
    ),
    (CUSTOM, "own", f"{VERL_FORM}(prompt, completions, options)"),
    (CUSTOM, "verl_with_depth", f"{VERL_FORM}(data_source, solution_str, ground_truth, extra_info, depth)"),
    (DEEP, "verl", "must accept (data_source, solution_str, ground_truth, extra_info, depth) by name"),
    (
        OWN,
        "verl",
        "scorers.mine.kind = 'mine_rewards:verl': must accept (prompt, completions, options), it takes "
        "(data_source, solution_str, ground_truth, extra_info); a function in verl's signature is given as "
        '{kind: custom, function: "mine_rewards:verl"} (docs/scorers.md)',
    ),
    (OWN, "two", "must accept (prompt, completions, options), it takes (one, other)"),
    (OWN, "NoOptions", "must accept (options), it takes ()"),
    (ASKS, "Judge", f"scorers.mine.kind = 'mine_rewards:Judge': {NEEDS_CLASS}"),
    (ASKS, "own_async", f"scorers.mine.kind = 'mine_rewards:own_async': {NEEDS_CLASS}"),
    (
        OWN,
        "OldScore",
        "its method score must accept (self, prompt, completions), it takes (self, completions)",
    ),
    (
        DATA,
        "own",
        "data.train.kind = 'mine_rewards:own': must accept (options), it takes (prompt, completions",
    ),
    ("loss.policy={{kind: 'mine_rewards:{}'}}", "one", "must accept (inputs, options), it takes (options)"),
    ("rollouter={{kind: 'mine_rewards:{}'}}", "two", "must accept (submission, tools, options), it takes"),
    ("advantage={{kind: 'mine_rewards:{}'}}", "one", "must accept (rows, options), it takes (options)"),
]
QUICK_REFUSED = [call for call in REFUSED_CALLS if call[1] in ("trl", "OldScore")]
ACCEPTED_CALLS = [
    *((CUSTOM, name) for name in ("verl", "anything", "keywords")),
    (DEEP, "verl_with_depth"),
    *((OWN, name) for name in ("own", "own_async", "served", "Judge", "Model", "anything")),
    (OWN, "Asks"),
    (ASKS, "Asks"),
    (DATA, "one"),
    ("advantage={{kind: 'mine_rewards:{}'}}", "two"),
]


@pytest.mark.parametrize(("entry", "name", "expected"), quick_of(REFUSED_CALLS, QUICK_REFUSED, rest="slow"))
def test_a_signature_that_cannot_be_called_is_refused(
    folder: Path, entry: str, name: str, expected: str
) -> None:
    """One line with the key, what the code gets and what it takes, before anything starts."""
    (folder / "mine_rewards.py").write_text(FORMS)
    config = load_config("debug", ["allow=[mine_rewards]", HELPER, entry.format(name)])
    with pytest.raises(ValueError) as error:
        check_user_code(bind(config), pytest.fail)
    assert expected in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("entry", "name"), quick_of(ACCEPTED_CALLS, ACCEPTED_CALLS[::5], rest="slow"))
def test_a_signature_that_can_be_called_passes(folder: Path, entry: str, name: str) -> None:
    (folder / "mine_rewards.py").write_text(FORMS)
    config = load_config("debug", ["allow=[mine_rewards]", HELPER, entry.format(name)])
    check_user_code(bind(config), pytest.fail)


@pytest.mark.parametrize("start", [dry_run, train])
def test_nothing_is_claimed_for_a_name_that_is_wrong(folder: Path, start: object) -> None:
    """Neither the run's name nor a process; the command line makes exit code 2 of the ValueError."""
    config = config_with("mine_rewards:compute_scor", f"runs_dir={folder}/runs", "name=first")
    with pytest.raises(ValueError, match=r"did you mean compute_score\?"):
        start(config, Notes())  # type: ignore[operator]
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("start", [dry_run, train])
def test_a_wrong_name_is_reported_with_its_file(folder: Path, start: Any) -> None:
    """Or with the command line, where the name is given there; each line of a message has its own."""
    (folder / "mine.yaml").write_text(
        "base: debug\nallow: [mine_rewards]\n"
        "scorers: {mine: {kind: custom, function: 'mine_rewards:compute_scor', weight: 1.0}}\n"
    )
    config, sources = load_with_sources("mine.yaml", ["loss.policy={kind: 'mine_rewards:los'}"])
    with pytest.raises(ValueError) as error:
        start(config, Notes(), sources=sources)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("mine.yaml: scorers.mine.function = 'mine_rewards:compute_scor': must name")
    assert lines[1].startswith("command line: loss.policy.kind = 'mine_rewards:los': must name")
    assert len(lines) == 2


def test_the_base_install_tries_scorers_and_datasets(folder: Path) -> None:
    """They need no engines; a loss of the user's may need torch, which is not there."""
    config = config_with("mine_rewards:compute_scor", f"runs_dir={folder}/runs")
    with pytest.raises(ValueError, match=r"did you mean compute_score\?"):
        check_without_engines(config)
    found = check_user_code(bind(config), pytest.fail, sections=("data.",))
    assert found.digests == {}


def test_the_files_of_the_users_code_are_hashed(folder: Path) -> None:
    """The function's module and those of the user's that it imports, by content; none of the others."""
    code = check_user_code(bind(config_with("mine_rewards:compute_score")), pytest.fail)
    wanted = {name: (folder / f"{name}.py").read_bytes() for name in ("helpers_of_mine", "mine_rewards")}
    assert code.digests == {name: hashlib.sha256(content).hexdigest() for name, content in wanted.items()}
    assert code.files["mine_rewards"] == str(folder / "mine_rewards.py")
    (folder / "helpers_of_mine.py").write_text("A = 2\n")
    again = check_user_code(bind(config_with("mine_rewards:compute_score")), pytest.fail)
    changed = [name for name in code.digests if again.digests[name] != code.digests[name]]
    assert changed == ["helpers_of_mine"]


def test_every_kind_of_the_users_own_is_tried(folder: Path) -> None:
    """Scorers, losses, datasets, ...: all under their keys, and all that is wrong in one message."""
    config = config_with("mine_rewards:compute_score", "data.train={kind: 'mine_rewards:rows'}")
    config = replace(config, loss=config.loss | {"replay": {"kind": "mine_rewards:los", "weight": 1.0}})
    targets = own_targets(bind(config))
    assert targets == {
        "scorers.mine.function": "mine_rewards:compute_score",
        "data.train.kind": "mine_rewards:rows",
        "loss.replay.kind": "mine_rewards:los",
    }
    with pytest.raises(ValueError) as error:
        check_user_code(bind(config), pytest.fail)
    assert [line.partition(" = ")[0] for line in str(error.value).splitlines()] == [
        "loss.replay.kind",
        "data.train.kind",
    ]
    assert own_targets(bind(load_config("debug", []))) == {}


def test_forms_that_need_the_scorers_own_process_are_known(folder: Path) -> None:
    """Async functions, classes and what is batched; a plain function runs in a sandbox."""
    (folder / "mine_forms.py").write_text(
        "from rewards.target_forms import batched\n"
        "def plain(prompt, completions, options): ...\n"
        "async def judge(prompt, completions, options): ...\n"
        "@batched\ndef many(items, options): ...\n"
        "class Model:\n"
        "    def __init__(self, options): ...\n"
        "    def score(self, prompt, completions): ...\n"
    )
    names = ("plain", "judge", "many", "Model")
    forms = [f'scorers.{name.lower()}={{kind: "mine_forms:{name}"}}' for name in names]
    code = check_user_code(bind(load_config("debug", [*forms, "allow=[mine_forms]"])), lambda text: None)
    assert code.in_actor == {f"mine_forms:{name}" for name in names[1:]}
