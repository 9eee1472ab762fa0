"""The text form of `quantize` and its inverse: `quantize(int4, twos, group=128, absmax, scale=float16)`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..text import Token, Value, value_text
from .grids import GRIDS
from .quantize_options import by, grid_of

if TYPE_CHECKING:
    from .quantize import Quantize

_FLOAT = re.compile(r"e([1-7])m([0-6])(fn|ieee|fnuz|all)?")
_NORMAL = re.compile(r"nf([2-8])")
_SHORT = {"scale": "scale_dtype", "zero": "zp_dtype", "rule": "absmax_rule", "levels": "grid"}


def text(stage: Quantize) -> str:
    """The stage as `kind(tokens)`, with the grid, what shares a scale and the observer always named."""
    return f"quantize({', '.join(_tokens(stage))})"


def _tokens(stage: Quantize) -> Iterator[str]:
    grid = grid_of(stage)
    if not stage.symmetric:
        yield from (f"int{stage.num_bits}", "asymmetric")
    elif isinstance(grid, tuple):
        yield from (f"float{stage.num_bits}", f"levels={value_text(grid)}")
    elif stage.type == "float" and _named_bits(grid) == stage.num_bits:
        yield grid
    else:
        yield from (f"{stage.type}{stage.num_bits}", grid)
    if stage.block_structure is not None:
        yield f"block={by(stage.block_structure)}"
    else:
        yield stage.strategy if stage.group_size is None else f"{stage.strategy}={stage.group_size}"
    yield stage.observer if stage.percentile is None else f"percentile={value_text(stage.percentile)}"
    if stage.rounding is not None:
        yield stage.rounding
    named = {"rule": stage.absmax_rule, "scale": stage.scales or stage.scale_dtype, "zero": stage.zp_dtype}
    yield from (f"{name}={_value(value)}" for name, value in named.items() if value is not None)
    if stage.clip is not None:
        yield f"clip={_number(stage.clip)}"
    given = {"step": stage.step, "offset": stage.offset}
    yield from (f"{name}={_number(value)}" for name, value in given.items() if value is not None)
    if stage.dynamic != (stage.strategy == "token"):  # tokens usually are
        yield "dynamic" if stage.dynamic else "static"


def _value(value: Value) -> str:
    """A value; a chain of several stages in parentheses."""
    return f"({value})" if len(getattr(value, "stages", ())) > 1 else str(value)


def _number(value: float) -> str:
    """A number in six digits where that is all of it."""
    return f"{value:.6g}" if float(f"{value:.6g}") == value else repr(value)


def _named_bits(grid: str) -> int | None:
    """The bits that the name of a grid tells."""
    if match := _FLOAT.fullmatch(grid):
        return 1 + int(match[1]) + int(match[2])
    return int(match[1]) if (match := _NORMAL.fullmatch(grid)) else None


def options_of(kind: type[Quantize], tokens: list[Token]) -> dict[str, Any]:
    """The options that the tokens of a text form give. Raises ValueError for a token that is none."""
    from ..text_parser import options_from  # knows every stage

    plain: list[Token] = []
    for name, value in tokens:
        plain.extend(_expanded(name, value))
    options = options_from(kind, plain)
    return {"dynamic": options.get("strategy") == "token"} | options


def _expanded(name: str, value: Value) -> list[Token]:
    """A token of the short form as the options it stands for."""
    if not isinstance(value, str):
        return [("scales" if name == "scale" else _SHORT.get(name, name), value)]
    if name in ("group", "tensor_group"):
        return [("strategy", name), ("group_size", value)]
    if name == "block":
        return [("strategy", "block"), ("block_structure", value.split("x"))]
    if name == "percentile":
        return [("observer", name), (name, value)]
    return [(_SHORT.get(name, name), value)] if name else _bare(value)


def _bare(value: str) -> list[Token]:
    """A word by itself: the type with its width, the grid, or a switch."""
    if match := re.fullmatch(r"(int|float)(\d+)", value):
        if value not in ("float16", "float32"):
            return [("type", match[1]), ("num_bits", match[2])]
        return [("scale_dtype", value)]
    if value == "asymmetric":
        return [("symmetric", "false")]
    if value in ("dynamic", "static"):
        return [("dynamic", str(value == "dynamic").lower())]
    bits = _named_bits(value)
    if bits is not None:
        return [("type", "float"), ("num_bits", str(bits)), ("grid", value)]
    if any(re.fullmatch(grid.pattern, value) for grid in GRIDS):
        return [("grid", value)]
    return [("", value)]
