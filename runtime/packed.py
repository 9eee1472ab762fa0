"""A packed weight: the stored fields of a parameter in its place, and the operations that take them.

`Packed` sits where the parameter was, so that `state_dict` names a field `<weight>.<field>`. It stands in for
a tensor wherever torch's functions take one: `F.linear(x, module.weight)` runs the kernel that was selected,
`F.embedding` gathers packed rows, and everything else gets the decoded weight. A user's module therefore runs
packed without a change to its code, and without anything but this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import packed_ops
from .after_import import after_import
from .arrangement import PLAIN, Arrangement
from .code import Code
from .entering import ENTER, enter, keys_of, undo_rotation
from .experts import Experts
from .kernels import Call, Selection, select
from .kernels.by_parts import left_linear, right_linear
from .kernels.composed import ComposedInput
from .kernels.cpu.decoding import restored
from .kernels.decode_linear import DecodeLinear
from .kernels.neighbours import ACTIVATIONS
from .last_product import LastProduct, stamp
from .operations import Operation
from .packed_products import operate
from .representation import Representation
from .slots import NOTHING, Slots
from .tensor_like import TensorLike


class Packed(TensorLike):
    """A weight in packed form. `slots` say what inputs and outputs of its operations are projected to;
    `arrangement` as which matrix the weight was encoded.

    Fields are buffers under the names of `Representation.pack`. They move with `.to(device)` and keep
    their stored dtypes under `.to(dtype)`, which changes only what results are computed in.
    """

    like: Tensor
    last: LastProduct | None = None  # with the right factor, where other weights have it too

    def __init__(
        self,
        representation: Representation,
        shape: tuple[int, ...],
        fields: Mapping[str, Tensor],
        dtype: torch.dtype,
        slots: Slots = NOTHING,
        arrangement: Arrangement = PLAIN,
    ) -> None:
        super().__init__()
        representation = representation.named
        self.representation, self.arrangement = representation, arrangement
        self.slots = slots = slots.without_training
        self.matrix_shape = arrangement.shape(tuple(shape))
        self._shape, self.encoded_dtype = torch.Size(shape), dtype
        self._selected: dict[tuple[object, ...], tuple[Call, Selection]] = {}
        self._prepared: dict[tuple[object, ...], Mapping[str, Tensor]] = {}
        self._experts = Experts()
        device = next((tensor.device for tensor in fields.values()), None)  # of ones nothing is stored
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self._held = {name: self._hold(name, tensor) for name, tensor in fields.items()}
        names = tuple(fields)
        self.stored = packed_ops.Stored(representation, tuple(shape), names, dtype, slots, arrangement)
        # Plain attributes, which torch.compile reads without tracing what they follow from. Inputs enter
        # freely that are neither projected nor rotated.
        self.key = self.stored.key
        self.entering = keys_of(slots.input, representation.rotation)
        self.enters_freely = slots.input.is_dense and not representation.rotation.stages
        self.is_read_plainly = arrangement == PLAIN and slots == Slots(slots.input)
        shift = len(representation.rotation.stages)
        self._core_names = {name: _shifted(name, shift) for name in fields}

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made of: without what follows from it."""
        return self.__dict__ | {"_selected": {}, "_prepared": {}, "_experts": Experts()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        packed_ops.know(self.stored)
        self.entering = keys_of(self.input, self.representation.rotation)

    def _hold(self, name: str, tensor: Tensor) -> tuple[nn.Module, str]:
        """Register a field as a buffer where its dotted name says; that module, and the name in it."""
        *folders, leaf = name.split(".")
        owner: nn.Module = self
        for folder in folders:
            if folder not in owner._modules:
                owner.add_module(folder, nn.Module())
            owner = owner.get_submodule(folder)
        owner.register_buffer(leaf, tensor)
        return owner, leaf

    @property
    def sharing(self) -> dict[str, str]:
        """What it has in common with other weights: by how the names of fields begin, what that is called."""
        pairs = zip(self.representation.shared_fields, self.representation.shared_names, strict=True)
        return {prefix: name for prefix, name in pairs if name}

    def share(self, prefix: str, other: Packed, of: str) -> None:
        """Hold the fields that begin with `prefix` where another weight holds its own that begin with `of`:
        one module for both, stored once and moved together."""
        above, _, last = prefix.rstrip(".").rpartition(".")
        self.get_submodule(above)._modules[last] = other.get_submodule(of.rstrip("."))
        for name in self._held:
            if name.startswith(prefix):
                self._held[name] = other._held[of + name.removeprefix(prefix)]
        self.last = other.last = other.last or LastProduct()

    @classmethod
    def of(
        cls,
        weight: Tensor,
        representation: Representation,
        slots: Slots = NOTHING,
        arrangement: Arrangement = PLAIN,
        code: Code | None = None,
    ) -> Packed:
        """The packed form of a dense weight, or of a code of it."""
        with torch.no_grad():
            if code is None:
                code = representation.encode(arrangement.matrix(weight.detach()))
            fields = representation.pack(code)
        return cls(representation, tuple(weight.shape), fields, weight.dtype, slots, arrangement)

    @property
    def input(self) -> Representation:
        """What inputs of its operations are projected to beforehand."""
        return self.slots.input

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """What the weight decodes to."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """Where the fields are."""
        return self.like.device

    @property
    def nbytes(self) -> int:
        """Stored bytes, all fields."""
        return sum(tensor.nbytes for tensor in self.fields().values())

    def fields(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        found = {name: owner._buffers[leaf] for name, (owner, leaf) in self._held.items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def decode(self) -> Tensor:
        """The dense weight, rotated back."""
        if torch.compiler.is_compiling():
            return packed_ops.decoded(self)
        matrix = self._restored(torch.float32 if self.representation.rotation.stages else self.encoded_dtype)
        if matrix is None:
            code = self.representation.unpack(self.fields(), self.matrix_shape, self.encoded_dtype)
            matrix = self.representation.decode(code)
        else:
            matrix = undo_rotation(self.representation, matrix).to(self.encoded_dtype)
        return self.arrangement.restore(matrix, tuple(self._shape)).to(self.dtype)

    def decode_rotated(self) -> Tensor:
        """The matrix that inputs which have entered are multiplied with."""
        matrix = self._restored(self.encoded_dtype)
        if matrix is not None:
            return matrix.to(self.encoded_dtype)
        core = self.representation.core
        return core.decode(core.unpack(self._core_fields(), self.matrix_shape, self.encoded_dtype))

    def _restored(self, dtype: torch.dtype) -> Tensor | None:
        """The rotated matrix in float32 or `dtype`, where C++ decodes it."""
        if self.encoded_dtype == torch.float64:
            return None
        return restored(self.representation.core, self._core_fields(), self.matrix_shape, dtype)

    def linear(self, x: Tensor, bias: Tensor | None = None, activation: str = "") -> Tensor:
        """y = x W^T + b for an input that was projected and rotated already (`enter`), or an activation of
        it."""
        if torch.compiler.is_compiling():
            return packed_ops.call(self, "linear", x, bias, activation)
        x, operation = _autocast(x), "linear_activation" if activation else "linear"
        call, selection = self.chosen(operation, x.dtype, x.device, activation)
        return selection.kernel.run(call, x, self.prepared(call, selection), bias)

    def input_linear(self, x: Tensor, bias: Tensor | None = None, activation: str = "") -> Tensor:
        """y = enter(x) W^T + b, or an activation of it, for an input that has not entered."""
        if torch.compiler.is_compiling():
            if packed_ops.traced_with_gradient(x, bias):
                result = self.linear(ENTER(x, *self.entering), bias)
                return ACTIVATIONS[activation](result) if activation else result
            return packed_ops.call(self, "input_linear", x, bias, activation)
        x = _autocast(x)
        call, selection = self.chosen("input_linear", x.dtype, x.device, activation)
        return selection.kernel.run(call, x, self.prepared(call, selection), bias)

    @property
    def splits(self) -> bool:
        """Whether it is a product whose right factor other weights have too, and read the same input with."""
        core = self.representation.core
        return len(core.stages) == 1 and core.stages[0].shared_fields == ("right.",) and bool(self.sharing)

    def right_linear(self, x: Tensor) -> Tensor:
        """What the right factor of a product makes of an input that has entered, for `left_linear`."""
        if torch.compiler.is_compiling():
            return packed_ops.call(self, "right_linear", x)
        x = _autocast(x)
        call, selection = self.chosen("linear", x.dtype, x.device)
        return right_linear(call, x, self.prepared(call, selection))

    def left_linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`linear` of the input of which `right_linear` gave x."""
        if torch.compiler.is_compiling():
            return packed_ops.call(self, "left_linear", x, bias)
        call, selection = self.chosen("linear", x.dtype, x.device)
        result = left_linear(call, x, self.prepared(call, selection))
        return (result if bias is None else result + bias).to(x.dtype)

    def entered_linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y = x W^T + b for any input, prepared where inputs are."""
        if self.last is not None and self.splits and self.enters_freely and not torch.compiler.is_compiling():
            factor = tuple(t for name, t in self.fields().items() if name.startswith("0.right."))
            return self.left_linear(self.last.of(x, factor, self.right_linear), bias)
        return self.linear(x, bias) if self.enters_freely else self.input_linear(x, bias)

    def embedding(self, tokens: Tensor) -> Tensor:
        """Rows of the weight, decoded and rotated back."""
        if torch.compiler.is_compiling():
            return packed_ops.call(self, "embedding", tokens)
        call, selection = self.chosen("embedding", self.dtype, tokens.device)
        rows = selection.kernel.run(call, tokens, self.prepared(call, selection), None)
        return undo_rotation(self.representation, rows)

    @property
    def has_kernel(self) -> bool:
        """Whether something faster than decoding multiplies with the weight where it is now.

        A compiler that traces the model takes the answer as it is (`not_traced`).
        """
        return self.takes_inputs or self.selection("linear").kernel.name != DecodeLinear.name

    @property
    def takes_inputs(self) -> bool:
        """Whether one kernel prepares an input and multiplies it, where the weight is now."""
        return self.selection("input_linear").kernel.name != ComposedInput.name

    def enter(self, x: Tensor) -> Tensor:
        """An input as `linear` takes it: projected to `input`, rotated as the weight is."""
        return enter(x, self.input, self.representation.rotation)

    def selection(self, operation: str, activation: str = "") -> Selection:
        """The kernel that an operation runs on this weight where it is now, with the refusals of others."""
        return self.chosen(operation, self.dtype, self.device, activation)[1]

    def chosen(
        self, operation: str, dtype: torch.dtype, device: torch.device, activation: str = ""
    ) -> tuple[Call, Selection]:
        """The call that an operation on this weight is for inputs of a dtype, and the kernel for it."""
        key = (operation, activation, dtype, device.type)
        if key not in self._selected:
            core, shape = self.representation.core, self.matrix_shape
            call = Call(operation, core, shape, dtype, device.type, activation)
            if operation in ("input_linear", "grouped_linear"):
                call = replace(call, input=self.input, rotation=self.representation.rotation)
            self._selected[key] = call, select(call)
        return self._selected[key]

    def stored_like(self, other: Packed) -> bool:
        """Whether two weights have the same fields, shapes and dtypes, so that one kernel can take both."""
        same = self.representation.core == other.representation.core and self.arrangement == other.arrangement
        return same and (self._shape, self.encoded_dtype) == (other._shape, other.encoded_dtype)

    def prepared(self, call: Call, selection: Selection) -> Mapping[str, Tensor]:
        """The fields as the kernel reads them fastest; made anew when a field was replaced or written to."""
        stamps = [stamp(cast(Tensor, owner._buffers[leaf])) for owner, leaf in self._held.values()]
        key = (selection.kernel.layout, *stamps)
        found = self._prepared.get(key)
        if found is None:
            found = selection.kernel.prepare(call, self._core_fields())
            self._prepared = {key: found}
        return found

    def _core_fields(self) -> dict[str, Tensor]:
        """The fields as the representation without its rotations names them (rotations keep none)."""
        names, held = self._core_names, self._held
        found = {names[name]: owner._buffers[leaf] for name, (owner, leaf) in held.items()}
        return cast(dict[str, Tensor], found)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Packed:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            same = tensor is self.like or moved.dtype == tensor.dtype
            return moved if same else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """As for others; a linear with nothing around it, of which a token takes many, without a search."""
        if func is F.linear and not kwargs and isinstance(args[1], Packed) and args[1].is_read_plainly:
            return args[1].entered_linear(args[0], *args[2:])
        return super().__torch_function__(func, types, args, kwargs)

    def operate(
        self, func: Callable[..., Any], operation: Operation, given: list[Any], rest: Mapping[str, Any]
    ) -> Any:
        return operate(self, func, operation, given, rest)

    def __getitem__(self, index: Any) -> Any:
        """One of several matrices as a packed weight of its own, where it can be told apart; else of the
        decoded weight."""
        single = isinstance(index, int) or (
            isinstance(index, Tensor) and not index.ndim and index.dtype != torch.bool
        )
        expert = self.expert(int(index)) if single and len(self._shape) == 3 else None
        return super().__getitem__(index) if expert is None else expert

    def expert(self, index: int) -> Packed | None:
        """One of the matrices of a weight `[experts, ...]`, its fields views of these; None where matrices
        are stored together."""
        return self._experts.of(self, index)

    def extra_repr(self) -> str:
        entering = "" if self.input.is_dense else f", input {self.input}"
        return f"{tuple(self._shape)}, {self.representation}{entering}"


def _shifted(name: str, shift: int) -> str:
    """The name of a field when `shift` stages in front are left out."""
    position, dot, field = name.partition(".")
    return f"{int(position) - shift}.{field}" if dot else name


def packed_linear(x: Tensor, weight: Packed, bias: Tensor | None = None) -> Tensor:
    """`Packed.linear` as a function, for graphs: `x` has entered already."""
    return weight.linear(x, bias)


def packed_input_linear(x: Tensor, weight: Packed, bias: Tensor | None = None) -> Tensor:
    """`Packed.input_linear` as a function, for graphs."""
    return weight.input_linear(x, bias)


def packed_right_linear(x: Tensor, weight: Packed) -> Tensor:
    """`Packed.right_linear` as a function, for graphs: once for all weights with this right factor."""
    return weight.right_linear(x)


def packed_left_linear(x: Tensor, weight: Packed, bias: Tensor | None = None) -> Tensor:
    """`Packed.left_linear` as a function, for graphs."""
    return weight.left_linear(x, bias)


def packed_embedding(tokens: Tensor, weight: Packed) -> Tensor:
    """`Packed.embedding` as a function, for graphs."""
    return weight.embedding(tokens)


def decode(weight: Packed) -> Tensor:
    """`Packed.decode` as a function, for graphs."""
    return weight.decode()


def packed_weights(model: nn.Module) -> dict[str, Packed]:
    """Every packed weight of a model by the first of its paths."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Packed)}


def _autocast(x: Tensor) -> Tensor:
    """The input in the dtype that linears compute in under autocast."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


after_import("torch._dynamo", f"{__package__}.not_traced")
