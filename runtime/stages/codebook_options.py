"""Which options of `codebook` make sense together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..codebooks import fixed
from ..codebooks.scales import check_sharing

if TYPE_CHECKING:
    from .codebook import Codebook

LARGEST_TABLE = 1 << 12
"""Numbers written out in a spec."""


def check(stage: Codebook) -> None:
    """Raise ValueError for options that make no sense together."""
    _check_sizes(stage)
    _check_scale(stage)
    _check_source(stage)


def _check_sizes(stage: Codebook) -> None:
    for name in ("in_group_size", "num_codebooks", "beam_size"):
        if getattr(stage, name) < 1:
            raise ValueError(f"{name} must be positive, got {getattr(stage, name)}")
    if not 1 <= stage.nbits_per_codebook <= 16:
        raise ValueError(f"nbits_per_codebook must be between 1 and 16, got {stage.nbits_per_codebook}")
    if stage.composition == "product" and stage.in_group_size % stage.num_codebooks:
        raise ValueError(
            f"composition 'product' splits in_group_size {stage.in_group_size} into equal parts; "
            f"choose a num_codebooks that divides it, got {stage.num_codebooks}"
        )
    if stage.composition == "additive" and stage.source == "e8p":
        raise ValueError("e8p has no beam search; use composition: residual")


def _check_scale(stage: Codebook) -> None:
    check_sharing(stage.strategy, stage.group_size)
    if not stage.scaled and (stage.strategy != "tensor" or stage.scale_dtype is not None):
        raise ValueError(
            "strategy and scale_dtype say how a scale is kept, and there is none; add observer: rms"
        )


def _check_source(stage: Codebook) -> None:
    if (stage.scope == "group") != (stage.rows_per_codebook is not None):
        raise ValueError("scope 'group' and rows_per_codebook go together: give both or neither")
    if stage.scope == "network" and stage.source != "kmeans":
        raise ValueError(
            f"scope 'network' is for tables that are fitted; {stage.source} is known, leave it out"
        )
    if stage.rows_per_codebook is not None and (stage.rows_per_codebook < 1 or stage.source != "kmeans"):
        raise ValueError("rows_per_codebook is a positive number of rows and needs source: kmeans")
    if stage.init == "gaussian" and (why := fixed.refusal("gaussian", stage._size, stage.nbits_per_codebook)):
        raise ValueError(f"init: gaussian needs a Gaussian table, and {why}")
    if stage._known and (why := fixed.refusal(stage.source, stage._size, stage.nbits_per_codebook)):
        raise ValueError(why)
    if stage.factors is not None and (
        not stage._known or len(stage.factors) != stage.num_codebooks or min(stage.factors) <= 0
    ):
        raise ValueError("factors are positive, one for each codebook, and need a known source")
    _check_table(stage)


def _check_table(stage: Codebook) -> None:
    if (stage.source == "table") != (stage.table is not None):
        raise ValueError("source 'table' and table go together: give both or neither")
    if stage.table is None:
        return
    numbers = math.prod(stage.books_shape)
    if numbers > LARGEST_TABLE:
        raise ValueError(
            f"a table holds at most {LARGEST_TABLE} numbers, and these options make {numbers}; "
            "lower nbits_per_codebook, in_group_size or num_codebooks"
        )
    if len(stage.table) != numbers or not all(map(math.isfinite, stage.table)):
        raise ValueError(f"table must hold {numbers} finite numbers, got {len(stage.table)}")
