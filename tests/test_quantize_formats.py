"""Microscaling and NVFP4 formats on all their codes, and their bytes, against writers in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rhoc.runtime.representation import Representation
from rhoc.runtime.stages.quantize import Quantize

Array = NDArray[np.float64]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
MX: dict[str, tuple[dict[str, Any], Array, int]] = {  # options, magnitudes in code order, emax
    "mxfp4": ({"num_bits": 4, "type": "float"}, E2M1, 2),
    "mxfp6_e2m3": ({"num_bits": 6, "type": "float", "grid": "e2m3"}, np.array([]), 2),
    "mxfp6_e3m2": ({"num_bits": 6, "type": "float", "grid": "e3m2"}, np.array([]), 4),
    "mxfp8_e4m3": ({"num_bits": 8, "type": "float"}, np.array([]), 8),
    "mxfp8_e5m2": ({"num_bits": 8, "type": "float", "grid": "e5m2"}, np.array([]), 15),
}


def minifloat(exponent_bits: int, mantissa_bits: int, count: int) -> Array:
    """Magnitudes of the first codes: subnormals, then octaves, with the IEEE bias."""
    bias, steps = 2 ** (exponent_bits - 1) - 1, 2**mantissa_bits
    values = []
    for code in range(count):
        exponent, mantissa = divmod(code, steps)
        fraction = mantissa / steps + (exponent > 0)
        values.append(fraction * 2.0 ** (max(exponent, 1) - bias))
    return np.array(values)


MAGNITUDES = {
    "mxfp4": E2M1,
    "mxfp6_e2m3": minifloat(2, 3, 32),
    "mxfp6_e3m2": minifloat(3, 2, 32),
    "mxfp8_e4m3": minifloat(4, 3, 127),
    "mxfp8_e5m2": minifloat(5, 2, 124),
}


def mx(name: str, observer: str = "mx_floor", group: int = 32) -> Quantize:
    return Quantize(strategy="group", group_size=group, observer=observer, **MX[name][0])  # type: ignore[arg-type]


def nearest(x: Array, magnitudes: Array) -> NDArray[np.int64]:
    """Code of each magnitude: nearest, ties to the even code, saturating."""
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    code = np.searchsorted(middles, x)
    tie = np.isin(x, middles) & (code % 2 == 1)
    return np.asarray(code + tie)


def mx_reference(
    x: Array, magnitudes: Array, emax: int, bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Scale bytes and element codes of blocks (rows), by OCP MX 1.0, section 6.3."""
    maximum = np.abs(x).max(1)
    floor = np.floor(np.log2(np.where(maximum > 0, maximum, 1)))
    exponent = np.where(maximum > 0, np.clip(floor - emax, -127, 127), -127)
    code = nearest(np.abs(x) / np.exp2(exponent)[:, None], magnitudes)
    sign = (x < 0) & (code > 0)
    return (exponent + 127).astype(np.int64), code + sign * 2 ** (bits - 1)


@pytest.mark.parametrize("name", MX)
def test_mx_by_the_specification(name: str) -> None:
    options, _, emax = MX[name]
    magnitudes, bits = MAGNITUDES[name], options["num_bits"]
    assert math.floor(math.log2(magnitudes[-1])) == emax
    x = np.random.default_rng(0).standard_normal((400, 32)) * np.exp2(
        np.random.default_rng(1).integers(-20, 20, (400, 1))
    )
    x[0] = 0
    x = x.astype(np.float32).astype(np.float64)
    codes, fields = mx(name).encode(torch.from_numpy(x).float())
    bytes_, expected = mx_reference(x, magnitudes, emax, bits)
    assert fields["scale"].dtype == torch.uint8
    assert np.array_equal(fields["scale"].numpy()[:, 0], bytes_)
    assert np.array_equal(codes.numpy(), expected)


