"""What fitting needs to know of a layer's inputs: second moments and mean magnitudes of their channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RequestError

_ROWS = 4096  # multiplied at a time: what is made on the way stays small


@dataclass(frozen=True)
class Gram:
    """Statistics of inputs `[count, in]` that a matrix `[out, in]` is multiplied with.

    `matrix` `[in, in]` is the mean of x x^T, in float64: the output error of a change D of the weight is
    tr(D matrix D^T) for each input. `mean` and `absmean` `[in]` are those of the channels.
    """

    matrix: Tensor
    mean: Tensor
    absmean: Tensor
    count: int

    @property
    def size(self) -> int:
        """How many channels the inputs have."""
        return len(self.matrix)

    @property
    def rms(self) -> Tensor:
        """The root mean square of every channel."""
        return self.matrix.diagonal().clamp_min(0).sqrt()


class GramAccumulator:
    """Adds up the statistics of inputs that arrive in pieces; memory does not grow with their number.

    `dtype` is that of the sums. Products are made in float32, of float64 inputs in float64.
    """

    def __init__(
        self, size: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> None:
        self._matrix = torch.zeros(size, size, dtype=dtype, device=device)
        self._sum = torch.zeros(size, dtype=dtype, device=device)
        self._magnitude = torch.zeros(size, dtype=dtype, device=device)
        self._count = 0

    def add(self, inputs: Tensor) -> None:
        """Add inputs `[..., in]`: all dimensions but the last are rows.

        Raises:
            RequestError: another number of channels.
        """
        size = len(self._sum)
        if not inputs.ndim or inputs.shape[-1] != size:
            raise RequestError(
                f"inputs have shape {list(inputs.shape)}, and {size} channels were expected last",
                advice="arrange them as the weight is arranged: what is summed over comes last",
            )
        rows = inputs.detach().reshape(-1, size)
        compute = torch.promote_types(rows.dtype, torch.float32)
        for part in torch.split(rows.to(self._sum.device), _ROWS):
            x = part.to(compute)
            self._matrix += x.T @ x
            self._sum += x.sum(0)
            self._magnitude += x.abs().sum(0)
        self._count += len(rows)

    def result(self) -> Gram:
        """The statistics of everything so far.

        Raises:
            RequestError: nothing was added, or something that is not finite.
        """
        if not self._count:
            raise RequestError("no calibration inputs were given", advice="give at least one batch")
        if not bool(torch.isfinite(self._matrix).all()):
            raise RequestError(
                "calibration inputs are NaN or infinite, or too large to be squared",
                advice="check the batches, and the layers before this one",
            )
        matrix = self._matrix.double() / self._count
        mean, absmean = self._sum.double() / self._count, self._magnitude.double() / self._count
        return Gram((matrix + matrix.T) / 2, mean, absmean, self._count)


def gram(inputs: Iterable[Tensor]) -> Gram:
    """The statistics of batches of inputs `[..., in]`, one or more. Raises as the accumulator does."""
    accumulator: GramAccumulator | None = None
    for batch in inputs:
        if accumulator is None:
            accumulator = GramAccumulator(batch.shape[-1] if batch.ndim else 0, device=batch.device)
        accumulator.add(batch)
    return (accumulator or GramAccumulator(0)).result()
