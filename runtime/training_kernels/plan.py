"""What a fused kernel of training needs to know of a projection, in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from ..estimators.base import Estimator
from ..estimators.trust import OUTER_PLAIN, OUTER_ROTATED
from ..representation import Representation
from ..sparsity import Groups
from ..stage import Stage
from ..stages.grids import FloatGrid, Grid, IntegerGrid
from ..stages.grids.nearest import borders
from ..stages.hadamard import Hadamard
from ..stages.quantize import Quantize
from ..stages.quantize_options import absmax_level
from ..stages.scales import RULES, PowerRule, Setting
from ..stages.sparsify import Sparsify

Sharing = Literal["row", "group", "tensor", "none"]
Statistic = Literal["absmax", "signed", "rms", "absmean", "power", "none"]
ScaleDtype = Literal["own", "float32", "float16", "bfloat16", "e8m0"]
Rounding = Literal["nearest", "floor", "float", "table", "none"]

_SHARING: Mapping[str, Sharing] = {"token": "row", "channel": "row", "group": "group", "tensor": "tensor"}
_SCALE_DTYPES: Mapping[str | None, ScaleDtype] = {
    None: "own",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "e8m0": "e8m0",
}
_GROUPS = (4, 8)  # neighbours of n:m
_LEVELS = 16  # of a table


@dataclass(frozen=True, eq=False)  # a program has one, and what belongs to it is looked up by identity
class Plan:
    """A rotation, n:m sparsity, a scale, a grid and the test that lets a gradient pass, in this order.

    Everything is computed in float32, in the order given here, so that kernels agree with the stages.

    Rotation: `block` numbers at a time (0: none), see `block_for`; `signs` is the seed of the signs before.
    Sparsity: the `kept` largest magnitudes of every `of` neighbours stay (0: all), the first of equal ones.
    Sharing: a scale for each `row`, for each `group` of `group_size` survivors along a row (the last one is
    smaller), or for the `tensor`; `none`: no grid, numbers stay as they are.
    Scale: the `statistic` of the survivors times `multiplier`, over `divisor`, one of them 1. `signed` is the
    number of largest magnitude with its sign (the negative one only where it is larger); `power` is 2^e for
    a finite largest magnitude f 2^k, 1 <= f < 2: e = k + `power_offset` + (0 if f < `power_border`, or f is
    the border and not `power_from_border`, else 1) - 1, between -127 and 127. It is clamped to what
    `scale_dtype` holds (see `Floating.store`, `PowerOfTwo.store`) and rounded to it; `own` is the dtype of
    the tensor. It is multiplied by `unit` after.
    Grid, of numbers over the scale: `nearest` rounds half to even, `floor` down, both between `lowest` and
    `highest`, and adds `shift`; `float` rounds half to even to multiples of 2^-`mantissa_bits` times the
    power of two below the magnitude, `least` at least, between -`top` and `top`; `table` takes level i for i
    borders that are smaller than the number. `levels` and `borders` are given for at most 16 levels.
    Mask: |R(x) - x| <= scale * `half_width` * `trust` and |x| <= scale * `top` * `bound`, in the rotated
    domain; 0 leaves a test out. A number that sparsity zeroed is tested with the widest scale of its row. The
    second bound is rounded to the dtype of the tensor where all of it shares a scale, as torch compares.
    """

    block: int = 0
    whole: bool = False
    signs: int | None = None
    kept: int = 0
    of: int = 0
    sharing: Sharing = "none"
    group_size: int = 0
    statistic: Statistic = "none"
    multiplier: float = 1.0
    divisor: float = 1.0
    power_border: float = 1.0
    power_offset: int = 0
    power_from_border: bool = True
    scale_dtype: ScaleDtype = "own"
    unit: float = 1.0
    rounding: Rounding = "none"
    lowest: float = 0.0
    highest: float = 0.0
    shift: float = 0.0
    mantissa_bits: int = 0
    least: float = 0.0
    levels: tuple[float, ...] = ()
    borders: tuple[float, ...] = ()
    half_width: float = 0.0
    top: float = 0.0
    trust: float = 0.0
    bound: float = 0.0

    @property
    def masks(self) -> bool:
        """Whether the gradient passes only where a test holds."""
        return self.trust > 0 or self.bound > 0

    def block_for(self, size: int) -> int:
        """The Hadamard block that a dimension of this size is rotated in; 1 when it cannot be rotated."""
        block = math.gcd(size, self.block) if self.block else 1
        return block if block == size or not self.whole else 1


def plan_of(representation: Representation, estimators: tuple[Estimator, ...]) -> Plan | str:
    """The plan of a projection with these estimators, or why no fused kernel could follow one."""
    stages = list(representation.bound_stages)
    if not stages:
        return "nothing is projected"
    options: dict[str, Any] = {}
    for kind, plan in (("hadamard", _rotation), ("sparsify", _sparsity), ("quantize", _quantisation)):
        if stages and stages[0].kind == kind:
            found = plan(stages.pop(0))
            if isinstance(found, str):
                return found
            options |= found
    if stages:
        return f"{stages[0]} is not among hadamard, sparsify and quantize in this order"
    return _checked(options) or _with_masks(options, representation, estimators)


def _checked(options: dict[str, Any]) -> str:
    """Why stages do not go together; '' when they do."""
    if "kept" not in options and "sharing" not in options:
        return "a rotation alone has nothing to fuse"
    if options.get("kept") and options.get("group_size", 0) % options["kept"]:
        return f"groups of {options['group_size']} survivors are cut by {options['kept']}:{options['of']}"
    return ""


def _rotation(stage: Stage) -> dict[str, Any] | str:
    assert isinstance(stage, Hadamard)
    if stage.signs is not None and not isinstance(stage.signs, int):
        return f"the signs of {stage} are drawn for every tensor"
    if isinstance(stage.block, int) and stage.block & (stage.block - 1):
        return f"the block of {stage} is not a power of two"
    whole = stage.block == "full"
    return {"block": 1 << 30 if whole else stage.block, "whole": whole, "signs": stage.signs}


def _sparsity(stage: Stage) -> dict[str, Any] | str:
    assert isinstance(stage, Sparsify)
    pattern = stage.pattern
    if not isinstance(pattern, Groups) or pattern.vector != 1 or pattern.m not in _GROUPS:
        return f"{stage} is not n:4 or n:8 of single numbers"
    if stage.scores != "magnitude":
        return f"{stage} does not go by magnitude"
    return {"kept": pattern.n, "of": pattern.m}


_UNDERSTOOD = {
    *("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "observer", "scale_dtype"),
    *("grid", "clip", "absmax_rule"),
}


def _quantisation(stage: Stage) -> dict[str, Any] | str:
    assert isinstance(stage, Quantize)
    if unknown := _unknown(stage, _UNDERSTOOD):
        return f"{unknown} of {stage} has no fused form"
    if not stage.symmetric:
        return f"{stage} has zero points"
    if stage.strategy not in _SHARING:
        return f"scales of strategy {stage.strategy} have no fused form"
    if stage.scale_dtype not in _SCALE_DTYPES:
        return f"scales stored as {stage.scale_dtype} have no fused form"
    statistic, grid = _statistic(stage), _grid(stage.levels)
    if isinstance(statistic, str) or isinstance(grid, str):
        return statistic if isinstance(statistic, str) else grid
    shared = {"sharing": _SHARING[stage.strategy], "group_size": stage.group_size or 0}
    return {"scale_dtype": _SCALE_DTYPES[stage.scale_dtype], **shared, **statistic, **grid}


def _unknown(options: Any, understood: Set[str]) -> str:
    """The first option of a stage or an estimator that is set and not understood; '' when there is none."""
    values = ((field.name, getattr(options, field.name) != field.default) for field in fields(options))
    return next((name for name, is_set in values if is_set and name not in understood), "")


def _statistic(stage: Quantize) -> dict[str, Any] | str:
    """How the scale follows from the numbers."""
    observer, grid = stage.observer, stage.levels
    if observer == "absmax" and stage.absmax_rule == "signed":
        return {"statistic": "signed", "divisor": float(grid.levels[0])}
    if observer == "absmax":
        return {"statistic": "absmax", "divisor": float(absmax_level(stage, grid))}
    if observer == "rms" and stage.clip is not None:
        return {"statistic": "rms", "multiplier": float(stage.clip / grid.levels[-1])}
    if observer == "absmean":
        return {"statistic": "absmean"}
    rule = RULES.get(observer)
    if not isinstance(rule, PowerRule):
        return f"observer {observer} has no fused form"
    border, offset, from_above = rule.border(Setting(grid, absmax_level(stage, grid)))
    power = {"power_border": border, "power_offset": offset, "power_from_border": not from_above}
    dtype = {} if stage.scale_dtype is not None else {"scale_dtype": "e8m0"}
    return {"statistic": "power", "unit": rule.unit(grid), **power, **dtype}


def _grid(grid: Grid) -> dict[str, Any] | str:
    """How numbers in units of the scale are rounded."""
    levels = tuple(float(level) for level in grid.levels)
    options: dict[str, Any] = {"half_width": grid.half_width, "top": levels[-1]}
    few = len(levels) <= _LEVELS
    if few:
        options["levels"] = levels
    if isinstance(grid, IntegerGrid):
        floor = levels[0] % 1 != 0  # midrise
        shift = 0.5 if floor else 0.0
        ends = {"lowest": levels[0] - shift, "highest": levels[-1] - shift}
        return options | {"rounding": "floor" if floor else "nearest", "shift": shift, **ends}
    if few:
        codes = getattr(grid, "level_codes")  # noqa: B009 - the other grids are tables
        options["borders"] = tuple(borders(levels, codes, torch.float32).tolist())
    if isinstance(grid, FloatGrid) and grid.mantissa_bits > 0:
        least = grid.magnitudes[2**grid.mantissa_bits]
        return options | {"rounding": "float", "mantissa_bits": grid.mantissa_bits, "least": least}
    if not few:
        return f"a table of {len(levels)} levels has no fused form, only of {_LEVELS}"
    return options | {"rounding": "table"}


def _with_masks(
    options: dict[str, Any], representation: Representation, estimators: tuple[Estimator, ...]
) -> Plan | str:
    """The plan with the tests of the estimators: where several test the same, the narrowest."""
    trusts: list[float] = []
    bounds: list[float] = []
    rotated, two_levels = bool(representation.rotation.stages), len(options.get("levels", ())) == 2
    for estimator in estimators:
        if estimator.apart:
            continue
        if estimator.kind not in ("ste", "trust", "clip"):
            return f"estimator {estimator.kind} has no fused form"
        if unknown := _unknown(estimator, {"factor"}):
            return f"{unknown} of estimator {estimator.kind} has no fused form"
        factor = float(getattr(estimator, "factor", 1.0))
        if estimator.kind == "clip":
            bounds.append(factor)
        elif estimator.kind == "trust" and two_levels:
            bounds.append((OUTER_ROTATED if rotated else OUTER_PLAIN) * factor)
        elif estimator.kind == "trust":
            trusts.append(factor)
    if "sharing" in options:  # without a grid there is no cell, and nothing is masked
        options |= {"trust": min(trusts, default=0.0), "bound": min(bounds, default=0.0)}
    return Plan(**options)
