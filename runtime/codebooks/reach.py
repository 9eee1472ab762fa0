"""How far codebooks reach: the longest vector they can give, and how far it is from the next one."""

from __future__ import annotations

import torch
from torch import Tensor

from .books import Books


def reach(books: Books) -> tuple[Tensor, Tensor]:
    """The largest norm of a vector, and half its distance from the nearest other one, each `[parts]`.

    Codebooks that are summed are one part: their largest norms add up (which no sum may attain), and vectors
    are as close as those of the last codebook. The codebooks of a product are a part each.
    """
    found = [_outermost(points) for points in books.points]
    norms, distances = (torch.stack(each) for each in zip(*found, strict=True))
    if books.composition == "product":
        return norms, distances / 2
    return norms.sum(0, keepdim=True), distances[-1:] / 2


def _outermost(points: Tensor) -> tuple[Tensor, Tensor]:
    """The largest norm of `points` `[k, d]`, and the distance of this point from the nearest other one."""
    norms = points.norm(dim=1)
    largest = norms.argmax()
    distances = (points - points[largest]).norm(dim=1)
    distances[largest] = torch.inf
    return norms[largest], distances.amin()
