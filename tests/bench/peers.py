"""The nearest public library's way to do what a spec does, where that library is installed.

None of them is needed: one that is missing is left out, with a line that says so.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Peer:
    """Another library's encoder: `encode` a matrix, and `restore` what it gave to numbers."""

    name: str
    encode: Callable[[Tensor], Any]
    restore: Callable[[Any], Tensor]


def peers(*wanted: str) -> Iterator[Peer]:
    """Those of `wanted` (`library format`) whose library is installed and works, with its version."""
    for name in wanted:
        package = name.partition(" ")[0]
        try:
            with _quiet():
                encode, restore = _MAKERS[name]()
            yield Peer(name.replace(package, f"{package} {version(package)}", 1), encode, restore)
        except (ImportError, PackageNotFoundError) as error:
            print(f"  left out: {name} ({error})", flush=True)


def _torchao_int4() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    """int4 in groups of 128, absmax; codes stay a byte each."""
    from torchao.quantization import IntxUnpackedToInt8Tensor

    return (lambda x: IntxUnpackedToInt8Tensor.from_hp(x, (1, 128), torch.int4)), lambda y: y.dequantize()


def _torchao_sparse() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    """A 2:4 mask, and int4 in groups of 128 of what it leaves; zeros are stored with the rest."""
    from torchao.quantization import IntxUnpackedToInt8Tensor
    from torchao.sparsity.utils import mask_creator

    def encode(x: Tensor) -> Any:
        return IntxUnpackedToInt8Tensor.from_hp(x * mask_creator(x), (1, 128), torch.int4)

    return encode, lambda y: y.dequantize()


def _torchao_nvfp4() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    """NVFP4 with its second scale."""
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    def encode(x: Tensor) -> Any:
        return NVFP4Tensor.to_nvfp4(x, per_tensor_scale=per_tensor_amax_to_scale(x.abs().max()))

    return encode, lambda y: y.dequantize()


def _torchao_mxfp4() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    return (lambda x: MXTensor.to_mx(x, torch.float4_e2m1fn_x2, 32)), lambda y: y.dequantize()


def _quanto_int4() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    """int4 in groups of 128 from the smallest number to the largest, packed."""
    from optimum.quanto import MaxOptimizer, qint4, quantize_weight

    def encode(x: Tensor) -> Any:
        scale, shift = MaxOptimizer()(x, qtype=qint4, axis=0, group_size=128)
        return quantize_weight(x, qint4, 0, scale, shift, group_size=128)

    return encode, lambda y: y.dequantize()


def _hqq_int4() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    """int4 in groups of 128, with its search for the zero points."""
    from hqq.core.quantize import Quantizer

    def encode(x: Tensor) -> Any:
        return Quantizer.quantize(
            x,
            nbits=4,
            group_size=128,
            axis=1,
            optimize=True,
            device=str(x.device),
            compute_dtype=torch.float32,
        )

    return encode, lambda y: Quantizer.dequantize(*y)


def _bitsandbytes_nf4() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    from bitsandbytes import functional

    def encode(x: Tensor) -> Any:
        return functional.quantize_4bit(x, quant_type="nf4", blocksize=64)

    return encode, lambda y: functional.dequantize_4bit(*y)


def _scikit_learn() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    """Mini-batch k-means of 256 vectors of two numbers, and the nearest of them to each."""
    from sklearn.cluster import MiniBatchKMeans

    def encode(x: Tensor) -> Any:
        vectors = x.reshape(-1, 2).numpy()
        model = MiniBatchKMeans(256, batch_size=1 << 16, n_init=1, random_state=0).fit(vectors)
        return torch.from_numpy(model.cluster_centers_), model.predict(vectors), x.shape

    return encode, lambda y: y[0][y[1]].reshape(y[2])


_MAKERS = {
    "torchao int4-g128": _torchao_int4,
    "torchao 2:4-int4-g128": _torchao_sparse,
    "torchao nvfp4": _torchao_nvfp4,
    "torchao mxfp4": _torchao_mxfp4,
    "optimum-quanto int4-g128": _quanto_int4,
    "hqq int4-g128": _hqq_int4,
    "bitsandbytes nf4": _bitsandbytes_nf4,
    "scikit-learn k-means": _scikit_learn,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries say of their GPU parts when they are imported."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
