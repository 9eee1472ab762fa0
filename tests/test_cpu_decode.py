"""A packed weight that C++ decodes has the bits that its representation decodes."""

from __future__ import annotations

import pytest
import torch

from rhoc import specs
from rhoc.compiler.spec import shipped_weights
from rhoc.runtime import packed as packed_module
from rhoc.runtime.errors import RequestError
from rhoc.runtime.kernels import Call
from rhoc.runtime.kernels.cpu.decoding import restored
from rhoc.runtime.kernels.cpu.matrix import refusal
from rhoc.runtime.packed import Packed
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize

INT4 = Representation((Quantize(4),)).core
SHAPE = (40, 192)
HQQ = Quantize(2, symmetric=False, observer="hqq", zp_dtype="float16", strategy="group", group_size=32)
CHAINS: dict[str, Representation] = {
    "rotated-int4": Representation((Hadamard(64), Quantize(4, strategy="group", group_size=32))),
    "rotated-asymmetric": Representation((Hadamard(64), Quantize(3, symmetric=False, strategy="channel"))),
    "int2-hqq": Representation((HQQ,)),
    **{name: weights for name in specs.names() if (weights := shipped_weights(name)) and weights.stages},
}
pytestmark = pytest.mark.compiled(by=lambda: refusal(Call("linear", INT4, (8, 8), torch.float32, "cpu")))


def _read(chain: Representation) -> bool:
    return refusal(Call("linear", chain.core, SHAPE, torch.float32, "cpu")) is None


READ = sorted(name for name, chain in CHAINS.items() if _read(chain))


def _weight(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", READ)
def test_the_bits_are_those_of_the_representation(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = CHAINS[name]
    found = Packed.of(_weight(dtype), chain)
    whole = chain.decode(chain.unpack(found.fields(), SHAPE, dtype))
    rotated = chain.core.decode(chain.core.unpack(found._core_fields(), SHAPE, dtype))
    monkeypatch.setattr(Representation, "restore", None)  # which C++ stands in for
    assert torch.equal(found.decode(), whole)
    assert torch.equal(found.decode_rotated(), rotated)
    assert torch.equal(found.to(torch.bfloat16).decode(), whole.to(torch.bfloat16))


def test_most_scalar_formats_are_read() -> None:
    assert len(READ) > 40


def test_what_cpp_does_not_read_is_decoded_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Packed.of(_weight(torch.float64), INT4)
    code = INT4.unpack(wide.fields(), SHAPE, torch.float64)
    assert torch.equal(wide.decode(), INT4.decode(code))
    fields = Packed.of(_weight(torch.float32), INT4).fields()
    assert restored(INT4, fields, SHAPE, torch.float64) is None
    assert restored(INT4, {name: t.to("meta") for name, t in fields.items()}, SHAPE, torch.float32) is None
    monkeypatch.setattr(packed_module, "restored", lambda *_: None)
    found = Packed.of(_weight(torch.float32), INT4)
    assert torch.equal(found.decode(), INT4.decode(INT4.unpack(fields, SHAPE, torch.float32)))


def test_fields_of_another_shape_are_named() -> None:
    found = Packed.of(_weight(torch.float32), INT4)
    found.carry = found.carry[:7].clone()
    with pytest.raises(RequestError, match="field 'carry' has shape"):
        found.decode()
