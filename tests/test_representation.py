"""The algebra of representations: laws that hold for every chain of registered stages."""

from __future__ import annotations

import copy
import pickle
from math import ceil, prod

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given
from torch import Tensor

from rhoc.runtime.errors import RequestError
from rhoc.runtime.estimators import StraightThrough
from rhoc.runtime.projection import project_with_gradient
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import STAGES, Entropy, Hadamard, Quantize, Sparsify, Stage
from rhoc.runtime.text_parser import from_text

from .strategies import (
    DTYPES,
    FLAT,
    STAGE_STRATEGIES,
    Case,
    cases,
    chains,
    repeatable,
    shapes,
    stages,
    tensors,
)


def chain(*parts: Stage) -> Representation:
    return Representation(parts)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, dtype and every bit of every number."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def test_every_registered_stage_has_a_strategy() -> None:
    assert set(STAGE_STRATEGIES) == set(STAGES)


@repeatable
@given(cases())
def test_project_is_decode_of_what_is_stored(case: Case) -> None:
    r, x = case.representation, case.x
    code = r.encode(x)
    stored = r.pack(code)
    restored = r.unpack(stored, tuple(x.shape), x.dtype)
    projected = r.project(x)
    assert same(projected, r.decode(code))
    assert same(projected, r.decode(restored))
    assert projected.shape == x.shape
    assert projected.dtype == x.dtype
    assert projected.isfinite().all()
    for name, field in code.named().items():
        assert same(field.contiguous(), restored.named()[name]), name


@repeatable
@given(cases())
def test_declared_layout_is_the_stored_one(case: Case) -> None:
    r, x = case.representation, case.x
    assume(not any(isinstance(stage, Entropy) for stage in r.all_stages()))  # sizes depend on the numbers
    layout = r.layout(tuple(x.shape), x.dtype)
    named, stored = r.encode(x).named(), r.pack(r.encode(x))
    assert layout.keys() == named.keys() == stored.keys()
    for name, field in layout.items():
        assert field.shape == named[name].shape
        assert field.dtype == named[name].dtype
        assert field.stored_shape == stored[name].shape
        rows, last = prod(field.shape[:-1]), prod(field.shape[-1:])
        bits = ceil(last * field.bits / 8) * 8 if field.shape else ceil(field.bits / 8) * 8
        assert field.nbytes == stored[name].nbytes == rows * bits // 8
    assert r.nbytes(tuple(x.shape), x.dtype) == sum(t.nbytes for t in stored.values())
    assert r.bits_per_weight(tuple(x.shape), x.dtype) * max(x.numel(), 1) == 8 * sum(
        t.nbytes for t in stored.values()
    )


@repeatable
@given(cases())
def test_memory_layout_does_not_matter(case: Case) -> None:
    r, x = case.representation, case.x
    assert same(r.project(x), r.project(x.contiguous()))


@repeatable
@given(cases())
def test_input_is_left_alone(case: Case) -> None:
    before = case.x.clone()
    case.representation.project(case.x)
    assert same(case.x, before)


@repeatable
@given(st.data(), shapes())
def test_chaining_is_associative(data: st.DataObject, shape: tuple[int, ...]) -> None:
    whole = data.draw(chains(shape, longest=5))
    first, second = sorted(data.draw(st.lists(st.integers(0, len(whole.stages)), min_size=2, max_size=2)))
    a, b, c = (
        Representation(s) for s in (whole.stages[:first], whole.stages[first:second], whole.stages[second:])
    )
    left, right = (a >> b) >> c, a >> (b >> c)
    assert left == right == whole
    assert hash(left) == hash(right)
    assert from_text(str(left)) == whole
    x = data.draw(tensors(shape))
    assert same(left.project(x), right.project(x))


