"""How the fused projection cuts a tensor into tiles for a GPU: what shares a scale stays in one program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .plan import Plan

_LINE = 128  # numbers, without a rotation: 256 bytes of bfloat16
_SHORTEST = 16  # numbers in a line, and lines in a tile: what tensor cores multiply
_LARGEST_BLOCK = 128  # whose matrix leaves room for the tile
_TILE, _SMALL_TILE, _LARGEST_TILE = 1 << 13, 1 << 11, 1 << 15  # numbers
_BYTE, _WORD = 8, 32  # bits of a mask that are stored together


@dataclass(frozen=True)
class Cut:
    """The constants of the kernels for rows of one length; `triton_kernels` says what they mean.

    `block` is the Hadamard block, 1 for no rotation; `per_row` counts the segments of a row.
    """

    block: int
    width: int
    lines: int
    groups: int
    segment: int
    per_row: int
    even: bool
    pack: int

    def tile_lines(self, numbers: int, processors: int) -> int:
        """Lines in a tile of a tensor of so many numbers: fewer where every processor should have some."""
        tile = _TILE if numbers >= processors * _TILE else _SMALL_TILE
        return max(tile // self.width, self.lines, _SHORTEST)

    def of_lines(self, size: int) -> Cut:
        """The same lines of rows `[size]` as segments of their own, for what needs no scale."""
        return _cut(self.block, self.width, self.width, size)


@lru_cache(maxsize=512)
def cut_of(plan: Plan, size: int) -> Cut | str:
    """The cut of rows `[size]`, or why there is none."""
    block = plan.block_for(size)
    refusal = _refusal(plan, size, block)
    if refusal:
        return refusal
    columns = _columns(plan, size)
    width = max(block, _SHORTEST) if block > 1 else _power(min(columns, _LINE))
    if columns < min(width, size) and width % columns == 0:
        return _cut(block, width, width, size, width // columns)
    if columns % block:
        return f"groups of {columns} numbers cut Hadamard blocks of {block}"
    if columns < size and columns % _BYTE:
        return f"groups of {columns} numbers share bytes of the mask"
    cut = _cut(block, width, columns, size)
    if cut.lines * width > _LARGEST_TILE:
        return f"a scale for {columns} numbers needs more than {_LARGEST_TILE} in a program"
    return cut


def _refusal(plan: Plan, size: int, block: int) -> str:
    """Why rows of this length are not taken; '' when they may be."""
    if not size or (plan.block and block == 1):
        return f"rows of {size} cannot be rotated" if size else "there are no numbers"
    if block > _LARGEST_BLOCK:
        return f"Hadamard blocks of {block} are larger than {_LARGEST_BLOCK}"
    if plan.of and size % plan.of:
        return f"{plan.kept}:{plan.of} does not divide rows of {size}"
    if plan.of and plan.masks and plan.sharing == "group":
        return "zeroed numbers are tested with the widest scale of their row, and groups are apart"
    if plan.statistic == "signed" and plan.sharing == "tensor":
        return "a signed scale of the whole tensor has no kernel"
    return ""


def _columns(plan: Plan, size: int) -> int:
    """How many neighbours of a row stay in one program."""
    if plan.sharing == "row":
        return size
    if plan.sharing == "group":
        columns = plan.group_size * plan.of // plan.kept if plan.of else plan.group_size
        return min(columns, size)
    return _LINE


def _cut(block: int, width: int, segment: int, size: int, groups: int = 1) -> Cut:
    lines = _power(-(-segment // width), 1)
    whole = size % _WORD == 0 and segment % _WORD == 0 and width % _WORD == 0
    return Cut(
        block=block,
        width=width,
        lines=lines,
        groups=groups,
        segment=segment,
        per_row=-(-size // segment),
        even=size % segment == 0 and segment == lines * width,
        pack=_WORD if whole else _BYTE,
    )


def _power(number: int, least: int = _SHORTEST) -> int:
    """The smallest power of two from `least` and `number` up."""
    return max(1 << (number - 1).bit_length(), least)
