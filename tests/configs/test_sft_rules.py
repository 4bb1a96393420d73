"""Configs that mix in demonstrations: what is refused, under which key, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_files import check_refused

from configs.load import ConfigError, load_config

SFT = "loss.sft={kind: nll, weight: 0.1}"


@pytest.mark.parametrize(
    ("overrides", "key", "rule"),
    [
        (["loss.sft={kind: nll}"], "loss.sft", "must have rows: sft.share is 0 and no controller"),
        (["sft.share=0.1"], "sft.share", "must have a loss to train with: loss.sft"),
        (["controllers.r={kind: threshold}"], "sft.share", "must have a loss to train with: loss.sft"),
        ([SFT, "sft.share=1.1"], "sft.share", "must be between 0 and 1"),
        ([SFT, "sft.share=0.0039"], "sft.share", "must be at least half a row of a step's 128"),
        (
            ["loss.sft={kind: ppo_clip}", "sft.share=0.1"],
            "loss.sft.kind",
            "must be nll: demonstrations have",
        ),
        (["loss.sft={kind: gspo}", "sft.share=0.1"], "loss.sft.kind", "must be nll"),
        (
            [SFT, "sft.share=0.1", "data.train={kind: file, path: x}"],
            "sft.data.kind",
            "must be given: the lab's",
        ),
        ([SFT, "sft.share=0.1", "sft.data.error_rate=2"], "sft.data.error_rate", "must be between 0 and 1"),
        ([SFT, "sft.share=0.1", "sft.data.num_rows=0"], "sft.data.num_rows", "must be above 0"),
        ([SFT, "sft.data.kind=lba"], "sft.data.kind", "must be one of lab, file, or your own"),
        ([SFT, "sft.data.share=1"], "sft.data.share", "unknown key; this kind takes kind, corpus_seed"),
        ([SFT, "sft.data={kind: file}"], "sft.data.path", "must not be empty"),
        ([SFT, "controllers.r={kind: threshold, value: 2}"], "controllers.r.value", "a value of sft.share"),
        ([SFT, "controllers.r={kind: threshold, otherwise: -1}"], "controllers.r.otherwise", "of sft.share"),
        ([SFT, "controllers.r={kind: threshold, value: 0}"], "controllers.r.value", "must be another value"),
        (
            [SFT, "controllers.r={kind: adaptive_setting, setting: sft.share, delta: 0.1, high: 3}"],
            "controllers.r.high",
            "must be between 0 and 1, as it is a value of sft.share",
        ),
    ],
)
def test_a_broken_rule_names_the_key(overrides: list[str], key: str, rule: str) -> None:
    check_refused(overrides, key, rule)


def test_demonstrations_by_share_or_by_controller(tmp_path: Path) -> None:
    """The other side of their rules; a file's entry takes the place of the class default as a whole."""
    fixed = load_config("debug", [SFT, "sft.share=0.0040", "sft.data.formats={code: 1.0}"])
    assert fixed.sft.data["formats"] == {"code": 1.0} and fixed.sft.data["num_rows"] == 4096
    moved = load_config("debug", [SFT, "controllers.refresh={kind: threshold}"])
    assert moved.sft.share == 0.0 and moved.controllers["refresh"]["setting"] == "sft.share"
    given = {"kind": "file", "path": "x.jsonl", "domain": "", "limit": 0}
    path = tmp_path / "mine.yaml"
    path.write_text(
        "scorers: {correct: {kind: lab_answer, weight: 1.0}}\n"
        "data: {train: {kind: file, path: y}}\n"
        "sft: {data: {kind: file, path: x.jsonl}, share: 0.1}\n"
        "loss: {sft: {kind: nll}}\n"
    )
    assert load_config(str(path)).sft.data == given
    own = [SFT, "sft.share=0.1", "allow=[mine]", 'sft.data={kind: "mine:rows", options: {a: 1}}']
    assert load_config("debug", own).sft.data["options"] == {"a": 1}
    with pytest.raises(ConfigError, match=r"must be in a module under a prefix in allow: set allow: \["):
        load_config("debug", [*own[:2], own[3]])
    assert (
        load_config("debug", ['loss.sft={kind: "mine:loss"}', *own[1:3]]).loss["sft"]["kind"] == "mine:loss"
    )