@repeatable
@given(st.data(), stages(), shapes())
def test_tagged_stages_are_idempotent(data: st.DataObject, stage: Stage, shape: tuple[int, ...]) -> None:
    if "idempotent" not in stage.tags:
        stage = data.draw(STAGE_STRATEGIES[Sparsify])
    shape = (*shape[:-1], 24 * shape[-1])
    once = chain(stage).project(data.draw(tensors(shape)))
    assert same(chain(stage).project(once), once)


@repeatable
@given(st.data(), stages(), shapes())
def test_tagged_stages_are_lossless_and_orthogonal(
    data: st.DataObject, stage: Stage, shape: tuple[int, ...]
) -> None:
    if not {"lossless", "orthogonal"} & stage.tags:
        stage = data.draw(STAGE_STRATEGIES[Hadamard])
    shape = (3, *shape[:-1], 2 * shape[-1])
    x, y = data.draw(tensors(shape, (torch.float64,))), data.draw(tensors(shape, (torch.float64,)))
    if "lossless" in stage.tags:
        torch.testing.assert_close(chain(stage).project(x), x, rtol=1e-12, atol=1e-12)
    if "orthogonal" in stage.tags:
        rotated_x, rotated_y = chain(stage).encode(x).carry, chain(stage).encode(y).carry
        torch.testing.assert_close(rotated_x.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=1e-12)
        inner = (rotated_x * rotated_y).sum(-1)
        torch.testing.assert_close(inner, (x * y).sum(-1), rtol=1e-12, atol=1e-9)


@repeatable
@given(cases((torch.float32, torch.float64), kinds=FLAT), st.sampled_from([2.0**-12, 0.5, 4.0, 2.0**9]))
def test_a_power_of_two_passes_through(case: Case, factor: float) -> None:
    # Every scale is a multiple of the numbers it is taken from, unless it is stored with a narrow exponent.
    r, x = case.representation, case.x
    assume(all(getattr(stage, "scale_dtype", None) != "float16" for stage in r.stages))
    assume(not _has_empty_block(r, x))
    assert same(r.project(x * factor), r.project(x) * factor)


def _has_empty_block(r: Representation, x: Tensor) -> bool:
    """Whether some scale is the smallest there is, because all its numbers are zero."""
    fields = [field["scale"] for field in r.encode(x).fields if "scale" in field]
    return any(bool((scale <= 4 * torch.finfo(scale.dtype).tiny).any()) for scale in fields)


@repeatable
@given(cases(kinds=FLAT))
def test_sign_passes_through(case: Case) -> None:
    r, x = case.representation, case.x
    symmetric = all(
        not isinstance(s, Quantize) or s.type == "float" or s.grid == "midtread" for s in r.stages
    )
    assume(symmetric)
    assert same(r.project(-x), -r.project(x))


@repeatable
@given(cases(fewest=1, kinds=FLAT))
def test_rows_are_independent(case: Case) -> None:
    r, x = case.representation, case.x
    mixes_rows = any(
        (isinstance(s, Sparsify) and not s.structured) or (isinstance(s, Quantize) and s.strategy == "tensor")
        for s in r.stages
    )
    rotates = any(
        isinstance(s, Hadamard) for s in r.stages
    )  # a matmul may sum in another order for fewer rows
    assume(x.ndim > 1 and not mixes_rows and not rotates)
    assert same(r.project(x[-1:]), r.project(x)[-1:])


@repeatable
@given(cases())
def test_trained_projection_has_the_same_bits(case: Case) -> None:
    r, x = case.representation, case.x.clone().requires_grad_()
    trained = project_with_gradient(x, r, (StraightThrough(),))
    assert same(trained.detach(), r.project(case.x))
    trained.sum().backward()
    assert x.grad is not None
    assert same(x.grad, torch.ones_like(case.x, memory_format=torch.contiguous_format)), "straight through"


