"""Encoding: nothing depends on how many threads work, on what order, or on how large sums become."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from rhoc.runtime.determinism import one_thread
from rhoc.runtime.errors import RequestError
from rhoc.runtime.representation import Representation
from rhoc.runtime.sparsity.select import largest, masked
from rhoc.runtime.stages import Codebook, Quantize, Sparsify, Stage

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CHAINS: dict[str, tuple[Stage, ...]] = {
    "group": (Quantize(4, strategy="group", group_size=96),),
    "search": (Quantize(3, strategy="group", group_size=128, observer="mse"),),
    "search in a tensor": (Quantize(4, observer="mse"),),
    "table": (Quantize(4, "float", grid="nf4", strategy="group", group_size=64),),
    "hqq": (
        Quantize(4, symmetric=False, strategy="group", group_size=64, observer="hqq", zp_dtype="float16"),
    ),
    "2:4": (Sparsify(sparsity_structure="2:4"), Quantize(4, strategy="channel")),
    "k-means": (Codebook(in_group_size=2, nbits_per_codebook=4),),
}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", CHAINS)
def test_threads_change_no_bit(name: str) -> None:
    representation, x = Representation(CHAINS[name]), normal(384, 768)
    codes = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            codes.append(representation.encode(x).named())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for field, tensor in codes[0].items():
        assert torch.equal(tensor, codes[1][field]), field


def test_one_thread_gives_threads_back_after_an_error() -> None:
    def fail() -> None:
        with one_thread():
            inside.append(torch.get_num_threads())
            raise ZeroDivisionError

    before, inside = torch.get_num_threads(), []
    with pytest.raises(ZeroDivisionError):
        fail()
    assert (inside, torch.get_num_threads()) == ([1], before)


@pytest.mark.parametrize("dtype", FLOATS)
def test_masked_leaves_plain_zeros(dtype: torch.dtype) -> None:
    x = torch.tensor([1.5, -2.0, -0.0, torch.inf, -torch.inf, torch.nan, -3.0], dtype=dtype)
    mask = torch.tensor([True, False, False, False, False, False, True])
    found = masked(x, mask)
    assert found.tolist() == [1.5, 0, 0, 0, 0, 0, -3.0]
    assert not found[1:6].signbit().any()
    wide = x.expand(3, -1)
    assert torch.equal(masked(wide, mask.expand(3, -1)), found.expand(3, -1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_orders_of_all_ties(size: int, dtype: torch.dtype) -> None:
    groups = torch.tensor(list(itertools.product(range(size), repeat=size)), dtype=dtype)
    many = groups.repeat(9000 // len(groups) + 1, 1)  # past one piece
    for count in range(1, size):
        expected = [
            [place in sorted(range(size), key=lambda p: (-group[p], p))[:count] for place in range(size)]
            for group in groups.tolist()
        ]
        assert torch.equal(largest(groups, count), torch.tensor(expected))
        assert torch.equal(largest(many, count), torch.tensor(expected).repeat(len(many) // len(groups), 1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_sum_beyond_the_largest_number_is_no_fault(dtype: torch.dtype) -> None:
    x = torch.full((4, 64), torch.finfo(dtype).max / 2, dtype=dtype)
    quantize = Representation((Quantize(8, strategy="channel"),))
    assert not torch.isfinite(x.sum())
    assert torch.isfinite(quantize.project(x)).all()
    for fault in (torch.nan, torch.inf, -torch.inf):
        broken = x.clone()
        broken[1, 3], broken[2, 5] = fault, -fault
        with pytest.raises(RequestError, match="2 of 256 numbers are NaN or infinite"):
            quantize.encode(broken)


def test_negative_scales_stay_negative() -> None:
    levels = (0.25, 0.5, 1.0, 2.0)  # all above zero: only a negative scale serves negative numbers
    stage = Quantize(2, "float", observer="mse", grid=levels, strategy="channel")
    x = -normal(8, 64).abs() - 0.3
    carry, fields = stage.encode(x)
    cell = stage.cell(fields)
    assert (fields["scale"] < 0).all()
    assert (stage.decode(carry, fields) - x).norm() < 0.4 * x.norm()
    assert (cell.half_width > 0).all()
    signed = Quantize(4, absmax_rule="signed", strategy="group", group_size=32)
    largest_at = x.reshape(8, 2, 32).abs().argmax(-1, keepdim=True)
    found = signed.project(-x)[0].reshape(8, 2, 32).gather(-1, largest_at)
    torch.testing.assert_close(found, -x.reshape(8, 2, 32).gather(-1, largest_at))
