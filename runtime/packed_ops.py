"""What packed weights compute, as operators of torch: torch.compile traces nothing of a representation.

`Packed` and the modules of a graph call these functions when a compiler traces them. The operators take the
stored fields as they are, and run what runs in eager mode; graphs never break at a kernel that is no torch
code. A weight's key says how it is stored, the same in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .arrangement import Arrangement
from .digest import digest
from .plain import to_plain
from .representation import Representation
from .slots import Slots
from .stages.product import Product

if TYPE_CHECKING:
    from .packed import Packed

_WAYS: dict[str, Stored] = {}  # by key, for the operators
_PACKED = WeakTensorKeyDictionary()  # by the first of its fields, a packed weight over views of all of them


@dataclass(frozen=True)
class Stored:
    """How a weight is stored, all but its fields: what `Packed` is made with. `names` are those of the
    fields, in the order in which operators take them."""

    representation: Representation
    shape: tuple[int, ...]
    names: tuple[str, ...]
    dtype: torch.dtype
    slots: Slots
    arrangement: Arrangement

    @cached_property
    def key(self) -> str:
        """Its name; in this process the operators find it again by that."""
        chains = [to_plain(c) for c in (self.representation, self.slots.input, self.slots.output)]
        parts = [chains, self.shape, self.names, str(self.dtype), asdict(self.arrangement)]
        key = digest(parts if self.slots.codec is None else [*parts, self.slots.codec.identity])
        _WAYS[key] = self
        return key

    def packed(self, fields: Sequence[Tensor], dtype: torch.dtype) -> Packed:
        """The weight with these fields that decodes to a dtype; the same one as long as they are the same."""
        from .packed import Packed  # whose methods call the operators

        places = [tensor.data_ptr() for tensor in fields]
        found = _PACKED.get(fields[0])  # type: ignore[no-untyped-call]
        if found is None or found[0] != places or found[1].dtype != dtype:
            views = dict(zip(self.names, (tensor.detach() for tensor in fields), strict=True))
            made = Packed(self.representation, self.shape, views, self.dtype, self.slots, self.arrangement)
            found = places, made.to(dtype)
            _PACKED[fields[0]] = found
        return found[1]  # type: ignore[no-any-return]

    @property
    def rows(self) -> int:
        """Numbers that a product with the weight gives for each input."""
        return self.arrangement.shape(self.shape)[-2]

    @property
    def rank(self) -> int:
        """Numbers that the right factor of a product gives for each input."""
        product = self.representation.core.stages[0]
        assert isinstance(product, Product)
        (_, rank), _ = product.shapes(self.arrangement.shape(self.shape))
        return rank


def know(stored: Stored) -> None:
    """Have the operators find it again by its key in this process too, whichever it was made in."""
    _WAYS[stored.key] = stored


def traced_with_gradient(*operands: Tensor | None) -> bool:
    """Whether a compiler traces an operation that gradients will pass. Of these operators only the plain
    linear has one: others are then done by parts."""
    if not (torch.compiler.is_compiling() and torch.is_grad_enabled()):
        return False
    return any(operand is not None and operand.requires_grad for operand in operands)


def call(
    weight: Packed, operation: str, x: Tensor, bias: Tensor | None = None, activation: str = ""
) -> Tensor:
    """`linear`, `input_linear`, `embedding` or one of the two products of factors of a packed weight."""
    fields = list(weight.fields().values())
    result: Tensor = _CALL(x, fields, bias, weight.key, operation, activation, weight.dtype)
    return result


def decoded(weight: Packed) -> Tensor:
    """The dense weight."""
    result: Tensor = _DECODE(list(weight.fields().values()), weight.key, weight.dtype)
    return result


def gated(x: Tensor, gate: Packed, up: Packed, biases: Sequence[Tensor | None], activation: str) -> Tensor:
    """`fused.gated_linear` of two packed weights that are stored alike."""
    fields = (list(weight.fields().values()) for weight in (gate, up))
    result: Tensor = _GATED(x, *fields, *biases, f"{gate.key} {up.key}", activation, gate.dtype)
    return result


def _call(
    x: Tensor,
    fields: Sequence[Tensor],
    bias: Tensor | None,
    key: str,
    operation: str,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    weight = _WAYS[key].packed(fields, dtype)
    if operation == "embedding":
        return weight.embedding(x)
    if operation == "right_linear":
        return weight.right_linear(x).contiguous()
    if operation == "left_linear":
        return weight.left_linear(x, bias).contiguous()
    run = weight.linear if operation == "linear" else weight.input_linear
    return run(x, bias, activation).contiguous()


def _call_fake(
    x: Tensor,
    fields: Sequence[Tensor],
    bias: Tensor | None,
    key: str,
    operation: str,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    if operation == "embedding":
        return x.new_empty((*x.shape, _WAYS[key].shape[-1]), dtype=dtype)
    rows = _WAYS[key].rank if operation == "right_linear" else _WAYS[key].rows
    return x.new_empty((*x.shape[:-1], rows))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, fields, _, ctx.key, ctx.operation, ctx.activation, ctx.dtype = inputs
    ctx.save_for_backward(*fields)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The gradient of the one that has one: callers do the others by parts where gradients are wanted."""
    if ctx.operation != "linear" or ctx.activation:
        raise NotImplementedError(f"{ctx.operation} {ctx.activation} has no gradient")
    wants_x, _, wants_bias, *_ = ctx.needs_input_grad
    fields = list(ctx.saved_tensors)
    to_x = _TO_INPUT(grad, fields, ctx.key, ctx.dtype) if wants_x else None
    to_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if wants_bias else None
    return to_x, [None] * len(fields), to_bias, None, None, None, None


