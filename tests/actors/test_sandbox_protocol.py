"""What crosses to the process that judges: a completion comes back as it was sent."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rollout_rows import make_group, make_sample

from actors.sandbox_protocol import decode_completion, decode_prompt, encode_group


@pytest.mark.parametrize("mask", [None, (True, False, True)])
def test_a_completion_there_and_back(mask: tuple[bool, ...] | None) -> None:
    """Tuples stay tuples, a loss mask too: scorers that count tokens count the same ones there."""
    completion = replace(make_sample("a", 3).completion, loss_mask=mask)
    prompt = make_group(0, ()).submission.prompt
    sent = json.loads(json.dumps(encode_group(prompt, [completion])))
    assert decode_completion(sent["completions"][0]) == completion
    assert decode_prompt(sent["prompt"]) == prompt
