"""DilateQuant from its spec, on a tiny diffusion model of digits: dilation is exact, and every part helps."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import nn

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.compiler.spec import load_spec
from rhoc.compiler.task_reference import TaskReference
from rhoc.runtime.load import load_packed
from rhoc.runtime.train import TrainSettings, train

from .bench import diffusion_task

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = Path(__file__).parent.parent / "specs" / "systems" / "dilatequant.yaml"
BLOCKS = 5  # what is fitted one after the other: the layer in, three blocks, the layer out


def document(bits: int, dilated: bool, banked: bool) -> dict[str, Any]:
    """The system's spec at some width, with or without two of its parts."""
    found = load_spec(SPEC).to_document()
    rule, (dilate, calibrate) = found["rules"][0], found["passes"]
    for slot in ("weights", "input_activations"):
        rule[slot] = [rule[slot][0] | {"num_bits": bits}]
    if not banked:
        del rule["bank"]
    passes = [dilate, calibrate] if dilated else [calibrate]
    return {"version": 1, "name": "changed", "rules": [rule], "passes": passes}


@torch.no_grad()
def error(model: nn.Module) -> float:
    (batch,) = diffusion_task.validation()
    return float(diffusion_task.loss(model, batch))


def distilled(dense: nn.Module, spec: Any, steps: int, seed: int) -> tuple[Compiled, nn.Module]:
    """The trainable form after so many steps for each block."""
    compiled = rhoc.compile(dense, spec, whole=False)
    student = compiled.trainable()
    settings = TrainSettings(
        tokens=BLOCKS * steps * diffusion_task.BATCH,
        optimizer="adam",  # type: ignore[arg-type]  # a name is read
        learning_rate=1e-3,
        learned_rate=5e-4,
        warmup_fraction=0.0,
        final_fraction=0.0,
        weight_decay=0.0,
        seed=seed,
        teacher="self",
        blocks="auto",
    )
    task = TaskReference(diffusion_task.__file__).build()
    train(student, task, settings, teacher=copy.deepcopy(dense))
    return compiled, student


def test_dilation_changes_no_output_and_no_grid() -> None:
    dense = diffusion_task.trained(300).double()
    x, t = dense.example_inputs()
    example = (x[::40].double(), t[::40])
    passes = [{"kind": "dilate"}]
    compiled = rhoc.compile(dense, document(4, True, False) | {"passes": passes}, example)
    (transformed,) = compiled.transformed
    with torch.no_grad():
        assert float((transformed.root(*example) - dense(*example)).abs().max()) < 1e-10
    grown = []
    for path in ("blocks.0.up", "blocks.2.down", "leave"):
        old, new = (m.get_submodule(path).weight.detach() for m in (dense, transformed.root))
        if not path.endswith("up"):  # rows of `up` are divided as a whole, for `down`
            for new_end, old_end in ((new.amax(1), old.amax(1)), (new.amin(1), old.amin(1))):
                torch.testing.assert_close(new_end, old_end, rtol=1e-5, atol=0)
            factors = new / old
            assert float(factors.min()) >= 1 - 1e-9
            grown.append(float(factors.max()))
    assert min(grown) > 1.05


def saturated(compiled: Compiled) -> dict[str, float]:
    """|A|/in of each weight, as `explain` has it."""
    found = {}
    for row in compiled.explain().parameters:
        told = re.search(r"\|A\|/in ([0-9.]+)", row.reason)
        if told:
            found[row.path] = float(told[1])
    return found


def accept(
    steps: int, each: int, widths: tuple[int, ...], pairings: list[tuple[bool, bool]], removed: float
) -> None:
    """The acceptance test on two seeds, on models trained for `steps`, with `each` steps of distillation for
    every block of those `pairings` of dilation and bank. Means over seeds are compared; all three parts
    together have `removed` this share of the excess error."""
    seeds = range(2)
    dense = [diffusion_task.trained(steps, seed) for seed in seeds]
    own = mean(map(error, dense))
    for bits in widths:
        specs = {pairing: document(bits, *pairing) for pairing in {*pairings, (False, False), (False, True)}}
        rounded = {p: mean(error(rhoc.compile(m, spec).packed()) for m in dense) for p, spec in specs.items()}
        for dilated, banked in rounded:
            if banked and (dilated, False) in rounded:
                assert rounded[dilated, True] < rounded[dilated, False]
            if dilated and len(pairings) > 1:  # on a model that was trained to the end
                assert rounded[True, banked] < rounded[False, banked]
        for pairing in pairings:
            spec = specs[pairing]
            runs = [distilled(m, spec, each, seed) for m, seed in zip(dense, seeds, strict=True)]
            fitted = mean(error(student.eval()) for _, student in runs)
            assert fitted < rounded[pairing]
            if pairing == (True, True):
                assert fitted - own <= (1 - removed) * (rounded[False, False] - own)


def test_the_bank_and_distillation_help() -> None:
    accept(300, 20, (4,), [(True, True)], 0.3)


@pytest.mark.slow
def test_the_acceptance_test_in_full() -> None:
    every = [(False, False), (False, True), (True, False), (True, True)]
    accept(3000, 400, (4, 3), every, 0.5)


def test_explain_says_how_many_channels_hold_an_end() -> None:
    """Few are left to grow where a layer expands, and many where it contracts."""
    shares = saturated(rhoc.compile(diffusion_task.trained(300), SPEC))
    assert min(share for path, share in shares.items() if path.endswith("up.weight")) > 0.9
    assert shares["leave.weight"] < 0.6


def test_what_was_distilled_packs_saves_and_loads(tmp_path: Path) -> None:
    dense = diffusion_task.trained(300)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    compiled, student = distilled(dense, SPEC, 4, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    compiled.save(tmp_path / "packed", student)
    loaded = load_packed(tmp_path / "packed", diffusion_task.denoiser())
    packed = compiled.packed(student)
    expected = error(student.eval())
    assert error(packed) == error(loaded)
    assert error(packed) == pytest.approx(expected, rel=1e-3)
    assert error(compiled.reference(student)) == pytest.approx(expected, rel=1e-3)
    explained = compiled.explain()
    plain = rhoc.compile(dense, document(4, True, False)).explain()
    assert explained.total_bytes - plain.total_bytes == 8 * 50 * 2 * 4  # layers, rows, step and offset, bytes
