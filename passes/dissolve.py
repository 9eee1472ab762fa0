"""Modules of torch that do one operation on a weight, as calls of the function that they call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Attribute:
    """The parameter of a module that stands in a call."""

    name: str


@dataclass(frozen=True)
class FunctionCall:
    """What a module's forward comes to; arguments are nodes, constants or attributes of the module."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


Dissolver = Callable[[Any, Mapping[str, Any]], "FunctionCall | None"]


def dissolved(module: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> FunctionCall | None:
    """The function call that calling `module` comes to; None when it does anything else than torch's own do.

    Subclasses with a forward of their own, weights that are computed (by a parametrization), lookups that
    write to their weight, and convolutions that pad with anything but zeros are left whole.
    """
    for kind, (names, dissolver) in _DISSOLVERS.items():
        if isinstance(module, kind) and _unchanged(module, kind) and _plain(module):
            given = dict(zip(names, args, strict=False)) | dict(kwargs)
            return dissolver(module, given) if set(given) <= set(names) else None
    return None


def dissolves(module: object) -> bool:
    """Whether a plain call of the module would be dissolved."""
    return any(
        isinstance(module, kind) and _unchanged(module, kind) and _plain(module) for kind in _DISSOLVERS
    )


def _unchanged(module: object, kind: type) -> bool:
    return all(
        getattr(type(module), name, None) is getattr(kind, name, None)
        for name in ("forward", "_conv_forward")
    )


def _plain(module: Any) -> bool:
    computed = module._parameters.get("weight") is None or (
        module._parameters.get("bias") is None and getattr(module, "bias", None) is not None
    )
    padded = getattr(module, "padding_mode", "zeros") != "zeros"
    return not (computed or padded or getattr(module, "max_norm", None) is not None)


def _bias(module: Any) -> Any:
    return Attribute("bias") if module.bias is not None else None


def _linear(module: nn.Linear, given: Mapping[str, Any]) -> FunctionCall:
    bias = [] if module.bias is None else [Attribute("bias")]
    return FunctionCall(F.linear, (given["input"], Attribute("weight"), *bias))


def _embedding(module: nn.Embedding, given: Mapping[str, Any]) -> FunctionCall:
    options = [getattr(module, name) for name in EMBEDDING_DEFAULTS]
    return FunctionCall(F.embedding, (given["input"], Attribute("weight"), *shortest(options)))


def _embedding_bag(module: nn.EmbeddingBag, given: Mapping[str, Any]) -> FunctionCall:
    options = ("max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse")
    middle = [getattr(module, name) for name in options]
    last = (given.get("per_sample_weights"), module.include_last_offset, module.padding_idx)
    args = (given["input"], Attribute("weight"), given.get("offsets"), *middle, *last)
    return FunctionCall(F.embedding_bag, args)


def _bilinear(module: nn.Bilinear, given: Mapping[str, Any]) -> FunctionCall:
    return FunctionCall(F.bilinear, (given["input1"], given["input2"], Attribute("weight"), _bias(module)))


def _convolution(function: Callable[..., Any]) -> Dissolver:
    def call(module: Any, given: Mapping[str, Any]) -> FunctionCall:
        options = (module.stride, module.padding, module.dilation, module.groups)
        return FunctionCall(function, (given["input"], Attribute("weight"), _bias(module), *options))

    return call


def _transposed(function: Callable[..., Any]) -> Dissolver:
    def call(module: Any, given: Mapping[str, Any]) -> FunctionCall | None:
        if given.get("output_size") is not None:
            return None  # output_padding is then computed from the sizes of the input
        options = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
        return FunctionCall(function, (given["input"], Attribute("weight"), _bias(module), *options))

    return call


_DISSOLVERS: dict[type, tuple[tuple[str, ...], Dissolver]] = {
    nn.Linear: (("input",), _linear),
    nn.Embedding: (("input",), _embedding),
    nn.EmbeddingBag: (("input", "offsets", "per_sample_weights"), _embedding_bag),
    nn.Bilinear: (("input1", "input2"), _bilinear),
    nn.Conv1d: (("input",), _convolution(F.conv1d)),
    nn.Conv2d: (("input",), _convolution(F.conv2d)),
    nn.Conv3d: (("input",), _convolution(F.conv3d)),
    nn.ConvTranspose1d: (("input", "output_size"), _transposed(F.conv_transpose1d)),
    nn.ConvTranspose2d: (("input", "output_size"), _transposed(F.conv_transpose2d)),
    nn.ConvTranspose3d: (("input", "output_size"), _transposed(F.conv_transpose3d)),
}

EMBEDDING_DEFAULTS: dict[str, object] = {
    "padding_idx": None,
    "max_norm": None,
    "norm_type": 2.0,
    "scale_grad_by_freq": False,
    "sparse": False,
}


def shortest(options: list[Any]) -> list[Any]:
    """Options of a lookup without those at the end that are the default anyway."""
    defaults = list(EMBEDDING_DEFAULTS.values())
    while options and options[-1] == defaults[len(options) - 1]:
        options.pop()
    return options
