"""What `rhoc capacity --on` names: a distribution, or a tensor in a safetensors file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..runtime.distributions import Distribution, distribution
from ..runtime.errors import RequestError
from .hints import did_you_mean

_SUFFIX = ".safetensors"


def numbers_from(text: str) -> Distribution | Tensor:
    """The distribution of a name, or the tensor in `FILE.safetensors` or `FILE.safetensors:TENSOR`.

    Raises:
        RequestError: no such name, file or tensor; or a tensor that holds no floating-point numbers.
    """
    file, found, name = text.partition(_SUFFIX)
    if not found:
        return distribution(text)
    return _tensor(Path(file + _SUFFIX), name.removeprefix(":"))


def _tensor(path: Path, name: str) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            names = list(opened.keys())
            if not name and len(names) == 1:
                (name,) = names
            if name not in names:
                hint = (
                    did_you_mean(name, names)
                    if name
                    else f"write {path}:NAME; it holds {', '.join(names[:5])}"
                )
                raise RequestError(
                    f"no tensor {name!r}" if name else "several tensors", where=str(path), advice=hint
                )
            tensor: Tensor = opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"cannot be read: {error}", where=str(path), advice="check the path") from None
    if not tensor.is_floating_point():
        raise RequestError(f"{name} holds {tensor.dtype}, not floating-point numbers", where=str(path))
    return tensor
