"""Batch statistics for losses and transforms: all rows of an update, from all ranks, in one fixed order.

A kind's ``prepare(columns, options)`` gets tokens ordered by (sample_id, position). So its selection does not
depend on microbatches, ranks or row order, and that order breaks ties. It returns columns of the same
length, or a `Prepared` if it also has numbers to log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

TokenTable = dict[str, np.ndarray]
"""Columns [T] of equal length, one entry per token; see `trainer.token_columns.token_table` for names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The result of a `prepare`: columns [T] for its loss or transform, and numbers of the whole update.

    `stats` are equal on every rank and are logged as prepare/<name>
    (prepare/token_advantage.<transform>/<name>).
    """

    columns: Mapping[str, np.ndarray]
    stats: Mapping[str, float] = field(default_factory=dict)


Gather = Callable[[TokenTable], Sequence[TokenTable]]
"""Returns the tables of all ranks, in rank order. A collective: every rank must call it."""
Prepare = Callable[[Mapping[str, np.ndarray]], Prepared | Mapping[str, np.ndarray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredTokens:
    """The loss tokens of some origins from all ranks, ordered by (sample_id, position)."""

    columns: TokenTable
    local: np.ndarray
    """bool, per token of this rank's table: whether it was gathered."""
    places: np.ndarray
    """int, per gathered token of this rank: its index in `columns`."""

    def apply(self, prepare: Prepare, columns: TokenTable | None = None) -> Prepared:
        """The result of `prepare` on the gathered columns, or on `columns` if given."""
        result = prepare(self.columns if columns is None else columns)
        return result if isinstance(result, Prepared) else Prepared(columns=result)

    def to_local(self, prepared: Prepared) -> Prepared:
        """`prepared` for this rank's table. Tokens that were not gathered get NaN, 0 or False."""
        columns = {}
        for name, values in prepared.columns.items():
            # NaN, so that a loss which wrongly reads such a token shows it.
            blank = np.nan if np.issubdtype(values.dtype, np.floating) else 0
            columns[name] = np.full(len(self.local), blank, values.dtype)
            columns[name][self.local] = values[self.places]
        return Prepared(columns=columns, stats=prepared.stats)


def gather_tokens(local: TokenTable, origins: Sequence[str], gather: Gather) -> GatheredTokens:
    """Gather the loss tokens of `origins` from all ranks. A collective.

    Only tokens with a weight above 0 are gathered: no other token may change a mean or be selected.
    """
    learned = np.isin(local["origin"], origins) & (local["weight"] > 0)
    mine = {name: column[learned] for name, column in local.items()}
    tables = gather(mine)
    gathered = {name: np.concatenate([table[name] for table in tables]) for name in mine}
    # The last key of lexsort is the primary one. Every rank sorts alike, so no result is sent back.
    order = np.lexsort((gathered["position"], gathered["sample_id"]))
    ordered = {name: column[order] for name, column in gathered.items()}
    keys = _keys(ordered)
    # `searchsorted` needs sorted keys, and "a/10" comes before "a/2" as text.
    by_key = np.argsort(keys)
    places = by_key[np.searchsorted(keys, _keys(mine), sorter=by_key)]
    return GatheredTokens(columns=ordered, local=learned, places=places)


def _keys(table: TokenTable) -> np.ndarray:
    """ "<sample_id>/<position>" of every token, unique within an update."""
    return np.char.add(np.char.add(table["sample_id"].astype(str), "/"), table["position"].astype(str))


def prepare_origin(local: TokenTable, origin: str, gather: Gather, prepare: Prepare) -> Prepared:
    """Run `prepare` on one origin's loss tokens of all ranks; the result for this rank's tokens.

    A collective: every rank calls it, also a rank without such tokens.
    """
    gathered = gather_tokens(local, (origin,), gather)
    return gathered.to_local(gathered.apply(prepare))
