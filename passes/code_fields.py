"""Fields of codes that are trained: made beside the weights that they were encoded from.

They are `weight_field_0_codebook` and the like beside `weight`, wherever and however often that is read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..runtime.code_fields import FROZEN, field_names, first_fields
from ..runtime.estimators.code_fields import CodeFields
from ..runtime.estimators.freeze_codes import FreezeCodes
from ..runtime.holders import Holders
from .assignment import Assignment


def weight_fields(holders: Holders, weight: nn.Parameter, assignment: Assignment) -> tuple[Tensor, ...]:
    """The fields of a weight, made where it has none yet; the weight is not trained any more then, unless
    its codes are to be frozen later: a flag behind the fields says whether they are."""
    value = weight.detach() if assignment.latent is None else assignment.latent.weight(weight.detach())
    matrix = assignment.arrangement.matrix(value)
    names = field_names(assignment.weight, tuple(matrix.shape), matrix.dtype)
    found = [holders.beside(weight, name) for name in assignment.beside(weight)]
    fields = tuple(field for field in found if field is not None)
    if len(fields) == len(found):
        return fields
    code = assignment.weight.encode(matrix) if assignment.code is None else assignment.code
    kind = assignment.code_fields
    grids = isinstance(kind, CodeFields) and kind.grids == "trained"
    made = first_fields(assignment.weight, code, weight.requires_grad, grids=grids)
    for prefix, shared in zip(assignment.weight.shared_fields, assignment.weight.shared_names, strict=True):
        for name in made if shared else ():
            if name.startswith(prefix):  # what several weights have in common is trained once
                made[name] = holders.common(f"{shared}.{name.removeprefix(prefix)}", made[name])
    for name, own in names.items():
        holders.put_beside(weight, own, made[name])
    tensors = tuple(made[name] for name in names)
    if not isinstance(assignment.code_fields, FreezeCodes):
        weight.requires_grad_(False)
        return tensors
    flag = torch.zeros((), dtype=torch.uint8, device=weight.device)
    holders.put_beside(weight, FROZEN, flag)
    return (*tensors, flag)
