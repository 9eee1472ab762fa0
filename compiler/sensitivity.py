"""What a candidate costs a layer in quality: by Gaussian errors, real weights, calibration data or gradients.

Each measure is a function to a table of values by layer and candidate. Errors of weights are added up as they
are in the second-order expansion of the loss, of which each measure keeps another part of the curvature: none
(`gaussian`, `weight_error`), that of the layer's output (`output_error`, the objective of GPTQ, arXiv
2210.17323, eq. 1), the diagonal of the empirical Fisher matrix (`fisher_error`, as in SqueezeLLM, arXiv
2306.07629). An error of inputs counts as an independent relative error of the same size (its GMSE) in every
weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..runtime.errors import RequestError
from ..runtime.laws.multiplier import Multiplier
from ..runtime.plain import to_plain
from .candidates import Candidate, Dropped, Layer, Offer, taken
from .gaussian_errors import gaussian_error
from .query import MIXED_SOURCE, SCALAR_SOURCE, Format, format_of, published_rho
from .rules import DENSE
from .spec import load_spec

Matrices = Mapping[str, Tensor]
"""A tensor for each layer, by its path."""


@dataclass(frozen=True)
class Sensitivity:
    """Values of a measure: `values[path][candidate]`, of all the `count` weights of a layer together.

    `maximise` says whether more is better. `candidates` are those that the shape of each layer takes,
    `dropped` the others; `source` says where multipliers are from.
    """

    measure: str
    maximise: bool
    values: Mapping[str, Mapping[str, float]]
    candidates: Mapping[str, tuple[Candidate, ...]]
    dropped: tuple[Dropped, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        for path, row in self.values.items():
            for name, value in row.items():
                if not math.isfinite(value):
                    advice = "find where its numbers, or those of the calibration data, overflow"
                    raise RequestError(f"{name} has {self.measure} {value}", where=path, advice=advice)


def gaussian(layers: Sequence[Layer], candidates: Offer, weights: Matrices | None = None) -> Sensitivity:
    """|W|^2 times the Gaussian errors of weights and inputs: no weight is projected.

    Without `weights` every number counts as one of unit variance.

    Raises:
        RequestError: a layer that takes no candidate, or has no weights among those given.
    """

    def value(layer: Layer, candidate: Candidate) -> float:
        power = _power(_given(weights, layer)) if weights is not None else float(math.prod(layer.shape))
        error = gaussian_error(candidate.assignment.weight, verify=False).value
        return power * (error + _input_error(candidate))

    return _table("gaussian", layers, candidates, value)


def effective_parameters(
    layers: Sequence[Layer], candidates: Offer, published: str | None = None
) -> Sensitivity:
    """N rho: the dense parameters that a layer is worth, by one published fit for all candidates.

    Laws count parameters other than embeddings; leave those out of `layers`, or offer them one candidate.

    Args:
        published: the name of the fit; by default the first that knows every candidate.

    Raises:
        RequestError: no single fit has a multiplier for every candidate.
    """
    able, _ = taken(layers, candidates)
    formats = {each.assignment: _format(each) for own in able.values() for each in own}
    found = dict(zip(formats, _on_one_scale(list(formats.values()), published), strict=True))
    source = next((multiplier.origin.fit for multiplier in found.values()), "")

    def value(layer: Layer, candidate: Candidate) -> float:
        return math.prod(layer.shape) * found[candidate.assignment].value

    return _table("effective parameters", layers, candidates, value, maximise=True, source=source)


def weight_error(layers: Sequence[Layer], candidates: Offer, weights: Matrices) -> Sensitivity:
    """|W - R(W)|^2 of the real weights, given as matrices `[..., out, in]` by path.

    Raises:
        RequestError: a layer without weights, or one that takes no candidate.
    """

    def value(layer: Layer, candidate: Candidate) -> float:
        error, weight = _error(layer, candidate, weights)
        return float(error.square().sum()) + _input_error(candidate) * _power(weight)

    return _table("weight error", layers, candidates, value)


def output_error(
    layers: Sequence[Layer], candidates: Offer, weights: Matrices, grams: Matrices
) -> Sensitivity:
    """E|x (W - R(W))^T|^2 = tr((W - R(W)) H (W - R(W))^T), with H = E[x^T x] of the layer's inputs.

    `grams` holds H `[in, in]` (or one for each leading index of the weight) by path.

    Raises:
        RequestError: a layer without weights or H, an H of another shape, or a layer that takes no candidate.
    """

    def value(layer: Layer, candidate: Candidate) -> float:
        error, weight = _error(layer, candidate, weights)
        gram = _given(grams, layer, "Gram matrix").double()
        if gram.shape[-2:] != (layer.shape[-1],) * 2 or gram.dim() > weight.dim():
            message = (
                f"its Gram matrix is {tuple(gram.shape)}, and its inputs have {layer.shape[-1]} channels"
            )
            raise RequestError(message, where=layer.path, advice="record the inputs of this layer")
        relative = weight.square() * gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
        return float((error @ gram * error).sum()) + _input_error(candidate) * float(relative.sum())

    return _table("output error", layers, candidates, value)


def relative_output_error(
    layers: Sequence[Layer], candidates: Offer, weights: Matrices, grams: Matrices
) -> Sensitivity:
    """`output_error` of each layer over the mean square of its outputs: layers count alike, however large
    their outputs are.

    Raises:
        RequestError: as `output_error`.
    """
    absolute = output_error(layers, candidates, weights, grams)
    power = {layer.path: _output_power(layer, weights, grams) for layer in layers}
    values = {
        path: {name: value / power[path] if power[path] > 0 else value for name, value in row.items()}
        for path, row in absolute.values.items()
    }
    return replace(absolute, measure="relative output error", values=values)


def _output_power(layer: Layer, weights: Matrices, grams: Matrices) -> float:
    """E|x W^T|^2 of a layer's outputs, of all its `count` weights together."""
    weight = _given(weights, layer).double()
    gram = _given(grams, layer, "Gram matrix").double()
    return layer.count * float((weight @ gram * weight).sum())