def _to_input(grad: Tensor, fields: Sequence[Tensor], key: str, dtype: torch.dtype) -> Tensor:
    return grad @ _WAYS[key].packed(fields, dtype).decode_rotated().to(grad.dtype)


def _to_input_fake(grad: Tensor, fields: Sequence[Tensor], key: str, dtype: torch.dtype) -> Tensor:
    stored = _WAYS[key]
    return grad.new_empty((*grad.shape[:-1], stored.arrangement.shape(stored.shape)[-1]))


def _decode(fields: Sequence[Tensor], key: str, dtype: torch.dtype) -> Tensor:
    decoded = _WAYS[key].packed(fields, dtype).decode().contiguous()
    kept = {tensor.untyped_storage().data_ptr() for tensor in fields}
    return decoded.clone() if decoded.untyped_storage().data_ptr() in kept else decoded


def _decode_fake(fields: Sequence[Tensor], key: str, dtype: torch.dtype) -> Tensor:
    return fields[0].new_empty(_WAYS[key].shape, dtype=dtype)


def _gated(
    x: Tensor,
    gate: Sequence[Tensor],
    up: Sequence[Tensor],
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    keys: str,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    from .fused import gated_linear  # which calls the operator

    one, other = (_WAYS[k].packed(f, dtype) for k, f in zip(keys.split(), (gate, up), strict=True))
    return gated_linear(x, one, other, gate_bias, up_bias, activation=activation)


def _gated_fake(
    x: Tensor,
    gate: Sequence[Tensor],
    up: Sequence[Tensor],
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    keys: str,
    *_: Any,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], _WAYS[keys.split()[0]].rows))


_CALL = torch.library.custom_op("rhoc::packed", _call, mutates_args=())
_CALL.register_fake(_call_fake)
_CALL.register_autograd(_differentiate, setup_context=_save)
_TO_INPUT = torch.library.custom_op("rhoc::packed_to_input", _to_input, mutates_args=())
_TO_INPUT.register_fake(_to_input_fake)
_DECODE = torch.library.custom_op("rhoc::packed_decode", _decode, mutates_args=())
_DECODE.register_fake(_decode_fake)
_GATED = torch.library.custom_op("rhoc::packed_gated", _gated, mutates_args=())
_GATED.register_fake(_gated_fake)
