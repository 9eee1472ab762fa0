"""Palettes: what their values are, which numbers join them, and one for a whole network."""

from __future__ import annotations

import copy
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rhoc
from rhoc.runtime.errors import RequestError
from rhoc.runtime.load import load_packed
from rhoc.runtime.power_sums import PowerSums, join
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Entropy, Palette, Product, Quantize
from rhoc.runtime.text_parser import from_text

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED = {"kind": "palette", "scope": "network"}


def normal(*shape: int, seed: int = 0, deviation: float = 1.0) -> Tensor:
    return deviation * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sums(order: int, exponents: range, largest: float) -> list[float]:
    """0 and all sums of up to `order` different powers, both signs, up to `largest`; by enumeration."""
    found = {sum(2.0**e for e in some) for n in range(1, order + 1) for some in combinations(exponents, n)}
    kept = [value for value in found if value <= largest]
    return sorted([0.0, *kept, *(-value for value in kept)])


def powers_in(value: float, lowest: int) -> int:
    """How many different powers of two, none below 2^lowest, sum up to |value|; -1 where none do."""
    whole = abs(value) * 2.0**-lowest
    return bin(int(whole)).count("1") if whole == int(whole) else -1


def greedy(x: np.ndarray, reach: np.ndarray, quota: int, delta: float, order: int, lowest: int) -> np.ndarray:
    """The clustering of 2309.13575 by its words, with a whole matrix of distances; NaN where none joined."""
    reach = np.maximum(reach, 2.0**-20)
    x = np.where(np.abs(x) < 2.0**lowest, 0.0, x)
    values, top = np.full(len(x), np.nan), int(np.floor(np.log2(np.abs(x).max())))
    allowed, turn = 1, 0
    while quota:
        centres = np.array(sums(allowed, range(lowest, top + 1), np.abs(x).max()))
        near = np.abs(x[:, None] - centres) <= delta * reach[:, None]
        while quota:
            counts = (near & np.isnan(values)[:, None]).sum(0)
            best = int(counts.argmax())
            if not counts[best]:
                break
            members = np.flatnonzero(near[:, best] & np.isnan(values))
            closest = np.argsort(np.abs(x - centres[best])[members] / reach[members], kind="stable")
            joined = members[closest[:quota]]
            values[joined] = centres[best]
            quota -= len(joined)
        if allowed < order and turn % 2 == 0:
            allowed += 1
        else:
            delta *= 2
        turn += 1
    return values


@pytest.mark.parametrize(
    ("order", "lowest", "largest"), [(1, -7, 1.0), (2, -3, 0.7), (4, -7, 5.3), (3, 0, 9)]
)
def test_candidates_are_all_such_sums(order: int, lowest: int, largest: float) -> None:
    found = PowerSums(order, lowest).candidates(order, largest)
    assert found.tolist() == sums(order, range(lowest, 4), largest)


@pytest.mark.parametrize("quota", [1, 60, 200])
@pytest.mark.parametrize("delta", [0.3, 1.5])
def test_numbers_join_as_the_paper_says(quota: int, delta: float) -> None:
    x, reach = normal(200, deviation=0.3), normal(200, seed=1, deviation=0.02).abs()
    found = join(x, reach, quota, delta, PowerSums(3, -5))
    expected = greedy(x.double().numpy(), reach.double().numpy(), quota, delta, 3, -5)
    assert found.chosen.tolist() == (~np.isnan(expected)).tolist()
    assert found.values.tolist() == np.nan_to_num(expected).tolist()
    assert int(found.chosen.sum()) == quota


def test_deviations_are_those_of_what_joined_together() -> None:
    x = torch.tensor([0.5, 0.52, 0.46, 0.25, 0.001])
    reach = torch.tensor([0.05, 0.05, 0.05, 0.05, 0.001])
    found = join(x, reach, 5, 1.0, PowerSums(1, -7))
    assert found.values.tolist() == [0.5, 0.5, 0.5, 0.25, 0.0]
    three = np.std(x[:3].double().numpy())
    np.testing.assert_allclose(found.deviations.numpy(), [three] * 3 + [0, 0], rtol=1e-9, atol=1e-12)


def test_edges_of_joining() -> None:
    zeros = join(torch.zeros(4), torch.zeros(4), 4, 1.0, PowerSums(4, -7))
    assert zeros.chosen.all()
    assert (zeros.values == 0).all()
    powers = torch.tensor([1.0, -0.5, 2.0**-7, 0.0])
    assert join(powers, torch.zeros(4), 4, 1.0, PowerSums(1, -7)).values.tolist() == powers.tolist()
    assert not len(join(torch.zeros(0), torch.zeros(0), 0, 1.0, PowerSums(4, -7)).values)
    wide = join(torch.tensor([3e30, 1.0, -2e-20]), torch.zeros(3), 3, 1.0, PowerSums(2, -7))
    assert wide.chosen.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_number_becomes_the_nearest_value(dtype: torch.dtype) -> None:
    x, representation = normal(24, 40, deviation=0.2).to(dtype), Representation((Palette(),))
    code = representation.encode(x)
    values = code.named()["0.table.values"].double().numpy()
    assert len(values) == 256
    assert all(1 <= powers_in(v, -7) <= 4 for v in values if v)
    assert (-values[values < 0].min(), values.max()) <= (float(x.abs().max()),) * 2
    decoded = representation.decode(code)
    nearest = np.abs(x.double().numpy()[..., None] - values).min(-1)
    np.testing.assert_allclose(
        np.abs((representation.restore(code) - x).double().numpy()), nearest, atol=1e-6
    )
    stored = representation.pack(code)
    again = representation.unpack(stored, tuple(x.shape), dtype)
    assert torch.equal(representation.decode(again), decoded)
    assert torch.equal(representation.project(x), decoded)
    assert torch.equal(representation.project(decoded), decoded)