def fisher_error(
    layers: Sequence[Layer], candidates: Offer, weights: Matrices, squared_gradients: Matrices
) -> Sensitivity:
    """Half the squared error of each weight times its mean squared gradient, as `fisher` gives it, summed.

    Raises:
        RequestError: a layer without weights or gradients, or one that takes no candidate.
    """

    def value(layer: Layer, candidate: Candidate) -> float:
        error, weight = _error(layer, candidate, weights)
        squared = _given(squared_gradients, layer, "squared gradients").double()
        if squared.shape != weight.shape:
            message = f"its squared gradients have shape {tuple(squared.shape)}, not {layer.shape_text}"
            raise RequestError(message, where=layer.path, advice="arrange them as the weight")
        noise = error.square() + _input_error(candidate) * weight.square()
        return 0.5 * float((squared * noise).sum())

    return _table("fisher", layers, candidates, value)


Value = Callable[[Layer, Candidate], float]


def _table(
    measure: str,
    layers: Sequence[Layer],
    candidates: Offer,
    value: Value,
    *,
    maximise: bool = False,
    source: str = "",
) -> Sensitivity:
    able, dropped = taken(layers, candidates)
    with torch.no_grad():
        values = {
            layer.path: {each.name: layer.count * value(layer, each) for each in able[layer.path]}
            for layer in layers
        }
    return Sensitivity(measure, maximise, values, able, dropped, source)


def _error(layer: Layer, candidate: Candidate, weights: Matrices) -> tuple[Tensor, Tensor]:
    """W - R(W), and W, in float64."""
    weight = _given(weights, layer)
    try:
        projected = candidate.assignment.weight.project(weight)
    except RequestError as error:
        raise error.at(f"{layer.path}: {candidate.name}") from None
    return weight.double() - projected.double(), weight.double()


def _given(tensors: Matrices, layer: Layer, what: str = "weights") -> Tensor:
    """The tensor of a layer, detached."""
    found = tensors.get(layer.path)
    if found is None:
        raise RequestError(f"this layer has no {what}", where=layer.path, advice=f"give its {what}")
    if found.is_meta:
        advice = "build the model on a real device, or ask by Gaussian error without weights"
        raise RequestError("on the meta device there are no numbers", where=layer.path, advice=advice)
    if what == "weights" and tuple(found.shape) != layer.shape:
        message = f"its weights have shape {tuple(found.shape)}, and the layer says {layer.shape_text}"
        raise RequestError(message, where=layer.path, advice="give both as the matrix [..., out, in]")
    return found.detach()


def _power(weight: Tensor) -> float:
    return float(weight.double().square().sum())


def _input_error(candidate: Candidate) -> float:
    inputs = candidate.assignment.input
    return 0.0 if inputs.is_dense else gaussian_error(inputs, verify=False).value


def _format(candidate: Candidate) -> Format:
    """What laws know of a candidate."""
    weights, inputs = candidate.assignment.weight, candidate.assignment.input
    slots = {"weights": to_plain(weights) or DENSE, "input_activations": to_plain(inputs) or DENSE}
    return format_of(load_spec({"version": 1, "rules": [{"targets": ["Linear"], **slots}]}))


def _on_one_scale(formats: Sequence[Format], published: str | None) -> list[Multiplier]:
    """A multiplier for each format, all from one published fit: those of different fits do not compare."""
    reason = "they are known to different fits"
    for source in (None, SCALAR_SOURCE, MIXED_SOURCE) if published is None else (published,):
        try:
            found = [published_rho(format_, source) for format_ in formats]
        except RequestError as error:
            if published is not None:
                raise
            reason = error.message
            continue
        if len({multiplier.origin.fit for multiplier in found}) <= 1:
            return found
    raise RequestError(
        f"no single published fit has a multiplier for every candidate ({reason})",
        advice="take another measure, or fewer kinds of candidates",
    )
