"""What shares a scale, how it follows from the numbers, how it is stored; zero points; tails; the text form."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from numpy.typing import NDArray
from torch import Tensor

from rhoc.runtime.errors import RequestError
from rhoc.runtime.kernels.base import Call
from rhoc.runtime.kernels.cpu.torch_operators import integer_matrix
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages.quantize import Quantize
from rhoc.runtime.text_parser import from_text

from .strategies import DTYPES, repeatable, tensors

INNER = Representation((Quantize(8, symmetric=False, strategy="group", group_size=3, scale_dtype="float32"),))
E4M3 = Representation((Quantize(8, "float", scale_dtype="float32"),))
SHARING: list[dict[str, Any]] = [
    {"strategy": "tensor"},
    {"strategy": "channel"},
    {"strategy": "group", "group_size": 5},
    {"strategy": "group", "group_size": 64},
    {"strategy": "block", "block_structure": (3, 4)},
    {"strategy": "block", "block_structure": (1, 7)},
    {"strategy": "block", "block_structure": (2, 64)},
]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tiles(shape: tuple[int, ...], sharing: dict[str, Any]) -> NDArray[np.int64]:
    """The number of the scale that each number of a matrix has, row by row."""
    rows, columns = np.indices(shape)
    height, width = {
        "tensor": shape,
        "channel": (1, shape[1]),
        "group": (1, sharing.get("group_size", 1)),
        "block": sharing.get("block_structure", (1, 1)),
    }[sharing["strategy"]]
    return np.asarray((rows // height) * -(-shape[1] // width) + columns // width)


@st.composite
def options(draw: st.DrawFn, nested: bool = True) -> Quantize:
    """Any options that go together; those that do not are drawn again."""
    kind = draw(st.sampled_from(["int", "int", "float"]))
    sharing = draw(
        st.sampled_from([*SHARING, {"strategy": "tensor_group", "group_size": 8}, {"strategy": "token"}])
    )
    grids: list[Any] = (
        [None, "midrise", "midtread", "ternary"] if kind == "int" else [None, "e2m1", "nf4", "e3m2"]
    )
    observers = [
        "absmax",
        "mse",
        "percentile",
        "absmean",
        "learned",
        "mx_floor",
        "mx_rceil",
        "three_quarters",
        "hqq",
    ]
    observer = draw(st.sampled_from([*observers, "four_over_six", "mx_even", "minmax"]))
    chosen = {
        "num_bits": draw(st.integers(1, 8)),
        "type": kind,
        "symmetric": draw(st.booleans()),
        "observer": observer,
        "scale_dtype": draw(
            st.sampled_from([None, None, "float32", "float16", "bfloat16", "e4m3", "e5m2", "e8m0"])
        ),
        "zp_dtype": draw(st.sampled_from([None, "int8", "float16", "float32"])),
        "grid": draw(st.sampled_from([*grids, (-1.0, -0.25, 0.3, 1.5)])),
        "absmax_rule": draw(st.sampled_from([None, None, "half", "full", "sym", "signed"])),
        "percentile": draw(st.floats(1, 100)) if observer == "percentile" else None,
        "dynamic": draw(st.booleans()),
        "scales": draw(st.sampled_from([None, None, INNER, E4M3])) if nested else None,
        **sharing,
    }
    try:
        return Quantize(**chosen)
    except ValueError:
        assume(False)
        raise


@repeatable
@given(options())
def test_the_text_form_parses_back(stage: Quantize) -> None:
    assert from_text(str(stage)) == Representation((stage,))


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (Quantize(4, grid="twos"), "int4, twos, tensor, absmax"),
        (Quantize(4, "float", strategy="tensor_group"), "e2m1, tensor_group=16, absmax"),
        (Quantize(4, "float", strategy="block", block_structure=(16, 16)), "e2m1, block=16x16, absmax"),
        (
            Quantize(4, symmetric=False, observer="hqq", zp_dtype="float16"),
            "int4, asymmetric, tensor, hqq, zero=float16",
        ),
        (
            Quantize(4, scales=E4M3),
            "int4, twos, tensor, absmax, scale=quantize(e4m3, tensor, absmax, scale=float32)",
        ),
        (Quantize(2, "float", grid=(-1.0, 0.5)), "float2, levels=[-1, 0.5], tensor, absmax"),
        (Quantize(4, "float", grid="nf4", dynamic=True), "nf4, tensor, absmax, dynamic"),
        (Quantize(8, strategy="token", dynamic=True), "int8, twos, token, absmax"),
        (Quantize(8, strategy="token"), "int8, twos, token, absmax, static"),
        (Quantize(8, observer="percentile", percentile=99.9), "int8, twos, tensor, percentile=99.9"),
        (Quantize(8, observer="rms", clip=1 / 3), "int8, twos, tensor, rms, clip=0.3333333333333333"),
    ],
)
def test_text_forms(stage: Quantize, text: str) -> None:
    assert str(stage) == f"quantize({text})"
    assert from_text(str(stage)) == Representation((stage,))


@repeatable
@given(st.data(), options())
def test_any_options_encode_pack_and_project_alike(data: st.DataObject, stage: Quantize) -> None:
    shape = data.draw(st.sampled_from([(3, 11), (7, 8), (2, 3, 9), (1, 1), (4, 0)]))
    x = data.draw(tensors(shape, (*DTYPES, torch.float32)))
    r = Representation((stage,))
    code = r.encode(x)
    stored = r.pack(code)
    restored = r.decode(r.unpack(stored, shape, x.dtype))
    projected, fields = r.bound_stages[0].project(x)
    assert torch.equal(restored, projected.to(x.dtype))
    assert restored.isfinite().all()
    layout = r.layout(shape, x.dtype)
    assert {n: tuple(t.shape) for n, t in stored.items()} == {n: f.stored_shape for n, f in layout.items()}
    assert r.nbytes(shape, x.dtype) == sum(t.nbytes for t in stored.values())
    on_meta = r.encode(x.to("meta")).named()
    assert {n: (t.shape, t.dtype) for n, t in on_meta.items()} == {
        n: (t.shape, t.dtype) for n, t in code.named().items()
    }
    cell = r.bound_stages[0].cell(fields)
    assert cell is not None
    for geometry in (cell.half_width, cell.outermost):
        torch.broadcast_to(geometry, shape)
        assert (geometry >= 0).all()


@pytest.mark.parametrize("sharing", SHARING, ids=str)
@pytest.mark.parametrize("shape", [(7, 12), (6, 8), (1, 5), (3, 65)])
def test_every_tile_is_quantised_by_itself(sharing: dict[str, Any], shape: tuple[int, int]) -> None:
    x, stage = normal(*shape), Quantize(4, **sharing)
    number = tiles(shape, sharing)
    expected = np.zeros(shape)
    scales = []
    for tile in range(number.max() + 1):
        values = x.numpy()[number == tile]
        scale = np.abs(values).max() / 7.5
        scales.append(scale)
        expected[number == tile] = np.clip(np.round(values / scale), -8, 7) * scale
    codes, fields = stage.encode(x)
    np.testing.assert_allclose(stage.decode(codes, fields).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(fields["scale"].numpy().ravel(), scales, rtol=1e-12)
    cell = stage.cell(stage.project(x)[1])
    spread = np.broadcast_to((2 * cell.half_width).numpy(), shape)
    np.testing.assert_allclose(spread, np.array(scales)[number], rtol=1e-12)


def test_tails_store_no_bits_but_their_own() -> None:
    r = Representation((Quantize(4, strategy="group", group_size=128, scale_dtype="float16"),))
    assert r.nbytes((3, 200), torch.float32) == 3 * (100 + 2 * 2)
    assert r.nbytes((3, 129), torch.float32) == 3 * (65 + 2 * 2)
    blocks = Representation(
        (Quantize(4, strategy="block", block_structure=(128, 128), scale_dtype="float16"),)
    )
    assert blocks.nbytes((200, 300), torch.float32) == 200 * 150 + 2 * 2 * 3


def test_a_block_needs_a_matrix() -> None:
    with pytest.raises(
        RequestError, match=r"^blocks of 2x2 need a matrix, not shape \[8\]; leave this tensor out"
    ):
        Quantize(4, strategy="block", block_structure=(2, 2)).encode(torch.ones(8))


# how a scale follows from the numbers

ROW = normal(1, 999, seed=5)
RULES = [
    ({"absmax_rule": "full"}, lambda x: np.abs(x).max() / 8),
    ({"absmax_rule": "sym"}, lambda x: np.abs(x).max() / 7),
    ({"absmax_rule": "half"}, lambda x: np.abs(x).max() / 7.5),
    ({"absmax_rule": "signed"}, lambda x: x[np.abs(x).argmax()] / -8),
    ({"observer": "percentile", "percentile": 99.0}, lambda x: np.percentile(np.abs(x), 99) / 7.5),
    ({"observer": "percentile", "percentile": 100.0}, lambda x: np.abs(x).max() / 7.5),
    ({"observer": "absmean"}, lambda x: np.abs(x).mean()),
    ({"observer": "learned"}, lambda x: 2 * np.abs(x).mean() / math.sqrt(7)),
]


@pytest.mark.parametrize(
    ("chosen", "formula"), RULES, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
@pytest.mark.parametrize("sign", [1, -1])
def test_rules_by_formula(chosen: dict[str, Any], formula: Any, sign: int) -> None:
    x = sign * ROW
    stage = Quantize(4, strategy="channel", **chosen)
    codes, fields = stage.encode(x)
    assert float(fields["scale"]) == pytest.approx(formula(x.numpy()[0]), rel=1e-12)
    scale = float(fields["scale"])
    expected = np.clip(np.round(x.numpy() / scale), -8, 7) * scale
    np.testing.assert_allclose(stage.decode(codes, fields).numpy(), expected, rtol=1e-12)
    if chosen.get("absmax_rule") == "signed":
        assert int(codes[0, x.abs().argmax()]) == 0


def test_bitnet_is_absmean_with_ternary_levels() -> None:
    x = normal(8, 64)
    stage = Quantize(2, grid="ternary", observer="absmean")
    mean = float(x.abs().mean())
    expected = (x / mean).round().clamp(-1, 1) * mean
    torch.testing.assert_close(stage.decode(*stage.encode(x)), expected)


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize(
    ("num_bits", "grid"), [(2, "midtread"), (3, "twos"), (4, "twos"), (4, "midrise"), (4, "e2m1"), (4, "nf4")]
)
def test_the_search_reaches_what_brute_force_finds(
    num_bits: int, grid: str, power: int, importance: bool
) -> None:
    x = normal(24, 64, seed=1) ** power
    kind = "int" if grid in ("midtread", "twos", "midrise") else "float"
    stage = Quantize(num_bits, kind, strategy="channel", observer="mse", grid=grid)  # type: ignore[arg-type]
    weight = normal(24, 64, seed=2).abs() + 0.01 if importance else torch.ones(24, 64, dtype=torch.float64)
    codes, fields = stage.encode_weighted(x, weight)[:2] if importance else stage.encode(x)
    reached = ((stage.decode(codes, fields) - x).square() * weight).sum().item()
    levels = np.array(stage.levels.levels)
    middles = (levels[1:] + levels[:-1]) / 2
    values, heavy = x.numpy(), weight.numpy()
    top = np.abs(values).max(1, keepdims=True) / stage.levels.absmax_level
    least = np.full(24, np.inf)
    for factor in np.geomspace(0.1, 1.25, 400):
        scale = top * factor
        rounded = levels[np.searchsorted(middles, values / scale)]
        fitted = (heavy * rounded * values).sum(1, keepdims=True) / (heavy * rounded**2).sum(
            1, keepdims=True
        ).clip(1e-30)
        for s in (scale, fitted):
            least = np.minimum(least, (heavy * (rounded * s - values) ** 2).sum(1))
    assert reached <= 1.01 * least.sum()


def test_four_over_six_takes_the_better_of_two() -> None:
    x = normal(64, 16)
    stage = Quantize(4, "float", strategy="group", group_size=16, observer="four_over_six")
    error = (stage.decode(*stage.encode(x)) - x).square().sum(-1)
    maximum = x.abs().amax(-1, keepdim=True)
    both = []
    for end in (6, 4):
        scale = maximum / end
        both.append(((stage.levels.project(x / scale) * scale) - x).square().sum(-1))
    torch.testing.assert_close(
        error[maximum[:, 0] < maximum.max()], torch.minimum(*both)[maximum[:, 0] < maximum.max()]
    )
    assert (both[1] < both[0]).any()
    assert (both[1] > both[0]).any()


# zero points


@pytest.mark.parametrize(
    ("zero", "observer"),
    [(z, o) for z in (None, "float16", "float32") for o in ("absmax", "mse", "hqq") if z or o != "hqq"],
)
@pytest.mark.parametrize("shift", [0.0, 5.0, -0.3])
def test_codes_with_a_zero_point(zero: Any, observer: Any, shift: float) -> None:
    x = normal(6, 64) + shift
    stage = Quantize(4, symmetric=False, strategy="group", group_size=24, observer=observer, zp_dtype=zero)
    codes, fields = stage.encode(x)
    number = tiles((6, 64), {"strategy": "group", "group_size": 24})
    scale = fields["scale"].numpy().ravel()[number]
    point = fields["zero_point"].double().numpy().ravel()[number]
    assert fields["zero_point"].dtype == (torch.uint8 if zero is None else getattr(torch, zero))
    expected = (np.clip(np.round(x.numpy() / scale + point), 0, 15) - point) * scale
    np.testing.assert_allclose(stage.decode(codes, fields).numpy(), expected, rtol=1e-9, atol=1e-12)
    low, high = x.numpy().copy(), x.numpy().copy()
    for tile in range(number.max() + 1):
        inside = number == tile
        low[inside], high[inside] = low[inside].min(), high[inside].max()
    if zero is None:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        assert int(fields["zero_point"].max()) <= 15
    if observer == "absmax":
        np.testing.assert_allclose(scale, (high - low) / 15, rtol=1e-3)
        assert (np.abs(expected - x.numpy()) <= scale * (0.5 if zero == "float32" else 1) * 1.01).all()


def test_a_better_observer_has_less_error_with_a_zero_point() -> None:
    x = normal(64, 64) ** 3 + 0.5
    errors = {}
    for observer in ("absmax", "mse", "hqq"):
        stage = Quantize(3, symmetric=False, strategy="channel", observer=observer, zp_dtype="float32")  # type: ignore[arg-type]
        errors[observer] = float((stage.decode(*stage.encode(x)) - x).square().sum())
    assert errors["mse"] < 0.8 * errors["absmax"]
    assert errors["hqq"] < errors["absmax"]


@pytest.mark.parametrize("value", [0.0, 3.7, -1e-3])
@pytest.mark.parametrize("zero", [None, "float16", "float32"])
def test_equal_numbers_with_a_zero_point(value: float, zero: Any) -> None:
    x = torch.full((2, 40), value)
    r = Representation((Quantize(4, symmetric=False, strategy="group", group_size=16, zp_dtype=zero),))
    torch.testing.assert_close(r.project(x), x, rtol=1e-5 if zero != "float16" else 1e-3, atol=0)


# refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "block"}, "strategy 'block' and block_structure go together"),
        ({"block_structure": (2, 2)}, "strategy 'block' and block_structure go together"),
        (
            {"strategy": "block", "block_structure": (0, 2)},
            "block_structure must be two positive sizes, got 0x2",
        ),
        ({"observer": "percentile"}, "observer 'percentile' and percentile go together"),
        (
            {"observer": "percentile", "percentile": 0.0},
            "percentile must be above 0 and at most 100, got 0.0",
        ),
        ({"observer": "percentile", "percentile": math.nan}, "percentile must be above 0"),
        ({"grid": "midtread", "absmax_rule": "full"}, "absmax_rule is for observer: absmax on grid: twos"),
        ({"observer": "mse", "absmax_rule": "sym"}, "absmax_rule is for observer: absmax on grid: twos"),
        ({"observer": "hqq"}, "observer 'hqq' finds a zero point; it needs symmetric: false"),
        ({"observer": "four_over_six"}, "observer 'four_over_six' needs grid: e2m1"),
        (
            {"num_bits": 4, "type": "float", "grid": "nf4", "observer": "mx_even"},
            "needs a grid with mantissa bits",
        ),
        ({"scale_dtype": "e8m0", "scales": E4M3}, "scale_dtype and scales both say how scales are stored"),
        ({"scales": Representation()}, "scales is a chain that encodes the scales, and 'dense' does not"),
        (
            {"strategy": "tensor_group", "scale_dtype": "float16"},
            "tensor_group stores scales as float8_e4m3fn",
        ),
        ({"absmax_rule": "signed", "scale_dtype": "e8m0"}, "'signed' needs scales with a sign"),
        ({"zp_dtype": "float16"}, "zp_dtype is how zero points are stored; it needs symmetric: false"),
        ({"symmetric": False, "type": "float"}, "symmetric: false has codes from 0 up; it needs type: int"),
        ({"symmetric": False, "grid": "midrise"}, "symmetric: false has codes from 0 up"),
        (
            {"symmetric": False, "observer": "absmean"},
            "symmetric: false needs one of the observers absmax, mse, hqq",
        ),
        (
            {"symmetric": False, "observer": "hqq"},
            "observer 'hqq' finds a real zero point; it needs zp_dtype",
        ),
    ],
)
def test_options_that_make_no_sense_together(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantize(**arguments)


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        (Quantize(4, symmetric=False), "has zero points"),
        (Quantize(4, strategy="block", block_structure=(32, 32)), "shares scales by blocks"),
        (Quantize(4, scales=E4M3), "stores scales that must be decoded first"),
        (Quantize(4, scale_dtype="e8m0"), "stores scales that must be decoded first"),
        (Quantize(4, scale_dtype="e4m3"), "stores scales that must be decoded first"),
        (Quantize(8, observer="mx_floor", scale_dtype="float32"), "stores scales that must be decoded first"),
        (Quantize(4, strategy="group", group_size=96), "the last group of 256 is shorter than 96"),
    ],
)
def test_kernels_refuse_scales_that_they_do_not_know(stage: Quantize, reason: str) -> None:
    call = Call("linear", Representation((stage,)), (64, 256), torch.bfloat16, "cpu")
    refusal = integer_matrix(call)
    assert isinstance(refusal, str)
    assert refusal.endswith(reason)
    assert integer_matrix(
        Call("linear", Representation((Quantize(4),)), (64, 256), torch.bfloat16, "cpu")
    ) == Quantize(4)
