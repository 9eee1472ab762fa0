"""Fields of codes that are trained: made beside the weights that they were encoded from.

They are `weight_field_0_codebook` and the like beside `weight`, wherever and however often that is read.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..runtime.code_fields import field_names, first_fields
from ..runtime.holders import Holders
from .assignment import Assignment


def weight_fields(holders: Holders, weight: nn.Parameter, assignment: Assignment) -> tuple[Tensor, ...]:
    """The fields of a weight, made where it has none yet; the weight is not trained any more then."""
    matrix = assignment.arrangement.matrix(weight.detach())
    names = field_names(assignment.weight, tuple(matrix.shape), matrix.dtype)
    found = [holders.beside(weight, name) for name in names.values()]
    fields = tuple(field for field in found if field is not None)
    if len(fields) == len(names):
        return fields
    code = assignment.weight.encode(matrix) if assignment.code is None else assignment.code
    made = first_fields(assignment.weight, code, weight.requires_grad)
    weight.requires_grad_(False)
    for name, own in names.items():
        holders.put_beside(weight, own, made[name])
    return tuple(made[name] for name in names)
