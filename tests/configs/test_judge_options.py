"""Options of the scorer `judge`: what is refused before a run starts, and the shares of replicas."""

from __future__ import annotations

import pytest

from configs.experiment import config_hash
from configs.kinds.judges import JudgeOptions
from configs.load import ConfigError, load_config

URL = "scorers.judge.endpoint=http://127.0.0.1:1/v1"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("endpoint=''", "endpoint = '': must be a server's URL: give endpoint and served_model, or model"),
        ("model=judge", "must be empty with model: a judge asks one of the two"),
        ("endpoint=ftp://x", "must be a URL such as http://127.0.0.1:8900/v1"),
        ("served_model=''", "served_model = '': must be the model's name at the endpoint"),
        (
            "api_key=JUDGE_API_KEY",
            "= 'JUDGE_API_KEY': must be among scorers.judge.secrets (none): set scorers.judge.secrets=[",
        ),
        ("api_key=sk-12345", "must be the name of an environment variable"),
        ("deadline_s=60", "must be below rollout.score_timeout_s (60), which ends whole groups"),
        ("call_timeout_s=51", "must be at most deadline_s (50)"),
        ("max_concurrent=0", "must be above 0"),
        ("max_failure_share=1.5", "must be between 0 and 1"),
        ("max_cost=1", "must be 0 without price_in and price_out"),
        ("canaries=some", "must be one of none, warn, stop"),
        ("replicas=9", "max_concurrent = 8: must be at least the number of replicas (9)"),
    ],
)
def test_what_cannot_work_is_refused_by_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config("judge", [f"scorers.judge.{override}"])
    assert message in str(refused.value)


def test_where_and_how_it_is_called_is_no_other_experiment() -> None:
    """Endpoint, limits, prices and cache may change when a run is resumed; what is asked may not."""
    usual = config_hash(load_config("judge"))
    for same in (
        *("endpoint=http://other/v1", "max_concurrent=2", "requests_per_minute=5", "price_in=1"),
        *("cache=elsewhere", "deadline_s=9", "call_timeout_s=9", "max_retries=0", "canaries=stop"),
        *("max_failure_share=1", "canary_every=7", "max_cost=0"),
    ):
        more = ["scorers.judge.call_timeout_s=9"] if same == "deadline_s=9" else []
        assert config_hash(load_config("judge", [f"scorers.judge.{same}", *more])) == usual, same
    for other in ("served_model=x", "rubric=quality", "max_tokens=9", "temperature=1", "seed=3", "extra.k=1"):
        assert config_hash(load_config("judge", [f"scorers.judge.{other}"])) != usual, other


def test_replicas_share_the_limits() -> None:
    """All places are given out, rates are divided, and one replica tries the canaries for all."""
    options = JudgeOptions(max_concurrent=8, requests_per_minute=90, tokens_per_minute=3000, canary_every=200)
    shares = [options.for_replica(k, 3) for k in range(3)]
    assert [each.max_concurrent for each in shares] == [3, 3, 2]
    assert sum(each.requests_per_minute for each in shares) == pytest.approx(90)
    assert sum(each.tokens_per_minute for each in shares) == pytest.approx(3000)
    assert [each.canaries for each in shares] == ["warn", "none", "none"] and shares[0].canary_every == 66
    assert options.for_replica(0, 1) == options and options.failure_limit() == 0.25
