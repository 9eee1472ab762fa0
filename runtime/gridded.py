"""Weights of a trainable form whose values lie on a grid, as the grid sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .estimators.learned import learned_of
from .learned import learned_code, learned_view, weight_names
from .projection import Project, latent_parameters
from .representation import Representation
from .stages import Quantize
from .view import View


@dataclass(frozen=True)
class Gridded:
    """A weight that is trained and projected: its name, the parameter, the projection, and learned steps."""

    name: str
    parameter: nn.Parameter
    projection: Project
    steps: nn.Parameter | None = None

    @property
    def representation(self) -> Representation:
        """The representation in force, with scheduled fields as they are set."""
        return self.projection.program.at(self.projection.values).representation

    def matrix(self, parameter: Tensor) -> Tensor:
        """A value of the parameter as the representation meets it: `[..., n]`."""
        latent = self.projection.latent
        weight = parameter.detach() if latent is None else latent.weight(parameter.detach())
        return self.projection.arrangement.matrix(weight)

    def view(self) -> View:
        """What the projection makes of the weight as it is."""
        matrix = self.matrix(self.parameter)
        learned = learned_of(self.projection.estimators)
        if learned is None or self.steps is None:
            return self.representation.view(matrix)
        return learned_view(self.representation, learned, matrix, self.steps)

    def cell_width(self) -> Tensor | None:
        """The mean full width of the grid's cells over the weight, a scalar; None where there is no grid.

        The width of a cell is the distance of the two neighbouring levels that lie farthest apart.
        """
        cell = self.view().cell
        return None if cell is None else 2 * cell.half_width.double().mean()

    def ranks(self) -> Tensor:
        """Which level every number is at: int16 shaped like `matrix`, 0 the lowest. Of `is_coded` ones."""
        stage = self.representation.bound_stages[-1]
        assert isinstance(stage, Quantize)
        matrix, learned = self.matrix(self.parameter), learned_of(self.projection.estimators)
        if learned is None or self.steps is None:
            codes = self.representation.encode(matrix).carry
        else:
            codes = learned_code(self.representation, learned, matrix, self.steps).carry
        every = torch.arange(2**stage.num_bits, device=codes.device, dtype=torch.uint8)
        values = stage.levels.decode(every, torch.float64).nan_to_num(nan=torch.inf)
        return values.argsort(stable=True).argsort().to(torch.int16)[codes.int()]

    @property
    def is_coded(self) -> bool:
        """Whether every number has a code of its own, on a grid at the end of the chain."""
        *before, last = self.projection.representation.stages
        apart = all("sparse" not in s.tags and s.tags & {"elementwise", "orthogonal"} for s in before)
        return isinstance(last, Quantize) and apart


def gridded(model: nn.Module) -> Iterator[Gridded]:
    """Every trained weight of a trainable form that is projected to something on a grid, each once."""
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter, projection in latent_parameters(model):
        if not parameter.requires_grad or projection.representation.is_dense:
            continue
        beside = weight_names(learned_of(projection.estimators))
        found = Gridded(name, parameter, projection, next((named[f"{name}_{n}"] for n in beside), None))
        if found.cell_width() is not None:
            yield found
