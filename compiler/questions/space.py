"""The space that `rhoc search` looks through: sparsity, then a grid with its scales, all after a rotation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from ...runtime.marchenko_pastur import REFERENCE_SHAPE
from ...runtime.representation import Representation
from ...runtime.stages import Hadamard, Quantize, Sparsify, Stage

ROTATION = Hadamard(128)  # real weights come near the Gaussian numbers that errors are taken on
GROUPS = (16, 32, 64, 128)
SPARSITIES = (0.25, 0.5, 0.75, 0.9)
PATTERNS = ("2:4", "1:4", "4:8")
_SEARCHED = 4  # bits up to which searching the scale gains much
_SMALL = 32  # groups up to which a scale in 8 bits saves much


@dataclass(frozen=True)
class Composite:
    """A representation of the space: what is zeroed, if anything, and the grid of the rest.

    bits: stored bits per number of a large matrix, all fields counted.
    """

    sparsity: Sparsify | None
    grid: Quantize | None
    bits: float

    @property
    def core(self) -> Representation:
        """Without the rotation, under which Gaussian numbers stay what they are."""
        return Representation(tuple(stage for stage in (self.sparsity, self.grid) if stage is not None))

    def rotated(self, rotate: bool) -> Representation:
        """As it is written to a spec."""
        leading: tuple[Stage, ...] = (ROTATION,) if rotate else ()
        return Representation((*leading, *self.core.stages))


def composites(bits: float, *, inputs: bool = False) -> list[Composite]:
    """Everything in the space of at most so many stored bits, those of fewest bits first.

    inputs: what inputs can have, which is a grid for each token or group, measured anew.
    """
    grids = tuple(input_grids() if inputs else weight_grids())
    sparse: tuple[Sparsify | None, ...] = (None,) if inputs else (None, *sparsities())
    found = []
    for sparsity, grid in product(sparse, (*grids, None)):
        stages = tuple(stage for stage in (sparsity, grid) if stage is not None)
        stored = Representation(stages).bits_per_weight(REFERENCE_SHAPE)
        if stages and stored <= bits + 1e-9:
            found.append(Composite(sparsity, grid, stored))
    return sorted(found, key=lambda each: (each.bits, str(each.core)))


def sparsities() -> Iterator[Sparsify]:
    """Unstructured with places in a bitmask, n:m with its shortest code of places."""
    for fraction in SPARSITIES:
        yield Sparsify(sparsity=fraction)
    for pattern in PATTERNS:
        yield Sparsify(sparsity_structure=pattern, storage="rank")


def weight_grids() -> Iterator[Quantize]:
    """Ints, the best levels for Gaussian numbers, small floats; scales of rows and of groups."""
    for bits in range(1, 9):
        yield Quantize(bits, strategy="channel", observer="rms", grid="midrise")
    for bits, group in product(range(2, 9), GROUPS):
        shared = Quantize(bits, strategy="group", group_size=group, scale_dtype="float16")
        if bits > _SEARCHED:
            yield shared
            continue
        searched = replace(shared, observer="mse", grid="twos" if bits == _SEARCHED else "midrise")
        yield searched
        if group <= _SMALL:
            yield replace(searched, strategy="tensor_group", scale_dtype=None)
    for bits in (2, 3, 4):
        best = Quantize(bits, type="float", grid="lloyd", strategy="channel", observer="rms")
        yield best
        for group in GROUPS:
            yield replace(best, strategy="group", group_size=group, observer="mse", scale_dtype="float16")
    for group in GROUPS:
        yield Quantize(4, type="float", grid="nf4", strategy="group", group_size=group, scale_dtype="float16")
    yield from _floats()


def input_grids() -> Iterator[Quantize]:
    """Ints of 2 to 8 bits by token, and floats by token or group."""
    for bits in range(2, 9):
        yield Quantize(bits, strategy="token", observer="rms", grid="midrise", dynamic=True)
    for each in _floats():
        yield replace(each, dynamic=True)
    yield Quantize(8, type="float", strategy="token", dynamic=True)


def _floats() -> Iterator[Quantize]:
    """NVFP4 and the OCP microscaling formats."""
    yield Quantize(4, type="float", strategy="tensor_group", group_size=16)
    for bits, grid in ((4, "e2m1"), (6, "e2m3"), (8, "e4m3")):
        yield Quantize(bits, type="float", grid=grid, strategy="group", group_size=32, observer="mx")
    four = Quantize(4, type="float", grid="e2m1", strategy="group", group_size=32)
    yield replace(four, observer="rms", scale_dtype="e8m0")
