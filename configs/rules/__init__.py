"""Values that a type cannot rule out: ranges, and settings that cannot work together. One file per topic.

In: a built `RunConfig` and where its values come from. Out: nothing, or one `ConfigError` with every broken
rule. Called by `configs.load.load_config`; call `check` yourself for a config made in code. What concerns one
option is said where the option is (`configs.fields`, `configs.kinds.base.Options`); here is what spans them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from configs.bound import BoundRun, bind
from configs.entries import complete
from configs.errors import Broken, Problem, nearest, raise_if_any
from configs.rules.actors import ACTOR_RULES
from configs.rules.controllers import CONTROLLER_RULES
from configs.rules.credit import CREDIT_RULES
from configs.rules.models import MODEL_RULES
from configs.rules.objective import OBJECTIVE_RULES
from configs.rules.ranges import broken_options, broken_ranges
from configs.rules.sampling import SAMPLING_RULES
from configs.schema import RunConfig
from configs.sources import Provenance

RULES = (*SAMPLING_RULES, *OBJECTIVE_RULES, *CREDIT_RULES, *ACTOR_RULES, *CONTROLLER_RULES, *MODEL_RULES)
"""Each takes the bound run and yields (dotted key, rule in words) for what is broken."""


def check(config: RunConfig, provenance: Provenance | None = None) -> None:
    """Check every rule.

    Raises:
        ConfigError: one line per broken rule; with `provenance` each names the source of the value.
    """
    where = provenance or Provenance()
    # A config made in code may leave options out; rules read all of them.
    config = complete(config, where)
    run, values = bind(config), dict(_flatten(asdict(config), ""))
    problems = [
        _problem(key, rule.words, values[key], where, rule.choices)
        for key, rule in broken_ranges(run, values)
    ]
    broken = [*broken_options(run), *_own_code(run)]
    for rules in RULES:
        broken += rules(run)
    problems += [_problem(key, rule, values[key], where) for key, rule in broken]
    raise_if_any(problems)


def _problem(key: str, rule: str, value: object, where: Provenance, choices: Sequence[str] = ()) -> Problem:
    suggestion = nearest(str(value), choices) if choices else ""
    # A loss that is not there any more is why the others are not enough.
    if key.startswith("loss") and where.left_out:
        rule = f"{rule} ({'; '.join(where.left_out)})"
    return Problem(source=where.of(key), key=key, value=value, rule=rule, suggestion=suggestion)


def _flatten(value: object, key: str) -> Iterator[tuple[str, object]]:
    """(dotted key, value) of everything at and under `value`, sections included."""
    if key:
        yield key, value
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flatten(item, f"{key}.{name}" if key else str(name))


def _own_code(run: BoundRun) -> Iterator[Broken]:
    """The user's own "module:attr" must be well formed and under a prefix in `allow`."""
    allow = run.config.allow
    for entry in run.entries():
        for name, target in entry.own_code().items():
            module, _, attribute = target.partition(":")
            if not (attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))):
                yield f"{entry.key}.{name}", 'must be "module:attr"'
            # A prefix ends at a dot: `rewards` allows `rewards.mine` and not `rewards_of_others`.
            elif not any(module == prefix or module.startswith(f"{prefix}.") for prefix in allow):
                wanted = ", ".join((*allow, module))
                rule = f"must be in a module under a prefix in allow: set allow: [{wanted}]"
                yield f"{entry.key}.{name}", rule
