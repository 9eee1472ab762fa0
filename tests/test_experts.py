"""Products of packed weights other than `linear`: experts on their own, and matrices from either side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rhoc import specs
from rhoc.compiler.spec import shipped_weights
from rhoc.runtime import kernels
from rhoc.runtime.arrangement import Arrangement
from rhoc.runtime.experts import fields_by_expert, fields_of
from rhoc.runtime.kernels import Call, Kernel
from rhoc.runtime.packed import Packed
from rhoc.runtime.representation import Representation
from rhoc.runtime.slots import Slots
from rhoc.runtime.stages import Hadamard, Quantize

SHAPE = (3, 32, 64)
SLOW = ("qtip", "squeeze-llm", "caldera", "e8p", "aqlm", "vptq")
CHAINS = {
    name: weights.core
    for name in specs.names()
    if not name.startswith(SLOW) and (weights := shipped_weights(name)) and weights.stages
}
INT4 = Representation((Quantize(4, strategy="group", group_size=32),))
TURNED = Representation((Hadamard(32), Quantize(4, strategy="channel")))
INPUT = Representation((Quantize(8, strategy="token"),))
FLOAT64 = torch.float64


class Counted(Kernel):
    """The plain product in float64, so that products are seen to be done by it."""

    name: ClassVar[str] = "counted"
    operation: ClassVar[str] = "linear"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def refuse(self, call: Call) -> str | None:
        return None

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        self.shapes.append(call.shape)
        code = call.representation.unpack(stored, call.shape, call.dtype)
        return F.linear(x, call.representation.decode(code), bias)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    kernel = Counted()
    monkeypatch.setattr(kernels, "KERNELS", (kernel, *kernels.KERNELS))
    return kernel


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=FLOAT64)


APART = sorted(name for name, core in CHAINS.items() if fields_by_expert(core, SHAPE, torch.float32))


@pytest.mark.parametrize("name", APART)
def test_one_expert_decodes_to_its_part_of_all(name: str) -> None:
    core, weight = CHAINS[name], numbers(*SHAPE).float()
    code = core.encode(weight)
    stored, whole = core.pack(code), core.decode(code)
    names = fields_by_expert(core, SHAPE, torch.float32)
    assert names is not None
    for expert in range(SHAPE[0]):
        alone = core.unpack(fields_of(names, stored, expert), SHAPE[1:], torch.float32)
        assert torch.equal(core.decode(alone), whole[expert])


def test_most_formats_keep_experts_apart() -> None:
    assert {"int4", "nf4", "mxfp4", "nvfp4", "2of4-int4", "ternary", "fp8"} <= set(APART)
    assert fields_by_expert(INT4, (32, 64), torch.float32) is None


@pytest.mark.parametrize("representation", [INT4, TURNED], ids=["int4", "turned"])
def test_a_looked_up_expert_is_a_packed_weight(representation: Representation, counted: Counted) -> None:
    packed = Packed.of(numbers(*SHAPE), representation, Slots(input=INPUT))
    dense, x = packed.decode(), numbers(5, 64)
    for index in (1, -1, torch.tensor(2)):
        one = packed[index]
        assert isinstance(one, Packed)
        assert one.shape == (32, 64)
        assert (
            one.fields()["carry"].untyped_storage().data_ptr()
            == packed.fields()["carry"].untyped_storage().data_ptr()
        )
        expected = F.linear(INPUT.project(x), dense[index])
        torch.testing.assert_close(F.linear(x, one), expected, rtol=1e-9, atol=1e-9)
    assert counted.shapes == [(32, 64)] * 3
    with pytest.raises(IndexError, match="3 is out of range for 3 experts"):
        packed[3]
    assert torch.equal(packed[torch.tensor([2, 0])], dense[[2, 0]]), "several are decoded"


def test_an_expert_follows_its_fields() -> None:
    packed = Packed.of(numbers(*SHAPE), INT4)
    before = packed[0].decode().clone()
    packed.load_state_dict(Packed.of(-numbers(*SHAPE), INT4).state_dict())
    assert torch.equal(packed[0].decode(), packed.decode()[0])
    assert not torch.equal(packed[0].decode(), before)
    assert packed.to(torch.float32)[0].dtype == torch.float32
    assert "expert" not in "".join(packed.state_dict())


def test_batches_and_groups_of_matrices(counted: Counted) -> None:
    weight = numbers(3, 64, 32)  # [experts, in, out]
    packed = Packed.of(weight, INT4, Slots(), Arrangement((), (0, 2, 1)))
    dense, x = packed.decode(), numbers(3, 5, 64)
    torch.testing.assert_close(torch.bmm(x, packed), x @ dense)
    torch.testing.assert_close(x @ packed, x @ dense)
    assert counted.shapes == [(32, 64)] * 6
    rows, ends = numbers(7, 64), torch.tensor([2, 2, 5], dtype=torch.int32)
    expected = torch.cat([rows[:2] @ dense[0], rows[2:5] @ dense[2], torch.zeros(2, 32, dtype=FLOAT64)])
    torch.testing.assert_close(F.grouped_mm(rows, packed, offs=ends), expected)


def test_a_matrix_from_either_side(counted: Counted) -> None:
    right = Packed.of(numbers(64, 32), INT4, Slots(input=INPUT), Arrangement((), (1, 0)))
    left = Packed.of(numbers(32, 64), INT4)
    x, columns = numbers(2, 5, 64), numbers(2, 64, 5)
    torch.testing.assert_close(x @ right, INPUT.project(x) @ right.decode())
    torch.testing.assert_close(left @ columns, left.decode() @ columns)
    assert counted.shapes == [(32, 64)] * 2
    torch.testing.assert_close(left @ columns[0, :, 0], left.decode() @ columns[0, :, 0])


def test_a_weight_that_was_packed_for_inference_alone() -> None:
    with torch.inference_mode():
        packed = Packed.of(numbers(*SHAPE), INT4)
        x = numbers(5, 64)
        assert torch.equal(F.linear(x, packed[1]), F.linear(x, packed.decode()[1]))
