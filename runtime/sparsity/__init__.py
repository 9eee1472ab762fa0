"""Sparsity: which numbers stay (patterns), and how their places are stored (storages)."""

from __future__ import annotations

from .blocks import Blocks
from .csr import Csr
from .groups import Groups
from .index import GroupIndex, PackedIndex
from .lines import Columns, Rows
from .pattern import Fraction, Pattern, Pools
from .rank import Rank
from .storage import Bitmask, Storage
from .unstructured import Unstructured

__all__ = [
    "Bitmask",
    "Blocks",
    "Columns",
    "Csr",
    "Fraction",
    "GroupIndex",
    "Groups",
    "PackedIndex",
    "Pattern",
    "Pools",
    "Rank",
    "Rows",
    "Storage",
    "Unstructured",
]
