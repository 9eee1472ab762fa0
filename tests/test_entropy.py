"""Entropy coding: real bytes against entropies, Huffman's tree and Shannon's limit, computed here."""

from __future__ import annotations

import heapq
import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from scipy.stats import norm
from torch import Tensor

from rhoc.runtime.capacity import gmse
from rhoc.runtime.entropy_coding import CODERS, decode_field, encode_field
from rhoc.runtime.entropy_coding.huffman import canonical, code_lengths
from rhoc.runtime.entropy_coding.rans import quantised
from rhoc.runtime.errors import RequestError, RhocError, WorkError
from rhoc.runtime.estimators.trust import Trust
from rhoc.runtime.projection import project_with_gradient
from rhoc.runtime.representation import Representation
from rhoc.runtime.stage import Sized, Stage
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify
from rhoc.runtime.stages.entropy import Entropy
from rhoc.runtime.text_parser import from_text

from .strategies import repeatable

PACKED, CONSTANT = 0, 1  # first bytes of a plane


def chain(*stages: Stage) -> Representation:
    return Representation(stages)


def coded(*stages: Stage, coder: str = "rans") -> Representation:
    return chain(Entropy(chain(*stages), coder))  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def entropy(symbols: np.ndarray) -> float:
    """Bits per symbol."""
    _, counts = np.unique(symbols, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def huffman_cost(counts: list[int]) -> int:
    """Bits of the whole message under Huffman's tree: the sum of all inner nodes."""
    heap, total = list(counts), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


def draws(kind: str, count: int) -> tuple[np.ndarray, int]:
    """Symbols and their bits."""
    random = np.random.default_rng(0)
    if kind == "gaussian 4":
        return np.clip(np.rint(random.standard_normal(count)) + 8, 0, 15).astype(np.uint8), 4
    if kind == "gaussian 8":
        return np.clip(np.rint(20 * random.standard_normal(count)) + 128, 0, 255).astype(np.uint8), 8
    if kind == "geometric 5":
        return np.minimum(random.geometric(0.4, count) - 1, 31).astype(np.uint8), 5
    return (random.random(count) < 0.1).astype(np.uint8), 1  # mask 1


KINDS = ["gaussian 4", "gaussian 8", "geometric 5", "mask 1"]


@pytest.mark.parametrize("kind", KINDS)
def test_rans_is_within_a_percent_of_the_entropy(kind: str) -> None:
    symbols, bits = draws(kind, 1_000_000)
    data = encode_field(torch.from_numpy(symbols), bits, "rans")
    table = 2**bits / 8 + 2 * len(np.unique(symbols))
    ideal = len(symbols) * entropy(symbols) / 8
    assert ideal < len(data) < 1.01 * ideal + table
    assert torch.equal(decode_field(data, (1_000_000,), torch.uint8, bits), torch.from_numpy(symbols))


@pytest.mark.parametrize("kind", KINDS[:3])
def test_huffman_has_the_bits_of_its_tree(kind: str) -> None:
    symbols, bits = draws(kind, 300_000)
    data = encode_field(torch.from_numpy(symbols), bits, "huffman")
    counts = np.bincount(symbols)
    tree = huffman_cost([int(c) for c in counts if c]) / 8
    lanes = math.ceil(math.sqrt(len(symbols)) / 16)
    fixed = 1 + 2**bits // 2 + 4 * lanes
    if kind == "gaussian 4":
        assert len(data) == fixed + math.ceil(tree)
    assert fixed + tree <= len(data) < fixed + 1.001 * tree, "codes of more than 15 bits cost next to nothing"
    assert torch.equal(decode_field(data, (300_000,), torch.uint8, bits), torch.from_numpy(symbols))


@pytest.mark.parametrize("growth", [1.0, 1.3, 2.0, 5.0])
@pytest.mark.parametrize("longest", [3, 4, 6])
def test_code_lengths_are_the_best_that_short(growth: float, longest: int) -> None:
    counts = np.rint(3 * growth ** np.arange(7)).astype(np.int64)
    complete = (
        choice
        for choice in itertools.combinations_with_replacement(range(1, longest + 1), 7)
        if sum(2.0**-length for length in choice) == 1.0
    )
    best = min(int(np.sort(counts)[::-1] @ np.sort(choice)) for choice in complete)
    lengths = code_lengths(counts, longest)
    assert int(counts @ lengths) == best
    assert float((2.0**-lengths).sum()) == 1.0
    assert lengths.max() <= longest
    if longest == 6:
        assert best == huffman_cost(counts.tolist())


def test_canonical_codes_are_prefix_free_and_in_order() -> None:
    lengths = code_lengths(np.array([50, 0, 3, 20, 20, 1, 6]))
    codes = canonical(lengths)
    words = {s: format(codes[s], f"0{lengths[s]}b") for s in np.flatnonzero(lengths)}
    assert not any(a != b and words[b].startswith(words[a]) for a in words for b in words)
    ordered = sorted(words, key=lambda s: (lengths[s], s))
    assert sorted(words.values()) == [words[s] for s in ordered]


@repeatable
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=256))
def test_frequencies_add_up_and_none_is_lost(counts: list[int]) -> None:
    counts = [*counts, 1, 10**7]
    frequencies = quantised(np.array(counts[-256:]))
    assert int(frequencies.sum()) == 2**14
    assert [f > 0 for f in frequencies] == [c > 0 for c in counts[-256:]]


