"""Sums, products and splits: laws that hold however they are nested, and what each of them promises."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file, save_file
from torch import Tensor

from rhoc.runtime.capacity import gmse, monte_carlo
from rhoc.runtime.errors import RequestError
from rhoc.runtime.marchenko_pastur import leftover
from rhoc.runtime.representation import Representation
from rhoc.runtime.stage import Stage
from rhoc.runtime.stages import Hadamard, Product, Quantize, Sparsify, Split, Sum
from rhoc.runtime.stages.factors import best_factors
from rhoc.runtime.stages.parts import has_rank, resized
from rhoc.runtime.text_parser import from_text

from .strategies import DTYPES, parts, repeatable, tensors


def chain(*stages: Stage) -> Representation:
    return Representation(stages)


DENSE = Representation()
INT2 = chain(Quantize(2, strategy="channel", observer="rms", grid="midrise"))
INT4 = chain(Quantize(4, strategy="channel", observer="rms"))
INT8 = chain(Quantize(8, strategy="channel"))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def error(x: Tensor, representation: Representation, weight: Tensor | float = 1.0) -> float:
    difference = (x - representation.project(x)).double().square()
    return float((difference * weight).sum() / (x.double().square() * weight).sum())


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


# laws of every nesting


LEAVES = [
    *(DENSE, INT2, INT4, INT8),
    chain(Quantize(4, "float", strategy="channel")),
    chain(Quantize(3, observer="mse", grid="midtread", scale_dtype="float16")),
    chain(Hadamard(4), Quantize(4, strategy="group", group_size=4, observer="rms")),
    chain(Sparsify(0.5)),
    chain(Sparsify(sparsity_structure="2:4")),
    chain(Sparsify(0.25)) >> INT4,
    chain(Hadamard(2)),
]


@st.composite
def composites(draw: st.DrawFn, depth: int) -> Representation:
    """A chain that ends in a sum, a product or a split, whose parts may hold others `depth` levels deep."""
    leaves = st.sampled_from(LEAVES)
    inner = leaves if depth == 0 else leaves | composites(depth - 1)
    front = draw(st.sampled_from([(), (), (Hadamard(8),), (Hadamard("full", 5),)]))
    kind = draw(st.sampled_from([Sum, Product, Split]))
    if kind is Sum:
        lossy = inner.filter(lambda part: part.lossy)
        last = (
            inner if depth == 2 else lossy
        )  # a sum that ends in all that is left cannot stand before others
        return Representation((*front, Sum((*draw(st.lists(lossy, min_size=1, max_size=2)), draw(last)))))
    first, second = draw(st.tuples(inner, inner).filter(lambda pair: kind is Product or pair[0] != pair[1]))
    if kind is Product:
        rounds = draw(st.integers(0, 2)) if first.lossy or second.lossy else 0
        return Representation((*front, Product(draw(st.sampled_from([None, 1, 4])), first, second, rounds)))
    along = draw(st.sampled_from(["columns", "rows"]))
    by = draw(st.sampled_from(["norm", "absmax", "first"]))
    return Representation((*front, Split(draw(st.sampled_from([0.05, 0.5])), first, second, along, by)))


SHAPES = [(8, 16), (8, 16), (16, 16), (2, 8, 16), (16,), (1, 16), (1, 1), (0, 8), (8, 0), (32, 48)]


@st.composite
def nested(draw: st.DrawFn) -> tuple[Representation, Tensor]:
    """A nested representation and a tensor that it takes."""
    shape = draw(st.sampled_from(SHAPES))

    def taken(representation: Representation) -> bool:
        try:
            representation.check(shape)
        except RequestError:
            return False
        return True

    return draw(composites(2).filter(taken)), draw(tensors(shape))


@repeatable
@given(nested())
def test_what_is_stored_decodes_to_the_projection(case: tuple[Representation, Tensor]) -> None:
    r, x = case
    code = r.encode(x)
    stored = r.pack(code)
    projected = r.project(x)
    assert projected.isfinite().all()
    assert same(projected, r.decode(code))
    assert same(projected, r.decode(r.unpack(stored, tuple(x.shape), x.dtype)))
    assert same(projected, r.project(x.contiguous())), "memory layout does not matter"
    assert projected.shape == x.shape
    assert projected.dtype == x.dtype


@repeatable
@given(nested())
def test_layout_is_what_encode_gives(case: tuple[Representation, Tensor]) -> None:
    r, x = case
    layout, code = r.layout(tuple(x.shape), x.dtype), r.encode(x)
    named, stored = code.named(), r.pack(code)
    assert layout.keys() == named.keys() == stored.keys()
    for name, field in layout.items():
        assert (field.shape, field.dtype) == (named[name].shape, named[name].dtype), name
        assert field.stored_shape == stored[name].shape, name
    assert r.nbytes(tuple(x.shape), x.dtype) == sum(tensor.nbytes for tensor in stored.values())


@repeatable
@given(nested())
def test_meta_tensors_have_the_same_layout(case: tuple[Representation, Tensor]) -> None:
    r, x = case
    meta = r.encode(torch.empty(x.shape, dtype=x.dtype, device="meta"))
    expected = {name: (t.shape, t.dtype) for name, t in r.encode(x).named().items()}
    assert {name: (t.shape, t.dtype) for name, t in meta.named().items()} == expected
    assert r.decode(meta).shape == x.shape


@repeatable
@given(nested())
def test_text_reads_back(case: tuple[Representation, Tensor]) -> None:
    r, _ = case
    assert from_text(str(r)) == r
    assert str(from_text(str(r))) == str(r)


@repeatable
@given(nested(), st.sampled_from(["columns", "rows", "all"]))
def test_importance_changes_numbers_and_no_shapes(case: tuple[Representation, Tensor], which: str) -> None:
    r, x = case
    shape = {"columns": x.shape[-1:], "rows": (*x.shape[:-1], 1), "all": x.shape}[which]
    importance = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.1
    plain, weighted = r.encode(x).named(), r.encode(x, importance).named()
    assert {name: t.shape for name, t in plain.items()} == {name: t.shape for name, t in weighted.items()}
    assert r.decode(r.encode(x, importance)).isfinite().all()


NESTED = [
    chain(Product(2)) + INT4,
    INT2 + INT2 + INT4,
    chain(Hadamard(8), Split(0.1, DENSE, chain(Product(3, INT8, INT4, 2)) + INT2)),
    chain(Split(0.25, INT8, INT2, "rows", "first")) + chain(Sparsify(0.9)),
    (chain(Sparsify(sparsity_structure="2:4")) >> INT4) @ INT8,
]


@pytest.mark.parametrize("r", NESTED, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fields_survive_a_file(r: Representation, dtype: torch.dtype, tmp_path: Path) -> None:
    x = normal(16, 24, dtype=dtype)
    save_file(r.pack(r.encode(x)), tmp_path / "fields.safetensors")
    code = r.unpack(load_file(tmp_path / "fields.safetensors"), (16, 24), dtype)
    assert same(r.decode(code), r.project(x))


@pytest.mark.parametrize("r", NESTED, ids=str)
def test_autocast_does_not_change_a_bit(r: Representation) -> None:
    x = normal(16, 24)
    plain = r.project(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(r.project(x), plain)


@pytest.mark.parametrize("r", NESTED, ids=str)
def test_zeros_and_tiny_numbers(r: Representation) -> None:
    zeros = torch.zeros(16, 24)
    wrong = [name for name, t in r.encode(zeros).named().items() if t.is_floating_point() and t.isnan().any()]
    assert not wrong
    assert r.project(zeros).abs().max() < 1e-30
    assert r.project(normal(16, 24) * 1e-30).isfinite().all()
    assert r.project(normal(16, 24) * 1e15).isfinite().all()


def test_operators_build_what_they_say() -> None:
    a, b, c = INT2, INT4, INT8
    assert ((a + b) + c) == chain(Sum((a, b, c))) == a + b + c
    assert chain(Sum((chain(Sum((a, b))), c))) == a + b + c
    assert (a + (b + c)) == chain(Sum((a, chain(Sum((b, c))))))
    assert a @ b == chain(Product(None, a, b))
    front = chain(Hadamard(8))
    assert front >> (a + b) == chain(Hadamard(8), Sum((a, b))) == from_text(f"hadamard(8) >> {a + b}")
    assert str(front >> (a + b)) == f"hadamard(8) >> ({a} + {b})"
    with pytest.raises(ValueError, match="which hands on nothing"):
        (a + b) >> chain(Hadamard(8))
    with pytest.raises(ValueError, match=r"terms\[0\] loses nothing"):
        DENSE + a
    with pytest.raises(ValueError, match="at least two chains"):
        Sum((a,))


@repeatable
@given(st.lists(parts().filter(lambda part: part.lossy), min_size=4, max_size=4))
def test_sums_associate_to_the_left(terms: list[Representation]) -> None:
    a, b, c, d = terms
    assert ((a + b) + c) + d == from_text(f"({a}) + ({b}) + ({c}) + ({d})")
    assert from_text(f"{chain(Sum((a, b)))} + ({c})") == a + b + c


# sums


def test_every_term_lowers_the_error() -> None:
    x = normal(64, 96)
    errors = [error(x, sum((INT2 for _ in range(count)), INT2)) for count in range(4)]
    assert all(after < 0.6 * before for before, after in pairwise(errors))
    assert errors[1] < 0.25 * errors[0], "the first leftover is nearly as easy as the tensor was"


def test_a_sum_is_its_terms_by_hand() -> None:
    x = normal(16, 32, dtype=torch.bfloat16)
    first = INT2.restore(INT2.encode(x))
    rest = (x.float() - first).to(torch.bfloat16)
    expected = (first + INT4.restore(INT4.encode(rest))).to(torch.bfloat16)
    assert same((INT2 + INT4).project(x), expected)


def test_outliers_in_a_sum_come_back_exactly() -> None:
    x = normal(64, 64)
    kept = chain(Sparsify(0.9)).encode(x).fields[0]["mask"]
    projected = (chain(Sparsify(0.9)) + chain(Quantize(4, strategy="channel", grid="midtread"))).project(x)
    assert torch.equal(projected[kept], x[kept])
    assert error(x, chain(Sparsify(0.9)) + INT4) < error(x, INT4)


# products


@pytest.mark.parametrize("shape", [(40, 40), (24, 70), (70, 24), (300, 260), (2, 20, 30)])
@pytest.mark.parametrize("part", [1, 3, 2])
def test_a_product_is_the_best_of_its_rank(shape: tuple[int, ...], part: int) -> None:
    x = normal(*shape)
    matrix = x.double().numpy().reshape(-1, shape[-1])
    rank = min(matrix.shape) // part
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    projected = chain(Product(rank)).project(x).double().numpy().reshape(matrix.shape)
    np.testing.assert_allclose(projected, best, rtol=0, atol=2e-4)
    least = np.square(s[rank:]).sum()
    assert np.square(matrix - projected).sum() == pytest.approx(
        least, rel=1e-5, abs=1e-8 * np.square(s).sum()
    )


def test_a_double_is_decomposed_in_double() -> None:
    x = normal(50, 30, dtype=torch.float64)
    u, s, vh = np.linalg.svd(x.numpy())
    best = (u[:, :7] * s[:7]) @ vh[:7]
    np.testing.assert_allclose(chain(Product(7)).project(x).numpy(), best, rtol=0, atol=1e-12)
    np.testing.assert_allclose(chain(Product()).project(x).numpy(), x.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_a_low_rank_matrix_is_recovered(size: float) -> None:
    x = (normal(60, 3) @ normal(3, 200, seed=1)) * size
    left, right = best_factors(x, 10)
    torch.testing.assert_close(left @ right, x, rtol=0, atol=5e-6 * size * float((x / size).abs().max()))
    norms = left.norm(dim=0)
    torch.testing.assert_close(norms, right.norm(dim=1), rtol=1e-4, atol=1e-3 * float(norms.max()))
    assert norms[3:].max() < 2e-3 * norms[0], "what does not exist has no factor"


def test_signs_and_order_of_factors_are_fixed() -> None:
    x = normal(30, 40)
    left, right = best_factors(x, 5)
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
    assert left.norm(dim=0).diff().max() < 0
    flipped_left, flipped_right = best_factors(-x, 5)
    torch.testing.assert_close(flipped_left, left, rtol=0, atol=1e-5)
    torch.testing.assert_close(flipped_right, -right, rtol=0, atol=1e-5)


def test_weighted_decomposition_is_best_in_its_norm() -> None:
    x = normal(60, 80)
    weight = torch.exp(2 * normal(80, seed=3))
    r = chain(Product(10))
    weighted = r.decode(r.encode(x, weight)).double().numpy()
    root = weight.double().sqrt().numpy()
    s = np.linalg.svd(x.double().numpy() * root, compute_uv=False)
    found = np.square((x.double().numpy() - weighted) * root).sum()
    assert found == pytest.approx(np.square(s[10:]).sum(), rel=1e-4)
    plain = np.square((x.double().numpy() - r.project(x).double().numpy()) * root).sum()
    assert found < 0.9 * plain


def test_a_factor_of_which_nothing_is_left_leaves_zeros() -> None:
    """A round fits the other factor to zeros: no number of it may come to infinity."""
    for number in (57.0, 3e4):
        x = torch.tensor([number])
        emptied = Product(left=Representation((Sparsify(sparsity=0.75),)) >> INT4, rounds=1)
        assert chain(emptied).project(x) == 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("left", "right"), [(INT4, INT4), (INT8, INT2), (DENSE, chain(Sparsify(0.5))), (INT2, DENSE)], ids=str
)
def test_rounds_never_hurt_and_mostly_help(
    left: Representation, right: Representation, weighted: bool
) -> None:
    x = normal(60, 80, seed=2) @ torch.diag(torch.linspace(0.1, 3, 80))
    weight = torch.exp(normal(80, seed=3)) if weighted else None

    def lost(rounds: int) -> float:
        r = chain(Product(20, left, right, rounds))
        squares = (x - r.decode(r.encode(x, weight))).double().square()
        return float((squares if weight is None else squares * weight).sum())

    none, one, six = lost(0), lost(1), lost(6)
    assert six <= one * (1 + 1e-5) <= none * (1 + 2e-5)
    assert six < 0.99 * none


def test_bits_of_a_product_by_hand() -> None:
    assert chain(Product(8)).bits_per_weight((64, 128)) == 16 * 8 * (64 + 128) / (64 * 128)
    lossy = chain(Product(8, INT8, INT4))
    assert lossy.bits_per_weight((64, 128)) == (8 * 64 * 8 + 16 * 64 + 4 * 8 * 128 + 16 * 8) / (64 * 128)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Product(0), "rank must be positive, got 0"),
        (lambda: Product(4, INT4, INT4, 101), "rounds must be between 0 and 100, got 101"),
        (lambda: Product(4, rounds=1), "rounds fit factors to what the other one lost, and both are dense"),
        (lambda: Split(1.0), "fraction must be between 0 and 1, got 1.0"),
        (lambda: Split(0.1), "selected and rest are the same chain; leave the split out"),
    ],
)
def test_options_that_make_no_sense(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


# the error of products on Gaussian numbers


def square_law(fraction: float) -> float:
    """The closed form for square matrices: singular values 2 cos(phi) under the quarter circle law."""
    low, high = 0.0, math.pi / 2
    for _ in range(100):  # the angle below which the fraction of singular values lies, by bisection
        phi = (low + high) / 2
        low, high = (phi, high) if (2 * phi - math.sin(2 * phi)) / math.pi < fraction else (low, phi)
    return 1 - (2 * phi - math.sin(4 * phi) / 2) / math.pi


def test_leftover_against_the_closed_form() -> None:
    for rank in (1, 16, 64, 500, 2048, 4000, 4095):
        assert leftover(rank) == pytest.approx(square_law(rank / 4096), rel=1e-8, abs=1e-12)
    assert leftover(0) == 1
    assert leftover(4096) == leftover(5000) == 0
    assert leftover(3, (64, 16)) == leftover(3, (16, 64))
    # from a square to a very flat one, where all singular values are equal
    assert leftover(8, (16, 16_000_000)) == pytest.approx(0.5, abs=1e-3)
    values = [leftover(256, (1024, columns)) for columns in (1024, 2048, 8192)]
    assert values == sorted(values)


@pytest.mark.parametrize(("shape", "rank"), [((512, 512), 128), ((512, 512), 16), ((256, 1024), 64)])
def test_leftover_against_a_decomposition(shape: tuple[int, int], rank: int) -> None:
    s = np.square(np.linalg.svd(np.random.default_rng(0).standard_normal(shape), compute_uv=False))
    assert leftover(rank, shape) == pytest.approx(s[rank:].sum() / s.sum(), abs=3e-3)


def test_error_of_products_and_what_follows_them() -> None:
    assert gmse(chain(Product(256))).value == leftover(256)
    assert gmse(chain(Product())).value == 0
    low = chain(Product(256))
    assert gmse(low + INT4).value == pytest.approx(leftover(256) * gmse(INT4).value, rel=1e-12)
    assert gmse(chain(Hadamard(128)) >> (low + INT4)).value == gmse(low + INT4).value
    assert gmse(low + low + INT4).value == gmse(chain(Product(512)) + INT4).value


@pytest.mark.parametrize(
    "r",
    [
        chain(Product(64, INT4, INT4)),
        chain(Product(64)) + INT2 + INT2,
        chain(Product(64)) + (INT2 + chain(Product(64))),
        INT4 + chain(Product(64)),
        chain(Product(64)) + chain(Split(0.1, DENSE, INT4)),
        chain(Sparsify(0.5), Product(64)),
    ],
    ids=str,
)
def test_other_errors_are_left_to_sampling(r: Representation) -> None:
    assert [known for _, known in r.walk()][-1] is None


def test_quadrature_agrees_with_a_sample_of_the_resized() -> None:
    x = normal(512, 512)
    for r in (chain(Product(512)), chain(Product(1024)) + INT4):
        assert error(x, resized(r, 512, 512)) == pytest.approx(gmse(r).value, rel=0.01)


def test_resized_reaches_every_rank() -> None:
    inner = chain(Product(512, INT8, INT8))
    r = chain(Hadamard(8), Split(0.1, inner, inner + INT4)) + chain(Product(1, inner, INT4))
    small = chain(Product(64, INT8, INT8))
    assert resized(r, 512, 1024) == chain(Hadamard(8), Split(0.1, small, small + INT4)) + chain(
        Product(1, small, INT4)
    )
    assert has_rank(r)
    assert not has_rank(INT4 + INT2)
    assert resized(INT4 + INT2, 512, 512) == INT4 + INT2
    assert not has_rank(INT4 @ INT4), "all columns are all columns of any matrix"


def test_sampling_still_knows_sums() -> None:
    found = monte_carlo(INT4 + INT4)
    # leftovers are uniform in the cells and far outside them, where the scale of the first term ended
    assert gmse(INT4).value ** 2 < found.value < 0.2 * gmse(INT4).value


# splits


@pytest.mark.parametrize("along", ["columns", "rows"])
@pytest.mark.parametrize("by", ["norm", "absmax"])
def test_dense_outlier_slices_come_back_exactly(along: str, by: str) -> None:
    x = normal(20, 30)
    chosen = [3, 11, 17]
    outliers = x.t() if along == "columns" else x
    outliers[chosen] *= 50
    fraction = 3 / (30 if along == "columns" else 20)
    split = chain(Split(fraction, DENSE, INT4, along, by))
    mask = split.encode(x).fields[0]["mask"]
    assert mask.nonzero()[:, 0].tolist() == chosen
    projected = split.project(x)
    seen = projected.t() if along == "columns" else projected
    assert torch.equal(seen[chosen], outliers[chosen])
    rest = [i for i in range(len(seen)) if i not in chosen]
    part = outliers[rest].t() if along == "columns" else outliers[rest]
    expected = INT4.project(part.contiguous())
    assert torch.equal(seen[rest], expected.t() if along == "columns" else expected)
    assert error(x, split) < 0.01 * error(x, INT4) or along == "rows"


def test_first_slices_need_no_mask() -> None:
    x = normal(8, 16)
    split = chain(Split(0.25, DENSE, INT2, by="first"))
    assert set(split.encode(x).named()) == {"0.selected.carry", "0.rest.carry", "0.rest.0.scale"}
    assert torch.equal(split.project(x)[:, :4], x[:, :4])
    assert torch.equal(split.project(x)[:, 4:], INT2.project(x[:, 4:].contiguous()))


def test_importance_moves_the_split() -> None:
    x, importance = normal(50, 8), torch.ones(8)
    importance[5] = 100
    split = chain(Split(0.125, DENSE, INT2))
    assert split.encode(x, importance).fields[0]["mask"].nonzero().tolist() == [[5]]
    rows = chain(Split(0.02, DENSE, INT2, "rows"))
    weight = torch.ones(50, 1)
    weight[7] = 100
    assert rows.encode(x, weight).fields[0]["mask"].nonzero().tolist() == [[7]]


def test_ties_go_to_the_slices_in_front() -> None:
    split = chain(Split(0.5, DENSE, INT2, by="absmax"))
    assert split.encode(torch.ones(3, 4)).fields[0]["mask"].tolist() == [True, True, False, False]


def test_a_single_number_cannot_be_split() -> None:
    with pytest.raises(RequestError, match="a single number has no slices to split"):
        chain(Split(0.5, DENSE, INT2)).project(torch.tensor(1.0))
    with pytest.raises(RequestError, match="cannot rotate a last dimension of 7"):
        chain(Split(0.1, DENSE, chain(Hadamard(8)))).check((4, 8))
