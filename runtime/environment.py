"""What a run records about its surroundings, and the digest of the code that made its numbers."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from .digest import digest, digest_files
from .errors import WorkError

_PACKAGES = ("rhoc", "torch", "numpy", "triton", "safetensors")

# Code beside the path from a request to its numbers: what records and moves runs, and what only serves the
# packed form. A change there leaves finished runs valid. Everything else in runtime/ and passes/ counts, so
# that a new file counts until someone says otherwise.
_RECORDS = (
    "store",
    "store_schema",
    "executors",
    "worker_process",
    "workers",
    "environment",
    "events",
    "errors",
)
_NAMES = ("digest", "training_state", "capacity", "listing")
_PACKED = ("packed", "packing", "checkpoint", "pack")
_BESIDE = frozenset(f"{name}.py" for name in (*_RECORDS, *_NAMES, *_PACKED))
_SOURCES = (".py", ".cpp", ".h")
_FOLDERS_BESIDE = frozenset({"laws", "kernels"})


def environment() -> dict[str, object]:
    """Versions, platform, cores and device: plain JSON, without names of hosts, users or folders."""
    import torch

    from .executors import cores

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": gpu or "cpu",
        "packages": {name: _version(name) for name in _PACKAGES},
        "code": code_digest(),
    }


@cache
def code_digest() -> str:
    """Digest of the source that turns a request into numbers: stages, estimators, model, training, passes.

    It is part of a run's request: after a change to that code the same request is a new run.
    """
    parts = {}
    for name in ("runtime", "passes"):
        folder = _folder(name)
        if folder is not None:
            sources = (path for path in folder.rglob("*") if path.suffix in _SOURCES)
            files = [path for path in sources if not _is_beside(path.relative_to(folder))]
            parts[name] = digest_files(files, folder)
    if "runtime" not in parts:
        raise WorkError(
            "the source of rhoc is not on this machine",
            where="code digest",
            advice="install rhoc from a wheel or a checkout, with its .py files",
        )
    return digest(parts)


def _is_beside(path: Path) -> bool:
    return path.name in _BESIDE or path.parts[0] in _FOLDERS_BESIDE


def _folder(name: str) -> Path | None:
    """The folder of a part of rhoc, found without importing it; None where it is not installed."""
    spec = find_spec(f"{__name__.rpartition('.runtime.')[0]}.{name}")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    return folder if folder is not None and any(folder.glob("*.py")) else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
