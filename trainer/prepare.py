"""Batch statistics for losses that need them: all rows of an update, from all ranks, in one fixed order.

A loss's ``prepare(columns, options)`` sees tokens ordered by (sample_id, position), so what it selects does
not depend on microbatches, ranks or row order; ties in what it ranks are broken by that order. It returns
columns of the same length, or a `Prepared` if it also has numbers to log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

TokenTable = dict[str, np.ndarray]
"""Columns of equal length, one entry per token: sample_id, position, and float columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a loss's `prepare` found: columns for its `per_token`, and numbers of the whole update by name.

    The numbers are the same on every rank, and are logged as prepare/<name>.
    """

    columns: Mapping[str, np.ndarray]
    stats: Mapping[str, float] = field(default_factory=dict)


Gather = Callable[[TokenTable], Sequence[TokenTable]]
"""The tables of all ranks: a collective, which every rank must call."""
Prepare = Callable[[Mapping[str, np.ndarray]], Prepared | Mapping[str, np.ndarray]]


def prepare_columns(local: TokenTable, gather: Gather, prepare: Prepare) -> Prepared:
    """Run `prepare` on the union of every rank's `local` tokens and keep the local part of its columns."""
    tables = gather(local)
    union = {name: np.concatenate([table[name] for table in tables]) for name in local}
    order = np.lexsort((union["position"], union["sample_id"]))
    ordered = {name: column[order] for name, column in union.items()}
    answer = prepare(ordered)
    found = answer if isinstance(answer, Prepared) else Prepared(columns=answer)
    keys = np.char.add(np.char.add(ordered["sample_id"].astype(str), "/"), ordered["position"].astype(str))
    mine = np.char.add(np.char.add(local["sample_id"].astype(str), "/"), local["position"].astype(str))
    by_key = np.argsort(keys)
    where = by_key[np.searchsorted(keys, mine, sorter=by_key)]
    columns = {name: column[where] for name, column in found.columns.items()}
    return Prepared(columns=columns, stats=found.stats)


def prepare_origin(local: TokenTable, origin: str, gather: Gather, prepare: Prepare) -> Prepared:
    """`prepare_columns` on the learned tokens of one origin; all other tokens get NaN, 0 or False.

    Learned is what has a weight above 0: nothing else may move a mean or be selected.
    """
    learned = (local["origin"] == origin) & (local["weight"] > 0)
    found = prepare_columns({name: column[learned] for name, column in local.items()}, gather, prepare)
    columns = {}
    for name, values in found.columns.items():
        blank = np.nan if np.issubdtype(values.dtype, np.floating) else 0
        columns[name] = np.full(len(learned), blank, values.dtype)
        columns[name][learned] = values
    return Prepared(columns=columns, stats=found.stats)
