"""What is installed here, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Any

_EXTRAS = {
    "transformers": ("hf", "models by name (hf:NAME)"),
    "tokenizers": ("hf", "models by name (hf:NAME)"),
    "psycopg": ("postgres", "a store of runs on PostgreSQL"),
}
_REQUIRED = (
    "torch", "triton", "numpy", "scipy", "networkx", "pydantic", "PyYAML", "safetensors", "SQLAlchemy",
    "typer", "rich", "matplotlib",
)  # fmt: skip


def examine() -> dict[str, Any]:
    """Versions, device and what is missing, as one JSON document."""
    device, kernels = _device()
    checks = [_required(name) for name in _REQUIRED]
    checks += [_extra(module, extra, purpose) for module, (extra, purpose) in _EXTRAS.items()]
    checks.append(_compiler())
    return {
        "rhoc": importlib.metadata.version("rhoc"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device,
        "kernels": kernels,
        "products": _products(device),
        "checks": checks,
        "ready": all(check["found"] for check in checks if check["required"]),
    }


def _device() -> tuple[str, str]:
    """The device that models run on, and which kernels run there."""
    try:
        import torch
    except ImportError as error:
        return f"unknown: torch does not import ({error})", "none"
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0), "Triton on CUDA"
    from ..runtime.kernels.cpu import CPU_KERNELS

    compiled = "" if _compiler()["found"] else " once there is a C++ compiler"
    names = ", ".join(dict.fromkeys(kernel.name for kernel in CPU_KERNELS))
    return "cpu", f"{names}{compiled}; Triton kernels run under TRITON_INTERPRET=1 only"


def _products(device: str) -> str:
    """The dtypes of dense products: those that a CPU has no instructions for take several times as long."""
    if device != "cpu":
        return "float32, bfloat16, float16"
    import torch

    from ..runtime.kernels.dense_product import SLOW

    slow = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in SLOW))
    found = torch.backends.cpu.get_cpu_capability()
    return f"{found} has no instructions for {slow}: train in float32" if slow else f"{found}, all dtypes"


def _required(name: str) -> dict[str, Any]:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    return _check(name, version, True, "everything", f"pip install {name}")


def _extra(module: str, extra: str, purpose: str) -> dict[str, Any]:
    found = importlib.util.find_spec(module) is not None
    version = importlib.metadata.version(module) if found else None
    return _check(module, version, False, purpose, f"pip install 'rhoc[{extra}]'")


def _compiler() -> dict[str, Any]:
    path = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    purpose = "kernels on packed weights and caches, fused projections in training, torch.compile on CPU"
    return _check("C++ compiler", "found" if path else None, False, purpose, "install g++ or clang")


def _check(name: str, version: str | None, required: bool, purpose: str, advice: str) -> dict[str, Any]:
    return {
        "name": name, "version": version, "found": version is not None, "required": required,
        "purpose": purpose, "advice": "" if version else advice,
    }  # fmt: skip
