"""compressed-tensors' QuantizationArgs: what a config says of the codes of one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from ...runtime.errors import RequestError
from ...runtime.stages.quantize import Quantize
from ...runtime.stages.quantize_options import Strategy

_STRATEGIES = ("tensor", "channel", "group", "token", "block", "tensor_group")


@dataclass(frozen=True)
class Arguments:
    """The fields of QuantizationArgs that decide numbers. `dynamic` may be "local" (NVFP4's inputs).

    `scale_dtype` is the dtype of stored scales where a format has one of its own, as torch names it.
    """

    num_bits: int
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: str = "tensor"
    group_size: int | None = None
    block_structure: tuple[int, int] | None = None
    dynamic: bool | str = False
    scale_dtype: str | None = None

    @property
    def half(self) -> int:
        """What codes of integers are above what they stand for: 2^(b-1)."""
        return 1 << (self.num_bits - 1)

    def to_document(self) -> dict[str, Any]:
        """As a config has it."""
        document: dict[str, Any] = {
            "num_bits": self.num_bits,
            "type": self.type,
            "symmetric": self.symmetric,
            "strategy": self.strategy,
            "group_size": self.group_size,
            "block_structure": None if self.block_structure is None else list(self.block_structure),
            "dynamic": self.dynamic,
        }
        return document | ({} if self.scale_dtype is None else {"scale_dtype": self.scale_dtype})

    @classmethod
    def from_document(cls, data: Mapping[str, Any]) -> Arguments:
        """The inverse of `to_document`, for configs of any writer. Raises RequestError for other data."""
        if not isinstance(data, Mapping):
            raise RequestError(
                "arguments of quantisation are not a mapping", advice="is config.json complete?"
            )
        group, strategy = data.get("group_size"), data.get("strategy")
        if strategy is None:
            strategy = "tensor" if group is None else "channel" if group == -1 else "group"
        kind = str(data.get("type", "int")).lower()
        bits, symmetric = data.get("num_bits", 8), data.get("symmetric", True)
        _known("num_bits", bits, isinstance(bits, int) and 1 <= bits <= 8, "1 to 8")
        _known("type", kind, kind in ("int", "float"), "int or float")
        _known("strategy", strategy, strategy in _STRATEGIES, ", ".join(_STRATEGIES))
        _known("symmetric", symmetric, symmetric is True or (symmetric is False and kind == "int"), "true")
        order, dynamic = data.get("actorder"), data.get("dynamic", False)
        _known("actorder", order, order in (None, False, "weight", "static"), "weight")
        _known("dynamic", dynamic, dynamic in (True, False, "local"), "true, false or local")
        grouped = strategy in ("group", "tensor_group")
        _known("group_size", group, not grouped or (type(group) is int and group > 0), "a positive size")
        block = _block(data.get("block_structure")) if strategy == "block" else None
        return cls(
            num_bits=bits,
            type=cast(Literal["int", "float"], kind),
            symmetric=symmetric,
            strategy=strategy,
            group_size=group if grouped else None,
            block_structure=block,
            dynamic=dynamic,
            scale_dtype=data.get("scale_dtype"),
        )


def _block(value: object) -> tuple[int, int]:
    sizes = value.split("x") if isinstance(value, str) else value
    good = (
        isinstance(sizes, list | tuple)
        and len(sizes) == 2
        and all(str(size).isdigit() and int(size) > 0 for size in sizes)
    )
    _known("block_structure", value, good, "[rows, columns]")
    rows, columns = cast(list[Any], sizes)
    return int(rows), int(columns)


def _known(field: str, value: object, known: bool, expected: str) -> None:
    if not known:
        raise RequestError(
            f"{field} is {value!r}, and rhoc reads {expected}", advice="was it written by a later version?"
        )


def weight_arguments(stage: Quantize) -> Arguments:
    """What a config says of a weight that a stage encoded; rows are called channels there."""
    return Arguments(
        num_bits=stage.num_bits,
        type=stage.type,
        symmetric=stage.symmetric,
        strategy="channel" if stage.strategy == "token" else stage.strategy,
        group_size=stage.group_size,
        block_structure=stage.block_structure,
    )


def strategy_of(arguments: Arguments) -> Strategy:
    """The strategy under our name, which is the same."""
    return cast(Strategy, arguments.strategy)
