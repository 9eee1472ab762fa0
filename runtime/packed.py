"""A packed weight: the stored fields of a parameter in its place, and the operations that take them.

`Packed` sits where the parameter was, so that `state_dict` names a field `<weight>.<field>`. It stands in for
a tensor wherever torch's functions take one: `F.linear(x, module.weight)` runs the kernel that was selected,
`F.embedding` gathers packed rows, and everything else gets the decoded weight. A user's module therefore runs
packed without a change to its code, and without anything but this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels import Call, Selection, select
from .representation import Representation


class Packed(nn.Module):
    """A weight in packed form. `input` is what inputs of linear operations are projected to beforehand.

    Fields are buffers under the names of `Representation.pack`. They move with `.to(device)` and keep
    their stored dtypes under `.to(dtype)`, which changes only what results are computed in.
    """

    like: Tensor

    def __init__(
        self,
        representation: Representation,
        shape: tuple[int, ...],
        fields: Mapping[str, Tensor],
        dtype: torch.dtype,
        input: Representation | None = None,
    ) -> None:
        super().__init__()
        self.representation, self.input = representation, input or Representation()
        self._shape, self.encoded_dtype = torch.Size(shape), dtype
        self._selected: dict[tuple[str, torch.dtype, str], tuple[Call, Selection]] = {}
        self._prepared: dict[tuple[object, ...], Mapping[str, Tensor]] = {}
        device = next(iter(fields.values())).device
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self._held = {name: self._hold(name, tensor) for name, tensor in fields.items()}
        shift = len(representation.rotation.stages)
        self._core_names = {name: _shifted(name, shift) for name in fields}

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

    @classmethod
    def of(
        cls, weight: Tensor, representation: Representation, input: Representation | None = None
    ) -> Packed:
        """The packed form of a dense weight."""
        with torch.no_grad():
            fields = representation.pack(representation.encode(weight.detach()))
        return cls(representation, tuple(weight.shape), fields, weight.dtype, input)

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
        code = self.representation.unpack(self.fields(), tuple(self._shape), self.encoded_dtype)
        return self.representation.decode(code).to(self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y = x W^T + b for an input that was projected and rotated already (`enter`)."""
        call, selection = self._select("linear", x.dtype, x.device)
        return selection.kernel.run(call, x, self._prepared_fields(call, selection), bias)

    def embedding(self, tokens: Tensor) -> Tensor:
        """Rows of the weight, decoded and rotated back."""
        call, selection = self._select("embedding", self.dtype, tokens.device)
        rows = selection.kernel.run(call, tokens, self._core_fields(), None)
        return undo_rotation(self.representation, rows)

    def enter(self, x: Tensor) -> Tensor:
        """An input as `linear` takes it: projected to `input`, rotated as the weight is."""
        return enter(x, self.input, self.representation.rotation)

    def selection(self, operation: str) -> Selection:
        """The kernel that an operation runs on this weight where it is now, with the refusals of others."""
        return self._select(operation, self.dtype, self.device)[1]

    def _select(self, operation: str, dtype: torch.dtype, device: torch.device) -> tuple[Call, Selection]:
        key = (operation, dtype, device.type)
        if key not in self._selected:
            call = Call(operation, self.representation.core, tuple(self._shape), dtype, device.type)
            self._selected[key] = call, select(call)
        return self._selected[key]

    def _prepared_fields(self, call: Call, selection: Selection) -> Mapping[str, Tensor]:
        """The fields as the kernel reads them fastest; made anew when a field was replaced or written to."""
        fields = self._core_fields()
        key = (selection.kernel.name, *((tensor.data_ptr(), tensor._version) for tensor in fields.values()))
        if key not in self._prepared:
            self._prepared = {key: selection.kernel.prepare(call, fields)}
        return self._prepared[key]

    def _core_fields(self) -> dict[str, Tensor]:
        """The fields as the representation without its rotations names them (rotations keep none)."""
        return {self._core_names[name]: tensor for name, tensor in self.fields().items()}

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
        kwargs = kwargs or {}
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        weight = given.get("weight")
        if isinstance(weight, Packed) and func is F.linear:
            return weight.linear(weight.enter(given["input"]), given.get("bias"))
        if isinstance(weight, Packed) and func is F.embedding:
            return weight.embedding(given["input"])
        return func(*_decoded(args), **_decoded(kwargs))

    def extra_repr(self) -> str:
        entering = "" if self.input.is_dense else f", input {self.input}"
        return f"{tuple(self._shape)}, {self.representation}{entering}"


def _shifted(name: str, shift: int) -> str:
    """The name of a field when `shift` stages in front are left out."""
    position, dot, field = name.partition(".")
    return f"{int(position) - shift}.{field}" if dot else name


class Enter(nn.Module):
    """`enter` as a module without state, so that a graph can call it and print its name."""

    def __init__(self, projection: Representation, rotation: Representation) -> None:
        super().__init__()
        self.projection, self.rotation = projection, rotation

    def forward(self, x: Tensor) -> Tensor:
        """`x` as packed linear operations take it."""
        return enter(x, self.projection, self.rotation)

    def extra_repr(self) -> str:
        return str(self.projection if self.projection.stages else self.rotation)


def enter(x: Tensor, projection: Representation, rotation: Representation) -> Tensor:
    """`x` projected and then rotated; where both begin with the same rotation, once."""
    if projection.is_dense:
        return rotate(x, rotation)
    if projection.rotation == rotation:
        core = projection.core
        return core.project(rotate(x, rotation)) if core.stages else rotate(x, rotation)
    return rotate(projection.project(x), rotation)


def rotate(x: Tensor, rotation: Representation) -> Tensor:
    """`x` under the leading rotations of a representation."""
    return rotation.encode(x).carry if rotation.stages else x


def undo_rotation(representation: Representation, x: Tensor) -> Tensor:
    """`x` with the leading rotations of a representation undone."""
    for stage in reversed(representation.rotation.bound_stages):
        x = stage.decode(x, {})
    return x


def packed_linear(x: Tensor, weight: Packed, bias: Tensor | None = None) -> Tensor:
    """`Packed.linear` as a function, for graphs: `x` has entered already."""
    return weight.linear(x, bias)


def packed_embedding(tokens: Tensor, weight: Packed) -> Tensor:
    """`Packed.embedding` as a function, for graphs."""
    return weight.embedding(tokens)


def decode(weight: Packed) -> Tensor:
    """`Packed.decode` as a function, for graphs."""
    return weight.decode()


def pack_parameter(model: nn.Module, parameter: Tensor, packed: Packed) -> list[str]:
    """Put `packed` in the place of a parameter, wherever `model` holds it; the paths where it was."""
    paths = []
    for prefix, module in model.named_modules(remove_duplicate=True):
        for name in [name for name, held in module._parameters.items() if held is parameter]:
            del module._parameters[name]
            module.add_module(name, packed)
            paths.append(f"{prefix}.{name}" if prefix else name)
    return paths


def packed_weights(model: nn.Module) -> dict[str, Packed]:
    """Every packed weight of a model by the first of its paths."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Packed)}


def _decoded(value: Any) -> Any:
    if isinstance(value, Packed):
        return value.decode()
    if isinstance(value, tuple | list):
        return type(value)(_decoded(item) for item in value)
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    return value
