"""Fold batch norms into the convolution or linear layer before them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..runtime.folded import FrozenBatchNorm
from .aten import Reads, spoken, value_of
from .exchange import exchange, why_not
from .reach import Reach
from .sites import Site, attribute, parameter_of
from .turn import matrix_of, write_matrix

aten = torch.ops.aten
_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norms(gm: fx.GraphModule, reads: Reads) -> list[Reach]:
    """Fold every batch norm whose input is the result of one weight; one `Reach` for each."""
    return [_fold(gm, node, reads) for node in gm.graph.nodes if node.target is aten.batch_norm.default]


@dataclass(frozen=True)
class _Place:
    """A batch norm that can be folded: its module, where that is, and the weight before it."""

    path: str
    module: _BatchNorm
    site: Site


def _fold(gm: fx.GraphModule, node: fx.Node, reads: Reads) -> Reach:
    place = _place(gm, node, reads)
    if isinstance(place, str):
        return Reach(_path(node) or f"%{node.name}", False, place)
    where = _write(gm, place)
    exchange(gm, place.path, FrozenBatchNorm(place.module))
    return Reach(place.path, True, f"scale into {place.site.path}, {where}; statistics are frozen")


def _path(node: fx.Node) -> str:
    """The path of the module that holds the statistics, or nothing."""
    mean = node.args[3]
    return str(mean.target).rpartition(".")[0] if isinstance(mean, fx.Node) and mean.op == "get_attr" else ""


def _place(gm: fx.GraphModule, node: fx.Node, reads: Reads) -> _Place | str:
    module, source = attribute(gm, _path(node)) if _path(node) else None, node.args[0]
    if isinstance(module, FrozenBatchNorm):
        return "it was folded before"
    if node.args[5] or module is None:
        return "it has no running statistics"
    why = why_not(gm, _path(node), _KINDS)
    site = reads.by_node.get(source) if isinstance(source, fx.Node) else None
    if why is not None or not isinstance(source, fx.Node):
        return why or "it has no input"
    if site is None:
        return f"its input comes through {spoken(source) if source.op == 'call_function' else 'an input'}"
    if len(source.users) > 1:
        return f"the result of {site.path} is read elsewhere too"
    return _why_not_written(gm, node, site, reads) or _Place(_path(node), module, site)


def _why_not_written(gm: fx.GraphModule, node: fx.Node, site: Site, reads: Reads) -> str | None:
    """Why a weight cannot take the scale of a batch norm, or None when it can."""
    value = value_of(site.node)
    weight, bias = parameter_of(gm, site.weight), parameter_of(gm, site.bias)
    if value is None or site.operation.features % value.dim() != 1:
        return f"the channels of {site.path} are in another dimension"
    if any(own is not None and reads.all_of(own) != [site.node] for own in (weight, bias)):
        return f"{site.path} is read elsewhere too"
    if site.bias is not None and bias is None:
        return f"the bias of {site.path} is computed"
    for own in (node.args[1], node.args[2]):
        if own is not None and reads.all_of(parameter_of(gm, own)) != [node]:
            return "its weight is read elsewhere too"
    statistics = attribute(gm, f"{_path(node)}.running_mean")
    return None if reads.all_of(statistics) == [node] else "its statistics are read elsewhere too"


@torch.no_grad()
def _write(gm: fx.GraphModule, place: _Place) -> str:
    """Scale and shift into the weight and its bias; what is left stays in the module as its bias, or as the
    negative of its mean where it has none."""
    norm, site = place.module, place.site
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    factor = _or(norm.weight, 1.0) / torch.sqrt(variance.double() + norm.eps)
    shift = _or(norm.bias, 0.0) - mean.double() * factor
    matrix = matrix_of(gm, site)
    write_matrix(gm, site, matrix * factor.reshape(matrix.shape[:-1]).unsqueeze(-1))
    bias = parameter_of(gm, site.bias)
    if bias is not None:
        bias.copy_(bias.double() * factor + shift)
        shift = torch.zeros_like(shift)
    variance.fill_(1 - norm.eps)
    mean.zero_()
    if norm.weight is not None:
        norm.weight.fill_(1)
    if norm.bias is not None:
        norm.bias.copy_(shift)
    else:
        mean.copy_(-shift)
    return "shift stays" if bias is None else f"shift into {site.bias.target}"  # type: ignore[union-attr]


def _or(parameter: Tensor | None, default: float) -> Tensor | float:
    return default if parameter is None else parameter.double()