def test_a_value_is_at_most_its_share_away_until_shares_grow() -> None:
    x = normal(2000, deviation=0.2)
    found = join(x, x.abs(), 1000, 0.1, PowerSums(4, -7))
    off = (x - found.values).abs()[found.chosen & (x.abs() >= 2.0**-7)]
    assert float((off / x.abs()[found.chosen & (x.abs() >= 2.0**-7)]).max()) <= 0.1 + 1e-9
    for scope in ("tensor", "network"):
        fewer = Representation((Palette(num_values=5, scope=scope),)).project(found.values)  # type: ignore[arg-type]
        assert len(fewer.unique()) == 5


@pytest.mark.parametrize("count", [1, 2, 3, 17, 256, 300])
def test_codes_have_as_many_bits_as_values_need(count: int) -> None:
    representation = Representation((Palette(num_values=count),))
    layout = representation.layout((8, 16), torch.float32)
    bits = max(1, int(np.ceil(np.log2(count))))
    assert layout["carry"].nbytes == 8 * 16 * bits // 8
    stored = representation.pack(representation.encode(normal(8, 16)))
    assert {name: tensor.nbytes for name, tensor in stored.items()} == {
        name: field.nbytes for name, field in layout.items()
    }


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


def document(weights: Any, **more: Any) -> dict[str, Any]:
    return {"version": 1, "rules": {"targets": "Linear", "weights": weights, **more}}


@pytest.mark.parametrize("coded", [False, True], ids=["codes", "entropy"])
def test_a_network_has_one_palette(coded: bool, tmp_path: Path) -> None:
    weights = {"kind": "entropy", "of": [SHARED]} if coded else SHARED
    compiled = rhoc.compile(net(), document(weights))
    packed, x = compiled.packed(), normal(5, 24)
    names = [name for name in packed.state_dict() if "table.values" in name]
    tables = {packed.state_dict()[name].data_ptr() for name in names}
    assert (len(names), len(tables)) == (3, 1)
    values = packed.state_dict()[names[0]]
    weights_of = [module.weight.decode().unique() for module in packed if hasattr(module, "weight")]
    assert set(torch.cat(weights_of).tolist()) <= set(values.tolist())
    expected = torch.cat([net()[i].weight.detach().flatten() for i in (0, 2, 4)])
    assert (
        values.tolist()
        == join(expected, expected.abs(), len(expected), 0.1, PowerSums(4, -7)).values.unique().tolist()
    )
    with torch.no_grad():
        assert torch.equal(packed(x), compiled.reference()(x))
        assert torch.equal(packed(x), copy.deepcopy(packed)(x))
        compiled.save(tmp_path / "saved")
        loaded = load_packed(tmp_path / "saved", net())
        assert torch.equal(packed(x), loaded(x))
    assert len({loaded.state_dict()[name].data_ptr() for name in names}) == 1
    size = (tmp_path / "saved" / "model.safetensors").stat().st_size if coded else None
    assert size is None or size < sum(p.numel() for p in net().parameters()) * 4


def test_bytes_count_the_palette_once() -> None:
    explained = rhoc.compile(net(), document(SHARED)).explain()
    numbers = [24 * 32, 32 * 16, 16 * 4]
    biases = 4 * (32 + 16 + 4)
    assert explained.total_bytes == sum(numbers) + 4 * 256 + biases
    reasons = [row.reason for row in explained.parameters if row.path in ("2.weight", "4.weight")]
    assert all("counted with 0.weight" in reason for reason in reasons)


def test_it_encodes_what_a_low_rank_left_over() -> None:
    terms = [{"kind": "product", "rank": 4}, SHARED]
    compiled = rhoc.compile(net(), document({"kind": "sum", "terms": terms}))
    x = normal(5, 24)
    packed = compiled.packed()
    tables = [t for name, t in packed.state_dict().items() if name.endswith("table.values")]
    assert len(tables) == 3
    assert len({table.data_ptr() for table in tables}) == 1
    weight = net()[0].weight.detach().double().numpy()
    left, sizes, right = np.linalg.svd(weight)
    rank4 = (left[:, :4] * sizes[:4]) @ right[:4]
    rest = packed[0].weight.decode().detach().double().numpy() - rank4
    off = np.abs(rest[..., None] - tables[0].double().numpy()).min(-1)
    assert off.max() < 1e-6
    with torch.no_grad():
        torch.testing.assert_close(packed(x), compiled.trainable().eval()(x), rtol=1e-4, atol=1e-5)


def test_a_name_without_numbers_is_refused() -> None:
    named = Representation((Palette(scope="network"),)).shared_over([normal(9)]).named
    assert str(from_text(str(named))) == str(named)
    with pytest.raises(RequestError, match="a name here, without their numbers"):
        from_text(str(named)).encode(normal(3))


REFUSED = {
    "max_order": 5,
    "min_exponent": -30,
    "delta": 1.0,
    "num_values": 0,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match=f"{name} (must be|is a share)"):
        rhoc.compile(net(), document({"kind": "palette", name: REFUSED[name]}))


def test_it_stands_in_chains_and_parts() -> None:
    x = normal(16, 32, deviation=0.3)
    sparse = from_text("sparsify(2:4) >> palette()")
    kept = sparse.project(x).reshape(16, -1, 4) != 0
    assert int(kept.sum(-1).max()) <= 2
    factors = Representation((Product(4, Representation((Palette(),)), Representation((Quantize(8),))),))
    for representation in (sparse, factors, Representation((Entropy(Representation((Palette(),))),))):
        code = representation.encode(x)
        again = representation.unpack(representation.pack(code), (16, 32), x.dtype)
        assert torch.equal(representation.decode(again), representation.project(x))
