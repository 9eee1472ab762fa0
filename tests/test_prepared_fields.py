"""What a packed weight keeps of its fields from one call to the next, and the short way of a linear to it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhoc.runtime.packed import Packed
from rhoc.runtime.representation import Representation
from rhoc.runtime.slots import Slots
from rhoc.runtime.stages import Hadamard, Quantize

CHAINS = {
    "groups": Representation((Quantize(4, strategy="group", group_size=32),)),
    "zero points": Representation((Quantize(4, strategy="group", group_size=32, symmetric=False),)),
    "two scales": Representation((Quantize(4, "float", strategy="tensor_group", group_size=16),)),
    "rotated": Representation((Hadamard(32), Quantize(8, strategy="channel"))),
}


def packed(chain: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Packed:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(seed))
    return Packed.of(weight.to(dtype), CHAINS[chain])


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(7)).to(dtype)


def results(weight: Packed) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return F.linear(inputs(weight.dtype), weight), F.embedding(torch.tensor([[3, 40]]), weight)


def replaced(weight: Packed, other: Packed) -> None:
    for name, (owner, leaf) in weight._held.items():
        owner._buffers[leaf] = other.fields()[name].clone()


def written_to(weight: Packed, other: Packed) -> None:
    for name, field in weight.fields().items():
        field.copy_(other.fields()[name])


def given_other_data(weight: Packed, other: Packed) -> None:
    for name, field in weight.fields().items():
        field.data = other.fields()[name].clone()


def loaded(weight: Packed, other: Packed) -> None:
    weight.load_state_dict(other.state_dict())


def turned(weight: Packed, other: Packed) -> None:
    for name, (owner, leaf) in weight._held.items():
        field = other.fields()[name]
        owner._buffers[leaf] = field.mT.contiguous().mT if field.ndim > 1 else field.clone()


CHANGES = (replaced, written_to, given_other_data, loaded, turned)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_other_fields_give_other_results(
    chain: str, dtype: torch.dtype, change: Callable[[Packed, Packed], None]
) -> None:
    weight, other = packed(chain, 0, dtype), packed(chain, 1, dtype)
    before, expected = results(weight), results(other)
    change(weight, other)
    for found, wanted, old in zip(results(weight), expected, before, strict=True):
        torch.testing.assert_close(found, wanted)
        assert not torch.allclose(found, old, rtol=0.1)
    for found, wanted in zip(results(weight), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("chain", CHAINS)
def test_copies_read_their_own_fields(chain: str) -> None:
    weight, other = packed(chain), packed(chain, 1)
    before = results(weight)
    found = copy.deepcopy(weight)
    written_to(weight, other)
    del weight
    assert all(torch.equal(*pair) for pair in zip(results(found), before, strict=True))


@pytest.mark.parametrize("chain", CHAINS)
def test_fields_are_not_kept_twice(chain: str) -> None:
    weight = packed(chain)
    results(weight)
    prepared = weight.prepared(*weight.chosen("linear", torch.float32, weight.device))
    for name, field in weight._core_fields().items():
        assert prepared[name].data_ptr() == field.data_ptr()


SPELLINGS: dict[str, Callable[[Tensor, Packed, Tensor], Tensor]] = {
    "positions": lambda x, weight, bias: F.linear(x, weight, bias),  # type: ignore[arg-type]
    "a keyword": lambda x, weight, bias: F.linear(x, weight, bias=bias),  # type: ignore[arg-type]
    "keywords": lambda x, weight, bias: F.linear(input=x, weight=weight, bias=bias),  # type: ignore[arg-type]
    "a sum": lambda x, weight, bias: F.linear(x, weight) + bias,  # type: ignore[arg-type]
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("chain", CHAINS)
def test_every_spelling_and_its_gradients(chain: str, spelling: str) -> None:
    weight, bias = packed(chain), torch.randn(48, generator=torch.Generator().manual_seed(3))
    given = [inputs().requires_grad_(), bias.clone().requires_grad_()]
    found = SPELLINGS[spelling](given[0], weight, given[1])
    dense = [inputs().requires_grad_(), bias.clone().requires_grad_()]
    expected = F.linear(dense[0], weight.decode(), dense[1])
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    for one, other in zip(given, dense, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_slots_are_filled_on_the_short_way_too() -> None:
    """Outputs are projected, and inputs; what does neither differs."""
    coarse = Representation((Quantize(3, strategy="token"),))
    plain = packed("groups")
    x = inputs()
    for slots in (Slots(coarse), Slots(output=coarse), Slots(coarse, output=coarse)):
        weight = Packed(plain.representation, tuple(plain.shape), plain.fields(), plain.dtype, slots)
        y = F.linear(slots.input.project(x), plain.decode())
        expected = slots.output.project(y)
        with torch.no_grad():
            found = F.linear(x, weight)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, F.linear(x, plain.decode()), rtol=1e-3)


def test_under_autocast_it_is_computed_in_its_dtype() -> None:
    layer = nn.Linear(64, 48, bias=False)
    del layer.weight
    layer.weight = packed("groups")  # type: ignore[assignment]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = layer(inputs())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, results(packed("groups").bfloat16())[0])
