"""Where a module tree holds its parameters and modules, looked up once for many replacements."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .errors import RequestError
from .packed import Packed


class Holders:
    """Replaces modules and parameters of a tree wherever they are held, in plain lists and dictionaries too.

    Walking the tree for each of many weights takes time that grows with their number squared. A module that
    replaces another must share its children and parameters (`part_of`, `stand_in`).
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._modules: dict[int, list[tuple[Any, Any]]] = {}
        self._parameters: dict[int, list[tuple[nn.Module, str, str]]] = {}
        self._beside: dict[tuple[int, str], Tensor] = {}
        self._common: dict[str, Tensor] = {}
        self._sharing: dict[str, tuple[Packed, str]] = {}
        self._kept: list[nn.Module] = []  # so that identities stay theirs
        for path, module in root.named_modules():
            for name, child in module._modules.items():
                self._note(child, module._modules, name)
            for name, value in vars(module).items():
                if not name.startswith("_"):
                    self._look_into(value)
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    full = f"{path}.{name}" if path else name
                    self._parameters.setdefault(id(parameter), []).append((module, name, full))

    def _look_into(self, value: object) -> None:
        if isinstance(value, list | dict):
            for key, item in enumerate(value) if isinstance(value, list) else list(value.items()):
                self._note(item, value, key)

    def _note(self, child: object, container: Any, key: Any) -> None:
        if isinstance(child, nn.Module):
            self._modules.setdefault(id(child), []).append((container, key))

    def replace(self, old: nn.Module, new: nn.Module) -> None:
        """Exchange a module wherever it is held; the root too."""
        if old is self.root:
            self.root = new
        places = self._modules.pop(id(old), [])
        for container, key in places:
            container[key] = new
        self._modules.setdefault(id(new), []).extend(places)
        self._kept.append(old)

    def beside(self, parameter: Tensor, name: str) -> Tensor | None:
        """The parameter or buffer that `put_beside` gave another one under a name, or None."""
        return self._beside.get((id(parameter), name))

    def common(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor that weights have in common under a name: the first that was given."""
        return self._common.setdefault(name, tensor)

    def put_beside(self, parameter: Tensor, name: str, new: Tensor) -> None:
        """Register a parameter beside another, wherever that is held: `weight_step` beside `weight`; a tensor
        that is no parameter as a buffer.

        Raises RequestError when the model has something of that name there.
        """
        for module, own, path in self._parameters.get(id(parameter), []):
            full = f"{own}_{name}"
            if hasattr(module, full):
                raise RequestError(
                    f"the model has a {full!r} there, which is the name of what is learned of this weight",
                    where=path,
                    advice="rename it, or use an estimator that learns nothing, for example trust",
                )
            if isinstance(new, nn.Parameter):
                module.register_parameter(full, new)
            else:
                module.register_buffer(full, new)
        self._beside[id(parameter), name] = new

    def pack(self, parameter: Tensor, packed: Packed) -> list[str]:
        """Put `packed` in the place of a parameter wherever it is held; the paths where it was.

        What it has in common with a weight that was packed before is held once.
        """
        for prefix, name in packed.sharing.items():
            first, of = self._sharing.setdefault(name, (packed, prefix))
            if first is not packed:
                packed.share(prefix, first, of)
        places = self._parameters.pop(id(parameter), [])
        for module, name, _ in places:
            del module._parameters[name]
            module.add_module(name, packed)
            for value in vars(module).values():  # recurrent layers keep their parameters in a list besides
                if isinstance(value, list):
                    value[:] = [packed if item is parameter else item for item in value]
        return [path for _, _, path in places]
