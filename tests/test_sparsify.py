"""Sparsity: which numbers stay and where they are stored, against sorts and bit counts written here."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rhoc.runtime.errors import RequestError, WorkError
from rhoc.runtime.estimators.straight_through import StraightThrough
from rhoc.runtime.estimators.trust import Trust
from rhoc.runtime.packing import packed_length
from rhoc.runtime.projection import project_with_gradient
from rhoc.runtime.representation import Representation
from rhoc.runtime.sparsity.select import largest
from rhoc.runtime.stage import Sized, Stage
from rhoc.runtime.stages import Quantize, Sparsify

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def structure(text: str, sparsity: float | None = None, **options: object) -> Sparsify:
    return Sparsify(sparsity, text, **options)  # type: ignore[arg-type]


def chain(*stages: Stage) -> Representation:
    return Representation(stages)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def top(scores: np.ndarray, kept: int) -> np.ndarray:
    """True at the `kept` largest of each row, of equals the first."""
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :kept]
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, order, True, -1)
    return mask


def energies(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Sum of squares of every block of the last two dimensions, tails included."""
    high, wide = x.shape[-2], x.shape[-1]
    down = np.add.reduceat(x**2, range(0, high, rows), axis=-2)
    return np.add.reduceat(down, range(0, wide, columns), axis=-1)


def blown_up(mask: np.ndarray, rows: int, columns: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.repeat(mask, rows, -2), columns, -1)[..., : shape[-2], : shape[-1]]


