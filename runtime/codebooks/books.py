"""Several codebooks that encode a vector together: their searches, and their fit with the codes held fixed.

`residual`: each codebook encodes what the earlier ones left (Chen, Guan and Wang 2010). `additive`: the sum
is the same, but codes are found together, by beam search (Babenko and Lempitsky 2014; AQLM, 2401.06118).
`product`: each codebook encodes its own part of the vector (Jegou, Douze and Schmid 2011).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import e8p
from .k_means import centroids
from .nearest import nearest, pieces, scores

Composition = Literal["residual", "additive", "product"]

_BEAM_SCORES = 1 << 20  # scores at a time in a beam search


@dataclass(frozen=True)
class Books:
    """Codebooks `points` `[num_codebooks, k, dimensions of each]` and how they encode a vector together.

    `e8p_factors`: the points are those of E8P times these factors, whose search need not look at the points.
    """

    points: Tensor
    composition: Composition = "residual"
    beam_size: int = 1
    e8p_factors: tuple[float, ...] | None = None

    def encode(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Codes `[n, num_codebooks]` of vectors `[n, d]`; squared errors count by `weights` `[n, 1 or d]`."""
        if self.composition == "additive" and len(self.points) > 1:
            return _beam_search(x, self.points, self.beam_size, weights)
        codes = torch.empty(len(x), len(self.points), dtype=torch.int64, device=x.device)
        for book in range(len(self.points)):
            part, part_weights = self.slice(x, book), self._weights(weights, book)
            codes[:, book] = self._find(part, book, part_weights)
            if self.composition != "product" and book + 1 < len(self.points):
                x = x - self.points[book][codes[:, book]]
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Vectors `[n, d]` of codes `[n, num_codebooks]`."""
        parts = (points[code] for points, code in zip(self.points, codes.T.long(), strict=True))
        if self.composition == "product":
            return torch.cat(list(parts), 1)
        restored: Tensor = next(parts)
        for part in parts:
            restored += part
        return restored

    def slice(self, x: Tensor, book: int) -> Tensor:
        """What of the vectors one codebook has to do with."""
        size = self.points.shape[2]
        return x[:, book * size : (book + 1) * size] if self.composition == "product" else x

    def refit(self, x: Tensor, codes: Tensor, weights: Tensor | None = None, sweeps: int = 1) -> Tensor:
        """The points after `sweeps` of least squares, one codebook after the other, codes held fixed.

        Each step is the exact minimum for its codebook, so the error never grows.
        """
        points = self.points.clone()
        left = x - Books(points, self.composition).decode(codes)
        for _ in range(1 if self.composition == "product" else sweeps):
            for book, code in enumerate(codes.T.long()):
                part = self.slice(left, book)
                part += points[book][code]
                points[book] = centroids(part, code, points[book], self._weights(weights, book))[0]
                part -= points[book][code]
        return points

    def _find(self, x: Tensor, book: int, weights: Tensor | None) -> Tensor:
        if self.e8p_factors is not None:
            return e8p.nearest(x / self.e8p_factors[book])
        return nearest(x, self.points[book], weights)

    def _weights(self, weights: Tensor | None, book: int) -> Tensor | None:
        return weights if weights is None or weights.shape[1] == 1 else self.slice(weights, book)


def _beam_search(x: Tensor, points: Tensor, beam_size: int, weights: Tensor | None) -> Tensor:
    """Codes of the best of `beam_size` sums that are carried from codebook to codebook."""
    if weights is not None and weights.shape[1] == 1:
        weights = None
    codes = torch.empty(len(x), len(points), dtype=torch.int64, device=x.device)
    for rows in pieces(len(x), max(1, _BEAM_SCORES // (beam_size * points.shape[1]))):
        codes[rows] = _beam(x[rows], points, beam_size, None if weights is None else weights[rows])
    return codes


def _beam(x: Tensor, points: Tensor, beam_size: int, weights: Tensor | None) -> Tensor:
    count = len(x)
    left, error = x.unsqueeze(1), x.new_zeros(count, 1)  # per vector and sum carried
    codes = torch.empty(count, 1, 0, dtype=torch.int64, device=x.device)
    for book in points:
        carried = left.shape[1]
        repeated = None if weights is None else weights.repeat_interleave(carried, 0)
        gain = scores(left.flatten(0, 1), book, repeated).view(count, carried, len(book))
        total = (gain + error.unsqueeze(2)).flatten(1)
        error, chosen = total.topk(min(beam_size, total.shape[1]), largest=False)
        parent, code = chosen // len(book), chosen % len(book)
        rows = torch.arange(count, device=x.device).unsqueeze(1)
        left = left[rows, parent] - book[code]
        codes = torch.cat([codes[rows, parent], code.unsqueeze(2)], 2)
    return codes[:, 0]
