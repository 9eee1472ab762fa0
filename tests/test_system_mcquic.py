"""McQuic from its spec: patches of photographs through codes of codebooks, to real bytes and back."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from rhoc.compiler.spec import load_spec
from rhoc.runtime.codec import compress

from . import patches_runs
from .bench import patches_task
from .patches_runs import Measured, compiled, fit, measured

pytestmark = pytest.mark.usefixtures("one_thread")

RULE = load_spec("systems/mcquic").to_document()["rules"][0]
GUMBEL = RULE["estimator"]["output_activations"][0]
COMMIT = {"kind": "commit", "reassign": 200}


def codebook(books: int, bits: int, composition: str) -> dict[str, Any]:
    return {
        "kind": "codebook",
        "in_group_size": 16,
        "num_codebooks": books,
        "nbits_per_codebook": bits,
        "composition": composition,
    }


CODEBOOKS = {
    "1 x 256": codebook(1, 8, "residual"),
    "2 x 16": codebook(2, 4, "product"),
    "2 x 256": codebook(2, 8, "product"),
    "256 + 256": codebook(2, 8, "residual"),
}


@cache
def run(codebooks: str, kind: str, steps: int, seed: int, *, reassigned: bool = True) -> Measured:
    """A trained autoencoder, measured from its bytes."""
    estimator = copy.deepcopy(GUMBEL if kind == "gumbel" else COMMIT)
    if not reassigned:
        estimator["reassign"] = None
    made = compiled(CODEBOOKS[codebooks], estimator, seed)
    return measured(made.packed(fit(made, steps, seed)))


def mean(name: str, *given: Any, seeds: tuple[int, ...] = (0, 1), **options: Any) -> float:
    return sum(getattr(run(*given, seed, **options), name) for seed in seeds) / len(seeds)


_ALONE = """
import sys
sys.modules.update(dict.fromkeys(["pydantic", "typer", "yaml", "rhoc.compiler", "rhoc.passes"]))
import torch
from pathlib import Path
from torch import nn
from rhoc.runtime.codec import codecs
from rhoc.runtime.load import load_packed
sys.path.insert(0, sys.argv[2])
from tests.bench.patches_task import autoencoder, patches
torch.set_num_threads(1)
folder = Path(sys.argv[1])
with torch.no_grad():
    model = load_packed(folder / "packed", autoencoder())
    (codec,) = codecs(model).values()
    found = model.decoder(codec.decompress((folder / "patches").read_bytes()))
assert torch.equal(found, model(patches()))
torch.save(found, folder / "found")
"""


def test_bytes_of_a_trained_model_are_decoded_by_the_packed_one_alone(tmp_path: Path) -> None:
    made = patches_runs.compiled(RULE["output_activations"][0], GUMBEL)
    student = fit(made, 300, 0)
    made.save(tmp_path / "packed", student)
    packed, every = made.packed(student), patches_task.patches()
    data = compress(packed, every)
    (tmp_path / "patches").write_bytes(data)
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", _ALONE, str(tmp_path), str(root)], check=True, cwd=tmp_path)
    with torch.no_grad():
        student.eval()
        assert torch.equal(torch.load(tmp_path / "found"), student(every))
    codec = patches_runs.codec_of(packed)
    codes, _ = codec.from_bytes(data)
    state = student.state_dict()
    latent = patches_runs.latents(student, every)
    tables = state["bottleneck.weight_output_codebook"].half().double()
    for group, table in enumerate(tables):
        part = latent[:, 8 * group : 8 * group + 8].double()
        chosen = (part - table[codes[:, group]]).square().sum(1)
        assert bool((chosen <= torch.cdist(part, table).square().amin(1) + 1e-5).all())
    assert len(data) < len(every) * codec.bits / 8
    assert len(data) < 1.02 * codec.expected_bytes(codes) + 23
    assert measured(packed).psnr > 20.5  # after 300 steps; the mean patch alone has 12


def test_dead_vectors_are_put_to_use() -> None:
    used, unused = (_short({"reassign": 50, "below": 1e-3}), _short({"reassign": None}))
    assert used.usage >= 0.8
    assert used.usage > unused.usage + 0.3
    assert used.psnr > unused.psnr + 0.3


def _short(options: dict[str, Any]) -> Measured:
    made = compiled(CODEBOOKS["2 x 256"], {"kind": "commit"} | options)
    return measured(made.packed(fit(made, 400, 0)))


@pytest.mark.slow
def test_small_codebooks_for_groups_do_nearly_what_a_large_one_does() -> None:
    few, many = ("2 x 16", "gumbel", 2000), ("1 x 256", "gumbel", 2000)
    assert run(*few, 0).nominal == run(*many, 0).nominal == 0.125
    assert (run(*few, 0).vectors, run(*many, 0).vectors) == (32, 256)
    assert mean("psnr", *few) > mean("psnr", *many) - 0.5
    assert mean("psnr", *many) > 21.9


@pytest.mark.slow
def test_a_cascade_is_better_than_one_level() -> None:
    one, two = ("1 x 256", "gumbel", 2000), ("256 + 256", "gumbel", 2000)
    assert mean("psnr", *two) > mean("psnr", *one) + 0.4


@pytest.mark.slow
@pytest.mark.parametrize("codebooks", CODEBOOKS)
def test_bytes_are_fewer_than_codes_have_bits(codebooks: str) -> None:
    for seed in (0, 1):
        found = run(codebooks, "gumbel", 2000, seed)
        assert found.coded < found.nominal
        assert found.coded < 1.12 * found.entropy  # frequencies are those of the last training batches


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "steps"), [("gumbel", 2000), ("commit", 3000)])
def test_usage_is_due_to_dead_vectors_being_replaced(kind: str, steps: int) -> None:
    used = mean("usage", "2 x 256", kind, steps)
    unused = mean("usage", "2 x 256", kind, steps, reassigned=False)
    assert used >= 0.8
    assert used >= unused + 0.3
    psnr = mean("psnr", "2 x 256", kind, steps)
    assert psnr > mean("psnr", "2 x 256", kind, steps, reassigned=False)