@pytest.mark.parametrize("name", MX)
def test_every_element_code_comes_back(name: str) -> None:
    stage, magnitudes = mx(name, group=512), MAGNITUDES[name]
    half = 2 ** (MX[name][0]["num_bits"] - 1)
    codes = torch.tensor(
        [*range(len(magnitudes)), *range(half + 1, half + len(magnitudes))], dtype=torch.uint8
    )[None]
    values = stage.decode(codes, {"scale": torch.tensor([[127]], dtype=torch.uint8)})
    assert values.tolist() == [[*magnitudes, *-magnitudes[1:]]]
    again, fields = stage.encode(values)
    assert torch.equal(again, codes)
    assert fields["scale"].tolist() == [[127]]


def test_every_scale_code_is_its_power_of_two() -> None:
    stage = mx("mxfp4")
    codes = torch.full((255, 32), 2, dtype=torch.uint8)  # the element 1.0
    scale = torch.arange(255, dtype=torch.uint8)[:, None]
    values = stage.decode(codes, {"scale": scale})
    assert values[:, 0].double().tolist() == [2.0 ** (e - 127) for e in range(255)]
    full = values * 6  # emax is 2: a maximum of 6 X has the scale X, as far as it is a float32
    again = stage.encode(full[:253])
    assert torch.equal(again[1]["scale"], scale[:253])
    assert (again[0] == 7).all()
    assert stage.decode(codes[:1], {"scale": torch.tensor([[255]], dtype=torch.uint8)}).isnan().all()


def test_the_floor_rule_saturates_and_rceil_does_not() -> None:
    x = torch.tensor([[7.9, *[0.0] * 31], [6.0, *[0.0] * 31], [6.1, *[0.0] * 31]])
    assert Representation((mx("mxfp4"),)).project(x)[:, 0].tolist() == [6, 6, 6]
    codes, fields = mx("mxfp4", "mx_rceil").encode(x)
    assert fields["scale"][:, 0].tolist() == [128, 127, 128]
    assert mx("mxfp4", "mx_rceil").decode(codes, fields)[:, 0].tolist() == [8, 6, 6]


def exponents(variant: str, maximum: float) -> int:
    """The shared exponent of mxfp4 by the formulas of the conventions."""
    log = math.log2(maximum)
    if variant == "mx_even":  # the mantissa rounded half up to one bit first
        mantissa, power = maximum / 2 ** math.floor(log), math.floor(log)
        return power + (math.floor(mantissa * 2 + 0.5) / 2 >= 2) - 2
    return {
        "mx_floor": math.floor(log) - 2,
        "mx_ceil": math.ceil(log) - 2,
        "mx_rceil": math.ceil(math.log2(maximum / 6)),
        "mx_round": math.floor(log + 0.5) - 2,
        "mx_roundmax": math.floor(math.log2(maximum / 6) + 0.5),
        "three_quarters": math.floor(log) - 2,
    }[variant]


@pytest.mark.parametrize(
    "variant", ["mx_floor", "mx_even", "mx_ceil", "mx_rceil", "mx_round", "mx_roundmax", "three_quarters"]
)
def test_shared_exponents_by_formula(variant: str) -> None:
    maxima = [*np.geomspace(0.01, 100, 997), 1.0, 2.0, 3.5, 6.0, 7.0, 1.75, 12.0, 1.5, 2**-20]
    x = torch.zeros(len(maxima), 32, dtype=torch.float64)
    x[:, 5] = torch.tensor(maxima, dtype=torch.float64) * -1
    scale = mx("mxfp4", variant).encode(x)[1]["scale"][:, 0].int() - 127
    assert scale.tolist() == [exponents(variant, m) for m in maxima]


def test_three_quarters_of_a_tensor_never_saturates() -> None:
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stage = mx("mxfp4", "three_quarters")
    codes, fields = stage.encode(x)
    scale = torch.exp2(fields["scale"].double() - 127)
    assert (0.75 * x / scale).abs().max() <= 6
    # float32 holds the scale times 4/3, so a number within its rounding of a border may go either way
    signs = codes.numpy() >= 8
    expected = nearest((0.75 * x / scale).abs().numpy(), E2M1)
    assert (np.where(signs, codes.numpy() - 8, codes.numpy()) != expected).mean() < 1e-3
    torch.testing.assert_close(
        stage.decode(codes, fields).double(),
        (1 - 2.0 * torch.from_numpy(signs)) * torch.from_numpy(E2M1[expected]) * scale * 4 / 3,
        rtol=1e-6,
        atol=0,
    )


