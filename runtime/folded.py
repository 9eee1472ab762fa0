"""Norms of which a part was folded into the weights around them, with the same parameters and buffers."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


@final
class FrozenBatchNorm(nn.Module):
    """Batch norm with the running statistics, in train() as in eval(): [N, C, ...] to the same.

    Scale and shift that were folded into the layer before hold for these statistics only. What is left here
    is y = (x - running_mean) / sqrt(running_var + eps) * weight + bias (Ioffe and Szegedy, arXiv 1502.03167,
    Algorithm 2), so a checkpoint of the model before folding still loads, and means what it meant.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, norm: _BatchNorm) -> None:
        """The frozen form of a batch norm, which shares its tensors; it must track running statistics."""
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, eps={self.eps}"


@final
class CentredNorm(nn.Module):
    """A layer norm of vectors with mean zero: their RMS norm, plus the bias; [..., C] to the same.

    y = x / sqrt(mean(x^2) + eps) * weight + bias, which equals layer norm (Ba et al., 1607.06450, Eq. 4)
    where the mean is zero, and unlike it commutes with rotations of x (SliceGPT, 2401.15024, section 3.2).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, norm: nn.LayerNorm) -> None:
        """The form of a layer norm over the last dimension whose input is centred; it shares its tensors."""
        super().__init__()
        self.normalized_shape = norm.normalized_shape
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x."""
        y = F.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"
