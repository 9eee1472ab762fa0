"""All units of the bench on CUDA."""

from __future__ import annotations

import fused_gpu
import linear_gpu
import models_gpu
import operations_gpu
from gpu_unit import Unit


def units(tiny: bool = False) -> dict[str, Unit]:
    """By what the names of their items begin with, the most important first."""
    found = [
        *linear_gpu.units(tiny),
        *operations_gpu.units(tiny),
        *fused_gpu.units(tiny),
        *models_gpu.units(tiny),
    ]
    found.sort(key=lambda unit: unit.importance)
    return {f"{unit.name}|{unit.layer}": unit for unit in found}
