"""Changes of the advantage by name. A target is ``shape(inputs: LossInputs, options) -> advantages_T``.

They act on every learned token of origin policy before its loss, in the order of the config.
"""

from __future__ import annotations

from configs.kinds.base import Kind

SHAPES: dict[str, Kind] = {}
