"""The contract of a layout: one way in which a weight of codes and scales lies in the tensors of a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...runtime.errors import RequestError
from ...runtime.representation import Representation
from ...runtime.stage import CARRY
from ...runtime.stages.quantize import Quantize
from .arguments import Arguments, strategy_of, weight_arguments
from .coded import Coded, Held, product, scale_shape, values


class Layout(ABC):
    """A format of compressed-tensors. Tensors have the names that follow the module's: `weight_packed`.

    `decode(read(write(coded)))` is what that library's decompressor gives, bit for bit.
    """

    name: ClassVar[str]

    @abstractmethod
    def takes(self, held: Held, with_inputs: bool) -> bool:
        """Whether a weight's codes and scales are of the kind that this format is for; `with_inputs` where
        inputs are represented too."""

    def arguments(self, held: Held) -> Arguments:
        """What the config says of the weight."""
        return weight_arguments(held.quantize)

    @abstractmethod
    def code(self, held: Held) -> Coded:
        """A weight's codes and scales as this format stores them. Raises RequestError where it cannot."""

    @abstractmethod
    def write(self, coded: Coded, arguments: Arguments) -> dict[str, Tensor]:
        """The tensors of a file."""

    @abstractmethod
    def read(self, tensors: Mapping[str, Tensor], arguments: Arguments) -> Coded:
        """The inverse of `write`. Raises RequestError for tensors that are missing or of the wrong shape."""

    def decode(self, coded: Coded, arguments: Arguments) -> Tensor:
        """The dense weight, as compressed-tensors computes it."""
        return product(values(coded.codes, arguments), coded.scale, coded.zero, arguments)

    def pack(self, coded: Coded, arguments: Arguments) -> tuple[Representation, dict[str, Tensor]]:
        """The representation and the stored fields of what was read; decoded they give `decode`."""
        stage = Quantize(
            num_bits=arguments.num_bits,
            type=arguments.type,
            symmetric=arguments.symmetric,
            strategy=strategy_of(arguments),
            group_size=arguments.group_size,
            block_structure=arguments.block_structure,
        )
        fields = {CARRY: coded.codes, "0.scale": coded.scale}
        return stored(stage, fields, coded, coded.scale.dtype)


def stored(
    stage: Quantize, named: Mapping[str, Tensor], coded: Coded, dtype: torch.dtype
) -> tuple[Representation, dict[str, Tensor]]:
    """A representation of one stage with its fields packed; scales and zero points in the shapes it has."""
    representation = Representation((stage,))
    shape = tuple(coded.codes.shape)
    found = dict(named) | ({} if coded.zero is None else {"0.zero_point": coded.zero})
    layout = representation.layout(shape, dtype)
    shaped = {name: tensor.reshape(layout[name].shape) for name, tensor in found.items()}
    return representation, representation.pack(representation.code(shaped, shape, dtype))


def taken(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor by name. Raises RequestError when it is missing or of another dtype (None: of no float)."""
    tensor = tensors.get(name)
    if tensor is None:
        raise RequestError(f"{name} is missing", advice="copy the checkpoint again")
    right = tensor.dtype == dtype if dtype is not None else tensor.is_floating_point()
    if not right:
        expected = "a float" if dtype is None else str(dtype).removeprefix("torch.")
        raise RequestError(
            f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, and its format has {expected} there",
            advice="is `format` in config.json that of the file?",
        )
    return tensor


def shaped(tensor: Tensor, name: str, expected: tuple[int, ...]) -> Tensor:
    """The tensor. Raises RequestError when it has another shape (as many numbers in one line will do)."""
    same = tuple(tensor.shape) == expected or (
        tensor.dim() <= 1 and tensor.numel() == torch.Size(expected).numel()
    )
    if not same:
        raise RequestError(
            f"{name} has shape {list(tensor.shape)}, and its format needs {list(expected)}",
            advice="is config.json that of the file?",
        )
    return tensor.reshape(expected)


def scales(
    tensors: Mapping[str, Tensor], arguments: Arguments, rows: int, columns: int, **kind: Any
) -> Tensor:
    """`weight_scale` in the shape that the arguments ask for; `dtype` as for `taken`."""
    found = taken(tensors, "weight_scale", kind.get("dtype"))
    return shaped(found, "weight_scale", scale_shape(arguments, rows, columns))


def binary_as_asymmetric(coded: Coded, arguments: Arguments) -> tuple[Coded, Arguments]:
    """Symmetric codes of one bit (-1 and 0) as codes with a zero point of 1, which rhoc has stages for."""
    if arguments.num_bits > 1 or not arguments.symmetric:
        return coded, arguments
    zero = torch.ones(coded.scale.shape, dtype=torch.uint8)
    return replace(coded, zero=zero), replace(arguments, symmetric=False)
