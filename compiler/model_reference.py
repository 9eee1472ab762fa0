"""Models by name: `package.module:factory`, `file.py:factory` or `hf:NAME_OR_DIR`, with literal arguments.

`rhoc.runtime.llama:llama(width=48)` calls the factory with `width=48`. Arguments are literals only; a model
reference is data, and the one thing it may do is import the module it names.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import RequestError

if TYPE_CHECKING:
    from torch import nn

_FORM = "write package.module:factory, file.py:factory or hf:NAME_OR_DIR, with arguments like :factory(width=64)"


@dataclass(frozen=True)
class ModelReference:
    """Where a model comes from: the module or file, the factory in it, and its keyword arguments."""

    home: str
    factory: str
    arguments: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Read the text form. Raises RequestError when it is not one."""
        home, separator, call = text.rpartition(":") if "(" not in text else _split_call(text)
        if not separator or not home or not call:
            raise RequestError(f"{text!r} is not a model reference", advice=_FORM)
        if home == "hf":
            return cls("hf", call)
        try:
            tree = ast.parse(call if "(" in call else f"{call}()", mode="eval").body
            if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
                raise ValueError("only keyword arguments are taken")
            arguments = tuple((str(k.arg), ast.literal_eval(k.value)) for k in tree.keywords)
        except (SyntaxError, ValueError) as error:
            raise RequestError(f"cannot read {call!r} as a factory with literal arguments ({error})", advice=_FORM) from None
        return cls(home, tree.func.id, arguments)

    def with_arguments(self, **changed: Any) -> ModelReference:
        """The same factory with some arguments set anew."""
        return ModelReference(self.home, self.factory, tuple(sorted({**dict(self.arguments), **changed}.items())))

    def build(self) -> nn.Module:
        """Call the factory. Raises RequestError when there is no such factory or it refuses its arguments."""
        from torch import nn

        if self.home == "hf":
            return _from_huggingface(self.factory)
        factory = self._find()
        try:
            model = factory(**dict(self.arguments))
        except TypeError as error:
            raise RequestError(f"the factory refused its arguments ({error})", where=str(self)) from error
        if not isinstance(model, nn.Module):
            raise RequestError(f"the factory returned a {type(model).__name__}, not a torch.nn.Module", where=str(self))
        return model

    def _find(self) -> Callable[..., Any]:
        module = _load_file(Path(self.home)) if self.home.endswith(".py") else _load_module(self.home)
        found = getattr(module, self.factory, None)
        if not callable(found):
            public = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
            raise RequestError(
                f"{self.home} has no factory {self.factory!r}", advice=f"it has {', '.join(public) or 'nothing callable'}"
            )
        return found  # type: ignore[no-any-return]

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments)
        return f"{self.home}:{self.factory}({arguments})" if arguments else f"{self.home}:{self.factory}"


def _split_call(text: str) -> tuple[str, str, str]:
    """Split at the colon before the factory when arguments (which may hold colons) follow."""
    front, bracket, arguments = text.partition("(")
    home, separator, factory = front.rpartition(":")
    return home, separator, factory + bracket + arguments


def _load_module(name: str) -> object:
    sys.path.insert(0, "")  # the working directory, as `python -m` has it
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not (name == error.name or name.startswith(error.name + ".")):
            raise RequestError(f"importing it needs {error.name!r}, which is not installed", where=name) from error
        raise RequestError(f"there is no module {name!r}", advice=_FORM) from None
    finally:
        sys.path.remove("")


def _load_file(path: Path) -> object:
    if not path.is_file():
        raise RequestError("there is no such file", where=str(path), advice=_FORM)
    name = f"rhoc_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RequestError("this file cannot be imported as Python", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _from_huggingface(name: str) -> nn.Module:
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise RequestError("hf: models need transformers", advice="pip install 'rhoc[hf]'") from None
    model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(name)
    return model
