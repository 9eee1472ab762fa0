"""A codebook that all weights of a model share: fitted once, stored once, the same in every form."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import rhoc
from rhoc.compiler import gaussian_errors
from rhoc.runtime.capacity import monte_carlo
from rhoc.runtime.errors import RequestError
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import packed_weights
from rhoc.runtime.stages import Codebook
from rhoc.runtime.text_parser import from_text

CHAIN = "codebook(2, nbits_per_codebook=4, scope=network)"


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


def tables(packed: nn.Module) -> set[tuple[float, ...] | None]:
    stages = [stage for weight in packed_weights(packed).values() for stage in weight.representation.stages]
    return {stage.table for stage in stages if isinstance(stage, Codebook)}


@pytest.mark.parametrize(
    "chain", [CHAIN, f"hadamard(16) >> {CHAIN}", f"sparsify(0.9) + {CHAIN}", f"entropy({CHAIN})"]
)
def test_the_three_forms_share_one_table(chain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roughly = partial(monte_carlo, rounds=2)  # the error is not the question, and takes ten times the rest
    monkeypatch.setattr(gaussian_errors, "monte_carlo", roughly)
    compiled = rhoc.compile(model(), chain)
    x = torch.randn(5, 16)
    packed = compiled.packed()
    torch.testing.assert_close(packed(x), compiled.trainable().eval()(x))
    torch.testing.assert_close(packed(x), compiled.reference()(x))
    compiled.save(tmp_path / "packed")
    torch.testing.assert_close(load_packed(tmp_path / "packed", model())(x), packed(x))
    assert "network)" in str(compiled.explain()), "the table is not spelled out"


def test_one_table_and_no_copies() -> None:
    packed = rhoc.compile(model(), CHAIN).packed()
    (table,) = tables(packed)
    assert table is not None
    assert len(table) == 2 * 16
    for weight in packed_weights(packed).values():
        assert set(weight.fields()) == {"carry"}
        assert weight.nbytes == weight.shape.numel() // 2 * 4 // 8


def test_a_shared_table_fits_both_weights_together() -> None:
    both = [p.detach() for p in model().parameters() if p.ndim == 2]
    shared = from_text(CHAIN).shared_over(both)
    alone = from_text(CHAIN).shared_over(both[:1])

    def error(representation: rhoc.runtime.representation.Representation) -> float:  # type: ignore[name-defined]
        return sum(float((x - representation.project(x)).square().sum()) for x in both)

    assert error(shared) < error(alone)


@pytest.mark.parametrize("chain", [f"split(0.1, rest={CHAIN})", f"product(4, left={CHAIN})"])
def test_where_sharing_has_no_meaning_it_is_refused(chain: str) -> None:
    with pytest.raises(RequestError, match="scope: network does not work inside"):
        rhoc.compile(model(), chain).packed()
