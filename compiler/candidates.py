"""What there is to choose: the weights that need a representation, and the representations offered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from ..passes.assignment import Assignment
from ..runtime.arrangement import PLAIN, Arrangement
from ..runtime.errors import RequestError
from ..runtime.gradient import Backward
from ..runtime.representation import Representation
from .spec import load_spec


@dataclass(frozen=True)
class Layer:
    """One stored weight, by the path of its parameter.

    `shape` is that of its matrix `[..., out, in]`; `dtype` that of the dense numbers; `count` says how many
    such weights it stands for, which choose alike. A tied weight is stored once and is one layer. For a
    `lookup` (an embedding) nothing is multiplied, and representations of inputs do not apply. `arrangement`
    is how the matrix is read from the parameter; `channels` are those of an input, where the matrix does not
    show them (a convolution).
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    count: int = 1
    lookup: bool = False
    arrangement: Arrangement = PLAIN
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or any(size < 1 for size in self.shape) or not self.shape:
            raise ValueError(f"{self.path} has shape {self.shape} and count {self.count}; both are positive")

    @property
    def weights(self) -> int:
        """How many numbers it holds, all of the `count` together."""
        return self.count * prod(self.shape)

    @property
    def shape_text(self) -> str:
        """The shape as tables write it: 4096x11008."""
        return "x".join(str(size) for size in self.shape)


@dataclass(frozen=True)
class Candidate:
    """A representation of weights and inputs, with its estimators, under a name."""

    name: str
    assignment: Assignment

    @classmethod
    def of(cls, source: str) -> Candidate:
        """The first rule of a shipped spec, of a spec file, or of a text form; `dense` for none.

        Raises RequestError when there is no such spec.
        """
        rules = load_spec(source).rules
        if not rules:
            return cls(source, Assignment())
        rule = rules[0]
        assignment = Assignment(
            rule.weight_representation,
            rule.input_representation,
            rule.weight_estimators,
            rule.input_estimators,
            rule.representation("output_activations"),
            rule.estimators("output_activations"),
            rule.backward,
            latent=rule.latent,
            schedules=rule.schedule,
        )
        return cls(source, assignment)

    def on(self, layer: Layer) -> Candidate:
        """The candidate as this layer would have it: a lookup has no inputs to represent."""
        arranged = replace(self.assignment, arrangement=layer.arrangement)
        if layer.lookup:
            dense = Representation()
            arranged = replace(arranged, input=dense, input_estimators=(), backward=Backward())
        return replace(self, assignment=arranged)

    def nbytes(self, layer: Layer) -> int:
        """Stored bytes of the layer, all fields counted. Raises RequestError for a shape that is refused."""
        return layer.count * self.assignment.weight.nbytes(layer.shape, layer.dtype)

    def refusal(self, layer: Layer) -> str:
        """Why the layer cannot have this candidate; empty when it can."""
        try:
            self.assignment.weight.check(layer.shape)
            if not layer.lookup and not self.assignment.input.is_dense:
                self.assignment.input.check((1, layer.channels or layer.shape[-1]))
        except RequestError as error:
            return str(error)
        return ""


@dataclass(frozen=True)
class Dropped:
    """A candidate that a layer cannot have, and why."""

    path: str
    candidate: str
    reason: str


Offer = Sequence[Candidate] | Mapping[str, Sequence[Candidate]]
"""Candidates for all layers, or for each layer by its path."""


def offered(layers: Sequence[Layer], candidates: Offer) -> dict[str, tuple[Candidate, ...]]:
    """The candidates of each layer, by its path, as it would have them.

    Raises RequestError for two layers with one path, a layer without candidates, or two candidates with one
    name.
    """
    paths = [layer.path for layer in layers]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise RequestError("two layers have this path", where=twice, advice="give each weight once")
    found = {}
    for layer in layers:
        own = candidates.get(layer.path, ()) if isinstance(candidates, Mapping) else candidates
        names = [candidate.name for candidate in own]
        if not own:
            raise RequestError("this layer has no candidates", where=layer.path, advice="offer it dense")
        if len(set(names)) < len(names):
            message = f"two candidates have one name ({', '.join(names)})"
            raise RequestError(message, where=layer.path, advice="name each differently")
        found[layer.path] = tuple(candidate.on(layer) for candidate in own)
    return found


def taken(
    layers: Sequence[Layer], candidates: Offer
) -> tuple[dict[str, tuple[Candidate, ...]], tuple[Dropped, ...]]:
    """The candidates that each layer can have, and those that its shape refuses.

    Raises what `offered` raises, and RequestError for a layer that refuses all.
    """
    able: dict[str, tuple[Candidate, ...]] = {}
    dropped: list[Dropped] = []
    everything = offered(layers, candidates)
    for layer in layers:
        refused = {c.name: reason for c in everything[layer.path] if (reason := c.refusal(layer))}
        dropped += [Dropped(layer.path, name, reason) for name, reason in refused.items()]
        able[layer.path] = tuple(c for c in everything[layer.path] if c.name not in refused)
        if not able[layer.path]:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
            raise RequestError(
                f"no candidate takes the shape {layer.shape_text} ({reasons})",
                where=layer.path,
                advice="offer it dense as well",
            )
    return able, tuple(dropped)