def expected_mask(stage: Sparsify, x: np.ndarray) -> np.ndarray:
    """Which numbers of a float64 array stay, by sorting."""
    text, s = stage.sparsity_structure, stage.sparsity or 0.0
    if text == "unstructured" and stage.granularity == "row":
        return top(np.abs(x), x.shape[-1] - round(s * x.shape[-1]))
    if text == "unstructured":
        return top(np.abs(x).ravel(), x.size - round(s * x.size)).reshape(x.shape)
    if text == "row":
        rows = (x**2).sum(-1)
        mask = top(rows.ravel(), rows.size - round(s * rows.size)).reshape(rows.shape)
        return np.broadcast_to(mask[..., None], x.shape)
    if text == "column":
        columns = (x**2).reshape(-1, x.shape[-1]).sum(0)
        return np.broadcast_to(top(columns, columns.size - round(s * columns.size)), x.shape)
    if text.startswith("block:"):
        rows, columns = map(int, text.removeprefix("block:").split("x"))
        scores = energies(x, rows, columns)
        mask = top(scores.ravel(), scores.size - round(s * scores.size)).reshape(scores.shape)
        return blown_up(mask, rows, columns, x.shape)
    kept, group = map(int, text.split(":"))
    v = stage.vector
    scores = (x.reshape(*x.shape[:-1], -1, group // v, v) ** 2).sum(-1)
    return np.repeat(top(scores, kept // v).reshape(*x.shape[:-1], -1), v, -1)


CASES = [
    (Sparsify(0.5), (7, 33)),
    (Sparsify(0.9, storage="index"), (7, 33)),
    (Sparsify(0.75, storage="csr"), (7, 33)),
    (Sparsify(0.75, storage="csr"), (2, 3, 16)),
    (Sparsify(0.25, storage="csr"), (40,)),
    (Sparsify(0.5, storage="index"), ()),
    (Sparsify(0.5, granularity="row"), (7, 33)),
    (Sparsify(0.9, granularity="row", storage="index"), (2, 3, 40)),
    (structure("2:4"), (3, 16)),
    (structure("2:4", storage="bitmask"), (3, 16)),
    (structure("2:4", storage="rank"), (2, 3, 16)),
    (structure("5:7", storage="rank"), (3, 21)),
    (structure("8:32", storage="rank"), (5, 64)),
    (structure("3:10"), (3, 20)),
    (structure("4:8", vector=2), (3, 24)),
    (structure("4:8", vector=2, storage="rank"), (3, 24)),
    (structure("4:8", vector=2, storage="bitmask"), (3, 24)),
    (structure("8:16", vector=4), (2, 32)),
    (structure("block:2x4", 0.5), (6, 16)),
    (structure("block:4x4", 0.5), (7, 18)),
    (structure("block:4x4", 0.75, storage="index"), (3, 7, 18)),
    (structure("block:2x4", 0.6, storage="csr"), (2, 7, 18)),
    (structure("block:64x64", 0.5), (5, 3)),
    (structure("row", 0.5), (9, 5)),
    (structure("row", 0.75, storage="index"), (2, 6, 5)),
    (structure("column", 0.5), (9, 5)),
    (structure("column", 0.3, storage="index"), (2, 6, 11)),
]


@pytest.mark.parametrize(("stage", "shape"), CASES, ids=str)
@pytest.mark.parametrize("content", ["normal", "ties", "zeros"])
def test_the_largest_stay_exactly(stage: Sparsify, shape: tuple[int, ...], content: str) -> None:
    x = {"normal": normal(*shape), "ties": (2 * normal(*shape)).round(), "zeros": normal(*shape) * 0}[content]
    mask = torch.from_numpy(expected_mask(stage, x.numpy()).copy())
    carry, fields = stage.encode(x)
    expected = torch.where(mask, x, 0.0)
    assert torch.equal(stage.decode(carry, fields), expected)
    assert torch.equal(stage.kept(fields), mask)
    projected, last = stage.project(x)
    assert torch.equal(projected, expected)
    assert torch.equal(stage.kept(last), mask)
    if not stage.sparsity_structure.startswith("block"):
        assert torch.equal(carry.reshape(-1), x[mask]), "survivors in order"


@pytest.mark.parametrize(("stage", "shape"), CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_round_trips_and_meta(stage: Sparsify, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = normal(*shape, dtype=dtype)
    carry, fields = stage.encode(x)
    described = stage.layout(Sized(shape, dtype))
    found = (
        Sized(tuple(carry.shape), carry.dtype),
        {name: Sized(tuple(field.shape), field.dtype) for name, field in fields.items()},
    )
    assert described == found
    on_meta, meta_fields = stage.encode(x.to("meta"))
    assert (on_meta.shape, on_meta.dtype, set(meta_fields)) == (carry.shape, dtype, set(fields))
    assert stage.decode(on_meta, meta_fields).shape == shape == stage.project(x.to("meta"))[0].shape
    r = chain(stage)
    stored = r.pack(r.encode(x))
    assert sum(tensor.nbytes for tensor in stored.values()) == r.nbytes(shape, dtype)
    again = r.decode(r.unpack(stored, shape, dtype))
    assert torch.equal(again, r.project(x))
    assert again.dtype == dtype
    strided = torch.stack([x, -x], -1)[..., 0]
    assert torch.equal(r.project(strided), r.project(x))


def information(stage: Sparsify, rows: int, columns: int) -> int:
    """Bytes that places take in a matrix, by counting."""
    r, dtype = chain(stage), torch.float32
    layout = r.layout((rows, columns), dtype)
    return sum(field.nbytes for name, field in layout.items() if name != "carry")


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (Sparsify(0.75), 100 * 125),  # a bit each, rows of 1000
        (Sparsify(0.75, granularity="row"), 100 * 125),
        (Sparsify(0.75, storage="index"), math.ceil(25_000 * 17 / 8)),  # 2^17 > 100 000
        (Sparsify(0.75, granularity="row", storage="index"), 100 * math.ceil(250 * 10 / 8)),
        (Sparsify(0.75, storage="csr"), 4 * 101 + math.ceil(25_000 * 10 / 8)),
        (structure("2:4"), 100 * 1000 // 8),  # two bits per survivor
        (structure("2:4", storage="bitmask"), 100 * 125),
        (structure("2:4", storage="rank"), 100 * math.ceil(250 * 3 / 8)),  # C(4, 2) = 6
        (structure("1:4", storage="rank"), 100 * math.ceil(250 * 2 / 8)),
        (structure("4:8", storage="rank"), 100 * math.ceil(125 * 7 / 8)),  # C(8, 4) = 70
        (structure("4:8", vector=2), 100 * math.ceil(125 * 2 * 2 / 8)),  # two of four pairs
        (structure("4:8", vector=2, storage="rank"), 100 * math.ceil(125 * 3 / 8)),
        (structure("block:4x8", 0.5), 25 * math.ceil(125 / 8)),
        (structure("block:4x8", 0.8, storage="index"), math.ceil(625 * 12 / 8)),  # 3125 blocks
        (structure("block:4x8", 0.8, storage="csr"), 4 * 26 + math.ceil(625 * 7 / 8)),
        (structure("row", 0.5), math.ceil(100 / 8)),
        (structure("row", 0.9, storage="index"), math.ceil(10 * 7 / 8)),
        (structure("column", 0.5), 125),
        (structure("column", 0.9, storage="index"), math.ceil(100 * 10 / 8)),
    ],
    ids=str,
)
def test_bytes_of_places(stage: Sparsify, expected: int) -> None:
    assert information(stage, 100, 1000) == expected


def test_a_rank_numbers_every_choice_once() -> None:
    for kept, group in ((2, 4), (1, 5), (3, 6), (5, 7)):
        stage = structure(f"{kept}:{group}", storage="rank")
        choices = list(itertools.combinations(range(group), kept))
        x = torch.zeros(len(choices), group)
        for row, places in enumerate(choices):
            x[row, list(places)] = 1.0
        ranks = stage.encode(x)[1]["rank"].reshape(-1).tolist()
        assert sorted(ranks) == list(range(math.comb(group, kept)))
        colexicographic = sorted(choices, key=lambda places: places[::-1])
        assert [colexicographic[rank] for rank in ranks] == choices
        assert stage.widths() == {"rank": (len(choices) - 1).bit_length()}


def test_csr_is_scipys() -> None:
    from scipy.sparse import csr_matrix

    x = normal(20, 50, dtype=torch.float32)
    stage = Sparsify(0.8, storage="csr")
    carry, fields = stage.encode(x)
    reference = csr_matrix(torch.where(stage.kept(fields), x, 0.0).numpy())
    assert fields["row_offsets"].dtype == torch.int32
    assert fields["row_offsets"].tolist() == reference.indptr.tolist()
    assert carry.tolist() == reference.data.tolist()
    bits = np.unpackbits(fields["columns"].numpy(), bitorder="little")[: 200 * 6].reshape(200, 6)
    assert (bits @ (1 << np.arange(6))).tolist() == reference.indices.tolist()
    assert fields["columns"].numel() == packed_length(200, 6)


def test_blocks_are_handed_on_one_after_the_other() -> None:
    x = torch.arange(1.0, 25.0).reshape(4, 6)
    carry, fields = structure("block:2x3", 0.5).encode(x)
    assert carry.tolist() == [13, 14, 15, 19, 20, 21, 16, 17, 18, 22, 23, 24]
    assert fields["mask"].tolist() == [[False, False], [True, True]]
    carry, _ = structure("block:3x4", 0.75).encode(x.flip(0, 1))  # 24 is first; the other blocks are tails
    assert carry.tolist() == [24, 23, 22, 21, 18, 17, 16, 15, 12, 11, 10, 9]
    carry, _ = structure("block:3x4", 0.75).encode(x * (x == 24))
    assert carry.tolist() == [19 * 0, 24, 0, 0] + [0] * 8, "a tail block is filled up with zeros"


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30])
@pytest.mark.parametrize(
    "stage", [structure("4:8", vector=2), structure("block:2x2", 0.5), structure("row", 0.5), Sparsify(0.5)]
)
def test_no_number_is_too_small_or_large_to_rank(stage: Sparsify, scale: float) -> None:
    x = normal(8, 16)
    mask = stage.kept(stage.encode(x)[1])
    assert torch.equal(stage.kept(stage.encode((x * scale).float())[1]), mask)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 100, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
def test_largest_by_sorting(size: int, dtype: torch.dtype) -> None:
    scores = normal(6, size).mul(3).round().abs().to(dtype)
    for count in {0, 1, size // 3, size - 1, size}:
        assert largest(scores, count).numpy().tolist() == top(scores.double().numpy(), count).tolist()


def test_nan_counts_as_largest_and_keeps_the_count() -> None:
    x = torch.tensor([[1.0, math.nan, 3.0, math.inf, 2.0, 0.0, -5.0, 1.0]])
    for stage in (Sparsify(0.75), structure("2:8")):
        carry, _ = stage.encode(x)
        assert carry.reshape(-1).isnan().tolist() == [True, False]
        assert carry.reshape(-1)[1] == math.inf


@pytest.mark.parametrize(("stage", "shape"), CASES, ids=str)
def test_empty_tensors(stage: Sparsify, shape: tuple[int, ...]) -> None:
    for empty in {(0, *shape[1:]), (*shape[:-1], 0)} if len(shape) > 1 else {(0,)}:
        r = chain(stage)
        code = r.encode(torch.zeros(empty))
        assert r.decode(r.unpack(r.pack(code), empty, torch.float32)).shape == empty
        assert sum(t.nbytes for t in r.pack(code).values()) == r.nbytes(empty, torch.float32)


# given scores


def test_given_scores_are_wandas() -> None:
    x, squares = normal(6, 40), normal(40, seed=1).square() + 0.01
    scores = np.abs(x.numpy()) * np.sqrt(squares.numpy())
    stage = Sparsify(0.5, granularity="row", scores="given")
    carry, fields, survivors = stage.encode_weighted(x, squares)
    mask = torch.from_numpy(top(scores, 20))
    assert torch.equal(fields["mask"], mask)
    assert torch.equal(carry.reshape(-1), x[mask])
    assert survivors is not None
    assert survivors.shape == carry.shape
    assert torch.equal(survivors.reshape(-1), squares.expand(6, 40)[mask])


@pytest.mark.parametrize(("stage", "shape"), CASES, ids=str)
def test_survivors_take_their_importance_with_them(stage: Sparsify, shape: tuple[int, ...]) -> None:
    x, importance = normal(*shape), normal(*shape, seed=1).square() + 0.1
    carry, fields, survivors = stage.encode_weighted(x, importance)
    plain, plain_fields = stage.encode(x)
    assert torch.equal(carry, plain), "magnitude ignores importance"
    assert all(torch.equal(fields[name], plain_fields[name]) for name in fields)
    assert survivors is not None
    assert survivors.shape == carry.shape
    mask = stage.kept(fields)
    assert torch.equal(stage.decode(survivors, fields), torch.where(mask, importance, 0.0))
    assert survivors.numel() == 0 or float(survivors.min()) >= float(importance.min()), "fill counts least"


def test_given_scores_choose_by_energy_in_blocks_and_groups() -> None:
    x, importance = normal(8, 16), normal(8, 16, seed=2).square() + 1e-3
    weighted = (x * importance.sqrt()).numpy()
    for stage in (structure("block:2x4", 0.5), structure("4:8", vector=2), structure("row", 0.5)):
        given = Sparsify(stage.sparsity, stage.sparsity_structure, stage.vector, scores="given")
        fields = given.encode_weighted(x, importance)[1]
        assert np.array_equal(given.kept(fields).numpy(), expected_mask(stage, weighted))


def test_given_scores_must_be_given() -> None:
    stage = Sparsify(0.5, scores="given")
    for attempt in (stage.encode, stage.project, chain(stage).project):
        with pytest.raises(
            RequestError, match="ranks numbers by importance, and none was given; encode with"
        ):
            attempt(normal(4, 4))


# refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity_structure": "block:4x"}, "must be 'unstructured', 'n:m', 'block:RxC', 'row' or 'column'"),
        ({"sparsity_structure": "block:0x4", "sparsity": 0.5}, "more than one number, got block:0x4"),
        ({"sparsity_structure": "block:1x1", "sparsity": 0.5}, "got block:1x1; use unstructured"),
        ({"sparsity_structure": "block:4x4"}, "block sparsity must be a fraction between 0 and 1, got None"),
        ({"sparsity_structure": "row", "sparsity": 1.0}, "row sparsity must be a fraction between 0 and 1"),
        ({"sparsity_structure": "3:8", "vector": 2}, "vector must divide both numbers of 3:8, got 2"),
        ({"sparsity_structure": "4:8", "vector": 0}, "vector must divide both numbers of 4:8, got 0"),
        ({"sparsity": 0.5, "vector": 2}, "vector belongs to an n:m structure; leave it out"),
        ({"sparsity_structure": "2:4", "granularity": "row"}, "granularity: row belongs to the unstructured"),
        ({"sparsity": 0.5, "storage": "rank"}, "storage: rank belongs to an n:m structure"),
        ({"sparsity_structure": "2:4", "storage": "csr"}, "storage: csr is for survivors that differ"),
        ({"sparsity": 0.5, "granularity": "row", "storage": "csr"}, "storage: csr is for survivors"),
        ({"sparsity_structure": "row", "sparsity": 0.5, "storage": "csr"}, "storage: csr is for survivors"),
        ({"sparsity_structure": "32:64", "storage": "rank"}, "the ranks of 32:64 have 61 bits; use storage"),
    ],
)
def test_options_that_make_no_sense_together(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sparsify(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "shape", "message"),
    [
        (
            structure("row", 0.5),
            (8,),
            "row and column sparsity need a matrix, and this tensor has 1 dimensions",
        ),
        (
            structure("block:2x2", 0.5),
            (8,),
            "block sparsity needs a matrix, and this tensor has 1 dimensions",
        ),
        (structure("4:8", vector=2), (3, 12), "4:8 sparsity does not divide the last dimension of 12"),
        (Sparsify(0.5, granularity="row"), (), "a single number has no row; use granularity: tensor"),
        (Sparsify(0.5), (2**16, 2**15), "sparsity places at most 2147483647 numbers"),
    ],
)
def test_shapes_that_do_not_fit(stage: Sparsify, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        stage.layout(Sized(shape, torch.float32))


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        (structure("3:10"), "index"),
        (structure("2:4", storage="rank"), "rank"),
        (Sparsify(0.5, granularity="row", storage="index"), "index"),
        (Sparsify(0.5, storage="csr"), "columns"),
        (Sparsify(0.5, storage="csr"), "row_offsets"),
    ],
)
def test_damaged_places_are_said_to_be(stage: Sparsify, field: str) -> None:
    carry, fields = stage.encode(normal(3, 20))
    fields[field] = torch.full_like(fields[field], torch.iinfo(fields[field].dtype).max)
    with pytest.raises(WorkError, match=r"of a sparse tensor (is|are) damaged; load it from another copy"):
        stage.decode(carry, fields)


# training


@pytest.mark.parametrize("stage", [stage for stage, shape in CASES if len(shape) == 2], ids=str)
def test_masks_are_exact_after_training_steps(stage: Sparsify) -> None:
    shape = (16, 420 * 8)
    weight = normal(*shape, dtype=torch.float32).requires_grad_()
    target = normal(*shape, seed=1, dtype=torch.float32)
    r = chain(stage, Quantize(4, grid="midrise", observer="absmax", strategy="channel"))
    r.check(shape) if not stage.structured or shape[-1] % stage.pattern.m == 0 else pytest.fail("shape")  # type: ignore[attr-defined]
    optimiser = torch.optim.Adam([weight], lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        (project_with_gradient(weight, r, (StraightThrough(),)) - target).square().sum().backward()
        optimiser.step()
    with torch.no_grad():
        mask = expected_mask(stage, weight.double().numpy())
        assert np.array_equal(r.project(weight).numpy() != 0, mask), "mid-rise has no zero of its own"


@pytest.mark.parametrize("text", ["row", "column", "block:2x4"])
def test_cells_of_whole_lines_reach_every_number(text: str) -> None:
    r = chain(structure(text, 0.5), Quantize(4, grid="midrise", observer="absmax", strategy="channel"))
    x = normal(8, 16, dtype=torch.float32).requires_grad_()
    project_with_gradient(x, r, (Trust(),)).sum().backward()
    assert x.grad is not None
    mask = torch.from_numpy(expected_mask(structure(text, 0.5), x.detach().double().numpy()).copy())
    assert bool(x.grad[mask].bool().all()), "absmax clips nothing"


def test_text_form() -> None:
    assert str(structure("4:8", vector=2, storage="rank")) == "sparsify(4:8, vector=2, storage=rank)"
    assert str(Sparsify(0.123456789, granularity="row")) == "sparsify(0.123456789, granularity=row)"
    assert str(structure("block:4x4", 0.5)) == "sparsify(0.5, sparsity_structure=block:4x4)"
