"""Batch statistics for losses that need them: all rows of an update, from all ranks, in one fixed order.

A loss's ``prepare(columns, options) -> columns`` sees tokens ordered by (sample_id, position), so what it
selects does not depend on microbatches, ranks or row order; ties in what it ranks are broken by that order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

TokenTable = dict[str, np.ndarray]
"""Columns of equal length, one entry per token: sample_id, position, and float columns."""


def prepare_columns(
    local: TokenTable,
    gather: Callable[[TokenTable], Sequence[TokenTable]],
    prepare: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
) -> TokenTable:
    """Run `prepare` on the union of every rank's `local` tokens and return its columns for the local ones.

    `gather` returns the tables of all ranks (a collective: every rank must call this).
    """
    tables = gather(local)
    union = {name: np.concatenate([table[name] for table in tables]) for name in local}
    order = np.lexsort((union["position"], union["sample_id"]))
    ordered = {name: column[order] for name, column in union.items()}
    prepared = prepare(ordered)
    keys = np.char.add(np.char.add(ordered["sample_id"].astype(str), "/"), ordered["position"].astype(str))
    mine = np.char.add(np.char.add(local["sample_id"].astype(str), "/"), local["position"].astype(str))
    by_key = np.argsort(keys)
    where = by_key[np.searchsorted(keys, mine, sorter=by_key)]
    return {name: column[where] for name, column in prepared.items()}
