"""Scales by least squares on outputs, against numpy on the inputs themselves; where they are used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import rhoc
from rhoc.runtime.calibration import Gptq, RoundToNearest, gram, why_no_output_scales, with_output_scales
from rhoc.runtime.packed import packed_weights
from rhoc.runtime.text_parser import from_text

pytestmark = pytest.mark.usefixtures("one_thread")

Array = NDArray[np.float64]


def inputs(rows: int = 200, size: int = 24, seed: int = 1) -> Tensor:
    """Inputs whose channels depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(rows, size, generator=generator, dtype=torch.float64) @ mix


def weight(seed: int = 0) -> Tensor:
    return torch.randn(10, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def output_error(x: Tensor, dense: Tensor, found: Tensor) -> float:
    return float((x @ (dense - found).T).square().sum() / (x @ dense.T).square().sum())


def best(x: Tensor, dense: Tensor, levels: Array, groups: Array) -> Array:
    """The decoded weight with scales from numpy's least squares on outputs; `groups` `[out, in]` says which
    scale each number has, counted over the whole weight."""
    columns = [(x.numpy() @ (levels * (groups == group)).T).ravel() for group in range(int(groups.max()) + 1)]
    scales = np.linalg.lstsq(np.stack(columns, 1), (x.numpy() @ dense.numpy().T).ravel(), rcond=None)[0]
    return np.asarray(levels * scales[groups])


ROW = np.repeat(np.arange(10)[:, None], 24, 1)
SHARED: dict[str, Array] = {
    "channel": ROW,
    "group=8": ROW * 3 + np.arange(24) // 8,
    "tensor": np.zeros((10, 24), int),
}


@pytest.mark.parametrize("fitter", [RoundToNearest(), Gptq()], ids=["nearest", "gptq"])
@pytest.mark.parametrize("sharing", SHARED)
@pytest.mark.parametrize("grid", ["int1, midrise", "int3, midtread"])
def test_scales_are_the_least_squares_of_outputs(grid: str, sharing: str, fitter: Any) -> None:
    representation = from_text(f"quantize({grid}, {sharing}, mse)".replace("tensor, ", ""))
    x, dense = inputs(), weight()
    before = fitter.fit(dense, representation, gram([x]))
    after = with_output_scales(dense, before, gram([x]))
    half = 0.5 if "midrise" in grid else 3.0
    levels = before.code.carry.double().numpy() - half
    expected = best(x, dense, levels, SHARED[sharing])
    np.testing.assert_allclose(after.weight.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert torch.equal(after.code.carry, before.code.carry)
    assert torch.equal(after.weight, representation.decode(after.code))
    assert after.error == pytest.approx(output_error(x, dense, after.weight))
    assert after.error < before.error


def test_one_scale_of_a_row_is_the_closed_form() -> None:
    """s = w H b / b H b."""
    representation, x, dense = from_text("quantize(int1, channel, mse)"), inputs(), weight()
    found = with_output_scales(
        dense, RoundToNearest().fit(dense, representation, gram([x])), gram([x])
    ).code.fields[-1]["scale"]
    h, b = (x.T @ x).numpy(), np.where(dense.numpy() >= 0, 0.5, -0.5)
    expected = [(w @ h @ s) / (s @ h @ s) for w, s in zip(dense.numpy(), b, strict=True)]
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-9)


def test_a_rotation_is_seen_through() -> None:
    representation, x, dense = from_text("hadamard(8) >> quantize(int1, channel, mse)"), inputs(), weight()
    before = RoundToNearest().fit(dense, representation, gram([x]))
    after = with_output_scales(dense, before, gram([x]))
    assert after.error == pytest.approx(output_error(x, dense, after.weight))
    assert after.error < before.error
    for factor in (0.99, 1.01):  # no other scale is better
        scaled = after.weight * factor
        assert output_error(x, dense, scaled) > after.error


def test_codes_that_are_all_zero_keep_their_scale() -> None:
    representation, x, dense = from_text("quantize(int3, midtread, channel)"), inputs(), weight()
    dense[3] = 0
    before = RoundToNearest().fit(dense, representation, gram([x]))
    after = with_output_scales(dense, before, gram([x]))
    assert bool((after.weight[3] == 0).all())
    assert torch.equal(after.code.fields[-1]["scale"][3], before.code.fields[-1]["scale"][3])


@pytest.mark.parametrize(
    "text",
    [
        "codebook(4, nbits_per_codebook=3)",
        "quantize(int4, asymmetric, channel)",
        "quantize(e2m1, group=32, mx_floor)",
    ],
)
def test_what_has_no_such_scales_says_so(text: str) -> None:
    representation, dense, x = from_text(text), weight(), inputs()
    assert "scales" in why_no_output_scales(representation)
    fitted = RoundToNearest().fit(dense, representation, gram([x]))
    with pytest.raises(ValueError, match="scales"):
        with_output_scales(dense, fitted, gram([x]))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 10, bias=False), nn.ReLU(), nn.Linear(10, 6, bias=False))


def compiled(*estimators: str, method: str = "round_to_nearest") -> Any:
    rule = {"targets": "Linear", "weights": "quantize(int1, channel, mse)"}
    chosen = {"estimator": {"weights": [*estimators]}} if estimators else {}
    calibrate = {"kind": "calibrate", "method": method, "scales": "outputs"}
    return rhoc.compile(model(), {"version": 1, "rules": {**rule, **chosen}, "passes": [calibrate]}, (X,))


X = inputs().float()


@pytest.mark.parametrize("method", ["round_to_nearest", "gptq"])
def test_the_pass_stores_them_and_says_what_it_reached(method: str) -> None:
    made = compiled(method=method)
    weights = packed_weights(made.packed())
    found, dense = weights["0.weight"].decode(), model()[0].weight.detach()
    error = output_error(X, dense, found)
    assert error < output_error(X, dense, from_text("quantize(int1, channel, mse)").project(dense))
    for each in weights.values():
        assert all(row.unique().numel() <= 2 for row in each.decode())


@pytest.mark.parametrize("estimator", ["learned_scale", "lsq"])
def test_learned_scales_start_as_calibrated(estimator: str) -> None:
    made = compiled(estimator, method="gptq")
    scales = {path: w.fields()["0.scale"].flatten() for path, w in packed_weights(made.packed()).items()}
    state = made.trainable().state_dict()
    for path, scale in scales.items():
        torch.testing.assert_close(state[f"{path}_step"], scale)
