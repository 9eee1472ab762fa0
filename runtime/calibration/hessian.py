"""Hessians of a layer's squared output error, and the triangular factors that second-order fitting reads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RequestError


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H + damping * mean(diag H) * I of `[..., n, n]`, in a new tensor (GPTQ 2210.17323, step 3).

    Channels that were always zero say nothing: their diagonal becomes the mean of the others, so that they
    are left alone.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    live = diagonal > 0
    count = live.sum(-1, keepdim=True)
    mean = torch.where(live, diagonal, 0).sum(-1, keepdim=True) / count.clamp_min(1)
    mean = torch.where(count > 0, mean, 1)
    safe = hessian.clone()
    safe.diagonal(dim1=-2, dim2=-1).copy_(torch.where(live, diagonal, mean) + damping * mean)
    return safe


def inverse_factor(hessian: Tensor) -> Tensor:
    """U, upper triangular with a positive diagonal, with H^-1 = U^T U, of `[..., n, n]` in float64.

    Row j of U over U_jj is row j of the inverse of H without its first j rows and columns, and U_jj^2 the
    element it starts with (GPTQ 2210.17323, step 3: Cholesky reformulation). H is never inverted: with J the
    reversal and L L^T = J H J, U = (J L J)^-1.

    Raises:
        RequestError: H is singular.
    """
    lower = cholesky(hessian.flip(-2, -1))
    identity = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    upper: Tensor = torch.linalg.solve_triangular(lower.flip(-2, -1), identity, upper=True)
    return upper


def cholesky(hessian: Tensor) -> Tensor:
    """L with L L^T = H. Raises RequestError where H is singular."""
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(hessian)
    if bool(info.any()):
        raise RequestError(
            f"the Gram matrix of {hessian.shape[-1]} input channels is singular: some depend on others",
            advice="use a damping of 0.01, or more calibration inputs than there are channels",
        )
    return factor
