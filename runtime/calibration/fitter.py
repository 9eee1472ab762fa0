"""The contract of a fitter: a weight as a code of a representation, chosen by what its inputs are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from ..code import Code
from ..errors import RequestError
from ..representation import Representation
from ..stage import CARRY, Fields, Stage
from ..stages import Entropy
from .gram import Gram
from .leading import Inputs, Leading, led, output_error


@dataclass(frozen=True)
class Fitted:
    """A fitted weight.

    `code` is a code of `representation` like those that `encode` makes; `weight` is what it decodes to, in
    the shape and dtype of the weight. `error` is the squared error of the outputs over their mean square on
    the calibration inputs.
    """

    code: Code
    weight: Tensor
    representation: Representation
    error: float


class Fitter(ABC):
    """One way to fit a weight to a representation; a frozen dataclass in a file of its own.

    Fitters are deterministic, and change nothing they are given.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    kind: str

    def check(self, representation: Representation) -> None:
        """Raise `ValueError` when this fitter can make nothing of a representation."""
        return

    def fit(self, weight: Tensor, representation: Representation, gram: Gram | Sequence[Gram]) -> Fitted:
        """The weight `[..., out, in]` as a code of a representation, for inputs with these statistics.

        Leading dimensions are matrices of their own; a sequence of Grams gives each its own inputs.

        Raises:
            ValueError: a representation that this fitter can make nothing of.
            RequestError: a shape that the representation refuses, numbers that are not finite, statistics of
                another size, or inputs that depend on each other where nothing is damped.
        """
        self.check(representation)
        representation.check(tuple(weight.shape))
        inputs = inputs_of(weight, gram)
        with torch.no_grad():
            dense = weight.detach()
            code = self.encode(dense, representation, inputs)
            decoded = representation.decode(code)
            return Fitted(code, decoded, representation, relative_error(dense, decoded, inputs))

    def encode(self, weight: Tensor, representation: Representation, inputs: Inputs) -> Code:
        """The code alone, of a weight and inputs that fit each other."""
        stages = opened(representation)
        leading = led(stages, weight, inputs)
        return closed(representation, weight, leading, *self.rest(leading))

    @abstractmethod
    def rest(self, leading: Leading) -> tuple[Tensor, Sequence[Fields]]:
        """What the stages after the leading ones hand on and store."""


def opened(representation: Representation) -> tuple[Stage, ...]:
    """The bound stages of a chain, with those that entropy coding stores in its place."""
    stages = representation.bound_stages
    last = stages[-1] if stages else None
    return (*stages[:-1], *last.of.bound_stages) if isinstance(last, Entropy) else stages


def closed(
    representation: Representation, weight: Tensor, leading: Leading, carry: Tensor, rest: Sequence[Fields]
) -> Code:
    """The code of a representation from what its opened stages hand on and store."""
    fields = [*leading.fields, *rest]
    named = {CARRY: carry, **_named(fields)}
    last = representation.bound_stages[-1] if representation.stages else None
    if isinstance(last, Entropy):
        outside = len(representation.stages) - 1
        nothing = last.of.stages[-1].hands_on == "nothing"
        inside = Code(carry, tuple(fields[outside:]), tuple(weight.shape), weight.dtype, nothing)
        named = _named([*fields[:outside], last.coded(inside)])
    return representation.code(named, tuple(weight.shape), weight.dtype)


def _named(fields: Sequence[Fields]) -> dict[str, Tensor]:
    return {f"{i}.{name}": tensor for i, kept in enumerate(fields) for name, tensor in kept.items()}


def relative_error(weight: Tensor, decoded: Tensor, inputs: Inputs) -> float:
    """Squared error of the outputs over their mean square; 0 where there is no error."""
    error = output_error(weight.double() - decoded.double(), inputs)
    power = output_error(weight.double(), inputs)
    return error / power if power > 0 else float(error > 0)


def inputs_of(weight: Tensor, gram: Gram | Sequence[Gram]) -> Inputs:
    """The inputs of a weight `[..., out, in]`. Raises RequestError where the two do not fit each other."""
    grams = (gram,) if isinstance(gram, Gram) else tuple(gram)
    if weight.ndim < 2:
        raise RequestError(
            f"a weight of shape {list(weight.shape)} has no input channels to calibrate",
            advice="leave it out, or encode it as it is",
        )
    matrices = prod(weight.shape[:-2])
    if len(grams) not in {1, matrices}:
        raise RequestError(
            f"{len(grams)} Gram matrices were given for a weight of {matrices} matrices",
            advice="give one for all, or one for each",
        )
    for one in grams:
        if one.size != weight.shape[-1]:
            raise RequestError(
                f"the weight has {weight.shape[-1]} input channels, and its inputs had {one.size}",
                advice="arrange inputs as the weight is arranged: what is summed over comes last",
            )
    if not bool(torch.isfinite(weight).all()):
        raise RequestError(
            "the weight has numbers that are NaN or infinite", advice="find where training diverged"
        )
    device = weight.device
    hessian = torch.stack([one.matrix.to(device, torch.float64) for one in grams])
    size = torch.stack([one.absmean.to(device, torch.float64) for one in grams]).mean(0)
    return Inputs(hessian, size)
