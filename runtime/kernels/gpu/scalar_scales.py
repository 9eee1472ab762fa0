"""Scales of scalar codes for formats of `tiled`: tensors, kind and factor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from ...stage import CARRY
from ..stored import ScaleField, StoredMatrix
from .reading import reading

FACTORED = "gpu.factored_scales"  # a prepared field


def prepared(matrix: StoredMatrix, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The table of byte scales times the factor that is stored beside them, where there is one."""
    field = matrix.scale
    if field is None or field.factor is None or field.table is None:
        return {}
    table = torch.tensor(field.table, dtype=torch.float32, device=stored[CARRY].device)
    return {FACTORED: table * stored[field.factor].to(torch.float32)}


def scales(matrix: StoredMatrix, stored: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], str, float]:
    """Scales and the table of them, their kind, and what multiplies all numbers."""
    field, nothing = matrix.scale, stored[CARRY]
    if field is None:
        return (nothing, nothing), "float", 1.0
    found = stored[field.name].contiguous()
    if field.table is None:
        return (found, nothing), "float", field.unit
    found = found.view(torch.uint8)
    if field.factor is not None:
        ready = stored if FACTORED in stored else prepared(matrix, stored)
        return (found, ready[FACTORED]), "table", field.unit
    kind = reading(matrix, found.ndim == 1).scale
    return (found, _table(field, found.device) if kind == "table" else nothing), kind, field.unit


@lru_cache(maxsize=64)
def _table(field: ScaleField, device: torch.device) -> Tensor:
    return torch.tensor(field.table, dtype=torch.float32, device=device)
