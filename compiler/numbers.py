"""What `rhoc capacity --on` names: a distribution, or a tensor in a safetensors file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..runtime.distributions import Distribution, distribution
from ..runtime.errors import RequestError
from .hints import did_you_mean

_SUFFIX = ".safetensors"
_SHOWN = 5  # names that a message lists


def numbers_from(text: str) -> Distribution | Tensor:
    """The distribution of a name, or the tensor in `FILE.safetensors` or `FILE.safetensors:TENSOR`.

    Raises:
        RequestError: no such name, file or tensor; or a tensor that holds no finite floating-point numbers.
    """
    file, named, name = text.partition(f"{_SUFFIX}:")
    if named:
        return _tensor(Path(file + _SUFFIX), name)
    return _tensor(Path(text), "") if text.endswith(_SUFFIX) else distribution(text)


def _tensor(path: Path, name: str) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            name = _chosen(path, name, list(opened.keys()))
            tensor: Tensor = opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        advice = "check the path, and that it is a safetensors file"
        raise RequestError(f"cannot be read ({error})", where=str(path), advice=advice) from None
    where = f"{path}:{name}"
    if not tensor.is_floating_point():
        message, advice = (
            f"{str(tensor.dtype).removeprefix('torch.')} is no floating-point type",
            "name a weight",
        )
        raise RequestError(message, where=where, advice=advice)
    if not bool(tensor.float().isfinite().all()):
        advice = "find where training diverged; only finite numbers have an error"
        raise RequestError("some of its numbers are NaN or infinite", where=where, advice=advice)
    return tensor


def _chosen(path: Path, name: str, names: list[str]) -> str:
    """The tensor that is meant: the one of this name, or the only one there is."""
    if name in names:
        return name
    if name:
        advice = did_you_mean(name, names) if names else "the file holds no tensors"
        raise RequestError(f"no tensor is called {name!r}", where=str(path), advice=advice)
    if len(names) != 1:
        some = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        advice = f"write {path}:NAME; it holds {some}" if names else "choose another file"
        raise RequestError(
            f"it holds {len(names)} tensors, and one is needed", where=str(path), advice=advice
        )
    return names[0]
