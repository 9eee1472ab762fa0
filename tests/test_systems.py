"""Every published system that ships: from its file to every form, on one model with the layers that specs name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rhoc
from rhoc import specs
from rhoc.compiler.spec import Spec, load_spec
from rhoc.runtime.determinism import seeded
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import packed_weights

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, TIMES = 32, 50


class Layers(nn.Module):
    """Siblings as a transformer has them, a norm before each pair, and a chain of layers with names of a
    spec's own; `t` is a time step for each sample."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        for name in ("q_proj", "k_proj", "gate_proj", "up_proj"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))
        self.own = nn.Module()
        for name in names:
            *above, last = name.split(".")
            holder = self.own
            for part in above:
                holder.add_module(part, getattr(holder, part, nn.Module()))
                holder = holder.get_submodule(part)
            holder.add_module(last, nn.Linear(WIDTH, WIDTH))
        self.lm_head = nn.Linear(WIDTH, 8)
        self.time = nn.Embedding(TIMES, WIDTH)

    @property
    def example_inputs(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(24, WIDTH, generator=generator), torch.arange(24) * 2

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = x + self.time(t)
        read = self.norms[0](x)
        x = x + torch.tanh(self.q_proj(read)) * self.k_proj(read)
        read = self.norms[1](x)
        x = x + torch.relu(self.gate_proj(read)) * self.up_proj(read)
        for name in self.names:
            x = x + torch.relu(self.own.get_submodule(name)(x))
        return self.lm_head(x)


def under(name: str) -> tuple[Spec, Layers]:
    """A system's spec, and a model that has the layers it names."""
    document = load_spec(name).to_document()
    found = []
    for rule in document["rules"]:
        own = [target for target in rule["targets"] if re.fullmatch(r"[a-z_][\w.]*", target)]
        rule["targets"] = [f"own.{target}" if target in own else target for target in rule["targets"]]
        found += own
    with seeded(0):
        return load_spec(document), Layers(found or ["middle"]).eval()


def stored_bytes(model: nn.Module) -> int:
    """Bytes of parameters and of stored fields, what several hold once."""
    return sum({t.data_ptr(): t.nbytes for t in model.state_dict().values()}.values())


@pytest.mark.parametrize("name", specs.systems())
def test_every_form_of_every_system(name: str, tmp_path: Path) -> None:
    spec, model = under(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    compiled = rhoc.compile(model, spec)
    explained = compiled.explain()
    represented = {row.path for row in explained.parameters if row.representation != "dense"}
    x = model.example_inputs
    with torch.no_grad():
        packed, expected = compiled.packed(), compiled.reference()(*x)
        torch.testing.assert_close(compiled.trainable().eval()(*x), expected)
        result = packed(*x)
        assert float((result - expected).norm()) <= 1e-3 * float(expected.norm())
        assert float((result - model(*x)).norm()) > 0
        compiled.save(tmp_path / "packed")
        loaded = load_packed(tmp_path / "packed", model)
        assert torch.equal(loaded(*x), result)
    weights, found = packed_weights(packed), packed_weights(loaded)
    assert set(weights) == represented
    assert all(torch.equal(found[path].decode(), weight.decode()) for path, weight in weights.items())
    assert stored_bytes(loaded) == stored_bytes(packed)
    assert (explained.total_bytes < explained.dense_bytes) == bool(represented)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", specs.systems())
def test_training_forms_change_nothing_by_a_forward_pass(name: str) -> None:
    spec, model = under(name)
    student = rhoc.compile(model, spec).trainable().train()
    rhoc.attach(student, torch.optim.SGD(student.parameters(), 0.1), 10)
    before = {key: parameter.detach().clone() for key, parameter in student.named_parameters()}
    with torch.enable_grad():
        student(*model.example_inputs).square().mean().backward()
    assert all(torch.equal(p, before[key]) for key, p in student.named_parameters())
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
