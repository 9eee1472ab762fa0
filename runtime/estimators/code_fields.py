"""The floats of a code trained themselves, behind codes that stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..representation import Representation
from ..stage import Stage
from ..stages.codebook import Codebook
from ..stages.product import Product
from ..stages.quantize import Quantize
from ..stages.scale import Scale
from ..stages.sum import Sum
from ..view import View
from .base import Estimator

_OTHERWISE = "use 'ste' or 'trust'"


@dataclass(frozen=True)
class CodeFields(Estimator):
    """A weight is encoded once; then the floats of its code are trained, and its codes stay as they are.

    Of codebooks k-means tables (AQLM 2401.06118; 1907.05686), of products dense factors (as those of LoRA
    2106.09685), of grids and codebooks the scales. dL/d(field) is the derivative of decoding: with
    G = dL/dR, of an entry of a table the sum of G over the vectors that have it, of factors A B the products
    G B^T and A^T G. The weight stays under its name, without a gradient. Floats stored in 16 bits are
    trained in float32, and rounded on every use, straight-through. Where no field is (outside of a trainable
    form) gradients pass straight through.

    `grids` says what becomes of the codes of a product's factors: `kept`, or `trained` as the numbers that
    they stand for, rounded to the grid on every use, straight-through, while its steps and the places of a
    sparse factor stay.
    """

    grids: Literal["kept", "trained"] | None = None
    kind: Literal["fields"] = "fields"

    masks: ClassVar[bool] = False

    def check(self, representation: Representation) -> None:
        if self.grids == "trained" and representation.stages:
            from ..grid_latents import grids_of, without_grids  # which know stages that hold others

            if not grids_of(representation):
                raise ValueError(
                    f"{self.kind!r} with grids: trained needs a product with a factor that ends in quantize; "
                    "leave grids out"
                )
            representation = without_grids(representation)
        if representation.stages and (why := _refusal(representation, self.grids == "trained")):
            raise ValueError(f"{self.kind!r} {why}; {_OTHERWISE}")

    def mask(self, view: View) -> Tensor | None:
        return None


def code_fields_of(estimators: Sequence[Estimator]) -> CodeFields | None:
    """The estimator among these that trains fields, or None.

    Raises:
        ValueError: there are others beside it.
    """
    found = next((e for e in estimators if isinstance(e, CodeFields)), None)
    if found is not None and len(estimators) > 1:
        others = ", ".join(e.kind for e in estimators if e is not found)
        raise ValueError(f"{found.kind!r} says alone how gradients pass; leave out {others}")
    return found


def _refusal(representation: Representation, numbers: bool = False) -> str:
    """Why it means nothing for a representation, '' where it does."""
    if representation.is_random:
        return f"trains a code that stays the same, and {representation} draws at random"
    if representation.hands_on_numbers:
        return f"trains what a weight is encoded as, and {representation} hands on numbers"
    for stage in representation.all_stages() if not numbers else ():
        if why := _stage_refusal(stage):
            return why
    if not numbers and not any(map(_keeps_floats, representation.all_stages())):
        return f"trains floats of a code, and {representation} keeps none"
    return ""


def _stage_refusal(stage: Stage) -> str:
    """Why the floats of a stage cannot be trained, '' where they can or where there are none."""
    if isinstance(stage, Sum) or "orthogonal" in stage.tags:
        return ""
    if isinstance(stage, Codebook):
        shared = stage.scope == "network"
        return f"trains tables of single weights, and that of {stage} is the network's" if shared else ""
    if isinstance(stage, Quantize):
        wide = stage.plain_scales
        return "" if wide else f"trains floats of 16 bits or more, and scales of {stage} are no such floats"
    if isinstance(stage, Scale):
        narrow = stage.scale_dtype == "e8m0"
        return f"trains floats of 16 bits or more, and scales of {stage} are no such floats" if narrow else ""
    if isinstance(stage, Product):
        numbers = [f for f in (stage.left, stage.right) if f.stages and f.hands_on_numbers]
        return f"trains factors, or what they are encoded as, and {numbers[0]} is neither" if numbers else ""
    return f"trains floats of codebooks, products, sums and grids, and {stage} is none of them"


def _keeps_floats(stage: Stage) -> bool:
    if isinstance(stage, Codebook):
        return stage.source == "kmeans" or stage.scaled
    if isinstance(stage, Product):
        return stage.left.is_dense or stage.right.is_dense
    return isinstance(stage, Quantize | Scale)
