"""Each stage by itself, against formulas and tables written here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor

from rhoc.runtime.errors import RequestError
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify, Stage


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# hadamard


@pytest.mark.parametrize(
    ("block", "size", "used"), [(2, 6, 2), (8, 8, 8), (8, 24, 8), (128, 48, 16), (128, 640, 128)]
)
def test_hadamard_is_the_block_diagonal_sylvester_matrix(block: int, size: int, used: int) -> None:
    stage, x = Hadamard(block), normal(3, 5, size)
    matrix = np.kron(np.eye(size // used), hadamard(used) / math.sqrt(used))
    assert stage.block_for(size) == used
    carry, fields = stage.encode(x)
    assert fields == {}
    np.testing.assert_allclose(carry.numpy(), x.numpy() @ matrix, rtol=0, atol=1e-13)
    np.testing.assert_allclose(stage.decode(carry, {}).numpy(), x.numpy(), rtol=0, atol=1e-13)


def test_hadamard_computes_in_float32_and_rounds_once() -> None:
    x = normal(64, 128, dtype=torch.bfloat16)
    once = Hadamard(128).encode(x.float())[0].bfloat16()
    assert torch.equal(Hadamard(128).encode(x)[0], once)


def test_autocast_does_not_change_the_rotation() -> None:
    x = normal(16, 128, dtype=torch.float32)
    plain = Hadamard(128).encode(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        inside = Hadamard(128).encode(x)[0]
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)


@pytest.mark.parametrize(
    ("block", "nearest"), [(0, "2 and 4"), (1, "2 and 4"), (-8, "2 and 4"), (42, "32 and 64")]
)
def test_hadamard_blocks_have_a_matrix(block: int, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"power of two, .* got {block}; .* powers of two are {nearest}"):
        Hadamard(block)


# sparsify


@pytest.mark.parametrize("sparsity", [0.01, 0.25, 0.5, 0.75, 0.9, 0.999])
@pytest.mark.parametrize("shape", [(64,), (1, 30), (7, 33), (2, 3, 40)])
def test_unstructured_keeps_the_largest_and_zeroes_an_exact_number(
    sparsity: float, shape: tuple[int, ...]
) -> None:
    x = normal(*shape)
    size = x.numel()
    zeros = round(sparsity * size)
    carry, fields = Sparsify(sparsity).encode(x)
    projected = Sparsify(sparsity).decode(carry, fields)
    order = np.argsort(-np.abs(x.numpy().ravel()), kind="stable")
    kept = np.zeros(size, dtype=bool)
    kept[order[: size - zeros]] = True
    assert int((projected == 0).sum()) == zeros
    assert torch.equal(projected, x * torch.from_numpy(kept.reshape(shape)))
    assert torch.equal(carry, x.reshape(-1)[torch.from_numpy(kept)]), "survivors in order"
    assert fields["mask"].dtype == torch.bool
    assert torch.equal(fields["mask"], torch.from_numpy(kept.reshape(shape)))


@pytest.mark.parametrize("structure", ["1:2", "2:4", "3:4", "2:3", "4:8", "1:16", "5:6"])
@pytest.mark.parametrize("rows", [(), (1,), (5,), (2, 3)])
def test_n_of_m_keeps_the_largest_of_every_group(structure: str, rows: tuple[int, ...]) -> None:
    kept, group = map(int, structure.split(":"))
    x = normal(*rows, 3 * group)
    stage = Sparsify(sparsity_structure=structure)
    carry, fields = stage.encode(x)
    groups = x.reshape(-1, group).numpy()
    positions = np.sort(np.argsort(-np.abs(groups), axis=1)[:, :kept], axis=1)
    expected = np.zeros_like(groups)
    np.put_along_axis(expected, positions, np.take_along_axis(groups, positions, 1), 1)
    assert carry.shape == fields["index"].shape == (*rows, 3 * kept)
    assert fields["index"].dtype == torch.uint8
    assert np.array_equal(fields["index"].numpy().reshape(-1, kept), positions)
    assert np.array_equal(stage.decode(carry, fields).numpy().reshape(-1, group), expected)
    assert stage.widths() == {"index": math.ceil(math.log2(group))}


@pytest.mark.parametrize("stage", [Sparsify(0.5), Sparsify(0.25), Sparsify(sparsity_structure="2:4")])
@pytest.mark.parametrize("value", [3.0, 0.0, -1.0])
def test_ties_never_change_the_count(stage: Sparsify, value: float) -> None:
    x = torch.full((4, 8), value)
    carry, fields = stage.encode(x)
    assert carry.numel() == stage.kept_count(32)
    assert int((stage.decode(carry, fields) != 0).sum()) == (stage.kept_count(32) if value else 0)
    mixed = torch.tensor([[2.0, -1.0, 1.0, 1.0, -2.0, 1.0, 1.0, -1.0]])
    projected = Representation((Sparsify(0.5),)).project(mixed)
    assert projected[0, [0, 4]].tolist() == [2.0, -2.0]
    assert int((projected == 0).sum()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "unstructured sparsity must be a fraction between 0 and 1, got None"),
        ({"sparsity": -0.1}, "between 0 and 1, got -0.1"),
        ({"sparsity": 1.0}, "between 0 and 1, got 1.0"),
        ({"sparsity": math.nan}, "between 0 and 1, got nan"),
        (
            {"sparsity_structure": "2/4"},
            "must be 'unstructured', 'n:m', 'block:RxC', 'row' or 'column', got '2/4'",
        ),
        (
            {"sparsity_structure": "2:"},
            "must be 'unstructured', 'n:m', 'block:RxC', 'row' or 'column', got '2:'",
        ),
        (
            {"sparsity_structure": "-2:4"},
            "must be 'unstructured', 'n:m', 'block:RxC', 'row' or 'column', got '-2:4'",
        ),
        ({"sparsity_structure": "4:4"}, "n:m needs 0 < n < m <= 256, got 4:4"),
        ({"sparsity_structure": "0:4"}, "n:m needs 0 < n < m <= 256, got 0:4"),
        ({"sparsity_structure": "2:512"}, "n:m needs 0 < n < m <= 256, got 2:512"),
        ({"sparsity": 0.25, "sparsity_structure": "2:4"}, "2:4 is 0.5 sparse; leave `sparsity` out"),
    ],
)
def test_sparsify_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sparsify(**arguments)  # type: ignore[arg-type]


# quantize

DIVISORS = [  # absmax scale = M / divisor (conventions of the Gaussian error tables)
    (Quantize(4, grid="midtread"), 7.0),
    (Quantize(4), 7.5),
    (Quantize(4, grid="midrise"), 7.5),
    (Quantize(2, grid="midtread"), 1.0),
    (Quantize(8), 127.5),
    (Quantize(1), 0.5),
    (Quantize(4, "float"), 6.0),
    (Quantize(8, "float"), 448.0),
    (Quantize(8, "float", grid="e5m2"), 57344.0),
]


@pytest.mark.parametrize(("stage", "divisor"), DIVISORS, ids=str)
def test_absmax_scales(stage: Quantize, divisor: float) -> None:
    x = normal(6, 32)
    codes, fields = stage.encode(x)
    assert codes.dtype == torch.uint8
    torch.testing.assert_close(fields["scale"], x.abs().max().reshape(1) / divisor)
    levels = np.array(stage.levels.levels) * float(fields["scale"])
    nearest = np.abs(x.numpy()[..., None] - levels).argmin(-1)
    np.testing.assert_allclose(stage.decode(codes, fields).numpy(), levels[nearest], rtol=1e-12)


@pytest.mark.parametrize(
    ("strategy", "group_size", "scale_shape"),
    [("tensor", None, (1,)), ("channel", None, (2, 3)), ("token", None, (2, 3)), ("group", 8, (2, 3, 4))],
)
def test_what_shares_a_scale(strategy: str, group_size: int | None, scale_shape: tuple[int, ...]) -> None:
    x = normal(2, 3, 32) * torch.arange(1, 7, dtype=torch.float64).reshape(2, 3, 1)
    stage = Quantize(4, strategy=strategy, group_size=group_size)  # type: ignore[arg-type]
    scale = stage.encode(x)[1]["scale"]
    blocks = {"tensor": x.reshape(1, 192), "group": x.reshape(2, 3, 4, 8)}.get(strategy, x)
    assert scale.shape == scale_shape
    torch.testing.assert_close(scale, blocks.abs().amax(-1) / 7.5)
    cell = stage.cell(stage.encode(x)[1])
    expected = {"tensor": scale, "group": scale.repeat_interleave(8, dim=-1)}.get(
        strategy, scale.unsqueeze(-1)
    )
    assert torch.equal(cell.half_width.expand(2, 3, 32), (0.5 * expected).expand(2, 3, 32))
    assert torch.equal(cell.outermost.expand(2, 3, 32), (7 * expected).expand(2, 3, 32))
    assert cell.num_levels == 16


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_the_scale_is_rounded_before_it_is_used(stored: torch.dtype) -> None:
    x = normal(4, 64, dtype=torch.float32)
    stage = Quantize(8, strategy="channel", scale_dtype=str(stored).removeprefix("torch."))  # type: ignore[arg-type]
    codes, fields = stage.encode(x)
    scale = (x.abs().amax(-1) / 127.5).to(stored)
    assert torch.equal(fields["scale"], scale)
    expected = torch.round(x / scale.float()[:, None]).clamp(-128, 127)
    assert torch.equal(codes.float() - 128, expected)
    assert torch.equal(stage.decode(codes, fields), expected * scale.float()[:, None])


def test_rms_scale_is_clip_times_rms() -> None:
    x = normal(5, 48)
    scale = Quantize(3, strategy="channel", observer="rms", grid="midrise", clip=2.0).encode(x)[1]["scale"]
    torch.testing.assert_close(scale, 2.0 * x.square().mean(-1).sqrt() / 3.5)
    with pytest.raises(
        RequestError, match="an rms scale needs its clip; call encode through a Representation"
    ):
        Quantize(3, observer="rms").encode(x)


@pytest.mark.parametrize(
    "stage",
    [Quantize(b, observer="mse") for b in (1, 2, 3, 4)]
    + [Quantize(b, observer="mse", grid="midrise") for b in (2, 4)]
    + [Quantize(2, observer="mse", grid="midtread"), Quantize(4, "float", observer="mse")],
    ids=str,
)
@pytest.mark.parametrize("power", [1, 3])  # normal numbers, and their cubes: heavy tails
def test_mse_scale_is_the_best_there_is(stage: Quantize, power: int) -> None:
    x = normal(2000, seed=3) ** power
    codes, fields = stage.encode(x)
    reached = float((stage.decode(codes, fields) - x).square().mean())
    levels = np.array(stage.levels.levels)
    middles = (levels[1:] + levels[:-1]) / 2
    top = float(x.abs().max()) / stage.levels.absmax_level
    errors = [
        float(np.mean((levels[np.searchsorted(middles, x.numpy() / s)] * s - x.numpy()) ** 2))
        for s in top * np.geomspace(0.02, 1.2, 3000)
    ]
    assert reached <= 1.005 * min(errors)


@pytest.mark.parametrize("observer", ["absmax", "mse", "rms"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "stage", [{"num_bits": 4}, {"num_bits": 4, "grid": "midrise"}, {"num_bits": 8, "type": "float"}]
)
def test_zeros_stay_next_to_zero(observer: str, dtype: torch.dtype, stage: dict[str, object]) -> None:
    r = Representation((Quantize(strategy="channel", observer=observer, **stage),))  # type: ignore[arg-type]
    x = torch.zeros(2, 16, dtype=dtype)
    x[1] = 1
    projected = r.project(x)
    assert projected.isfinite().all()
    assert float(projected[0].abs().max()) <= (1e-37 if dtype != torch.float16 else 1e-7)
    if stage.get("grid") != "midrise":
        assert not projected[0].any()


def test_small_float16_numbers_keep_their_scale() -> None:
    # The scale of these is below float16's smallest normal number, 6e-5.
    x = (normal(4, 64) * 1e-4).half()
    r = Representation((Quantize(4, strategy="channel"),))
    error = (r.project(x).double() - x.double()).square().sum() / x.double().square().sum()
    assert float(error) < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_bits": 0}, "num_bits must be between 1 and 8, got 0"),
        ({"num_bits": 9}, "num_bits must be between 1 and 8, got 9"),
        ({"strategy": "group"}, "strategy 'group' and group_size go together: give both or neither"),
        ({"group_size": 8}, "strategy 'group' and group_size go together: give both or neither"),
        ({"strategy": "group", "group_size": 0}, "group_size must be positive, got 0"),
        ({"clip": 2.0}, "clip is a positive factor of the rms and needs observer: rms"),
        ({"observer": "rms", "clip": 0.0}, "clip is a positive factor of the rms"),
        ({"grid": "e2m1"}, "grid 'e2m1' is not a grid of type 'int'"),
        ({"type": "float", "grid": "twos"}, "grid 'twos' is not a grid of type 'float'"),
        ({"type": "float", "num_bits": 6}, "a 6-bit float needs a grid, for example grid: e3m2"),
        (
            {"type": "float", "num_bits": 4, "grid": "e3m2"},
            r"e3m2 has 6 bits \(sign included\), but num_bits is 4",
        ),
        (
            {"type": "float", "grid": "nf9"},
            "no grid is called 'nf9'; known are midrise, midtread, twos",
        ),
        (
            {"num_bits": 1, "grid": "midtread"},
            "midtread with 1 bit has no level above zero; use grid: midrise",
        ),
        ({"num_bits": 1, "grid": "twos"}, "twos with 1 bit has no level above zero; use grid: midrise"),
    ],
)
def test_quantize_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantize(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "stage", [Quantize(4), Quantize(4, "float"), Quantize(8, "float"), Hadamard(4), Sparsify(0.5)]
)
@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (0,), (2, 0)])
def test_nothing_becomes_nothing(stage: Stage, shape: tuple[int, ...]) -> None:
    if isinstance(stage, Hadamard) and not shape[-1]:
        with pytest.raises(RequestError, match="last dimension of 0"):
            Representation((stage,)).project(torch.empty(shape))
    else:
        assert Representation((stage,)).project(torch.empty(shape)).shape == shape