@repeatable
@given(cases())
def test_view_shows_the_projection(case: Case) -> None:
    r, x = case.representation, case.x
    view = r.view(x)
    assert view.latent.shape == view.projected.shape == x.shape
    assert (r.rotation >> Representation(r.stages[len(r.rotation.stages) :])) == r
    rotated_back = view.projected
    for stage in reversed(r.rotation.stages):
        rotated_back = stage.decode(rotated_back, {})
    assert same(rotated_back.to(x.dtype), r.project(x))
    if not all(isinstance(stage, FLAT) for stage in r.stages):
        return
    sparse = [s for s in r.core.stages if isinstance(s, Sparsify)]
    assert (view.kept is None) == (not sparse)
    if view.kept is not None and len(r.core.stages) == len(sparse):
        assert same(view.projected, view.latent * view.kept)
    assert (view.cell is None) == (not any(isinstance(s, Quantize) for s in r.stages))
    if view.cell is not None:
        torch.broadcast_to(view.cell.half_width, x.shape)
        torch.broadcast_to(view.cell.outermost, x.shape)


@repeatable
@given(st.data(), shapes())
def test_representations_are_values(data: st.DataObject, shape: tuple[int, ...]) -> None:
    r = data.draw(chains(shape))
    r.project(torch.zeros(shape))
    for twin in (Representation(r.stages), copy.deepcopy(r), pickle.loads(pickle.dumps(r))):
        assert twin == r
        assert hash(twin) == hash(r)
        assert str(twin) == str(r)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_is_the_tensor_itself(dtype: torch.dtype) -> None:
    dense, x = Representation(), torch.randn(3, 5).to(dtype)
    assert dense.is_dense
    assert str(dense) == "dense"
    assert dense.project(x) is x
    assert project_with_gradient(x, dense, (StraightThrough(),)) is x
    assert dense.bits_per_weight((3, 5), dtype) == 8 * dtype.itemsize
    assert same(dense.decode(dense.unpack(dense.pack(dense.encode(x)), (3, 5), dtype)), x)


@pytest.mark.parametrize(
    "stage", [Quantize(4), Quantize(3, observer="rms", strategy="channel"), Sparsify(0.9)]
)
def test_a_scalar_is_a_tensor_of_one_number(stage: Stage) -> None:
    r, x = chain(stage), torch.tensor(3.0)
    restored = r.decode(r.unpack(r.pack(r.encode(x)), (), x.dtype))
    assert same(restored, r.project(x))
    assert same(restored, r.project(x.reshape(1))[0])
    assert r.nbytes((), x.dtype) == sum(t.nbytes for t in r.pack(r.encode(x)).values())


INT4 = Quantize(4, strategy="channel", observer="rms")
HALF = Sparsify(sparsity_structure="2:4")


