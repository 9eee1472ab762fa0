"""What weights do not tell is refused, or said, and never left out in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rhoc
from rhoc.compiler.exchange.compressed_tensors import export_compressed_tensors
from rhoc.compiler.exchange.dense import export_dense
from rhoc.compiler.exchange.skeleton import saved_skeleton
from rhoc.compiler.exchange.source import Source, source_of
from rhoc.compiler.exchange.sparse_checkpoint import export_sparse
from rhoc.runtime.errors import RequestError
from rhoc.runtime.llama import llama

from .test_packed import Normed

WRITERS = {"compressed-tensors": export_compressed_tensors, "sparse": export_sparse}
INT8 = "quantize(int8, token, dynamic)"
UNTOLD: dict[str, tuple[dict[str, Any], str]] = {
    "cache": ({"targets": "Linear", "weights": "2of4", "kv_cache": INT8}, "kv_cache"),
    "inputs": ({"targets": "lm_head", "weights": "dense", "input_activations": INT8}, "input_activations of dense weights"),
    "outputs": ({"targets": "lm_head", "weights": "dense", "output_activations": INT8}, "output_activations of dense weights"),
}  # fmt: skip


def sources(
    model: nn.Module, document: dict[str, Any], folder: Path, example: Any = None
) -> dict[str, Callable[[], Source]]:
    """The packed model in memory, and as it was saved."""
    compiled = rhoc.compile(model, document, example)
    compiled.save(folder)
    return {
        "in memory": lambda: source_of(compiled.packed(), compiled.spec),
        "saved": lambda: source_of(*saved_skeleton(folder), model),
    }


@pytest.mark.parametrize("case", UNTOLD)
def test_what_surrounds_weights_is_refused_or_said(case: str, tmp_path: Path) -> None:
    rule, said = UNTOLD[case]
    rules = [rule, {"targets": "Linear", "weights": "2of4"}]
    if case == "cache":
        rules = [{"targets": "Attention", "kv_cache": INT8, "weights": "dense"}, *rules[1:]]
    model = llama(width=16)
    found = sources(model, {"version": 1, "rules": rules}, tmp_path / "packed", (torch.zeros(1, 4).long(),))
    for form, source in found.items():
        for name, write in WRITERS.items():
            with pytest.raises(RequestError, match=f"^spec .*: {said}: there is no place for it in what is"):
                write(tmp_path / name, source())
        assert export_dense(tmp_path / f"dense {form}", source()) == [f"left out of what was written: {said}"]
    assert not (tmp_path / "sparse").exists()


def test_norms_that_subtract_no_mean_are_refused(tmp_path: Path) -> None:
    chain = "hadamard(16) >> quantize(int8, group=16)"
    rule = {"targets": "Linear", "ignore": "head", "weights": chain}
    document, x = {"version": 1, "rules": [rule], "passes": ["fold_rotations"]}, torch.arange(20)[None]
    for source in sources(Normed().eval(), document, tmp_path / "packed", (x,)).values():
        with pytest.raises(
            RequestError, match=r"^norm: this layer norm subtracts no mean .* leave fold_rotations"
        ):
            source()