def test_mxint8_elements_are_multiples_of_a_64th() -> None:
    stage = Quantize(8, strategy="group", group_size=256, observer="mx_floor")
    codes = torch.arange(256, dtype=torch.uint8)[None]
    values = stage.decode(codes, {"scale": torch.tensor([[127]], dtype=torch.uint8)})
    assert values.tolist() == [[k / 64 for k in range(-128, 128)]]
    x = torch.randn(50, 256, generator=torch.Generator().manual_seed(0))
    codes, fields = stage.encode(x)
    exponent = torch.floor(torch.log2(x.abs().amax(-1, keepdim=True)))
    assert torch.equal(fields["scale"].float() - 127, exponent)
    expected = (x.double() * 64 / torch.exp2(exponent.double())).round().clamp(-128, 127)
    assert torch.equal(codes.double() - 128, expected)


# NVFP4


def e4m3(x: Array) -> Array:
    magnitudes = MAGNITUDES["mxfp8_e4m3"]
    return np.asarray(magnitudes[nearest(x, magnitudes)])


@pytest.mark.parametrize(
    ("block", "shape"),
    [((1, 16), (64, 128)), ((16, 16), (64, 128)), ((1, 16), (5, 40)), ((16, 16), (20, 40))],
)
def test_nvfp4_by_its_formula(block: tuple[int, int], shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    inner = Representation((Quantize(8, "float", scale_dtype="float32"),))
    stage = (
        Quantize(4, "float", strategy="tensor_group", group_size=16)
        if block[0] == 1
        else Quantize(4, "float", strategy="block", block_structure=block, scales=inner)
    )
    codes, fields = stage.encode(x)
    tensor_scale = fields["scale.0.scale"]
    assert tensor_scale.dtype == torch.float32
    assert tensor_scale.item() == pytest.approx(float(x.abs().max()) / (6 * 448), rel=3e-7)
    values, expected = x.double().numpy(), np.zeros(shape)
    restored = stage.decode(codes, fields).double().numpy()
    wrong = 0
    for i in range(0, shape[0], block[0]):
        for j in range(0, shape[1], block[1]):
            here = (slice(i, i + block[0]), slice(j, j + block[1]))
            scale = e4m3(np.abs(values[here]).max() / 6 / tensor_scale.item()) * tensor_scale.item()
            expected[here] = np.sign(values[here]) * E2M1[nearest(np.abs(values[here]) / scale, E2M1)] * scale
            wrong += not np.allclose(restored[here], expected[here], rtol=1e-6)
    assert wrong == 0


def test_nvfp4_scale_codes_are_all_of_e4m3() -> None:
    stage = Quantize(4, "float", strategy="tensor_group", group_size=16)
    scale = torch.arange(127, dtype=torch.uint8)
    codes = torch.full((1, 127 * 16), 2, dtype=torch.uint8)
    values = stage.decode(codes, {"scale.carry": scale[None], "scale.0.scale": torch.tensor([0.5])})
    assert values[0, ::16].double().tolist() == (MAGNITUDES["mxfp8_e4m3"] / 2).tolist()
    again, fields = stage.encode(values * 6)
    assert fields["scale.carry"].tolist() == [scale.tolist()]
    assert fields["scale.0.scale"].item() == 0.5
    assert (again[0, 16:] == 7).all()
    assert (again[0, :16] == 0).all(), "no scale, no numbers"


# bytes, as compressed-tensors lays them out


def nibbles(codes: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.asarray(codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)


def test_bytes_of_nvfp4_and_mxfp4() -> None:
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(4))
    r = Representation((Quantize(4, "float", strategy="tensor_group", group_size=16),))
    stored = r.pack(r.encode(x))
    assert {n: (tuple(t.shape), t.dtype) for n, t in stored.items()} == {
        "carry": ((6, 32), torch.uint8),
        "0.scale.carry": ((6, 4), torch.uint8),
        "0.scale.0.scale": ((1,), torch.float32),
    }
    total = stored["0.scale.0.scale"].item()
    scale = stored["0.scale.carry"].view(torch.float8_e4m3fn).double().numpy().repeat(16, 1) * total
    code = nearest(np.abs(x.numpy()) / scale, E2M1)
    assert np.array_equal(stored["carry"].numpy(), nibbles(code + 8 * ((x.numpy() < 0) & (code > 0))))

    r = Representation((mx("mxfp4"),))
    stored = r.pack(r.encode(x))
    bytes_, codes = mx_reference(x.double().numpy().reshape(-1, 32), E2M1, 2, 4)
    assert np.array_equal(stored["0.scale"].numpy().ravel(), bytes_)
    assert np.array_equal(stored["carry"].numpy(), nibbles(codes.reshape(6, 64)))

    r = Representation((mx("mxfp6_e2m3"),))
    stored = r.pack(r.encode(x))
    _, codes = mx_reference(x.double().numpy().reshape(-1, 32), MAGNITUDES["mxfp6_e2m3"], 2, 6)
    words = (codes.reshape(6, 16, 4) << np.array([0, 6, 12, 18])).sum(-1)
    expected = np.stack([words & 255, words >> 8 & 255, words >> 16], -1).reshape(6, 48)
    assert np.array_equal(stored["carry"].numpy(), expected)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_of_pack_quantized(num_bits: int, symmetric: bool) -> None:
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(5))
    stage = Quantize(num_bits, symmetric=symmetric, strategy="group", group_size=32)
    r = Representation((stage,))
    stored = r.pack(r.encode(x))
    scale = stored["0.scale"].numpy()
    groups = x.numpy().reshape(6, 2, 32)
    if symmetric:
        assert np.array_equal(scale, np.abs(groups).max(2) / np.float32((2**num_bits - 1) / 2))
        zero = np.full((6, 2), 2 ** (num_bits - 1))
    else:
        low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
        assert np.array_equal(scale, (high - low) / np.float32(2**num_bits - 1))
        zero = np.clip(np.round(-low / scale), 0, 2**num_bits - 1).astype(np.int64)
    codes = np.clip(np.round(groups / scale[..., None] + zero[..., None]), 0, 2**num_bits - 1)
    stream = (codes.astype(np.int64).reshape(6, 64, 1) >> np.arange(num_bits) & 1).reshape(6, -1)
    words = (
        (stream.reshape(6, -1, 32).astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(-1).astype("<u4")
    )
    assert stored["carry"].numpy().tobytes() == words.tobytes()
    if not symmetric:
        bits = (zero[..., None] >> np.arange(num_bits) & 1).reshape(6, -1)
        assert np.array_equal(stored["0.zero_point"].numpy(), np.packbits(bits, axis=1, bitorder="little"))


def test_double_quantised_scales_cost_what_they_should() -> None:
    inner = Representation(
        (Quantize(8, symmetric=False, strategy="block", block_structure=(4, 64), scale_dtype="float32"),)
    )
    r = Representation((Quantize(4, "float", grid="nf4", strategy="group", group_size=64, scales=inner),))
    bits = r.bits_per_weight((64, 4096), torch.bfloat16)
    assert bits == 4 + 8 / 64 + (32 + 8) / (64 * 256)
    x = torch.randn(64, 4096, generator=torch.Generator().manual_seed(6))
    plain = Representation((Quantize(4, "float", grid="nf4", strategy="group", group_size=64),))
    exact, nested = ((p.project(x) - x).square().mean().item() for p in (plain, r))
    assert nested == pytest.approx(exact, rel=2e-3)
    assert nested != exact
