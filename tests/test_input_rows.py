"""Inputs as rows: their products with the weight read as a matrix are what the operation gives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rhoc.compiler.example import Example
from rhoc.compiler.whole import whole_graph
from rhoc.passes.input_rows import input_rows, why_no_rows
from rhoc.passes.sites import Site, parameter_of, sites


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def site_of(model: nn.Module, x: Tensor) -> tuple[Site, Tensor]:
    """The one site of a model and its weight."""
    gm = whole_graph(model.double(), Example((x,)))
    assert isinstance(gm, fx.GraphModule), gm
    (site,) = sites(gm)
    weight = parameter_of(gm, site.weight)
    assert weight is not None
    return site, weight.detach()


class Multiplies(nn.Module):
    """An input and a bare parameter."""

    def __init__(self, shape: tuple[int, ...], how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.how = nn.Parameter(normal(*shape)), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x, self.weight)


GEOMETRY = [
    (stride, padding, kernel)
    for stride, padding, kernel in product((1, 2), (0, 1), (1, 3))
    if padding < kernel
]


@pytest.mark.parametrize(("stride", "padding", "kernel"), [*GEOMETRY, ((2, 1), (1, 0), (3, 2))])
def test_two_dimensions_are_unfolded(
    stride: int | tuple[int, int], padding: int | tuple[int, int], kernel: int | tuple[int, int]
) -> None:
    x = normal(2, 3, 7, 6)
    site, weight = site_of(nn.Conv2d(3, 4, kernel, stride, padding), x)
    assert why_no_rows(site, tuple(weight.shape)) is None
    rows = input_rows(site, x, tuple(weight.shape))
    expected = F.unfold(x, kernel, padding=padding, stride=stride).transpose(1, 2).reshape(-1, rows.shape[-1])
    assert torch.equal(rows, expected)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), (3, 2)])
def test_one_dimension_position_by_position(stride: int, padding: int) -> None:
    x = normal(2, 3, 9)
    site, weight = site_of(nn.Conv1d(3, 4, 3, stride, padding), x)
    padded = torch.cat((torch.zeros(2, 3, padding), x, torch.zeros(2, 3, padding)), -1)
    expected = [
        torch.stack([padded[b, c, start + k] for c in range(3) for k in range(3)])
        for b in range(2)
        for start in range(0, padded.shape[-1] - 2, stride)
    ]
    assert torch.equal(input_rows(site, x, tuple(weight.shape)), torch.stack(expected))


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), ((1, 2, 1), (0, 1, 1))])
def test_three_dimensions_give_the_output(
    stride: int | tuple[int, int, int], padding: int | tuple[int, int, int]
) -> None:
    x = normal(2, 2, 5, 4, 6)
    model = nn.Conv3d(2, 4, (3, 2, 3), stride, padding, bias=False)
    site, weight = site_of(model, x)
    rows = input_rows(site, x, tuple(weight.shape))
    expected = model(x)
    found = (rows @ weight.flatten(1).T).reshape(2, *expected.shape[2:], 4).movedim(-1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_an_image_without_a_batch() -> None:
    x = normal(3, 7, 6)
    site, weight = site_of(nn.Conv2d(3, 4, 3), x)
    rows = input_rows(site, x, tuple(weight.shape))
    assert torch.equal(rows, F.unfold(x[None], 3)[0].T)


def test_linear_layers_have_rows_of_all_that_comes_before() -> None:
    x = normal(2, 5, 8)
    site, weight = site_of(nn.Linear(8, 4), x)
    assert torch.equal(input_rows(site, x, tuple(weight.shape)), x.reshape(10, 8))
    assert torch.equal(input_rows(site, x[0, 0], tuple(weight.shape)), x[0, :1])


MATRICES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "one for each": ((3, 5, 8), (3, 8, 4)),
    "inputs are shared": ((1, 5, 8), (3, 8, 4)),
    "even rows, inputs shared": ((1, 6, 8), (3, 8, 4)),
    "no batch": ((5, 8), (3, 8, 4)),
    "a vector": ((8,), (3, 8, 4)),
    "a batch of batches": ((2, 3, 5, 8), (3, 8, 4)),
    "two leading dimensions": ((2, 3, 5, 8), (2, 3, 8, 4)),
    "one matrix for many": ((6, 5, 8), (1, 8, 4)),
    "one of two leading dimensions": ((2, 3, 5, 8), (1, 3, 8, 4)),
}


@pytest.mark.parametrize("case", MATRICES)
def test_each_matrix_has_its_own_rows(case: str) -> None:
    given, shape = MATRICES[case]
    x = normal(*given)
    site, weight = site_of(Multiplies(shape, torch.matmul), x)
    assert why_no_rows(site, shape) is None
    rows = input_rows(site, x, shape)
    assert rows.shape[:-2] == shape[:-2]
    assert rows.shape[-1] == 8
    # the sum of squares of all outputs, matrix by matrix, whatever their order
    outputs = (x @ weight).reshape(-1, 4)
    expected = sorted(outputs.square().sum(-1).tolist())
    found = sorted((rows @ weight).square().sum(-1).flatten().tolist())
    assert found == pytest.approx(expected, rel=1e-12)


def test_experts() -> None:
    x = normal(3, 5, 8)
    site, _ = site_of(Multiplies((3, 8, 4), torch.bmm), x)
    assert torch.equal(input_rows(site, x, (3, 8, 4)), x)


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "groups": (nn.Conv2d(4, 4, 3, groups=2), (2, 4, 7, 7), "its groups have inputs of their own"),
    "dilation": (nn.Conv2d(4, 4, 3, dilation=2), (2, 4, 7, 7), "its kernel is dilated"),
    "same": (nn.Conv2d(4, 4, 3, padding="same"), (2, 4, 7, 7), "padding is 'same'"),
    "transposed": (
        nn.ConvTranspose2d(4, 4, 3),
        (2, 4, 7, 7),
        "inputs of conv_transpose are not laid out in rows",
    ),
    "weight first": (
        Multiplies((4, 8), lambda x, w: w @ x),
        (8, 5),
        "inputs of matmul are not laid out in rows",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_rows(case: str) -> None:
    model, shape, why = REFUSED[case]
    site, weight = site_of(model, normal(*shape))
    assert why_no_rows(site, tuple(weight.shape)) == why


def test_lookups_have_no_rows() -> None:
    gm = whole_graph(nn.Embedding(6, 4), Example((torch.arange(6),)))
    assert isinstance(gm, fx.GraphModule)
    (site,) = sites(gm)
    assert why_no_rows(site, (6, 4)) == "embedding looks its weight up and multiplies with nothing"
