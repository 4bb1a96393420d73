"""Values that the keys common to all scorers may have. Called by `configs.rules`."""

from __future__ import annotations

from collections.abc import Iterator

from configs.errors import Broken
from configs.redact import VARIABLE_NAME
from configs.schema import RunConfig


def scorer_rules(config: RunConfig) -> Iterator[Broken]:
    """Broken rules of `ScorerCommon`, per scorer."""
    for name, entry in config.scorers.items():
        key, num_gpus = f"scorers.{name}", entry["num_gpus"]
        for option in ("replicas", "concurrency"):
            if entry[option] < 1:
                yield f"{key}.{option}", "must be above 0"
        for option in ("num_gpus", "num_cpus"):
            if entry[option] < 0:
                yield f"{key}.{option}", "must not be negative"
        if num_gpus > 1 and num_gpus % 1:
            yield f"{key}.num_gpus", "must be a share of one GPU or a whole number of them"
        if not all(VARIABLE_NAME.fullmatch(variable) for variable in entry["secrets"]):
            rule = "must be names of environment variables (capitals, digits and _), not their values"
            yield f"{key}.secrets", rule