@pytest.mark.parametrize(
    ("representation", "shape", "dtype", "bits"),
    [
        (chain(INT4), (256, 512), torch.bfloat16, 4 + 16 / 512),
        (chain(Hadamard(128), INT4), (256, 512), torch.bfloat16, 4 + 16 / 512),
        (chain(INT4), (256, 512), torch.float32, 4 + 32 / 512),
        (chain(Quantize(4, strategy="channel", scale_dtype="float16")), (8, 64), torch.float32, 4 + 16 / 64),
        (chain(Quantize(3, strategy="group", group_size=128)), (4, 512), torch.float16, 3 + 16 / 128),
        (chain(Quantize(3)), (4, 5), torch.float16, (4 * 16 + 16) / 20),  # a row of 5 x 3 bits takes 2 bytes
        (chain(Quantize(8, "float")), (16, 16), torch.bfloat16, 8 + 16 / 256),
        (chain(Sparsify(0.5)), (16, 64), torch.bfloat16, 16 / 2 + 1),
        (chain(Sparsify(0.75)), (16, 64), torch.float32, 32 / 4 + 1),
        (chain(HALF), (16, 64), torch.bfloat16, 16 / 2 + 2 / 2),
        (chain(HALF, INT4), (16, 64), torch.bfloat16, 4 / 2 + 2 / 2 + 16 / 64),
        (chain(Hadamard(16), Sparsify(0.5), INT4), (16, 64), torch.bfloat16, 4 / 2 + 1 + 16 / (16 * 64)),
        (chain(Sparsify(sparsity_structure="4:8"), HALF), (2, 64), torch.bfloat16, 16 / 4 + 3 / 2 + 2 / 4),
        (chain(Sparsify(sparsity_structure="1:256")), (1, 512), torch.bfloat16, (16 + 8) / 256),
    ],
    ids=str,
)
def test_bits_per_weight_by_hand(
    representation: Representation, shape: tuple[int, ...], dtype: torch.dtype, bits: float
) -> None:
    assert representation.bits_per_weight(shape, dtype) == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize(
    ("representation", "shape", "message"),
    [
        (
            chain(Quantize(4, strategy="block", block_structure=(16, 16))),
            (48,),
            "blocks of 16x16 need a matrix, not shape [48]; "
            "leave this tensor out with `ignore`, or use strategy: group",
        ),
        (
            chain(HALF),
            (8, 6),
            "2:4 sparsity does not divide the last dimension of 6; "
            "choose a structure whose m divides it, or leave this tensor out with `ignore`",
        ),
        (
            chain(Hadamard(64)),
            (8, 15),
            "hadamard(64) cannot rotate a last dimension of 15: no power of two divides it; "
            "leave this tensor out with `ignore`, or use a spec without a rotation for it",
        ),
        (
            chain(Hadamard(2)),
            (),
            "hadamard(2) cannot rotate a last dimension of 0: no power of two divides it; "
            "leave this tensor out with `ignore`, or use a spec without a rotation for it",
        ),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(
    representation: Representation, shape: tuple[int, ...], message: str
) -> None:
    for attempt in (
        lambda: representation.check(shape),
        lambda: representation.layout(shape, torch.bfloat16),
        lambda: representation.project(torch.zeros(shape)),
    ):
        with pytest.raises(RequestError) as caught:
            attempt()
        assert str(caught.value) == message
        assert caught.value.exit_code == 2


def test_nothing_follows_integer_codes() -> None:
    with pytest.raises(
        ValueError, match=r"^hadamard\(8\) cannot follow quantize\(int4, twos, channel, rms\), which"
    ):
        chain(INT4, Hadamard(8))
    with pytest.raises(ValueError, match=r"hands on integer codes; put it before$"):
        chain(INT4) >> chain(HALF)
    assert (chain(HALF) >> chain(INT4)).stages == (HALF, INT4)


def test_leading_rotations_are_told_from_the_core() -> None:
    r = chain(Hadamard(8), Hadamard(2), HALF, Hadamard(4), INT4)
    assert r.rotation == chain(Hadamard(8), Hadamard(2))
    assert [type(stage) for stage in r.core.stages] == [Sparsify, Hadamard, Quantize]
    assert chain(Hadamard(8)).core == Representation()
    assert chain(HALF, INT4).rotation == Representation()


def test_the_core_keeps_the_clip_of_the_whole_chain() -> None:
    whole = chain(Hadamard(8), HALF, INT4)
    (_, bound) = whole.core.stages
    assert isinstance(bound, Quantize)
    assert bound.clip == whole.bound_stages[-1].clip != chain(INT4).bound_stages[0].clip  # type: ignore[attr-defined]
    assert whole.core.core == whole.core


def test_text_form() -> None:
    r = chain(
        Hadamard(128),
        HALF,
        Quantize(4, strategy="group", group_size=64, scale_dtype="float16", grid="midrise"),
    )
    assert (
        str(r) == "hadamard(128) >> sparsify(2:4) >> quantize(int4, midrise, group=64, absmax, scale=float16)"
    )
    assert str(chain(Sparsify(0.125), Quantize(4, "float", observer="rms", clip=2.5))) == (
        "sparsify(0.125) >> quantize(e2m1, tensor, rms, clip=2.5)"
    )
