"""Random tensors, stages and chains for property tests: every registered stage has a strategy here."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from rhoc.runtime.errors import RequestError
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import (
    STAGES,
    Codebook,
    Entropy,
    Hadamard,
    Ones,
    Palette,
    Product,
    Quantize,
    RandomRotation,
    Scale,
    Sparsify,
    Split,
    Stage,
    Sum,
    Trellis,
)

# The same examples on every machine and every day; no timing, no files.
repeatable = settings(
    derandomize=True,
    deadline=None,
    max_examples=30,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOAT_GRIDS = ("e1m0", "e2m0", "e1m1", "e2m1", "e1m2", "e3m0", "e2m2", "e3m1", "e3m2", "e2m3", "e4m3", "e5m2")


def hadamards() -> st.SearchStrategy[Stage]:
    """Rotations of every block that fits small tensors, and of one that does not."""
    return st.builds(Hadamard, st.sampled_from([2, 4, 8, 16, 128]))


def sparsifiers() -> st.SearchStrategy[Stage]:
    """Unstructured fractions and n:m structures, powers of two or not."""
    unstructured = st.builds(Sparsify, st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9]))
    structures = st.sampled_from(["1:2", "2:4", "1:4", "3:4", "2:3", "4:8", "5:8", "7:16"])
    return unstructured | st.builds(lambda structure: Sparsify(sparsity_structure=structure), structures)


@st.composite
def quantizers(draw: st.DrawFn) -> Stage:
    """Grids of every width and kind, with every sharing and observer."""
    group = draw(st.sampled_from([None, None, 1, 2, 4, 8]))
    strategy = "group" if group else draw(st.sampled_from(["tensor", "channel", "token"]))
    observer = draw(st.sampled_from(["absmax", "mse", "rms"]))
    scale_dtype = draw(st.sampled_from([None, None, "float32", "float16", "bfloat16"]))
    if draw(st.booleans()):
        num_bits = draw(st.integers(1, 8))
        grid = draw(st.sampled_from(["midrise", "midtread", "twos"] if num_bits > 1 else [None, "midrise"]))
        kind = "int"
    else:
        grid = draw(st.sampled_from(FLOAT_GRIDS))
        num_bits = 1 + int(grid[1]) + int(grid[3])
        kind = "float"
    return Quantize(
        num_bits,
        kind,
        strategy=strategy,
        group_size=group,
        observer=observer,
        scale_dtype=scale_dtype,
        grid=grid,
    )


def parts() -> st.SearchStrategy[Representation]:
    """What composite stages hold: short chains without composite stages."""
    ends = quantizers() | sparsifiers()
    chain = st.one_of(
        st.tuples(ends), st.tuples(hadamards(), ends), st.tuples(sparsifiers(), quantizers()), st.tuples()
    )
    return st.builds(Representation, chain)


def sums() -> st.SearchStrategy[Stage]:
    """Two or three terms, all but the last one lossy."""
    lossy = parts().filter(lambda part: part.lossy)
    return st.builds(
        lambda first, last: Sum((*first, last)), st.lists(lossy, min_size=1, max_size=2), parts()
    )


def products() -> st.SearchStrategy[Stage]:
    """Factors of any rank, dense or not."""
    return st.builds(
        lambda rank, left, right, rounds: Product(
            rank, left, right, rounds if left.lossy or right.lossy else 0
        ),
        st.sampled_from([None, 1, 2, 5]),
        parts(),
        parts(),
        st.integers(0, 2),
    ) | st.sampled_from(
        [
            Product(2, block=1, left=Representation((Quantize(4),))),
            Product(block=2, right=Representation((Quantize(8, strategy="channel"),)), rounds=1),
            Product(keep_params=0.5),
            Product(4, Representation((Sparsify(sparsity_structure="1:4"), Ones())), solver="pursuit"),
            Product(
                6,
                Representation((Sparsify(sparsity_structure="2:6", storage="rank"), Quantize(4))),
                Representation((Quantize(8, strategy="channel"),)),
                rounds=3,
                block=2,
                solver="pursuit",
            ),
        ]
    )


def splits() -> st.SearchStrategy[Stage]:
    """Every way to choose slices, the two parts different."""
    both = st.tuples(parts(), parts()).filter(lambda pair: pair[0] != pair[1])
    return st.builds(
        lambda fraction, pair, along, by: Split(fraction, *pair, along, by),
        st.sampled_from([0.01, 0.25, 0.6]),
        both,
        st.sampled_from(["columns", "rows"]),
        st.sampled_from(["norm", "absmax", "first"]),
    )


def rotations() -> st.SearchStrategy[Stage]:
    """Random orthogonal matrices of small blocks."""
    return st.builds(RandomRotation, st.sampled_from([2, 4, 8]), st.integers(0, 3))


def scales() -> st.SearchStrategy[Stage]:
    """Both ways to scale, by either rule."""
    return st.builds(Scale, st.sampled_from(["columns", "rows"]), st.sampled_from(["rms", "absmax"]))


def codebooks() -> st.SearchStrategy[Stage]:
    """Small fitted tables, Gaussian tables and lattices, alone and several together."""
    fitted = st.builds(
        lambda size, books, bits: Codebook(size, books, bits),
        st.sampled_from([1, 2, 4]),
        st.integers(1, 2),
        st.integers(1, 4),
    )
    known = st.sampled_from(
        [
            Codebook(1, nbits_per_codebook=3, source="gaussian"),
            Codebook(2, nbits_per_codebook=4, source="gaussian", strategy="channel"),
            Codebook(2, 2, 4, source="gaussian", strategy="group", group_size=4),
            Codebook(4, nbits_per_codebook=6, source="d4"),
        ]
    )
    return fitted | known


def trellises() -> st.SearchStrategy[Stage]:
    """Short states, which are quick."""
    return st.builds(
        lambda bits, more, code: Trellis(bits, max(2 * bits, 4) + more, code),
        st.integers(1, 3),
        st.integers(0, 1),
        st.sampled_from(["xor", "1mad", "3inst"]),
    )


def palettes() -> st.SearchStrategy[Stage]:
    """Few values and many, of one power and of several."""
    return st.builds(
        Palette,
        st.sampled_from([1, 2, 4]),
        st.sampled_from([-7, -3]),
        num_values=st.sampled_from([2, 5, 256]),
    )


def entropies() -> st.SearchStrategy[Stage]:
    """Both coders over short chains."""
    lossy = parts().filter(lambda part: part.lossy)
    return st.builds(Entropy, lossy, st.sampled_from(["rans", "huffman"]))


STAGE_STRATEGIES: dict[type[Stage], st.SearchStrategy[Stage]] = {
    Hadamard: hadamards(),
    Quantize: quantizers(),
    Sparsify: sparsifiers(),
    RandomRotation: rotations(),
    Scale: scales(),
    Codebook: codebooks(),
    Trellis: trellises(),
    Entropy: entropies(),
    Sum: sums(),
    Product: products(),
    Split: splits(),
    Ones: st.just(Ones()),
    Palette: palettes(),
}


FLAT: tuple[type[Stage], ...] = (Hadamard, Quantize, Sparsify)
"""Stages that treat every row alike, whatever its size and sign: what stronger laws hold for."""


def stages(kinds: tuple[type[Stage], ...] = STAGES) -> st.SearchStrategy[Stage]:
    """Any registered stage, or one of some kinds."""
    return st.one_of([STAGE_STRATEGIES[kind] for kind in kinds])


@st.composite
def chains(
    draw: st.DrawFn, shape: tuple[int, ...], longest: int = 3, kinds: tuple[type[Stage], ...] = STAGES
) -> Representation:
    """A chain that can encode a tensor of this shape, possibly dense."""
    chain = Representation()
    for stage in draw(st.lists(stages(kinds), max_size=longest)):
        if not chain.hands_on_numbers:
            break
        longer = chain >> Representation((stage,))
        try:
            longer.check(shape)
        except RequestError:
            continue
        chain = longer
    return chain


@st.composite
def shapes(draw: st.DrawFn, fewest: int = 0) -> tuple[int, ...]:
    """One to three dimensions, the last often divisible by something, the others at least `fewest`."""
    last = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]))
    return (*draw(st.lists(st.integers(fewest, 4), max_size=2)), last)


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = DTYPES) -> Tensor:
    """Normal numbers, small integers (many ties), zeros, or rows of zeros, in several memory layouts."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(dtypes))
    layout = draw(st.sampled_from(["contiguous", "reversed", "strided"]))
    backing = {"contiguous": shape, "reversed": shape[::-1], "strided": (*shape[:-1], 2 * shape[-1])}[layout]
    values = torch.randn(backing, generator=generator, dtype=torch.float64)
    content = draw(st.sampled_from(["normal", "normal", "ties", "zeros", "zero rows"]))
    if content == "ties":
        values = values.mul(1.5).round()
    elif content == "zeros":
        values = torch.zeros_like(values)
    values = values.mul(draw(st.sampled_from([1.0, 2.0**-7, 37.0]))).to(dtype)
    if layout == "reversed":
        values = values.permute(*reversed(range(values.ndim)))
    elif layout == "strided":
        values = values[..., ::2]
    if content == "zero rows" and values.ndim > 1 and len(values):
        values[0] = 0
    return values


@dataclass(frozen=True)
class Case:
    """A representation and a tensor that it can encode."""

    representation: Representation
    x: Tensor

    def __repr__(self) -> str:
        layout = f"{tuple(self.x.shape)}, strides {self.x.stride()}, {self.x.dtype}"
        return f"Case({self.representation}; {layout}; {self.x.flatten().tolist()})"


@st.composite
def cases(
    draw: st.DrawFn,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    fewest: int = 0,
    kinds: tuple[type[Stage], ...] = STAGES,
) -> Case:
    """A chain with a tensor of a shape that it takes."""
    shape = draw(shapes(fewest))
    return Case(draw(chains(shape, kinds=kinds)), draw(tensors(shape, dtypes)))
