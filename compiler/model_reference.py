"""Models by name: `package.module:factory`, `file.py:factory` or `hf:NAME_OR_DIR`, with literal arguments.

`rhoc.runtime.llama:llama(width=48)` calls the factory with `width=48`. Arguments are literals only; a model
reference is data, and the one thing it may do is import the module it names.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..runtime.digest import digest_bytes
from ..runtime.errors import RequestError, RhocError
from .foreign import place, said
from .hints import nearest

if TYPE_CHECKING:
    from torch import nn

_FORM = (
    "write package.module:factory, file.py:factory or hf:NAME_OR_DIR, with arguments like :factory(width=64)"
)
_OURS = __name__.partition(".")[0]
_LISTED = 12  # names of a module that a message lists


@dataclass(frozen=True)
class ModelReference:
    """Where a model comes from: the module or file, the factory in it, and its keyword arguments by name."""

    home: str
    factory: str
    arguments: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str, folder: Path | None = None) -> ModelReference:
        """Read the text form. A file is looked for in `folder` first, then in the working directory.

        Raises RequestError when the text is no model reference.

        >>> ModelReference.parse("model.py:build(width=64)").arguments
        (('width', 64),)
        """
        home, separator, call = text.rpartition(":") if "(" not in text else _split_call(text)
        if not separator or not home or not call:
            raise RequestError(f"{text!r} is not a model reference", advice=_FORM)
        if home == "hf":
            return cls("hf", call)
        try:
            name, arguments = _read_call(call)
        except (SyntaxError, ValueError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error).partition(" on line")[0]
            raise RequestError(
                f"cannot read {call!r} as a factory with literal arguments ({reason})", advice=_FORM
            ) from None
        if home.endswith(".py") and folder is not None and (folder / home).is_file():
            home = str(folder / home)
        return cls(home, name, tuple(sorted(arguments.items())))

    def with_arguments(self, changed: dict[str, Any]) -> ModelReference:
        """The same factory with some arguments set anew."""
        return ModelReference(
            self.home, self.factory, tuple(sorted({**dict(self.arguments), **changed}.items()))
        )

    @property
    def label(self) -> str:
        """The text form with a file's name in place of its path: the same wherever the file lies."""
        home = Path(self.home).name if self.home.endswith(".py") else self.home
        return str(ModelReference(home, self.factory, self.arguments))

    def code_digest(self) -> str:
        """Digest of the source file that the factory is in, so that a changed file is another model.

        Empty for modules of this package, whose code a run's request has already, and for hf: models. Files
        that the source imports do not count.
        """
        return "" if self.home == "hf" else source_digest(self.home)

    def build(self) -> nn.Module:
        """Call the factory. Raises RequestError when there is none, or when it fails or returns no module."""
        from torch import nn

        if self.home == "hf":
            return _from_huggingface(self.factory)
        factory, arguments = self._find(), dict(self.arguments)
        self._check(factory, arguments)
        try:
            model = factory(**arguments)
        except RhocError:
            raise
        except (Exception, SystemExit) as error:
            at = place(error, getattr(inspect.getmodule(factory), "__file__", None))
            raise RequestError(
                f"the factory raised {said(error)}", where=str(self), advice=f"look at {at}"
            ) from error
        if not isinstance(model, nn.Module):
            raise RequestError(
                f"the factory returned {type(model).__name__}, not a torch.nn.Module", where=str(self)
            )
        return model

    def _find(self) -> Callable[..., Any]:
        module = load_home(self.home)
        found = getattr(module, self.factory, None)
        if not callable(found):
            public = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
            guess = nearest(self.factory, public)
            listed = f"it has {', '.join(public) or 'nothing callable'}"
            advice = listed if len(public) <= _LISTED else f"it has {len(public)} others"
            if guess is not None:
                advice = f"did you mean {guess!r}?"
            raise RequestError(f"there is no factory {self.factory!r}", where=self.home, advice=advice)
        return found  # type: ignore[no-any-return]

    def _check(self, factory: Callable[..., Any], arguments: dict[str, Any]) -> None:
        try:
            signature = inspect.signature(factory)
        except ValueError:  # written in C, and silent about its arguments
            return
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise RequestError(
                f"the factory does not take these arguments ({error})", where=str(self),
                advice=f"its signature is {self.factory}{_short(signature)}",
            ) from None  # fmt: skip

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments)
        return f"{self.home}:{self.factory}({arguments})" if arguments else f"{self.home}:{self.factory}"


