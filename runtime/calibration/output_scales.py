"""Scales of codes that are chosen already, by least squares on outputs."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ..code import Code
from ..representation import Representation
from ..stage import Fields
from ..stages import Quantize
from ..stages.precision import wide
from .fitter import Fitted, inputs_of, relative_error
from .gram import Gram
from .leading import Inputs, led


def why_no_output_scales(representation: Representation) -> str:
    """Why scales of a representation cannot be fitted to outputs, '' where they can."""
    core = representation.core.stages
    stage = core[0] if core else None
    if len(core) != 1 or not isinstance(stage, Quantize):
        return f"scales are fitted to outputs of one grid behind rotations, and {representation} is another"
    if not stage.symmetric or not stage.plain_scales or stage.step is not None:
        return f"scales of {stage} are not floats by themselves"
    if stage.strategy not in ("tensor", "channel", "group"):
        return f"scales are fitted to outputs of tensor, channel or group, and {stage} has others"
    return ""


def with_output_scales(weight: Tensor, fitted: Fitted, gram: Gram | list[Gram]) -> Fitted:
    """A fitted weight `[..., out, in]` with the best scales for its codes: those of least squared error of
    outputs, ||X (W - S B)^T||^2.

    With H the second moments of inputs and b_g the levels of one row in group g (zero elsewhere), the scales
    s_g of a row solve sum_h (b_g H b_h) s_h = b_g H w; with one scale for the row, s = w H b / b H b. Rows
    that share one scale are added up. Scales that would not be above zero stay as they were, and so do all
    where outputs are no better for it, by rounding to their dtype.

    Raises ValueError for a representation that `why_no_output_scales` speaks against.
    """
    if why := why_no_output_scales(fitted.representation):
        raise ValueError(why)
    stages = fitted.representation.bound_stages
    stage = stages[-1]
    assert isinstance(stage, Quantize)
    inputs = inputs_of(weight, gram)
    leading = led(stages, weight.detach(), inputs)
    shape = tuple(weight.shape)
    own = fitted.code.fields[-1]
    scale = stage._restored(own, shape)
    unit: Fields = stage.storage.store(torch.ones_like(scale), weight.dtype)
    levels = stage.decode(fitted.code.carry, unit).double()
    found = _solved(stage, leading.carry.double(), levels, leading.inputs).reshape(scale.shape)
    better = torch.where(torch.isfinite(found) & (found > 0), found, scale.double())
    fields = stage.storage.store(better.to(wide(weight.dtype)), weight.dtype)
    code = Code(fitted.code.carry, (*fitted.code.fields[:-1], fields), shape, weight.dtype)
    decoded = fitted.representation.decode(code)
    error = relative_error(weight.detach(), decoded, inputs)
    return Fitted(code, decoded, fitted.representation, error) if error < fitted.error else fitted


def _solved(stage: Quantize, weight: Tensor, levels: Tensor, inputs: Inputs) -> Tensor:
    """The scales in the order of the stage, NaN where the codes are all zero."""
    count, (rows, size) = len(inputs.hessian), weight.shape[-2:]
    hessian = inputs.hessian.expand(prod(weight.shape[:-2]), size, size) if count == 1 else inputs.hessian
    w, b = (x.reshape(-1, rows, size) for x in (weight, levels))
    if stage.group_size is not None:
        return torch.stack([_by_groups(*each, stage.group_size) for each in zip(w, b, hessian, strict=True)])
    along = b @ hessian
    above, below = (w * along).sum(-1), (b * along).sum(-1)
    return above.sum() / below.sum() if stage.strategy == "tensor" else above / below


def _by_groups(weight: Tensor, levels: Tensor, hessian: Tensor, group: int) -> Tensor:
    """The scales `[out, groups]` of one matrix: a small system for each row."""
    size = weight.shape[-1]
    cut = torch.arange(size, device=weight.device) // group
    member = torch.nn.functional.one_hot(cut).to(weight.dtype)  # [in, groups]
    found = []
    for w, b in zip(weight, levels, strict=True):
        parts = b.unsqueeze(-1) * member  # [in, groups]
        system, right = parts.mT @ hessian @ parts, parts.mT @ (hessian @ w)
        found.append(torch.linalg.lstsq(system, right.unsqueeze(-1), driver="gelsd").solution.squeeze(-1))
    return torch.stack(found)
