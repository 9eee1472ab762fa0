"""Weights of random bits and linears on them, for kernels of codebooks, trellises and sparse weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rhoc.runtime.kernels import Call, Kernel
from rhoc.runtime.kernels.decode_linear import DecodeLinear
from rhoc.runtime.representation import Representation

from .kernel_cases import Problem, assert_close_to_exact

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


def random_fields(core: Representation, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    """Stored fields of random bits, which any code may be, and of numbers around 1."""
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    found = {}
    for name, field in core.layout(shape, dtype).items():
        if field.dtype.is_floating_point:
            found[name] = (torch.randn(field.stored_shape, generator=generator) / 8 + 1).to(field.dtype)
        else:
            stored = torch.uint8 if field.packed else field.dtype
            found[name] = torch.randint(0, 256, field.stored_shape, generator=generator).to(stored)
    return found


def codes(packed: Tensor, bits: int, count: int) -> Integers:
    """`count` codes `[rows, count]` of a row-packed field, from its bits."""
    rows = packed.reshape(-1, packed.shape[-1]) if packed.ndim > 1 else packed.reshape(1, -1)
    stream = np.unpackbits(rows.contiguous().numpy().view(np.uint8), axis=-1, bitorder="little")
    digits = stream[:, : count * bits].reshape(len(rows), count, bits).astype(np.int64)
    return np.asarray(digits @ (1 << np.arange(bits, dtype=np.int64)))


def scales(stored: Mapping[str, Tensor], shape: tuple[int, int], group: int | None) -> Array:
    """The scale of every number, from a field of one, of one a row, or of one a group."""
    if "0.scale" not in stored:
        return np.ones(shape)
    scale = stored["0.scale"].double().numpy()
    if scale.ndim == 2:
        assert group is not None
        return np.asarray(np.repeat(scale, group, axis=-1)[:, : shape[1]])
    return np.broadcast_to(scale.reshape(-1, 1), shape)


def assert_accepted(
    kernel: Kernel, call: Call, stored: Mapping[str, Tensor], weight: Array, rows: tuple[int, ...]
) -> None:
    """Products with normal inputs are as good as the plain version's, and `prepare` changes nothing."""
    assert kernel.refuse(call) is None
    prepared = kernel.prepare(call, stored)
    exact = torch.from_numpy(np.array(weight, dtype=np.float64))
    for count in rows:
        generator = torch.Generator().manual_seed(count)
        x = torch.randn(count, call.shape[1], generator=generator).to(call.dtype)
        bias = torch.randn(call.shape[0], generator=generator).to(call.dtype) if count % 2 else None
        answer = x.double() @ exact.T + (0 if bias is None else bias.double())
        plain = DecodeLinear().run(call, x, stored, bias)
        given = Problem(call, x, dict(stored), bias, answer, plain)
        result = kernel.run(call, x, prepared, bias)
        assert_close_to_exact(result, given)
        assert torch.equal(kernel.run(call, x, stored, bias), result)


def assert_shapes(kernel: Kernel, call: Call, stored: Mapping[str, Tensor]) -> None:
    """Inputs of any leading shape and strides give what the same numbers in rows do."""
    size = call.shape[1]
    wide = torch.randn(3, size, 4, generator=torch.Generator().manual_seed(0)).to(call.dtype)
    strided = wide.transpose(1, 2)[:, ::2]
    rows = strided.reshape(-1, size).clone()
    expected = kernel.run(call, rows, stored, None)
    assert torch.equal(kernel.run(call, strided, stored, None), expected.reshape(3, 2, -1))
    assert kernel.run(call, rows[:0], stored, None).shape == (0, call.shape[0])
    assert torch.equal(kernel.run(call, rows[0], stored, None), kernel.run(call, rows[:1], stored, None)[0])


def assert_gradients(kernel: Kernel, call: Call, stored: Mapping[str, Tensor], weight: Array) -> None:
    """Gradients of the squared output reach the input and the bias."""
    call = replace(call, dtype=torch.float32)
    exact = torch.from_numpy(np.array(weight))
    x = torch.randn(5, call.shape[1], generator=torch.Generator().manual_seed(1)).requires_grad_()
    bias = torch.zeros(call.shape[0], requires_grad=True)
    kernel.run(call, x, stored, bias).square().sum().backward()
    outer = 2 * x.detach().double() @ exact.T
    assert x.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(
        x.grad.double(), outer @ exact, rtol=1e-4, atol=1e-4 * float(outer.abs().max())
    )
    torch.testing.assert_close(bias.grad.double(), outer.sum(0), rtol=1e-4, atol=1e-4)
