"""What a packed linear is fused with: an activation behind it, a norm before its input is prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
"""By the name under which calls ask for them."""


@dataclass(frozen=True)
class Norm:
    """A norm over the last dimensions, of these sizes; its scale and bias are given where it is computed.

    RMS norm: Zhang and Sennrich, 1910.07467, Eq. 4; layer norm: Ba et al., 1607.06450, Eq. 4. `eps` None is
    torch's own choice.
    """

    kind: Literal["rms_norm", "layer_norm"]
    shape: tuple[int, ...]
    eps: float | None

    def run(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The normalised `x`, by the very function of torch."""
        if self.kind == "rms_norm":
            return F.rms_norm(x, self.shape, weight, self.eps)
        assert self.eps is not None
        return F.layer_norm(x, self.shape, weight, bias, self.eps)