@repeatable
@given(st.data(), st.integers(1, 20), st.sampled_from(["rans", "huffman"]))
def test_any_integers_come_back(data: st.DataObject, bits: int, coder: str) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 40), max_size=3)))
    spread = data.draw(st.sampled_from([0.0, 0.01, 0.1, 1.0]))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    numbers = random.normal(0.5, spread / 4, shape).clip(0, 1) * (2**bits - 1)
    dtype = torch.bool if bits == 1 else torch.uint8 if bits <= 8 else torch.int32
    codes = torch.from_numpy(np.asarray(np.rint(numbers), dtype=np.int64)).to(dtype)
    stored = encode_field(codes, bits, coder)
    again = decode_field(stored, shape, dtype, bits)
    assert torch.equal(again, codes)
    assert again.dtype == dtype
    assert stored.dtype == torch.uint8
    planes = math.ceil(bits / 8)
    packed = sum(math.ceil(codes.numel() * min(8, bits - 8 * p) / 8) for p in range(planes))
    assert len(stored) <= (packed + planes + 4 * (planes - 1) if codes.numel() else 0)


def test_what_cannot_shrink_stays_packed_and_a_constant_takes_two_bytes() -> None:
    noise = torch.randint(0, 16, (10_000,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for coder in CODERS:
        stored = encode_field(noise, 4, coder)
        assert (int(stored[0]), len(stored)) == (PACKED, 5001)
        assert encode_field(torch.full((1000,), 7, dtype=torch.uint8), 4, coder).tolist() == [CONSTANT, 7]
        assert encode_field(torch.tensor(True), 1, coder).tolist() == [CONSTANT, 1]


def test_wide_codes_are_planes_of_bytes() -> None:
    codes = torch.arange(1000, dtype=torch.int32) % 300  # 9 bits: low bytes vary, the ninth bit is rare
    stored = encode_field(codes, 9, "rans")
    first = int(np.frombuffer(stored[:4].numpy().tobytes(), "<u4")[0])
    assert int(stored[4]) in (PACKED, 2)
    assert int(stored[4 + first]) == 2
    assert torch.equal(decode_field(stored, (1000,), torch.int32, 9), codes)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("kind", ["gaussian 4", "mask 1", "wide"])
def test_damaged_bytes_end_in_an_error_or_in_codes(coder: str, kind: str) -> None:
    if kind == "wide":
        codes, bits = torch.arange(3000, dtype=torch.int32).square() % 1000, 10
    else:
        symbols, bits = draws(kind, 3000)
        codes = torch.from_numpy(symbols)
    stored = encode_field(codes, bits, coder).numpy()
    random = np.random.default_rng(1)
    found = 0
    for trial in range(200):
        broken = stored.copy()
        if trial % 4 == 0:
            broken = broken[: random.integers(0, len(broken))]
        elif trial % 4 == 1:
            broken = np.concatenate([broken, random.integers(0, 256, 3, dtype=np.uint8)])
        elif trial % 4 == 2:
            broken = random.integers(0, 256, random.integers(0, 300), dtype=np.uint8)
        else:
            broken[random.integers(0, len(broken))] ^= 1 << random.integers(0, 8)
        try:
            decoded = decode_field(torch.from_numpy(broken), (3000,), codes.dtype, bits)
        except WorkError:
            found += 1
        else:
            assert decoded.shape == (3000,)
            assert int(decoded.max()) < 2**bits
    assert found >= (90 if int(stored[0]) == PACKED else 150)


def test_bytes_of_another_shape_are_refused() -> None:
    stored = encode_field(torch.from_numpy(draws("gaussian 4", 500)[0]), 4, "rans")
    for data, shape in (
        (stored, (499,)),
        (stored, (0,)),
        (stored.reshape(1, -1), (500,)),
        (stored.int(), (500,)),
    ):
        with pytest.raises(WorkError, match="damaged"):
            decode_field(data, shape, torch.uint8, 4)


# the stage

INNER = [
    (Quantize(4, grid="midtread", observer="absmax", strategy="channel"),),
    (Quantize(8, grid="midtread", observer="rms", clip=100.0, strategy="channel"),),
    (Quantize(1),),
    (Sparsify(0.9),),
    (Sparsify(0.9, storage="csr"), Quantize(3, observer="absmax")),
    (Sparsify(sparsity_structure="2:4"), Quantize(4, observer="absmax", strategy="group", group_size=8)),
    (Hadamard(16), Quantize(4, observer="absmax", strategy="channel")),
]


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("inner", INNER, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(48, 64), (2, 3, 16), (1, 16), (0, 16)])
def test_nothing_is_lost(
    inner: tuple[Stage, ...], coder: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = normal(*shape, dtype=dtype)
    plain, r = chain(*inner), coded(*inner, coder=coder)
    assert torch.equal(r.project(x), plain.project(x))
    stored = r.pack(r.encode(x))
    again = r.decode(r.unpack(stored, shape, dtype))
    assert torch.equal(again, plain.project(x))
    assert again.dtype == dtype
    assert torch.equal(
        r.project(torch.stack([x, x], -1)[..., 0]), plain.project(torch.stack([x, x], -1)[..., 0])
    )
    integers = {f"0.{n}" for n, f in plain.layout(shape, dtype).items() if not f.dtype.is_floating_point}
    layout = r.layout(shape, dtype)
    assert {name for name, field in layout.items() if field.variable} == integers
    for name, tensor in stored.items():
        assert layout[name].fits(tensor)
        if name in integers:
            packed = plain.layout(shape, dtype)[name.removeprefix("0.")]
            overhead = 1 + 5 * (math.ceil(packed.bits / 8) - 1)
            assert tensor.nbytes <= packed.nbytes + overhead
    assert list(r.view(x).projected.shape) == list(shape)


@pytest.mark.parametrize("inner", INNER, ids=str)
def test_expected_sizes_are_near_the_real_ones(inner: tuple[Stage, ...]) -> None:
    shape, r = (1024, 512), coded(*inner)
    stored = r.pack(r.encode(normal(*shape, seed=5)))
    real = sum(tensor.nbytes for tensor in stored.values())
    assert r.nbytes(shape, torch.float32) == pytest.approx(real, rel=0.01)
    assert r.nbytes(shape, torch.float32) == r.nbytes(shape, torch.float32)


def test_meta_tensors_have_the_expected_sizes() -> None:
    stage = Entropy(chain(Quantize(4, observer="absmax")))
    carry, fields = stage.encode(torch.empty(64, 32, device="meta"))
    described = stage.layout(Sized((64, 32), torch.float32))
    assert described[0].shape == carry.shape == (0, 64, 32)
    assert {n: s.shape for n, s in described[1].items()} == {n: tuple(t.shape) for n, t in fields.items()}
    assert stage.decode(carry, fields).shape == (64, 32)


def cell_probabilities(step: float) -> np.ndarray:
    edges = (np.arange(-60, 61) + 0.5) * step
    return np.diff(norm.cdf(edges))


@pytest.mark.parametrize(("step", "gap"), [(1.1, 0.33), (0.5, 0.271), (0.25, 0.26), (0.125, 0.256)])
def test_entropy_coded_scalar_quantisation_nears_shannon(step: float, gap: float) -> None:
    p = cell_probabilities(step)
    exact = float(-(p[p > 0] * np.log2(p[p > 0])).sum())
    r = coded(Quantize(8, grid="midtread", observer="rms", clip=127 * step))
    error = gmse(r)
    assert error.method == "quadrature"
    assert error.value == gmse(r.stages[0].of).value  # type: ignore[attr-defined]
    bits = r.bits_per_weight((1024, 1024))
    assert bits == pytest.approx(exact, rel=0.005)
    assert exact - gap < error.gaussian_bits < exact - 0.254, "Shannon's limit less 1.53 dB, and no nearer"
    x = normal(1024, 1024)
    real = 8 * sum(t.nbytes for t in r.pack(r.encode(x)).values()) / x.numel()
    assert real == pytest.approx(exact, rel=0.006)


def test_stages_inside_are_bound_to_what_comes_before() -> None:
    quantize = Quantize(2, grid="midrise", observer="rms")
    half = Sparsify(0.5)
    inside, outside = chain(half, Entropy(chain(quantize))), chain(half, quantize)
    assert gmse(inside).value == gmse(outside).value
    x = normal(64, 64)
    assert torch.equal(inside.project(x), outside.project(x))


def test_masks_cost_their_entropy() -> None:
    bits = {
        sparsity: 8 * coded(Sparsify(sparsity)).layout((1024, 1024), torch.float32)["0.0.mask"].nbytes / 2**20
        for sparsity in (0.5, 0.9, 0.99)
    }
    assert bits[0.5] == pytest.approx(1.0, abs=1e-4)
    for s in (0.9, 0.99):
        assert bits[s] == pytest.approx(-s * math.log2(s) - (1 - s) * math.log2(1 - s), rel=0.025)


def test_importance_reaches_the_stages_inside() -> None:
    x, importance = normal(8, 32), normal(32, seed=1).square() + 0.1
    given = Sparsify(0.5, scores="given")
    carry, fields, handed_on = Entropy(chain(given)).encode_weighted(x, importance)
    assert handed_on is None
    expected = given.decode(*given.encode_weighted(x, importance)[:2])
    assert torch.equal(Entropy(chain(given)).decode(carry, fields), expected)
    with pytest.raises(RequestError, match="none was given"):
        Entropy(chain(given)).encode(x)


def test_estimators_see_the_stages_inside() -> None:
    inner = (Sparsify(sparsity_structure="2:4"), Quantize(4, observer="absmax", strategy="channel"))
    x = normal(8, 32)
    seen, plain = coded(*inner).view(x), chain(*inner).view(x)
    assert seen.kept is not None
    assert plain.kept is not None
    assert torch.equal(seen.kept, plain.kept)
    assert seen.cell is not None
    assert plain.cell is not None
    assert torch.equal(seen.cell.half_width, plain.cell.half_width)
    trained = [latent.clone().requires_grad_() for latent in (x, x)]
    for latent, r in zip(trained, (coded(*inner), chain(*inner)), strict=True):
        project_with_gradient(latent, r, (Trust(),)).square().sum().backward()
    assert torch.equal(trained[0].grad, trained[1].grad)  # type: ignore[arg-type]


def test_what_entropy_refuses() -> None:
    with pytest.raises(ValueError, match="of must have at least one stage"):
        Entropy(Representation())
    with pytest.raises(ValueError, match="of is entropy-coded already"):
        Entropy(coded(Quantize(4)))
    with pytest.raises(RequestError, match="does not divide the last dimension of 6"):
        coded(Sparsify(sparsity_structure="2:4")).check((8, 6))
    broken = coded(Quantize(4))
    stored = broken.pack(broken.encode(normal(64, 64)))
    stored["0.carry"] = stored["0.carry"][:-1]
    with pytest.raises(RhocError, match="damaged"):
        broken.decode(broken.unpack(stored, (64, 64), torch.float32))


def test_cells_of_tail_groups_lie_at_their_numbers() -> None:
    inner = "sparsify(0.9) >> quantize(int4, group=128, mse)"
    x = torch.randn(96, 768, generator=torch.Generator().manual_seed(0))
    coded, plain = from_text(f"entropy({inner})").view(x), from_text(inner).view(x)
    assert coded.cell is not None
    assert plain.cell is not None
    assert torch.equal(coded.cell.half_width.expand(x.shape), plain.cell.half_width.expand(x.shape))
    assert torch.equal(coded.projected, plain.projected)
