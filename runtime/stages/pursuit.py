"""Sparse codes and dictionaries: vectors as sums of a few atoms, fitted by alternating projection.

Orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993) chooses atoms, and atoms are the least
squares for what was chosen (method of optimal directions, Engan, Aase and Husoy 1999). Both factors pass
their representations on the way, so that each is fitted to what the other one really is (QSWD, 2207.11048).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codebooks.books import Books
from ..codebooks.fit import fit
from ..stage import Fields

Coder = Callable[[Tensor], tuple[Fields, Tensor]]
"""A factor to its fields, and what they decode to."""

_RIDGE = 1e-5  # of the mean square of atoms: duplicates make Gram matrices singular
_FREE = 1 / 3  # of the rounds, in which coefficients are not represented yet
_ROWS = 1 << 14  # vectors at a time


@dataclass(frozen=True)
class Pursuit:
    """Coefficients `[vectors, atoms]` with at most `count` in a row, and atoms `[atoms, d]`.

    `ones`: every coefficient is 1, so a vector is the sum of its atoms: one atom, the nearest. Atoms are
    then those of k-means; otherwise they start from vectors drawn by `seed`, and are of length 1.
    """

    atoms: int
    count: int
    ones: bool = False
    seed: int = 0

    def fitted(self, vectors: Tensor, left: Coder, right: Coder, rounds: int) -> tuple[Fields, Fields]:
        """The fields of both factors with the least squared error on `vectors` `[n, d]` of all rounds."""
        atoms = self._first(vectors)
        best: tuple[Fields, Fields] | None = None
        least = torch.inf
        for number in range(rounds + 1):
            represented = number >= rounds * _FREE
            right_fields, known = right(atoms) if represented else ({}, atoms)
            chosen = self.coefficients(vectors, known)
            left_fields, chosen = left(chosen) if represented else ({}, chosen)
            rest = vectors - chosen @ known
            error = float(rest.square().sum(dtype=torch.float64))
            if represented and (best is None or error < least):
                best, least = (left_fields, right_fields), error
            if number < rounds:
                atoms = self._refit(vectors, chosen, rest)
        assert best is not None, "the last round is a represented one"
        return best

    def coefficients(self, vectors: Tensor, atoms: Tensor) -> Tensor:
        """The coefficients of vectors under given atoms."""
        pieces = [self._pursue(piece, atoms) for piece in torch.split(vectors, _ROWS)]
        return torch.cat(pieces) if pieces else vectors.new_zeros(0, len(atoms))

    def _pursue(self, vectors: Tensor, atoms: Tensor) -> Tensor:
        if self.ones:
            nearest = Books(atoms.unsqueeze(0)).encode(vectors)
            return vectors.new_zeros(len(vectors), len(atoms)).scatter_(1, nearest, 1.0)
        sizes = _sizes(atoms)
        unit = atoms / sizes
        gram, target = unit @ unit.t(), vectors @ unit.t()
        found, left = torch.zeros_like(target), target
        chosen = torch.empty(len(vectors), 0, dtype=torch.int64, device=vectors.device)
        for size in range(1, self.count + 1):
            chosen = torch.cat((chosen, left.abs().argmax(1, keepdim=True)), 1)
            among = gram[chosen.unsqueeze(2), chosen.unsqueeze(1)]
            among = among + _RIDGE * torch.eye(size, dtype=gram.dtype, device=gram.device)
            numbers = torch.linalg.solve(among, target.gather(1, chosen).unsqueeze(2)).squeeze(2)
            found = torch.zeros_like(target).scatter_(1, chosen, numbers)
            left = (target - found @ gram).scatter_(1, chosen, 0.0)
        return found / sizes.t()

    def _first(self, vectors: Tensor) -> Tensor:
        if self.ones:
            return fit(vectors, 1, self.atoms, "residual", 1, seed=self.seed)[0]
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(len(vectors), generator=generator)[: self.atoms]
        atoms = vectors.new_zeros(self.atoms, vectors.shape[1])
        atoms[: len(drawn)] = vectors[drawn.to(vectors.device)]
        return atoms / _sizes(atoms)

    def _refit(self, vectors: Tensor, chosen: Tensor, rest: Tensor) -> Tensor:
        """The atoms of least squared error, those that nothing uses moved to where most is left over."""
        atoms = _solved(chosen.t() @ chosen, chosen.t() @ vectors)
        unused = (chosen != 0).sum(0) == 0
        count = min(int(unused.sum()), len(vectors))
        if count:
            places = unused.nonzero().squeeze(1)[:count]
            atoms[places] = vectors[rest.square().sum(1).topk(count).indices]
        return atoms if self.ones else atoms / _sizes(atoms)


def _sizes(atoms: Tensor) -> Tensor:
    """The length of every atom `[atoms, 1]`; 1 where it is zero."""
    sizes = atoms.norm(dim=1, keepdim=True)
    return torch.where(sizes > 0, sizes, 1)


def _solved(gram: Tensor, target: Tensor) -> Tensor:
    mean = gram.diagonal().mean()
    ridge = torch.where(mean > 0, mean * _RIDGE, 1)
    solved: Tensor = torch.linalg.solve(
        gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), target
    )
    return solved
