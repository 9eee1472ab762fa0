"""Operations around packed linears as single calls of a graph: each is the place where one kernel can do it.

`kernels.select` says which kernel that is. Where there is none, the parts run one after another (`composed`),
which gives the bits that they give apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from . import packed_ops
from .entering import ENTER, Enter
from .kernels import Call, Selection, select
from .kernels.neighbours import ACTIVATIONS, Norm
from .packed import Packed


def linear_activation(x: Tensor, weight: Packed, bias: Tensor | None = None, *, activation: str) -> Tensor:
    """`activation`(x W^T + b), `[..., out]`, for an input `[..., in]` that has entered already."""
    if packed_ops.traced_with_gradient(x, bias):
        return ACTIVATIONS[activation](weight.linear(x, bias))
    return weight.linear(x, bias, activation)


def gated_linear(
    x: Tensor,
    gate: Packed,
    up: Packed,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    *,
    activation: str,
) -> Tensor:
    """`activation`(x G^T + g) * (x U^T + u), `[..., out]`, for an input that has entered already.

    The gated linear unit of Shazeer, 2002.05202, Eq. 5 and 6. Both weights are stored alike.
    """
    if packed_ops.traced_with_gradient(x, gate_bias, up_bias):
        return ACTIVATIONS[activation](gate.linear(x, gate_bias)) * up.linear(x, up_bias)
    if torch.compiler.is_compiling():
        return packed_ops.gated(x, gate, up, (gate_bias, up_bias), activation)
    call, selection = gate.chosen("gated_linear", x.dtype, x.device, activation)
    stored = _under("gate", gate.prepared(call, selection)) | _under("up", up.prepared(call, selection))
    if gate_bias is not None:
        stored["bias.gate"] = gate_bias
    if up_bias is not None:
        stored["bias.up"] = up_bias
    return selection.kernel.run(call, x, stored, None)


def _under(prefix: str, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in fields.items()}


class NormEnter(nn.Module):
    """A norm and the preparation of its result for packed linears, as one operation.

    Without state: the scale and the bias of the norm are given to each call, and stay where they were.
    """

    def __init__(self, norm: Norm, entering: Enter) -> None:
        super().__init__()
        self.norm, self.projection, self.rotation = norm, entering.projection, entering.rotation
        self.keys = entering.keys
        self._selected: dict[tuple[torch.dtype, str], tuple[Call, Selection]] = {}

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The norm of `x` as packed linears take it, same shape."""
        if torch.compiler.is_compiling():
            return ENTER(self.norm.run(x, weight, bias), *self.keys)  # type: ignore[no-any-return]
        call, selection = self._chosen(x.dtype, x.device)
        return selection.kernel.run(call, x, {} if weight is None else {"weight": weight}, bias)

    def selection(self, dtype: torch.dtype, device: torch.device) -> Selection:
        """The kernel that inputs of a dtype run on a device, with the refusals of others."""
        return self._chosen(dtype, device)[1]

    def _chosen(self, dtype: torch.dtype, device: torch.device) -> tuple[Call, Selection]:
        key = (dtype, device.type)
        if key not in self._selected:
            call = Call(
                "norm_enter",
                self.projection,
                self.norm.shape,
                dtype,
                device.type,
                norm=self.norm,
                rotation=self.rotation,
            )
            self._selected[key] = call, select(call)
        return self._selected[key]

    def extra_repr(self) -> str:
        return f"{self.norm.kind}, {self.projection if self.projection.stages else self.rotation}"
