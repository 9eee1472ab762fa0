"""Powerpropagation from its spec: pruned once at the end, against plain training of the same network."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rhoc
from rhoc.runtime.load import load_packed
from rhoc.runtime.nonzero import nonzero_parameters

from .digits_runs import SGD, accuracy, compiled, fit, model, system, task

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = ("first.weight", "middle.weight", "last.weight")


def document(alpha: float, density: float) -> dict[str, Any]:
    """The system's spec with another power and density, the layer of outputs keeping twice that."""
    found = system("powerpropagation")
    for rule, share in zip(found["rules"], (min(1.0, 2 * density), density), strict=True):
        rule["weights"] = [rule["weights"][0] | {"sparsity": 1 - share}]
        rule["latent"] = {"kind": "power", "alpha": alpha}
    return found


@cache
def trained(alpha: float, seed: int, steps: int) -> nn.Module:
    """A network of the paper's kind, trained by SGD: nothing is pruned yet."""
    student = compiled(document(alpha, 0.05), "tapered", seed).trainable()
    fit(student, steps, seed, optimizer=SGD, learning_rate=0.05, clip=1e9)
    return student


def pruned(alpha: float, seed: int, density: float, steps: int) -> float:
    """Its accuracy when so many weights of each layer are left."""
    return accuracy(compiled(document(alpha, density), "tapered", seed).packed(trained(alpha, seed, steps)))


def largest(weight: Tensor, share: float) -> Tensor:
    """Where the so many largest magnitudes are."""
    kept = weight.abs().flatten().argsort(descending=True, stable=True)[: round(share * weight.numel())]
    return torch.zeros(weight.numel(), dtype=torch.bool).index_fill_(0, kept, True)


def agreement(alpha: float, seed: int, steps: int) -> float:
    """The share of weights that magnitude pruning to 10 % treats alike before training and after it."""
    before, after = model("tapered", seed).state_dict(), trained(alpha, seed, steps).state_dict()
    same = [(largest(before[n], 0.1) == largest(after[n], 0.1)).double().mean() for n in LAYERS]
    return float(torch.stack(same).mean())


def check(seeds: tuple[int, ...], steps: int) -> None:
    """The thresholds, on means over seeds."""

    def mean(alpha: float, density: float) -> float:
        return sum(pruned(alpha, seed, density, steps) for seed in seeds) / len(seeds)

    assert mean(3.0, 1.0) > mean(1.0, 1.0) - 0.02
    assert mean(3.0, 0.05) >= mean(1.0, 0.05) + 0.12
    for seed in seeds:
        assert agreement(3.0, seed, steps) > agreement(1.0, seed, steps)
    if len(seeds) > 1:  # one network differs by more than that from the next
        assert mean(3.0, 0.1) >= mean(1.0, 0.1) + 0.05


def test_a_network_trained_as_a_power_is_pruned_with_less_loss() -> None:
    check((0,), 1000)


@pytest.mark.slow
def test_it_is_by_the_margins_that_were_measured() -> None:
    check((0, 1, 2), 3000)


def test_power_one_is_plain_training_bit_for_bit() -> None:
    plain = model("tapered", 0)
    student = compiled(document(1.0, 0.05), "tapered", 0).trainable()
    given: dict[str, Any] = {"optimizer": SGD, "learning_rate": 0.05}
    assert fit(plain, 60, 0, **given).train_curve == fit(student, 60, 0, **given).train_curve
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, student.state_dict()[name]), name


def test_a_trained_network_is_the_same_function_as_a_power() -> None:
    plain = model("tapered", 0)
    fit(plain, 100, 0, optimizer=SGD, learning_rate=0.05)
    ((images, _),) = task().validation()
    for alpha in (1.5, 3.0, 4.0):
        student = rhoc.compile(plain, document(alpha, 1.0)).trainable()
        with torch.no_grad():
            assert float((student.eval()(images) - plain.eval()(images)).abs().max()) < 1e-5


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_weights_that_are_zero_stay_so_and_nothing_becomes_nan(alpha: float) -> None:
    student = compiled(document(alpha, 0.05), "tapered", 0).trainable()
    with torch.no_grad():
        theta = dict(student.named_parameters())["first.weight"]
        theta[::2] = 0.0
    fit(student, 30, 0, optimizer=SGD, learning_rate=0.05)
    state = student.state_dict()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
    assert not state["first.weight"][::2].any()
    assert state["first.weight"][1::2].all()


def test_what_is_packed_is_the_power_without_what_was_pruned(tmp_path: Any) -> None:
    whole = compiled(system("powerpropagation"), "tapered", 0)
    student = whole.trainable()
    fit(student, 40, 0, optimizer=SGD, learning_rate=0.05)
    whole.save(tmp_path / "packed", student)
    ((images, _),) = task().validation()
    loaded = load_packed(tmp_path / "packed", model("tapered", 0))
    state, x = student.state_dict(), images.flatten(1).double()
    for name, density in zip(LAYERS, (0.05, 0.05, 0.1), strict=True):
        theta = state[name].double()
        weight = theta.sign() * theta.abs() ** 3
        weight = torch.where(largest(weight, density).view_as(weight), weight, 0.0)
        x = x @ weight.mT + state[name.replace("weight", "bias")].double()
        x = x if name == "last.weight" else x.relu()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).double(), x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(student.eval()(images).double(), x, rtol=1e-5, atol=1e-5)
    assert nonzero_parameters(student) == 960 + 1500 + 100 + 410  # and biases, which stay


INT4 = {"kind": "quantize", "num_bits": 4, "strategy": "group", "group_size": 16}


@pytest.mark.parametrize("structure", ["unstructured", "2:4"])
def test_it_composes_with_int4_and_with_two_of_four(structure: str) -> None:
    sparse: dict[str, Any] = {"kind": "sparsify", "sparsity": 0.9}
    if structure == "2:4":
        sparse = {"kind": "sparsify", "sparsity_structure": structure}
    rule = {"targets": "Linear", "weights": [sparse, INT4], "latent": {"kind": "power", "alpha": 2}}
    whole = compiled({"version": 1, "rules": rule}, "tapered", 0)
    student = whole.trainable()
    fit(student, 300, 0, optimizer=SGD, learning_rate=0.05, clip=1e9)
    ((images, _),) = task().validation()
    with torch.no_grad():
        ahead = student.eval()(images)
        reference = whole.reference(student)
        assert torch.equal(reference(images), ahead)
        torch.testing.assert_close(whole.packed(student)(images), ahead, rtol=1e-4, atol=1e-4)
    for name in LAYERS:
        weight = reference.state_dict()[name]
        if structure == "2:4":
            assert bool(((weight.unflatten(1, (-1, 4)) != 0).sum(-1) <= 2).all())
        else:
            assert int((weight != 0).sum()) <= round(0.1 * weight.numel()) + 1
    assert accuracy(whole.packed(student)) > 0.85
