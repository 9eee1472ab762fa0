"""The options of `quantize`: what they can be, in one spelling, and which of them make sense together."""

from __future__ import annotations

from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Literal

from .grids import INTEGER_GRIDS, Grid, parse_grid
from .scales import AFFINE_RULES, E8M0, RULES

if TYPE_CHECKING:
    from .quantize import Quantize

Strategy = Literal["tensor", "channel", "group", "token", "block", "tensor_group"]
Observer = Literal[
    "absmax",
    "mse",
    "rms",
    "percentile",
    "absmean",
    "four_over_six",
    "ms_eden",
    "learned",
    "three_sigma",
    "hqq",
    "mx_floor",
    "mx_even",
    "mx_ceil",
    "mx_rceil",
    "mx_round",
    "mx_roundmax",
    "three_quarters",
    "minmax",
    "memoryless_minmax",
    "memoryless_mse",
    "mx",
]
ScaleDtype = Literal["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "e8m0", "e4m3", "e5m2"]
ZeroDtype = Literal["int8", "float32", "float16", "bfloat16"]
AbsmaxRule = Literal["half", "full", "sym", "signed"]
Rounding = Literal["nearest", "stochastic"]

_ALIASES = {
    "minmax": "absmax",
    "memoryless_minmax": "absmax",
    "memoryless_mse": "mse",
    "mx": "mx_floor",
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
}
_FLOATS = {4: "e2m1", 8: "e4m3"}  # grids of floats of these widths
_LOSS = {"float8_e4m3fn": 1 / 16, "float8_e5m2": 1 / 8}  # what rounding may take off a normal number
_TENSOR_GROUP = 16  # numbers in a group of NVFP4


def canonical(stage: Quantize) -> dict[str, Any]:
    """Options rewritten so that stages that mean the same are equal: no aliases, no defaults written out."""
    found: dict[str, Any] = {
        "observer": _ALIASES.get(stage.observer, stage.observer),
        "scale_dtype": _ALIASES.get(stage.scale_dtype or "", stage.scale_dtype),
    }
    if found["scale_dtype"] == _default_scale(stage, found["observer"]):
        found["scale_dtype"] = None
    if stage.strategy == "tensor_group" and stage.group_size is None:
        found["group_size"] = _TENSOR_GROUP
    if isinstance(stage.grid, list | tuple):
        found["grid"] = tuple(float(level) for level in stage.grid)
    elif stage.grid == _default_grid(stage):
        found["grid"] = None
    if stage.block_structure is not None:
        found["block_structure"] = tuple(stage.block_structure)
    defaults = {"zp_dtype": "int8", "absmax_rule": "half", "rounding": "nearest"}
    return found | {name: None for name, value in defaults.items() if getattr(stage, name) == value}


def grid_of(stage: Quantize) -> str | tuple[float, ...]:
    """The name or the levels of the grid. Raises ValueError when there is no default."""
    grid = stage.grid if stage.grid is not None else _default_grid(stage)
    if grid is None:
        raise ValueError(f"a {stage.num_bits}-bit float needs a grid, for example grid: e3m2")
    return grid


def _default_grid(stage: Quantize) -> str | None:
    if stage.type == "float":
        return _FLOATS.get(stage.num_bits)
    if not stage.symmetric:
        return "unsigned"
    return "midrise" if stage.num_bits == 1 else "twos"


def _default_scale(stage: Quantize, observer: str) -> str | None:
    """How scales are stored when nothing is said, where that is not the tensor's own dtype."""
    if stage.strategy == "tensor_group":
        return "float8_e4m3fn"
    return E8M0 if observer in RULES and RULES[observer].power_of_two else None


def absmax_level(stage: Quantize, grid: Grid) -> float:
    """The level that `absmax` maps the largest magnitude to.

    Under stochastic rounding, which should clip nothing, there is room for what rounding a scale to an 8-bit
    float takes off it: NVFP4 maps to 6 (16/17) (Quartet II, 2601.22813, table 1).
    """
    half = 2.0 ** (stage.num_bits - 1)
    level = {"full": half, "sym": half - 1}.get(stage.absmax_rule or "", grid.absmax_level)
    dtype = _default_scale(stage, stage.observer) if stage.scale_dtype is None else stage.scale_dtype
    return level / (1 + _LOSS.get(dtype or "", 0.0)) if stage.rounding else level


def by(block: tuple[int, int] | None) -> str:
    """A block structure in words."""
    return "x".join(str(size) for size in block or ())


def check(stage: Quantize) -> None:
    """Raise ValueError for options that make no sense together."""
    if not 1 <= stage.num_bits <= 8:
        raise ValueError(f"num_bits must be between 1 and 8, got {stage.num_bits}")
    _check_sharing(stage)
    _check_grid(stage)
    _check_rule(stage)
    _check_scales(stage)
    _check_zero(stage)
    _check_step(stage)


def _check_sharing(stage: Quantize) -> None:
    grouped = stage.strategy in ("group", "tensor_group")
    if grouped != (stage.group_size is not None):
        raise ValueError("strategy 'group' and group_size go together: give both or neither")
    if stage.group_size is not None and stage.group_size < 1:
        raise ValueError(f"group_size must be positive, got {stage.group_size}")
    if (stage.strategy == "block") != (stage.block_structure is not None):
        raise ValueError("strategy 'block' and block_structure go together: give both or neither")
    if stage.block_structure is not None and min(stage.block_structure) < 1:
        raise ValueError(f"block_structure must be two positive sizes, got {by(stage.block_structure)}")


def _check_grid(stage: Quantize) -> None:
    name = grid_of(stage)
    if (name in INTEGER_GRIDS) != (stage.type == "int"):
        raise ValueError(f"grid {name!r} is not a grid of type {stage.type!r}")
    grid = parse_grid(name, stage.num_bits)
    if grid.levels[-1] <= 0:
        raise ValueError(f"{name} with {stage.num_bits} bit has no level above zero; use grid: midrise")


def _check_rule(stage: Quantize) -> None:
    if stage.clip is not None and (stage.observer != "rms" or not stage.clip > 0):
        raise ValueError("clip is a positive factor of the rms and needs observer: rms")
    if (stage.observer == "percentile") != (stage.percentile is not None):
        raise ValueError("observer 'percentile' and percentile go together: give both or neither")
    if stage.percentile is not None and not 0 < stage.percentile <= 100:
        raise ValueError(f"percentile must be above 0 and at most 100, got {stage.percentile}")
    if stage.absmax_rule is not None and (stage.observer != "absmax" or grid_of(stage) != "twos"):
        raise ValueError("absmax_rule is for observer: absmax on grid: twos; leave it out")
    if stage.observer == "ms_eden" and stage.strategy != "tensor_group":
        raise ValueError("observer 'ms_eden' corrects scales in e4m3; it needs strategy: tensor_group")
    if stage.observer == "ms_eden" and stage.rounding is not None:
        raise ValueError("observer 'ms_eden' is unbiased under nearest rounding; leave rounding out")
    if stage.symmetric:
        if stage.observer not in RULES:
            raise ValueError(f"observer {stage.observer!r} finds a zero point; it needs symmetric: false")
        refusal = RULES[stage.observer].refusal(stage._setting)
        if refusal is not None:
            raise ValueError(refusal)


def _check_scales(stage: Quantize) -> None:
    if stage.scales is not None and stage.scale_dtype is not None:
        raise ValueError("scale_dtype and scales both say how scales are stored; give one")
    if stage.scales is not None and stage.scales.is_dense:
        raise ValueError("scales is a chain that encodes the scales, and 'dense' does not; leave it out")
    if stage.strategy == "tensor_group" and (stage.scales is not None or stage.scale_dtype is not None):
        raise ValueError("tensor_group stores scales as float8_e4m3fn; for another way use strategy: group")
    if stage.absmax_rule == "signed" and stage.scale_dtype == E8M0:
        raise ValueError("absmax_rule 'signed' needs scales with a sign, and e8m0 has none")


def _check_step(stage: Quantize) -> None:
    if stage.offset is not None and (stage.step is None or not isfinite(stage.offset)):
        raise ValueError("offset is a number that moves a grid with a given step; give both")
    if stage.step is None:
        return
    if not 0 < stage.step < inf:
        raise ValueError(f"step must be a positive number, got {stage.step}")
    if stage.strategy != "tensor" or not stage.symmetric or not stage.plain_scales:
        raise ValueError(
            "step is one float of the whole tensor; it needs strategy: tensor, symmetric: true and no "
            "scale_dtype but float32, float16 or bfloat16"
        )


def _check_zero(stage: Quantize) -> None:
    if stage.symmetric:
        if stage.zp_dtype is not None:
            raise ValueError("zp_dtype is how zero points are stored; it needs symmetric: false")
        return
    if stage.type != "int" or grid_of(stage) != "unsigned":
        raise ValueError("symmetric: false has codes from 0 up; it needs type: int and no other grid")
    if stage.observer not in AFFINE_RULES:
        known = ", ".join(AFFINE_RULES)
        raise ValueError(f"symmetric: false needs one of the observers {known}, not {stage.observer}")
    if stage.observer == "hqq" and stage.zp_dtype is None:
        raise ValueError("observer 'hqq' finds a real zero point; it needs zp_dtype: float16 or float32")