def load_home(home: str, advice: str = _FORM) -> ModuleType:
    """The module that a file `x.py` or an import name is; `advice` says how to write what was meant.

    Raises RequestError when there is none, or when running it fails.
    """
    return _load_file(Path(home), advice) if home.endswith(".py") else _load_module(home, advice)


def source_digest(home: str, advice: str = _FORM) -> str:
    """Digest of the source of a file or module; empty for modules of this package. Errors as `load_home`."""
    if home.partition(".")[0] == _OURS:
        return ""
    path = Path(home) if home.endswith(".py") else _source(home, advice)
    try:
        return "" if path is None else digest_bytes(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from error


def _split_call(text: str) -> tuple[str, str, str]:
    """Split at the colon before the factory when arguments (which may hold colons) follow."""
    front, bracket, arguments = text.partition("(")
    home, separator, factory = front.rpartition(":")
    return home, separator, factory + bracket + arguments


def _read_call(call: str) -> tuple[str, dict[str, Any]]:
    """The name and the literal keyword arguments of `factory` or `factory(name=value)`."""
    tree = ast.parse(call if "(" in call else f"{call}()", mode="eval").body
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
        raise ValueError("only keyword arguments are taken")
    arguments = {
        str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords if keyword.arg
    }
    if len(arguments) < len(tree.keywords):
        raise ValueError("arguments are name=value, each name once")
    return tree.func.id, arguments


def _short(signature: inspect.Signature) -> str:
    """Names and defaults of parameters, without their types."""
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(plain))


@contextmanager
def _searching(folder: str) -> Iterator[None]:
    """Imports look into a folder first, as they do for a script that lies there."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _source(name: str, advice: str) -> Path | None:
    file = getattr(_load_module(name, advice), "__file__", None)
    return Path(file) if file is not None and file.endswith(".py") else None


def _load_module(name: str, advice: str) -> ModuleType:
    try:
        with _searching(""):  # the working directory, as `python -m` has it
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise RequestError(f"there is no module {name!r}", advice=advice) from None
        raise _not_imported(error, name) from error
    except (Exception, SystemExit) as error:
        raise _not_imported(error, name) from error


def _load_file(path: Path, advice: str) -> ModuleType:
    if not path.is_file():
        raise RequestError("there is no such file", where=str(path), advice=advice)
    try:
        return _run_file(path.resolve(), path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from error


@lru_cache(maxsize=16)
def _run_file(path: Path, content: bytes) -> ModuleType:
    """The module in a file, run once for each content; never from bytecode, which may be older than it."""
    name = f"rhoc_model_{path.stem}_{digest_bytes(str(path).encode(), content)}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        with _searching(str(path.parent)):
            exec(compile(content, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _not_imported(error, path.name, str(path)) from error
    return module


def _not_imported(error: BaseException, name: str, file: str | None = None) -> RequestError:
    said_so = f"importing it raised {said(error)}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        said_so = f"importing it needs {error.name!r}, which is not installed"
    return RequestError(said_so, where=name, advice=f"look at {place(error, file)}")


def _unreadable(path: Path | None, error: OSError) -> RequestError:
    return RequestError(
        f"cannot be read: {error.strerror}", where=str(path), advice="check the path and its permissions"
    )


def _from_huggingface(name: str) -> nn.Module:
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise RequestError("hf: models need transformers", advice="pip install 'rhoc[hf]'") from None
    try:
        saved_as = transformers.AutoConfig.from_pretrained(name).architectures or ()
        known = [found for kind in saved_as if (found := getattr(transformers, kind, None)) is not None]
        model: nn.Module = (known or [transformers.AutoModelForCausalLM])[0].from_pretrained(
            name,
            use_safetensors=True,  # never a pickle from outside
        )
    except Exception as error:
        raise RequestError(
            f"the model cannot be loaded ({said(error)})",
            where=f"hf:{name}",
            advice="check the name and the network",
        ) from error
    return model
