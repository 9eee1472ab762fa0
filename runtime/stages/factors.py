"""Two matrices whose product is nearest to a third, in (weighted) least squares."""

from __future__ import annotations

import torch
from torch import Tensor

_SUBSET = 4  # below this part of all, a few eigenvectors are found three times faster than all of them


def best_factors(matrix: Tensor, rank: int, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best `[rows, rank]` and `[rank, n]` for a matrix `[rows, n]`, the singular values shared evenly.

    `columns` `[n]` are weights of squared errors. Singular vectors are eigenvectors of the smaller Gram
    matrix, several times faster than a decomposition of the matrix itself. They need not be exact: U U^T A
    is the best approximation of rank r up to the square of the error of U's span, 1e-7 of the squares in
    float32. Signs are such that the largest entry of every left vector is positive.
    """
    weight = None if columns is None else columns.sqrt()
    largest, unit = _unit(matrix if weight is None else matrix * weight)
    tall = unit.shape[0] > unit.shape[1]
    vectors = _top_vectors(unit.t() @ unit if tall else unit @ unit.t(), rank)
    other = unit @ vectors if tall else unit.t() @ vectors
    left, right = (other, vectors) if tall else (vectors, other)
    top = left.gather(0, left.abs().argmax(0, keepdim=True))
    sign = torch.where(top < 0, -1.0, 1.0).to(left.dtype)
    # `other` carries the singular values: bring each pair of columns to one norm
    sizes = other.norm(dim=0)
    share = torch.where(sizes > 0, sizes, 1).sqrt()
    left, right = (left / share, right * share) if tall else (left * share, right / share)
    sign = sign * largest.sqrt()
    left, right = (left * sign).contiguous(), (right * sign).t().contiguous()
    return left, right if weight is None else right / weight


def fitted_right(left: Tensor, matrix: Tensor) -> Tensor:
    """The right factor with the least squared error for a given left one, however columns are weighted."""
    (size, unit), (target_size, target) = _unit(left), _unit(matrix)
    return _solved(unit.t() @ unit, unit.t() @ target).contiguous() * (target_size / size)


def fitted_left(right: Tensor, matrix: Tensor, columns: Tensor | None = None) -> Tensor:
    """The left factor with the least (weighted) squared error for a given right one."""
    (size, unit), (target_size, target) = _unit(right), _unit(matrix)
    weighted = unit if columns is None else unit * (columns / columns.amax())
    return (_solved(weighted @ unit.t(), weighted @ target.t()) * (target_size / size)).t().contiguous()


def _unit(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The largest magnitude, 1 of zeros, and the matrix over it: its squares neither overflow nor vanish."""
    largest = matrix.abs().amax()
    largest = torch.where(largest > 0, largest.clamp_min(torch.finfo(matrix.dtype).tiny), 1)
    return largest, matrix / largest


def _top_vectors(gram: Tensor, rank: int) -> Tensor:
    """Orthonormal eigenvectors `[n, rank]` of the largest eigenvalues, largest first."""
    size = len(gram)
    if gram.device.type == "cpu" and rank * _SUBSET <= size:
        from scipy.linalg import eigh

        _, found = eigh(gram.numpy(), subset_by_index=[size - rank, size - 1], driver="evr")
        return torch.from_numpy(found).to(gram.dtype).flip(1)
    vectors: Tensor = torch.linalg.eigh(gram)[1]
    return vectors[:, size - rank :].flip(1)


def _solved(gram: Tensor, target: Tensor) -> Tensor:
    """Solve gram y = target; a factor that lost a direction makes gram singular, hence the little on top."""
    mean = gram.diagonal().mean()
    ridge = torch.where(mean > 0, mean * 1e-6, 1)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solved: Tensor = torch.linalg.solve(gram + ridge * identity, target)
    return solved
