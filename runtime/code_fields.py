"""Weights whose codes' floats are parameters of the model, beside the weights that they were encoded from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from .code import Code
from .estimators import Estimator
from .estimators.code_fields import CodeFields, code_fields_of
from .estimators.freeze_codes import FreezeCodes, freeze_codes_of
from .fields_ops import DECODE_FIELDS, FieldsProjection, forward
from .grid_latents import coded, grids_of
from .projection import Project
from .representation import Representation
from .stages.precision import wide

FIELD = "field"
"""What follows the name of a weight, and `_`, in the names of its fields."""

FROZEN = "frozen"
"""The same of the flag beside fields that says whether the weight is what they decode to, by now."""


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


@final
class FreezingProject(FieldsProject):
    """The same where the weight itself is projected first; see `estimators.freeze_codes.FreezeCodes`.

    The flag is called for behind the fields. `frozen` says what it says, where a rule is at work that knows:
    graphs that are compiled cannot ask a tensor.
    """

    frozen: bool | None = None

    def forward(self, x: Tensor, *beside: Tensor) -> Tensor:
        """What the weight is projected to, or what the fields decode to, of the shape and dtype of `x`."""
        *fields, flag = beside
        told = self.frozen if torch.compiler.is_compiling() else None  # eager, a state may have been loaded
        if bool(flag) if told is None else told:
            return super().forward(x, *fields)
        self._check_stepped()
        weight = x if self.latent is None else self.latent.weight(x)
        values = self.values
        if self.keeps_tables and self.training and torch.is_grad_enabled():
            values = torch.cat([values, self.tables(fields).detach().flatten().to("cpu", torch.float64)])
        matrix = self._project(self.arrangement.matrix(weight), values)
        return self.arrangement.restore(matrix, tuple(x.shape))

    def tables(self, fields: Sequence[Tensor]) -> Tensor:
        """The k-means tables among the fields of a chain that ends in a codebook: they alone have four
        dimensions."""
        return next(field for field in fields if field.is_floating_point() and field.dim() == 4)

    @property
    def keeps_tables(self) -> bool:
        """Whether tables are kept between steps before codes are frozen."""
        rule = self.step_rules[0]
        return isinstance(rule, FreezeCodes) and rule.refresh is not None


def trains_fields(
    representation: Representation, estimators: tuple[Estimator, ...]
) -> CodeFields | FreezeCodes | None:
    """The estimator that trains the fields of a representation, at once or later; None where none does."""
    if representation.is_dense:
        return None
    return freeze_codes_of(estimators) or code_fields_of(estimators)


def field_names(representation: Representation, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, str]:
    """By name in a code, what follows the name of a weight, and `_`, in `state_dict`; in the layout's order.

    `shape` is that of the matrix, as the representation meets it.
    """
    return {name: f"{FIELD}_{name.replace('.', '_')}" for name in representation.layout(shape, dtype)}


def first_fields(
    representation: Representation, code: Code, trained: bool, *, grids: bool = False
) -> dict[str, Tensor]:
    """The fields of a code as a model holds them, by name in the code: floats are parameters, in float32 at
    least, since 16 bits would not move; the others are tensors that nothing changes.

    `grids`: factors on grids are parameters too, the numbers that their codes stand for, and steps are not.
    """
    named = code.named()
    steps: tuple[str, ...] = ()
    if grids:
        found = grids_of(representation)
        steps = tuple(grid.prefix for grid in found)
        named |= {grid.carry: grid.numbers(named[grid.carry], named) for grid in found}
    return {
        name: nn.Parameter(named[name].detach().to(wide(named[name].dtype), copy=True), trained)
        if named[name].is_floating_point() and not (steps and name.startswith(steps))
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
    layouts = representation.layout(shape, dtype)
    for name, layout in layouts.items():
        if tuple(fields[name].shape) != layout.shape:
            raise ValueError(f"a field of shape {tuple(fields[name].shape)}, and here it has {layout.shape}")
    codes = coded(representation, {name: fields[name].detach() for name in layouts})
    named = {name: codes[name].to(layout.dtype) for name, layout in layouts.items()}
    return representation.code(named, shape, dtype)
