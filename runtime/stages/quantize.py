"""Scalar quantisation: a grid, a scale, and what shares it. Field names are those of compressed-tensors."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import RequestError
from ..gaussian import Source, optimal_scale
from ..representation import Representation
from ..seeds import derived
from ..stage import CARRY, Cell, Fields, Sized, Stage
from . import quantize_gaussian
from . import quantize_options as options
from .grids import Grid, parse_grid
from .precision import cast, wide
from .quantize_options import AbsmaxRule, Observer, Rounding, ScaleDtype, Strategy, ZeroDtype
from .scales import (
    AFFINE_RULES,
    E8M0,
    RULES,
    Codes,
    Floating,
    Nested,
    PowerOfTwo,
    Rule,
    Setting,
    Storage,
    Tiling,
    rounding,
)

if TYPE_CHECKING:
    from ..text import Token

_ZERO = "zero_point"
_SHAPE = "shape"  # of the tensor, beside the fields of a projection whose last groups are shorter


class Steps(NamedTuple):
    """The distance of levels, and the zero point (None of symmetric codes), of numbers they broadcast to."""

    scale: Tensor
    zero: Tensor | None


@dataclass(frozen=True)
class Quantize(Stage):
    """Round every number to the nearest level of a grid times a scale.

    Shapes: the tensor is `[..., n]`, its codes too. Scales are `[1]` for the tensor, `[...]` for rows,
    `[..., ceil(n / group_size)]` for groups and `[..., ceil(rows / r), ceil(n / c)]` for blocks: the last
    group of a row and the last blocks of a matrix are simply smaller.

    `num_bits` is the width of a code, 1 to 8.
    `type` says whether the grid is one of integers (`int`) or of other numbers (`float`).
    `symmetric` false gives codes from 0 to 2^b - 1 a zero point beside the scale: x is (code - zero) * scale.
    `strategy` says what shares a scale: `tensor` all numbers; `channel` and `token` one vector along the last
    dimension (a weight's row, an activation's token); `group` each `group_size` neighbours along the last
    dimension; `block` each `block_structure` of the last two; `tensor_group` groups whose scales are stored
    as e4m3 under one float32 scale of the tensor (NVFP4 with e2m1 and groups of 16).
    `group_size` is the number of neighbours in a group.
    `dynamic` says that activations are measured anew for every input.
    `observer` says how the scale follows from the numbers: `absmax` (largest magnitude to the grid's end),
    `mse` (search, least squared error), `rms` (root mean square times `clip`; QuEST 2502.05003 section 3.1),
    `percentile`, `absmean` (mean magnitude; BitNet b1.58), `four_over_six` (the better of absmax to 6 or 4),
    `ms_eden` (clips, and corrects scales at random so that a random rotation before it is unbiased; NVFP4),
    `learned` (where LSQ starts: 2 mean magnitude / sqrt(largest level); the estimator `lsq` trains it),
    `three_sigma` (where LSQ+ starts weights: three deviations around the mean), `hqq` (asymmetric, improves
    the zero point), the powers of two `mx_floor` (OCP microscaling), `mx_even`,
    `mx_ceil`, `mx_rceil`, `mx_round`, `mx_roundmax`, and `three_quarters` (Quartet).
    `scale_dtype` is how scales are stored; unset means the tensor's own dtype, and a byte of exponent
    (`e8m0`) for powers of two. The scale is rounded to it before anything is quantised with it.
    `grid` is `midrise` (default of 1 bit), `midtread`, `twos` (default of ints), a float such as `e2m1`
    (default of floats: e2m1 for 4 bits, e4m3 for 8), another name, or a list of levels.
    `clip` is the factor of an `rms` scale; unset means the one that is optimal for Gaussian numbers as the
    chain hands them on.
    `block_structure` is the rows and columns of a block.
    `zp_dtype` is how zero points are stored: `int8` (default) as codes of `num_bits` bits, of ranges that
    contain zero; or a float dtype.
    `absmax_rule` is where `absmax` puts the largest magnitude on the grid `twos`: `half` (default) at
    (2^b - 1) / 2, `full` at 2^(b-1), `sym` at 2^(b-1) - 1, `signed` with its sign at -2^(b-1).
    `percentile` is the share of numbers, in %, that the `percentile` observer keeps below the grid's end.
    `scales` is a chain that the scales themselves are encoded with, instead of `scale_dtype`.
    `rounding` is `nearest` (default), or `stochastic`: up or down at random, so that it is right on average
    where nothing is clipped (a scale rounded down may clip the largest number; `three_quarters` never does).
    It is for training: without a seed, and in all that is stored, it is to the nearest level.
    `step` is a scale that is given, of the whole tensor: nothing is measured.
    `offset` moves a grid with a given step: a level q stands for q * step + offset.
    """

    num_bits: int = 8
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: Strategy = "tensor"
    group_size: int | None = None
    dynamic: bool = False
    observer: Observer = "absmax"
    scale_dtype: ScaleDtype | None = None
    grid: str | tuple[float, ...] | None = None
    clip: float | None = None
    block_structure: tuple[int, int] | None = None
    zp_dtype: ZeroDtype | None = None
    absmax_rule: AbsmaxRule | None = None
    percentile: float | None = None
    scales: Representation | None = None
    rounding: Rounding | None = None
    step: float | None = None
    offset: float | None = None
    kind: Literal["quantize"] = "quantize"

    family: ClassVar[str] = "scalar"
    _seed: ClassVar[int | None] = None  # no option: what `drawn` bound the stage to

    def __post_init__(self) -> None:
        for name, value in options.canonical(self).items():
            object.__setattr__(self, name, value)
        options.check(self)

    @cached_property
    def levels(self) -> Grid:
        """The grid, in units of the scale."""
        return parse_grid(options.grid_of(self), self.num_bits)

    @property
    def scale_free(self) -> bool:
        """False for scales that are powers of two, given, or 8-bit floats without a second scale."""
        if self.step is not None:
            return False
        if self.scales is not None:
            return not self._rule.power_of_two and self.scales.scale_free
        return self._storage_is_wide and not self._rule.power_of_two

    @property
    def random(self) -> bool:
        """True of stochastic rounding, of numbers or of the scales of `ms_eden`."""
        return self.rounding == "stochastic" or (self.symmetric and self._rule.random)

    def drawn(self, seed: int) -> Quantize:
        if not self.random:
            return self
        found = copy(self)  # with all that was worked out
        object.__setattr__(found, "_seed", seed)
        return found

    def check(self, shape: tuple[int, ...]) -> None:
        if self.strategy == "block" and len(shape) < 2:
            raise RequestError(
                f"blocks of {options.by(self.block_structure)} need a matrix, not shape {list(shape)}",
                advice="leave this tensor out with `ignore`, or use strategy: group",
            )
        if isinstance(self.storage, Nested):
            self.storage.chain.check(self._tiling.scale_shape(shape))

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return self._encode(x, None)

    def encode_weighted(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Fields, Tensor | None]:
        """As the contract says; of the observers, `mse` and `four_over_six` weigh errors (when symmetric)."""
        return *self._encode(x, importance), None

    def _encode(self, x: Tensor, importance: Tensor | None) -> tuple[Tensor, Fields]:
        shape = tuple(x.shape)
        blocks, fields = self._measured(x, importance)
        parts = self._scales(fields, shape)
        random = self._generator(x, 0) if self.rounding else None
        codes = [
            rounding.encode(self.levels, *part, positive=self._positive, random=random)
            for part in zip(blocks, *parts, strict=True)
        ]
        if self._corrects:
            fields = self._corrected(x, blocks, codes, fields)
        return self._tiling.join(codes, shape, torch.uint8, x.device), fields

    def _corrected(self, x: Tensor, blocks: list[Tensor], codes: list[Tensor], fields: Fields) -> Fields:
        """Scales once more, now that it is known what numbers were rounded to."""
        scales, _ = self._scales(fields, tuple(x.shape))
        factors = [
            self._rule.correction(block, rounding.decode(self.levels, code, scale, None))
            for block, code, scale in zip(blocks, codes, scales, strict=True)
        ]
        return self._rule.corrected(fields, self._joined(factors, x), self._generator(x, 1))

    def _generator(self, x: Tensor, place: int) -> torch.Generator | None:
        """Random numbers from the start, the same at every call; None without a seed."""
        if self._seed is None or x.is_meta:
            return None
        return torch.Generator(x.device).manual_seed(derived(self._seed, place))

    def project(self, x: Tensor) -> tuple[Tensor, Fields]:
        shape = tuple(x.shape)
        if self._corrects:
            carry, fields = self._encode(x, None)
            return self.decode(carry, fields), self._with_shape(fields, shape)
        blocks, fields = self._measured(x, None)
        scales, zeros = self._scales(fields, shape)
        random = self._generator(x, 0) if self.rounding else None
        projected = [
            rounding.project(self.levels, *part, positive=self._positive, random=random)
            for part in zip(blocks, scales, zeros, strict=True)
        ]
        dtype = scales[0].dtype if scales else torch.float32
        joined = self._tiling.join(projected, shape, dtype, x.device)
        return joined + self.offset if self.offset else joined, self._with_shape(fields, shape)

    def _with_shape(self, fields: Fields, shape: tuple[int, ...]) -> Fields:
        """Fields that say the tensor's shape too, where its last groups are shorter."""
        return {**fields, _SHAPE: torch.empty(shape, device="meta")} if self._tiling.uneven(shape) else fields

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        shape = tuple(carry.shape)
        scales, zeros = self._scales(fields, shape)
        parts = zip(self._tiling.split(carry), scales, zeros, strict=True)
        values = [rounding.decode(self.levels, *part) for part in parts]
        joined = self._tiling.join(values, shape, self._restored(fields, shape).dtype, carry.device)
        return joined + self.offset if self.offset else joined

    def steps(self, fields: Fields, shape: tuple[int, ...]) -> Steps:
        """What these fields say of every number of a tensor of this shape; both broadcast to it."""
        spread = self._tiling.spread
        scale = spread(self._restored(fields, shape), shape)
        return Steps(scale, None if self.symmetric else spread(fields[_ZERO], shape))

    def encode_with(self, x: Tensor, steps: Steps) -> Tensor:
        """Codes of numbers `[m, k]` under given steps `[m, 1]`: nothing is measured."""
        return rounding.encode(self.levels, x, steps.scale, steps.zero, positive=self._positive)

    def decode_with(self, codes: Tensor, steps: Steps) -> Tensor:
        """The inverse of `encode_with`, bit for bit what `decode` gives at these places."""
        return rounding.decode(self.levels, codes, steps.scale, steps.zero)

    @property
    def scales_meet(self) -> bool:
        """Whether scales are encoded together, so that none is known before the others."""
        return isinstance(self.storage, Nested)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        self.check(x.shape)
        shape = self._tiling.scale_shape(x.shape)
        fields = self.storage.layout(shape, x.dtype)
        if not self.symmetric:
            fields[_ZERO] = Sized(shape, self._zero_dtype)
        return Sized(x.shape, torch.uint8), fields

    def widths(self) -> dict[str, int]:
        zero = {_ZERO: self.num_bits} if not self.symmetric and self.zp_dtype is None else {}
        return {CARRY: self.num_bits, **self.storage.widths(), **zero}

    def cell(self, fields: Fields) -> Cell:
        """As the contract says. Of a grid that was moved, `outermost` is the level farther from zero."""
        like = fields.get(_SHAPE)
        shape = tuple(like.shape) if like is not None else None
        scale = self._restored(fields, shape)
        levels = self.levels.levels
        outermost = scale * levels[-1]
        if self.offset is not None:
            outermost = torch.stack([scale * levels[i] + self.offset for i in (0, -1)]).abs().amax(0)
        if not self.symmetric:
            zero = fields[_ZERO].to(scale.dtype)
            outermost = torch.maximum(zero.abs(), (levels[-1] - zero).abs()) * scale
        half_width = scale * self.levels.half_width
        if not self._positive:
            half_width, outermost = half_width.abs(), outermost.abs()
        spread = self._tiling.spread
        return Cell(spread(half_width, shape), spread(outermost, shape), len(levels))

    def bound(self, source: Source) -> Quantize:
        """With the Gaussian-optimal clip filled in when the observer is `rms` and none is given."""
        if self.observer != "rms" or self.clip is not None:
            return self
        levels = self.levels.levels
        return replace(self, clip=float(optimal_scale(levels, source) * levels[-1] / source.rms))

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """Integral over the cells, where scales follow from the largest magnitude alone
        (`quantize_gaussian`)."""
        return quantize_gaussian.gaussian(self, source)

    def gaussian_at(self, deviation: float) -> float | None:
        """Mean squared error over variance of Gaussian numbers of a standard deviation, by quadrature.

        None where scales are not shared by groups or depend on more than the largest magnitude.
        """
        return quantize_gaussian.gaussian_at(self, deviation)

    @property
    def group_numbers(self) -> int | None:
        """How many numbers share a scale, where that does not depend on the tensor."""
        if self.block_structure is not None:
            return self.block_structure[0] * self.block_structure[1]
        return self.group_size

    @property
    def plain_scales(self) -> bool:
        """Whether the field `scale` is the distance of levels itself, in 16 bits or more."""
        return self._storage_is_wide and self._rule.unit(self.levels) == 1

    def __str__(self) -> str:
        from .quantize_text import text

        return text(self)

    @classmethod
    def from_tokens(cls, tokens: list[Token]) -> Quantize:
        """The inverse of `str`: beside options `int4`, `e2m1`, `group=128`, `block=16x16`, `scale=...`."""
        from .quantize_text import options_of

        return cls(**options_of(cls, tokens))

    @property
    def _storage_is_wide(self) -> bool:
        """Whether scales are stored by themselves, in floats of 16 bits or more"""
        narrow = self.scale_dtype is not None and self.scale_dtype.startswith("float8")
        return isinstance(self.storage, Floating) and not narrow

    @cached_property
    def _tiling(self) -> Tiling:
        if self.block_structure is not None:
            return Tiling(*self.block_structure)
        return Tiling(columns=self.group_size, whole=self.strategy == "tensor")

    @cached_property
    def storage(self) -> Storage:
        """How scales are stored."""
        if self.scales is not None:
            return Nested(self.scales)
        if self.strategy == "tensor_group":
            return Nested(Representation((Quantize(8, "float", scale_dtype="float32"),)))
        power = self._rule.power_of_two and self.scale_dtype is None
        return PowerOfTwo() if power or self.scale_dtype == E8M0 else self._floating

    @property
    def _floating(self) -> Floating:
        return Floating(self.scale_dtype, signed=self.symmetric and self._rule.signed)

    @cached_property
    def _rule(self) -> Rule:
        """How symmetric scales follow from the numbers; asymmetric ones have rules of their own."""
        return RULES.get("signed" if self.absmax_rule == "signed" else self.observer, RULES["absmax"])

    @cached_property
    def _setting(self) -> Setting:
        top = options.absmax_level(self, self.levels)
        return Setting(self.levels, top, self.clip, self.percentile, isinstance(self.storage, PowerOfTwo))

    @property
    def _zero_dtype(self) -> torch.dtype:
        return getattr(torch, self.zp_dtype) if self.zp_dtype else torch.uint8

    def _measured(self, x: Tensor, importance: Tensor | None) -> tuple[list[Tensor], Fields]:
        """The numbers in blocks, in the precision of the computation, and the fields of their scales."""
        self.check(tuple(x.shape))
        numbers = cast(x, wide(x.dtype))
        blocks = self._tiling.split(numbers - self.offset if self.offset else numbers)
        if not self.symmetric:
            return blocks, self._affine(x, blocks)
        if self.step is not None:
            given = torch.full((1,), self.step, dtype=wide(x.dtype), device=x.device)
            return blocks, self.storage.store(given, x.dtype)
        weights: list[Tensor | None] = [None] * len(blocks)
        if importance is not None:
            weights = [*self._tiling.split(importance.to(x.device).expand(x.shape))]
        scales = [
            self._rule.scale(block, self._setting, weight)
            if block.shape[-1]
            else block.new_zeros(len(block), 1)
            for block, weight in zip(blocks, weights, strict=True)
        ]
        scale = self._joined(scales, x)
        others = [self._rule.alternative(*pair, self._setting) for pair in zip(blocks, scales, strict=True)]
        if scale.numel() and all(other is not None for other in others):
            other = self._joined([other for other in others if other is not None], x)
            scale = self._settled(blocks, weights, scale, other, x)
        return blocks, self._rule.stored(scale, self.storage, x.dtype)

    def _settled(
        self, blocks: list[Tensor], weights: list[Tensor | None], scale: Tensor, other: Tensor, x: Tensor
    ) -> Tensor:
        """The better of two scales of each block, as they are stored.

        The largest stays as it is, so that a second scale that is taken from it does not move.
        """
        shape, widest = tuple(x.shape), scale.amax()
        other = torch.where((scale == widest) | (other > widest), scale, other)
        errors = []
        for candidate in (scale, other):
            stored = self._restored(self.storage.store(candidate, x.dtype), shape)
            columns = self._tiling.split_scale(stored.to(scale.dtype), shape)
            parts = zip(blocks, columns, weights, strict=True)
            errors.append(self._joined([rounding.error(self.levels, *part) for part in parts], x))
        return torch.where(errors[1] < errors[0], other, scale)

    def _affine(self, x: Tensor, blocks: list[Tensor]) -> Fields:
        """Scales and zero points of asymmetric codes; the zero points follow the scales as stored."""
        rule, shape = AFFINE_RULES[self.observer], tuple(x.shape)
        precision = 0.0 if self.zp_dtype is None else 2 * torch.finfo(self._zero_dtype).eps
        codes = Codes(2**self.num_bits - 1, self.zp_dtype is None, precision)
        lines = [
            rule.line(block, codes) if block.shape[-1] else block.new_zeros(len(block), 2) for block in blocks
        ]
        fields = self.storage.store(self._joined([line[:, :1] for line in lines], x), x.dtype)
        scales = self._tiling.split_scale(self._restored(fields, shape), shape)
        zeros = [
            rule.zero(block, scale.to(block.dtype), line[:, 1:], codes) if block.shape[-1] else line[:, 1:]
            for block, scale, line in zip(blocks, scales, lines, strict=True)
        ]
        return {**fields, _ZERO: self._joined(zeros, x).to(self._zero_dtype)}

    def _joined(self, columns: list[Tensor], x: Tensor) -> Tensor:
        return self._tiling.join_scale(columns, tuple(x.shape), wide(x.dtype), x.device)

    def _restored(self, fields: Fields, shape: tuple[int, ...] | None) -> Tensor:
        """Scales as they were stored, times the unit of the rule."""
        scale = self.storage.restore(fields, () if shape is None else self._tiling.scale_shape(shape))
        return scale if self.unit == 1 else scale * self.unit

    @cached_property
    def _corrects(self) -> bool:
        """Whether scales change once more after numbers were rounded."""
        return self.symmetric and self._rule.corrects

    @cached_property
    def unit(self) -> float:
        """What stored scales are multiplied by."""
        return self._rule.unit(self.levels) if self.symmetric else 1.0

    @cached_property
    def _positive(self) -> bool:
        """Whether all scales are above zero, those of zeros included."""
        return self.storage.positive and self.unit == 1

    def _scales(self, fields: Fields, shape: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor | None]]:
        """Scales and zero points of each matrix of blocks, as columns."""
        scales = self._tiling.split_scale(self._restored(fields, shape), shape)
        if self.symmetric:
            return scales, [None] * len(scales)
        return scales, [*self._tiling.split_scale(fields[_ZERO], shape)]
