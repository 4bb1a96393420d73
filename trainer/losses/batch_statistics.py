"""Batch statistics for losses and transforms: all rows of an update, from all ranks, in one fixed order.

Their ``prepare(columns, options)`` sees tokens ordered by (sample_id, position), so what it selects does
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
    """What a `prepare` found: columns for its loss or shape, and numbers of the whole update by name.

    The numbers are the same on every rank, and are logged as prepare/<name>
    (prepare/token_advantage.<shape>/<name>).
    """

    columns: Mapping[str, np.ndarray]
    stats: Mapping[str, float] = field(default_factory=dict)


Gather = Callable[[TokenTable], Sequence[TokenTable]]
"""The tables of all ranks: a collective, which every rank must call."""
Prepare = Callable[[Mapping[str, np.ndarray]], Prepared | Mapping[str, np.ndarray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredTokens:
    """The tokens of one origin that the update learns, from all ranks, ordered by (sample_id, position)."""

    columns: TokenTable
    local: np.ndarray
    """Boolean, per token of the local table: whether it is among them."""
    places: np.ndarray
    """Where those stand in `columns`."""

    def apply(self, prepare: Prepare, columns: TokenTable | None = None) -> Prepared:
        """What `prepare` finds of `columns` (those of the gathered unless others are given)."""
        answer = prepare(self.columns if columns is None else columns)
        return answer if isinstance(answer, Prepared) else Prepared(columns=answer)

    def to_local(self, found: Prepared) -> Prepared:
        """Its columns for the local table; tokens that are not in the gathered get NaN, 0 or False."""
        columns = {}
        for name, values in found.columns.items():
            blank = np.nan if np.issubdtype(values.dtype, np.floating) else 0
            columns[name] = np.full(len(self.local), blank, values.dtype)
            columns[name][self.local] = values[self.places]
        return Prepared(columns=columns, stats=found.stats)


def gather_tokens(local: TokenTable, origins: Sequence[str], gather: Gather) -> GatheredTokens:
    """The gathered of every rank's learned tokens of `origins`: a collective.

    Learned is what has a weight above 0: nothing else may move a mean or be selected.
    """
    learned = np.isin(local["origin"], origins) & (local["weight"] > 0)
    mine = {name: column[learned] for name, column in local.items()}
    tables = gather(mine)
    gathered = {name: np.concatenate([table[name] for table in tables]) for name in mine}
    order = np.lexsort((gathered["position"], gathered["sample_id"]))
    ordered = {name: column[order] for name, column in gathered.items()}
    keys = _keys(ordered)
    by_key = np.argsort(keys)
    places = by_key[np.searchsorted(keys, _keys(mine), sorter=by_key)]
    return GatheredTokens(columns=ordered, local=learned, places=places)


def _keys(table: TokenTable) -> np.ndarray:
    return np.char.add(np.char.add(table["sample_id"].astype(str), "/"), table["position"].astype(str))


def prepare_origin(local: TokenTable, origin: str, gather: Gather, prepare: Prepare) -> Prepared:
    """Run `prepare` on the learned tokens of one origin from all ranks, and answer for the local ones."""
    gathered = gather_tokens(local, (origin,), gather)
    return gathered.to_local(gathered.apply(prepare))
