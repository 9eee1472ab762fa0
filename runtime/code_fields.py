"""Weights whose codes' floats are parameters of the model, beside the weights that they were encoded from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from .code import Code
from .estimators import Estimator
from .estimators.code_fields import CodeFields, code_fields_of
from .fields_ops import DECODE_FIELDS, FieldsProjection, forward
from .projection import Project
from .representation import Representation
from .stages.precision import wide

FIELD = "field"
"""What follows the name of a weight, and `_`, in the names of its fields."""


@final
class FieldsProject(Project):
    """A projection that decodes fields; see `estimators.code_fields.CodeFields`.

    It holds none itself: it is called with the weight, for its shape and dtype, and with the fields beside
    it, in the order of `field_names`.
    """

    def forward(self, x: Tensor, *fields: Tensor) -> Tensor:
        """What the fields decode to, of the shape and dtype of `x`; still rotated with `keep_rotated`."""
        shape = [*self.arrangement.shape(tuple(x.shape))]
        return self.arrangement.restore(self._decoded(x.detach(), shape, fields), tuple(x.shape))

    def _decoded(self, like: Tensor, shape: list[int], fields: tuple[Tensor, ...]) -> Tensor:
        result: Tensor
        if torch.compiler.is_compiling():
            result = DECODE_FIELDS(like, shape, [*fields], self.key_of_program, self.keep_rotated)
        elif torch.is_grad_enabled():
            given = (self.program, like, shape, self.keep_rotated)
            result = FieldsProjection.apply(*given, *fields)  # type: ignore[no-untyped-call]
        else:
            result = forward(self.program, like, shape, fields, self.keep_rotated)
        return result


def trains_fields(representation: Representation, estimators: tuple[Estimator, ...]) -> CodeFields | None:
    """The estimator that trains the fields of a representation, None where none does."""
    return None if representation.is_dense else code_fields_of(estimators)


def field_names(representation: Representation, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, str]:
    """By name in a code, what follows the name of a weight, and `_`, in `state_dict`; in the layout's order.

    `shape` is that of the matrix, as the representation meets it.
    """
    return {name: f"{FIELD}_{name.replace('.', '_')}" for name in representation.layout(shape, dtype)}


def first_fields(representation: Representation, code: Code, trained: bool) -> dict[str, Tensor]:
    """The fields of a code as a model holds them, by name in the code: floats are parameters, in float32 at
    least, since 16 bits would not move; the others are tensors that nothing changes."""
    named = code.named()
    return {
        name: nn.Parameter(named[name].detach().to(wide(named[name].dtype), copy=True), trained)
        if named[name].is_floating_point()
        else named[name].detach().clone()
        for name in representation.layout(code.shape, code.dtype)
    }


def code_of(
    representation: Representation, fields: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> Code:
    """The code of a weight with these fields by name, as it is stored.

    Raises:
        ValueError: a field has another shape than the representation gives it.
    """
    named = {}
    for name, layout in representation.layout(shape, dtype).items():
        if tuple(fields[name].shape) != layout.shape:
            raise ValueError(f"a field of shape {tuple(fields[name].shape)}, and here it has {layout.shape}")
        named[name] = fields[name].detach().to(layout.dtype)
    return representation.code(named, shape, dtype)
