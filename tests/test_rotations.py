"""Rotations and per-channel scales: matrices by their definition, what they keep, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag, hadamard
from torch import Tensor
from torch.nn import functional as F

from rhoc.runtime.capacity import gmse
from rhoc.runtime.errors import RequestError
from rhoc.runtime.estimators import Trust
from rhoc.runtime.hadamard_matrices import core_order, paley, sylvester
from rhoc.runtime.packed import Packed
from rhoc.runtime.projection import project_with_gradient
from rhoc.runtime.representation import Representation
from rhoc.runtime.stage import Fields, Sized, Stage
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify
from rhoc.runtime.stages.hadamard import kronecker_factors
from rhoc.runtime.stages.random_rotation import RandomRotation, random_orthogonal
from rhoc.runtime.stages.scale import Scale

Array = NDArray[np.float64]
INT4 = Quantize(4, strategy="channel", observer="rms")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def matrix_of(stage: Stage, size: int) -> Array:
    """What a rotation multiplies rows by from the right."""
    return stage.encode(torch.eye(size, dtype=torch.float64))[0].numpy()


# matrices of signs

# Multiples of 4 up to 1000 that are no power of two times an order of Paley's (the list in Wikipedia's
# "Paley construction").
BEYOND_PALEY = {
    *(92, 116, 156, 172, 184, 188, 232, 236, 260, 268, 292, 324, 356, 372, 376, 404, 412, 428, 436, 452, 472),
    *(
        476,
        508,
        520,
        532,
        536,
        584,
        596,
        604,
        612,
        652,
        668,
        712,
        716,
        732,
        756,
        764,
        772,
        808,
        836,
        852,
        856,
    ),
    *(872, 876, 892, 904, 932, 940, 944, 952, 956, 964, 980, 988, 996),
}


def test_orders_are_those_of_the_literature() -> None:
    reached = {size for size in range(1, 1001) if core_order(size) is not None}
    assert reached == {1, 2, *range(4, 1001, 4)} - BEYOND_PALEY
    assert core_order(0) is None
    assert [core_order(n) for n in (768, 11008, 13824, 14336, 29568)] == [12, 344, 108, 28, 924]


@pytest.mark.parametrize("order", [12, 20, 28, 36, 44, 52, 76, 100, 108, 140, 196, 244, 252, 344])
def test_paley_matrices_have_orthogonal_rows(order: int) -> None:
    assert core_order(order) == order
    matrix = paley(order).astype(np.float64)
    assert set(np.unique(matrix)) == {-1, 1}
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


def test_sylvester_matrices_are_those_of_scipy() -> None:
    for order in (1, 2, 8, 64):
        np.testing.assert_array_equal(sylvester(order), hadamard(order))
    with pytest.raises(ValueError, match="no matrix of order 92"):
        paley(92)


# hadamard


@pytest.mark.parametrize(
    ("block", "size", "used"),
    [(12, 36, 12), (20, 20, 20), (24, 48, 24), (100, 200, 100), ("full", 28, 28), ("full", 448, 448)],
)
def test_paley_blocks_are_rotations_by_signs(block: int, size: int, used: int) -> None:
    stage = Hadamard(block)
    assert stage.block_for(size) == used
    matrix = matrix_of(stage, size)
    blocks = block_diag(*[np.ones((used, used))] * (size // used))
    np.testing.assert_allclose(np.abs(matrix), blocks / math.sqrt(used), rtol=0, atol=1e-14)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), rtol=0, atol=1e-13)
    x = normal(2, 3, size)
    np.testing.assert_allclose(stage.encode(x)[0].numpy(), x.numpy() @ matrix, rtol=0, atol=1e-12)
    np.testing.assert_allclose(stage.decode(stage.encode(x)[0], {}).numpy(), x.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 64, 512, 1024, 4096])
def test_a_whole_power_of_two_is_the_sylvester_matrix(size: int) -> None:
    x = normal(3, size)
    for stage in (Hadamard("full"), Hadamard(size)):
        expected = x.numpy() @ (hadamard(size) / math.sqrt(size))
        np.testing.assert_allclose(stage.encode(x)[0].numpy(), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(stage.decode(x, {}).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [768, 896, 1376, 5120, 11008, 13824, 14336])
def test_whole_dimensions_of_models(size: int) -> None:
    stage = Hadamard("full")
    assert math.prod(kronecker_factors(size)) == size
    ones = torch.zeros(3, size, dtype=torch.float64)
    ones[0, 0] = ones[1, size // 2 + 1] = ones[2, -1] = 1
    rows = stage.encode(ones)[0].numpy()
    np.testing.assert_allclose(np.abs(rows), 1 / math.sqrt(size), rtol=1e-12)
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        stage.decode(torch.from_numpy(rows), {}).numpy(), ones.numpy(), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("block", ["full", 8, 12])
def test_signs_come_before_the_rotation_and_go_after(block: int) -> None:
    plain, random = matrix_of(Hadamard(block), 24), matrix_of(Hadamard(block, signs=7), 24)
    signs = np.sign((random * plain).sum(1))
    np.testing.assert_allclose(random, signs[:, None] * plain, rtol=0, atol=1e-15)
    assert 4 < (signs < 0).sum() < 20
    x = normal(5, 24)
    np.testing.assert_allclose(
        Hadamard(block, 7).decode(Hadamard(block, 7).encode(x)[0], {}), x, rtol=0, atol=1e-14
    )
    assert not np.array_equal(matrix_of(Hadamard(block, signs=8), 24), random)


def test_random_rotations_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    first = Hadamard(16, signs=123_456).encode(normal(2, 16))[0]
    second = RandomRotation(16, seed=123_456).encode(normal(2, 16))[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(Hadamard(16, signs=123_456).encode(normal(2, 16))[0], first)
    assert torch.equal(RandomRotation(16, seed=123_456).encode(normal(2, 16))[0], second)


@pytest.mark.parametrize(
    ("stage", "size", "why"),
    [
        (Hadamard(64), 15, "hadamard(64) cannot rotate a last dimension of 15: no power of two divides it"),
        (
            Hadamard("full"),
            1,
            "hadamard(full) cannot rotate a last dimension of 1: no power of two divides it",
        ),
        (
            Hadamard("full"),
            13696,
            "hadamard(full) cannot rotate a last dimension of 13696: no Hadamard matrix ",
        ),
        (Hadamard("full"), 13696, "(a power of two times 107); leave this tensor out"),
        (
            Hadamard("full", 3),
            18,
            "hadamard(full, signs=3) cannot rotate a last dimension of 18: no Hadamard",
        ),
        (Hadamard(12), 16, "hadamard(12) cannot rotate a last dimension of 16: 12 does not divide it; leave"),
        (RandomRotation(), 131, "rotate(128) cannot rotate a last dimension of 131: no block divides it"),
        (
            RandomRotation("full"),
            8200,
            "rotate(full) cannot rotate a last dimension of 8200: a matrix of that",
        ),
        (RandomRotation(), 0, "rotate(128) cannot rotate a last dimension of 0"),
    ],
    ids=str,
)
def test_dimensions_that_are_refused(stage: Stage, size: int, why: str) -> None:
    for attempt in (stage.check, lambda shape: stage.layout(Sized(shape, torch.float32))):
        with pytest.raises(RequestError) as caught:
            attempt((3, size))
        assert why in str(caught.value)
        assert caught.value.advice.startswith("leave this tensor out with `ignore`, or ")
    with pytest.raises(RequestError):
        stage.encode(torch.tensor(1.0))


@pytest.mark.parametrize("block", [0, 1, -8, 6, 18, 92, 107])
def test_blocks_without_a_matrix(block: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^block must be a power of two, .* got {block}; the nearest powers"
    ):
        Hadamard(block)
    with pytest.raises(ValueError, match="signs is a seed"):
        Hadamard(8, signs=-1)


# random orthogonal matrices


@pytest.mark.parametrize(
    ("block", "size", "used"),
    [(128, 96, 96), (16, 40, 10), (7, 21, 7), ("full", 30, 30), (128, 256, 128), (4, 1, 0)],
)
def test_random_rotations_are_orthogonal(block: int, size: int, used: int) -> None:
    stage = RandomRotation(block, seed=3)
    if not used:
        with pytest.raises(RequestError):
            stage.check((2, size))
        return
    matrix, x = matrix_of(stage, size), normal(2, 3, size)
    assert stage.block_for(size) == used
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(matrix[:used, used:], 0)
    np.testing.assert_allclose(matrix[-used:, -used:], matrix[:used, :used], rtol=0, atol=1e-13)
    np.testing.assert_allclose(stage.encode(x)[0].numpy(), x.numpy() @ matrix, rtol=0, atol=1e-13)
    np.testing.assert_allclose(stage.decode(stage.encode(x)[0], {}).numpy(), x.numpy(), rtol=0, atol=1e-13)


def test_random_rotations_are_uniform() -> None:
    # Without the signs of R the diagonal of Q leans to one side, by 0.6 of its spread for the first entry.
    drawn = np.stack(
        [random_orthogonal(s, 4, torch.float64, torch.device("cpu")).numpy() for s in range(2000)]
    )
    assert np.abs(drawn.mean(0)).max() < 4 * math.sqrt(1 / 4 / 2000)
    np.testing.assert_allclose(np.square(drawn).mean(0), 1 / 4, atol=0.025)
    assert abs(np.linalg.det(drawn).mean()) < 0.1, "rotations and reflections alike"


def test_options_of_random_rotations() -> None:
    assert str(RandomRotation()) == "rotate(128)"
    assert str(RandomRotation("full", 4)) == "rotate(full, seed=4)"
    assert RandomRotation.from_tokens([("", "64"), ("seed", "5")]) == RandomRotation(64, 5)
    assert Hadamard.from_tokens([("", "full"), ("signs", "5")]) == Hadamard("full", 5)
    assert str(Hadamard("full", 0)) == "hadamard(full, signs=0)"
    for wrong in (0, 1, 9000):
        with pytest.raises(ValueError, match="block must be between 2 and 8192"):
            RandomRotation(wrong)
    with pytest.raises(ValueError, match="seed must be"):
        RandomRotation(seed=-1)


# rotations in training, packing and other precisions

ROTATIONS = [
    Hadamard("full"),
    Hadamard(28, signs=1),
    Hadamard(8, signs=2),
    RandomRotation("full", 3),
    RandomRotation(8),
]


@pytest.mark.parametrize("stage", ROTATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rotations_compute_in_float32_and_round_once(stage: Stage, dtype: torch.dtype) -> None:
    x = normal(16, 56, dtype=dtype)
    exact = x.double().numpy() @ matrix_of(stage, 56)
    once = torch.from_numpy(exact).to(dtype).double().numpy()
    rotated = stage.encode(x)[0]
    assert rotated.dtype == dtype
    # at most a rounding away from the exact one where that lies on a border
    np.testing.assert_allclose(rotated.double().numpy(), once, rtol=1.1 * torch.finfo(dtype).eps, atol=2e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stage.encode(x)[0], rotated)
    back = stage.decode(rotated, {})
    torch.testing.assert_close(back, x, rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("stage", ROTATIONS, ids=str)
def test_rotations_of_no_numbers_and_of_shapes(stage: Stage) -> None:
    assert stage.encode(torch.empty(0, 56))[0].shape == (0, 56)
    assert stage.encode(torch.empty(3, 56, device="meta"))[0].shape == (3, 56)
    assert stage.layout(Sized((3, 56), torch.bfloat16)) == (Sized((3, 56), torch.bfloat16), {})
    assert stage.tags == {"orthogonal", "lossless"}
    assert gmse(Representation((stage, INT4))).value == gmse(Representation((INT4,))).value
    assert gmse(Representation((stage,))).value == 0
    assert Representation((Sparsify(0.5), stage, INT4)).stages[1].gaussian is not None
    assert [error for _, error in Representation((Sparsify(0.5), stage)).walk()][-1] is None


def test_a_matrix_first_made_in_inference_serves_training() -> None:
    stage = Hadamard(36, signs=99)
    with torch.inference_mode():
        stage.encode(torch.ones(2, 36))
    x = torch.ones(2, 36, requires_grad=True)
    (stage.encode(x)[0] * torch.arange(36)).sum().backward()
    assert x.grad is not None
    expected = np.ones((2, 1)) * (matrix_of(stage, 36) @ np.arange(36))
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("stage", ROTATIONS, ids=str)
def test_gradients_pass_through_the_rotated_mask(stage: Stage) -> None:
    r = Representation((stage, Quantize(2, strategy="channel", observer="rms", grid="midrise")))
    x = normal(6, 56).requires_grad_()
    grad = normal(6, 56, seed=1)
    project_with_gradient(x, r, (Trust(),)).backward(grad)
    matrix = matrix_of(stage, 56)
    rotated = x.detach().numpy() @ matrix
    step = np.diff(np.unique(np.round(r.project(x.detach()).numpy() @ matrix, 9)[0])).min()
    mask = np.abs(r.project(x.detach()).numpy() @ matrix - rotated)[0] <= step / 2 + 1e-9
    assert 0 < mask.sum() < 56
    assert x.grad is not None
    np.testing.assert_allclose(
        x.grad.numpy()[0], (grad.numpy() @ matrix * mask[None])[0] @ matrix.T, atol=1e-12
    )


@pytest.mark.parametrize("stage", ROTATIONS, ids=str)
def test_packed_weights_rotate_their_inputs(stage: Stage) -> None:
    r = Representation((stage, INT4))
    weight, x, bias = (
        normal(10, 56, dtype=torch.float32),
        normal(4, 56, seed=1, dtype=torch.float32),
        torch.ones(10),
    )
    packed = Packed.of(weight, r)
    assert torch.equal(packed.decode(), r.project(weight))
    dense = F.linear(x.double(), packed.decode().double(), bias.double())
    found = F.linear(x, packed, bias)  # type: ignore[arg-type]
    torch.testing.assert_close(found.double(), dense, rtol=0, atol=1e-4)
    tokens = torch.tensor([3, 9])
    torch.testing.assert_close(F.embedding(tokens, packed), packed.decode()[tokens], rtol=0, atol=1e-5)  # type: ignore[arg-type]


def test_a_rotation_spreads_an_outlier() -> None:
    x = normal(64, 896, dtype=torch.float32)
    x[:, 17] *= 100

    def lost(*stages: Stage) -> float:
        return float((x - Representation((*stages, INT4)).project(x)).square().mean())

    for stage in (Hadamard("full"), Hadamard("full", 1), RandomRotation("full")):
        assert lost(stage) < 0.5 * lost()


# per-channel scales


def by_hand(x: Array, along: str, rule: str) -> Array:
    matrix = x.reshape(-1, x.shape[-1])
    axis = 0 if along == "columns" else 1
    size = np.sqrt(np.square(matrix).mean(axis)) if rule == "rms" else np.abs(matrix).max(axis)
    return np.where(size > 0, size, 1.0)


@pytest.mark.parametrize("along", ["columns", "rows"])
@pytest.mark.parametrize("rule", ["rms", "absmax"])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4), (1, 1)])
def test_scales_by_hand(along: str, rule: str, shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    x[..., -1] = 0
    stage = Scale(along, rule)  # type: ignore[arg-type]
    carry, fields = stage.encode(x)
    size = by_hand(x.numpy(), along, rule)
    np.testing.assert_allclose(fields["scale"].flatten().numpy(), size, rtol=1e-14)
    divisor = size if along == "columns" else size.reshape(*shape[:-1], 1)
    np.testing.assert_allclose(carry.numpy(), x.numpy() / divisor, rtol=1e-14)
    np.testing.assert_allclose(stage.decode(carry, fields).numpy(), x.numpy(), rtol=1e-15, atol=1e-300)
    layout = stage.layout(Sized(shape, torch.float64))
    assert layout == (
        Sized(shape, torch.float64),
        {"scale": Sized(tuple(fields["scale"].shape), torch.float64)},
    )


def test_columns_and_then_rows_balance_both() -> None:
    x = normal(300, 200) * torch.exp(normal(200, seed=1)) * torch.exp(0.3 * normal(300, 1, seed=2))
    both = Representation((Scale(), Scale("rows")))
    carry = both.encode(x).carry
    np.testing.assert_allclose(carry.square().mean(1), 1, rtol=1e-12)
    np.testing.assert_allclose(carry.square().mean(0), 1, atol=0.4)
    tensor = Quantize(4, strategy="tensor", observer="mse")

    def lost(*stages: Stage) -> float:
        relative = (x - Representation((*stages, tensor)).project(x)) / x.square().mean(0).sqrt()
        return float(relative.square().mean())

    assert lost(Scale(), Scale("rows")) < 0.2 * lost()


def test_powers_of_two_are_the_nearest_and_divide_exactly() -> None:
    sizes = torch.tensor([1.0, 1.41, 1.42, 2.82, 2.83, 0.7, 0.71, 3e-45, 1e38, 0.0])
    x = torch.stack([sizes, -sizes])
    stage = Scale("columns", "absmax", "e8m0")
    carry, fields = stage.encode(x)
    assert fields["scale"].dtype == torch.uint8
    powers = fields["scale"].int() - 127
    assert powers.tolist() == [0, 0, 1, 1, 2, -1, 0, -126, 126, 0]
    assert torch.equal(stage.decode(carry, fields), x)
    assert not stage.scale_free
    assert Scale().scale_free
    assert Representation((stage,)).bits_per_weight((64, 32), torch.bfloat16) == 16 + 8 / 64


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "e8m0", None])
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_scales_stay_within_what_is_stored(dtype: str | None, size: float) -> None:
    x = normal(4, 6, dtype=torch.float32) * size
    for rule in ("rms", "absmax"):
        stage = Scale("rows", rule, dtype)  # type: ignore[arg-type]
        carry, fields = stage.encode(x)
        assert carry.isfinite().all()
        torch.testing.assert_close(stage.decode(carry, fields), x, rtol=1e-6, atol=0)
        if dtype is not None and dtype != "e8m0":
            assert fields["scale"].dtype == getattr(torch, dtype)


def test_importance_follows_the_scale() -> None:
    x = normal(5, 6)
    carry, fields, importance = Scale().encode_weighted(x, torch.ones(5, 6, dtype=torch.float64))
    assert importance is not None
    # an error in the carry counts as much as what it decodes to
    error = normal(5, 6, seed=1) * 0.1
    decoded = Scale().decode(carry + error, fields) - Scale().decode(carry, fields)
    torch.testing.assert_close((importance * error.square()).sum(), decoded.square().sum())
    assert torch.equal(Scale().encode(x)[0], carry)


@pytest.mark.parametrize(
    "first", [Scale(), Scale("rows", "absmax"), Scale("columns", "rms", "e8m0")], ids=str
)
def test_estimators_see_cells_and_masks_at_their_size(first: Stage) -> None:
    x = normal(8, 16) * torch.linspace(0.1, 10, 16)
    grid = Quantize(3, strategy="channel", observer="rms", grid="midrise")
    view = Representation((first, grid)).view(x)
    assert view.cell is not None
    carry, fields = first.encode(x)
    inner = Representation((grid,)).view(carry).cell
    assert inner is not None
    factor = first.decode(torch.ones(8, 16, dtype=torch.float64), fields)
    torch.testing.assert_close(view.cell.half_width.expand(8, 16), inner.half_width * factor)
    torch.testing.assert_close(view.cell.outermost.expand(8, 16), inner.outermost * factor)
    sparse = Representation((first, Sparsify(0.5), INT4)).view(x)
    assert sparse.kept is not None
    assert sparse.kept.dtype == torch.bool
    assert torch.equal(sparse.kept, first.encode(x)[0].abs() >= first.encode(x)[0].abs().median() + 1e-12)


@pytest.mark.parametrize(("stage", "shape"), [(Scale(), (5,)), (Scale(), ()), (Scale("rows"), ())], ids=str)
def test_shapes_without_channels(stage: Stage, shape: tuple[int, ...]) -> None:
    for attempt in (lambda: stage.check(shape), lambda: stage.encode(torch.ones(shape))):
        with pytest.raises(RequestError, match="cannot scale a"):
            attempt()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (2, 0, 3)])
@pytest.mark.parametrize("stage", [Scale(), Scale("rows"), Scale("rows", "absmax", "e8m0")], ids=str)
def test_scales_of_no_numbers(stage: Stage, shape: tuple[int, ...]) -> None:
    carry, fields = stage.encode(torch.empty(shape))
    assert stage.decode(carry, fields).shape == shape
    expected: dict[str, Sized] = stage.layout(Sized(shape, torch.float32))[1]
    assert tuple(fields["scale"].shape) == expected["scale"].shape
    meta: Fields = stage.encode(torch.empty(shape, device="meta"))[1]
    assert meta["scale"].shape == fields["scale"].shape


def test_gaussian_error_is_that_of_what_follows() -> None:
    for stage in (Scale(), Scale("rows", "absmax"), Scale("rows", "rms", "float16")):
        assert gmse(Representation((stage, INT4))).value == pytest.approx(
            gmse(Representation((INT4,))).value, rel=1e-9
        )
