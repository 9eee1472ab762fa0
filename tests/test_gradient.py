"""What the two products of a backward pass read: formulas written out, random draws, and compiled graphs."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight
from torch.utils.checkpoint import checkpoint

import rhoc
from rhoc.compiler.spec import load_spec
from rhoc.runtime.errors import RequestError
from rhoc.runtime.gradient import Backward, RepresentedGradient, with_represented_gradient
from rhoc.runtime.operations import LINEAR, OPERATIONS
from rhoc.runtime.representation import Representation
from rhoc.runtime.seeds import derived
from rhoc.runtime.text_parser import from_text

from .projected import normal

pytestmark = pytest.mark.usefixtures("one_thread")

DENSE = "dense"
NEAREST = "hadamard(8) >> quantize(int4, midrise, token, rms)"
RANDOM = "hadamard(8, signs=fresh) >> quantize(int3, midtread, token, absmax, stochastic)"
OTHER = "hadamard(8, signs=fresh) >> quantize(int4, midtread, token, absmax, stochastic)"
FEATURES, TOKENS, GRADIENT, OPERAND = 0, 1, 0, 1


def backward(grad: str = DENSE, weights: str = DENSE, inputs: str = DENSE) -> Backward:
    return Backward(from_text(grad), from_text(weights), from_text(inputs))


def gradients(chains: Backward, x: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """dL/dx and dL/dW of a linear layer whose output gradient is g."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    result = with_represented_gradient(F.linear, LINEAR, [x, weight], {}, 2, chains)
    assert torch.equal(result, F.linear(x, weight))
    result.backward(g)
    assert x.grad is not None
    assert weight.grad is not None
    return x.grad, weight.grad


def read(text: str, x: Tensor, seed: int, product: int, factor: int) -> Tensor:
    """A factor of a product as its seed decides: signs by the product, all else by the factor too."""
    chain = from_text(text)
    return chain.drawn(derived(seed, product, factor), rotation=derived(seed, product)).project(x)


def next_seed() -> int:
    """The seed that a forward pass will take, the generator left as it was."""
    state = torch.get_rng_state()
    seed = int(torch.randint(2**62, ()))
    torch.set_rng_state(state)
    return seed


@pytest.mark.parametrize(
    ("grad", "weights", "inputs"),
    [
        (NEAREST, DENSE, DENSE),
        (RANDOM, DENSE, DENSE),
        (NEAREST, NEAREST, NEAREST),
        (RANDOM, OTHER, RANDOM),
        (DENSE, RANDOM, DENSE),
        (DENSE, DENSE, OTHER),
    ],
)
def test_both_products_of_a_linear_layer(grad: str, weights: str, inputs: str) -> None:
    torch.manual_seed(1)
    x, weight, g = normal(2, 12, 8), normal(16, 8), normal(2, 12, 16)
    seed = next_seed()
    to_x, to_weight = gradients(backward(grad, weights, inputs), x, weight, g)
    by_features = read(grad, g, seed, FEATURES, GRADIENT)
    w = read(weights, weight.T.contiguous(), seed, FEATURES, OPERAND).T
    torch.testing.assert_close(to_x, by_features @ w, rtol=1e-12, atol=1e-12)
    by_tokens = read(grad, g.reshape(24, 16).T.contiguous(), seed, TOKENS, GRADIENT)
    entered = read(inputs, x.reshape(24, 8).T.contiguous(), seed, TOKENS, OPERAND)
    torch.testing.assert_close(to_weight, by_tokens @ entered.T, rtol=1e-12, atol=1e-12)


def test_signs_are_shared_by_the_factors_of_a_product_and_cancel() -> None:
    """Q(G D H) Q(W^T D H)^T with signs D: the product of what is rounded, without turning anything back."""
    torch.manual_seed(2)
    x, weight, g = normal(8, 8), normal(16, 8), normal(8, 16)
    seed = next_seed()
    to_x, to_weight = gradients(backward(RANDOM, RANDOM, RANDOM), x, weight, g)
    for product, left, right, found in ((FEATURES, g, weight.T, to_x), (TOKENS, g.T, x.T, to_weight)):
        chains = [
            from_text(RANDOM).drawn(derived(seed, product, factor), rotation=derived(seed, product))
            for factor in (GRADIENT, OPERAND)
        ]
        turned = [chain.rotation.encode(m).carry for chain, m in zip(chains, (left, right), strict=True)]
        rounded = [chain.core.project(m) for chain, m in zip(chains, turned, strict=True)]
        torch.testing.assert_close(rounded[0] @ rounded[1].T, found, rtol=1e-10, atol=1e-10)
        assert not torch.equal(turned[0], from_text("hadamard(8)").encode(left).carry)


def test_gradients_are_right_on_average_even_where_both_factors_are_one_tensor() -> None:
    """G = W^T = x: with the same random numbers for both factors, squares would be too large."""
    matrix, times = normal(8, 8), 600
    chains = backward(RANDOM, RANDOM, RANDOM)
    torch.manual_seed(0)
    found = [gradients(chains, matrix, matrix.T.contiguous(), matrix) for _ in range(times)]
    for grads, exact in zip(zip(*found, strict=True), (matrix @ matrix.T, matrix.T @ matrix), strict=True):
        sample = torch.stack(grads)
        error = (sample.mean(0) - exact).abs() / (sample.std(0) / math.sqrt(times))
        assert float(error.max()) < 4.5
        assert float(error.square().mean()) == pytest.approx(1, abs=0.6)
        assert float(sample.std(0).mean()) > 0.1


def convolution(chains: Backward, x: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    (operation,) = OPERATIONS[F.conv2d]
    result = with_represented_gradient(F.conv2d, operation, [x, weight], {}, 4, chains)
    assert torch.equal(result, F.conv2d(x, weight))
    result.backward(g)
    assert x.grad is not None
    assert weight.grad is not None
    return x.grad, weight.grad


@pytest.mark.parametrize("chains", [(RANDOM, DENSE, DENSE), (NEAREST, OTHER, DENSE), (RANDOM, OTHER, RANDOM)])
def test_a_convolution_by_channels_and_by_places(chains: tuple[str, str, str]) -> None:
    """The sums are over output channels, for every place in the kernel, and over images and places."""
    torch.manual_seed(3)
    x, weight, g = normal(2, 3, 6, 6), normal(8, 3, 3, 3), normal(2, 8, 4, 4)
    seed = next_seed()
    to_x, to_weight = convolution(backward(*chains), x, weight, g)
    grad, weights, inputs = chains
    by_channels = read(grad, g.movedim(1, -1), seed, FEATURES, GRADIENT).movedim(-1, 1)
    w = read(weights, weight.reshape(8, 27).T, seed, FEATURES, OPERAND).T.reshape(8, 3, 3, 3)
    torch.testing.assert_close(to_x, F.conv_transpose2d(by_channels, w), rtol=1e-11, atol=1e-11)

    def along_places(text: str, tensor: Tensor, factor: int) -> Tensor:
        rows = tensor.transpose(0, 1)
        read_rows = read(text, rows.flatten(1), seed, TOKENS, factor)
        return read_rows.reshape(rows.shape).transpose(0, 1)

    by_places, entered = along_places(grad, g, GRADIENT), along_places(inputs, x, OPERAND)
    exact = conv2d_weight(entered, (8, 3, 3, 3), by_places)
    torch.testing.assert_close(to_weight, exact, rtol=1e-11, atol=1e-11)


QUARTETS = ("quartet", "quartet2")


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 32))


def model_of(name: str) -> nn.Module:
    return rhoc.compile(layers(), name).trainable()


def grads_of(model: Any, x: Tensor, seed: int, through: Any = None) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    result = model(x) if through is None else through(model, x)
    result.square().mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", QUARTETS)
def test_a_seed_decides_and_checkpointing_changes_nothing(name: str) -> None:
    model, x = model_of(name), normal(5, 7, 64).float()
    first = grads_of(model, x, 4)
    assert len(first) == 6
    assert all(map(torch.equal, first, grads_of(model, x, 4)))
    assert not any(map(torch.equal, first[::2], grads_of(model, x, 5)[::2]))

    def recomputed(model: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(model, x, use_reentrant=False)  # type: ignore[no-any-return]

    assert all(map(torch.equal, first, grads_of(model, x, 4, recomputed)))


@pytest.mark.parametrize("name", QUARTETS)
def test_ten_steps_are_five_and_five_more(name: str) -> None:
    x = normal(16, 64).float()

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            optimizer.zero_grad()
            loss = model(x).sub(x[:, :32]).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = model_of(name)
        return model, torch.optim.AdamW(model.parameters(), lr=3e-3)

    whole, half = start(), start()
    torch.manual_seed(9)
    losses = steps(*whole, 10)
    torch.manual_seed(9)
    before = steps(*half, 5)
    saved = copy.deepcopy((half[0].state_dict(), half[1].state_dict(), torch.get_rng_state()))
    torch.manual_seed(1234)
    resumed = start()
    resumed[0].load_state_dict(saved[0])
    resumed[1].load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    assert before + steps(*resumed, 5) == losses
    assert losses[-1] < 0.9 * losses[0]


COMPILED = pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated")
"""torch 2.13 warns of what its own compiler does with every autograd.Function."""


@COMPILED
@pytest.mark.parametrize("name", QUARTETS)
def test_one_graph_under_torch_compile(name: str) -> None:
    """Layers draw when the compiler thinks best, each for itself: deterministic, and near the plain ones."""
    model, x = model_of(name), normal(5, 7, 64).float()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    first, plain = grads_of(compiled, x, 4), grads_of(model, x, 4)
    assert all(map(torch.equal, first, grads_of(compiled, x, 4)))
    assert not any(map(torch.equal, first[::2], grads_of(compiled, x, 5)[::2]))
    assert all(float((a - b).norm()) < 0.5 * float(b.norm()) for a, b in zip(first, plain, strict=True))


def module_of(function: Any, chains: Backward) -> tuple[RepresentedGradient, Tensor, Tensor]:
    """A layer as a graph calls it, an input and a weight."""
    rank = 3 if function is F.conv1d else 2
    weight = normal(8, 4, 3) if function is F.conv1d else normal(8, 8)
    x = normal(2, 4, 6) if function is F.conv1d else normal(24, 8)
    return RepresentedGradient(function, OPERATIONS[function][0], rank, chains), x, weight


def leaf_grads(call: Any, x: Tensor, weight: Tensor) -> list[Tensor | None]:
    torch.manual_seed(0)
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    call(*leaves).sin().sum().backward()
    return [leaf.grad for leaf in leaves]


@COMPILED
@pytest.mark.parametrize("function", [F.linear, F.conv1d, torch.matmul])
def test_one_graph_with_the_same_numbers(function: Any) -> None:
    module, x, weight = module_of(function, backward(NEAREST, NEAREST, NEAREST))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected = leaf_grads(module, x, weight)
    torch.testing.assert_close(leaf_grads(compiled, x, weight), expected, rtol=1e-12, atol=1e-12)


@COMPILED
@pytest.mark.parametrize("function", [F.linear, torch.matmul])
def test_a_compiled_product_shares_its_signs_and_nothing_else(
    function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever seeds were drawn: the gradients are the products of what they gave."""
    module, x, weight = module_of(function, backward(RANDOM, RANDOM, RANDOM))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    leaf_grads(compiled, x, weight)
    seeds: list[tuple[int, int]] = []
    drawn = Representation.drawn

    def recorded(chain: Representation, seed: int, rotation: int | None = None) -> Representation:
        assert rotation is not None
        seeds.append((seed, rotation))
        return drawn(chain, seed, rotation)

    monkeypatch.setattr(Representation, "drawn", recorded)
    to_x, to_weight = leaf_grads(compiled, x, weight)
    monkeypatch.undo()
    by_rotation = [[s for s in seeds if s[1] == rotation] for rotation in dict.fromkeys(r for _, r in seeds)]
    assert [len(group) for group in by_rotation] == [2, 2]
    assert len({seed for seed, _ in seeds}) == 4
    w = weight if function is F.linear else weight.T
    g = (x @ w.T).cos()
    chain = from_text(RANDOM)

    def product(left: Tensor, right: Tensor, pair: list[tuple[int, int]]) -> Tensor:
        first, second = (chain.drawn(seed, rotation) for seed, rotation in pair)
        return first.project(left.contiguous()) @ second.project(right.contiguous()).T

    def either(found: Tensor | None, left: Tensor, right: Tensor) -> bool:
        assert found is not None
        orders = [pair[::step] for pair in by_rotation for step in (1, -1)]
        return any(torch.allclose(found, product(left, right, order), rtol=1e-10) for order in orders)

    assert either(to_x, g, w.T)
    assert either(to_weight if function is F.linear else None if to_weight is None else to_weight.T, g.T, x.T)


def test_the_generator_is_left_alone_where_nothing_is_drawn() -> None:
    torch.manual_seed(0)
    x, weight, g = normal(4, 8), normal(16, 8), normal(4, 16)
    before = torch.get_rng_state()
    gradients(backward(NEAREST, NEAREST, NEAREST), x, weight, g)
    with torch.no_grad():
        with_represented_gradient(F.linear, LINEAR, [x, weight], {}, 2, backward(RANDOM))
    assert torch.equal(torch.get_rng_state(), before)
    gradients(backward(RANDOM), x, weight, g)
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_product_without_its_gradient_is_left_out() -> None:
    torch.manual_seed(0)
    x, weight, g = normal(3, 8), normal(16, 8), normal(3, 16)
    alone = weight.clone().requires_grad_()
    for operation, function in ((LINEAR, F.linear), (OPERATIONS[torch.matmul][0], torch.matmul)):
        alone.grad = None
        read_weight = alone if function is F.linear else alone.mT
        result = with_represented_gradient(
            function, operation, [x, read_weight], {}, 2, backward(NEAREST, NEAREST, NEAREST)
        )
        result.backward(g)
        rows = F.pad(torch.cat([g.T, x.T]), (0, 5))  # filled up to a number of tokens that is rotated
        read_rows = from_text(NEAREST).project(rows)[:, :3]
        assert alone.grad is not None
        torch.testing.assert_close(alone.grad, read_rows[:16] @ read_rows[16:].T, rtol=1e-11, atol=1e-11)


def document(**slots: Any) -> dict[str, Any]:
    return {"version": 1, "rules": {"targets": "Linear", **slots}}


def test_backward_slots_are_said_in_specs_and_explained() -> None:
    spec = load_spec(document(grad_output=RANDOM, backward_weights=OTHER, backward_inputs=NEAREST))
    assert spec.rules[0].backward == backward(RANDOM, OTHER, NEAREST)
    assert spec.rules[0].to_document()["backward_inputs"][0] == {"kind": "hadamard", "block": 8}
    row = rhoc.compile(nn.Linear(8, 16), spec).explain().parameters[0]
    assert f"output gradients {RANDOM}, weights {OTHER}, inputs {NEAREST}" in row.reason
    without = load_spec(document(grad_output=RANDOM))
    assert without.digest == load_spec(document(grad_output=RANDOM, backward_weights="dense")).digest
    assert without.digest != spec.digest


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("quantize(int4, twos, token, absmax, static)", "scales of backward_weights are computed from each"),
        ("quantize(int4, twos, channel, absmax, dynamic)", "use strategy: token"),
    ],
)
def test_what_makes_no_sense_there(chain: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_spec(document(backward_weights=chain))


def test_a_number_of_features_that_is_refused() -> None:
    with pytest.raises(RequestError, match="cannot rotate a last dimension of 15"):
        rhoc.compile(nn.Linear(8, 15), document(backward_weights="hadamard(8)"))


def test_what_the_papers_specs_are() -> None:
    """Quartet, algorithm 1 with rounding to nearest; Quartet II, figure 1."""
    (quartet,), (second,) = (load_spec(name).rules for name in QUARTETS)
    assert str(quartet.weight_representation) == "hadamard(32) >> quantize(e2m1, group=32, rms, scale=e8m0)"
    chains = {
        str(r) for r in (quartet.backward.grad_output, quartet.backward.weights, quartet.backward.inputs)
    }
    assert chains == {"hadamard(32, signs=fresh) >> quantize(e2m1, group=32, three_quarters, dynamic)"}
    assert str(second.weight_representation) == "quantize(e2m1, tensor_group=16, four_over_six)"
    chains = {str(r) for r in (second.backward.grad_output, second.backward.weights, second.backward.inputs)}
    assert chains == {"hadamard(128, signs=fresh) >> quantize(e2m1, tensor_group=16, ms_eden, dynamic)"}
    assert second.weight_representation.is_random is False
    (luq,) = load_spec("luq").rules
    assert str(luq.backward) == "quantize(e3m0, tensor, absmax, stochastic, dynamic)"


def test_weights_and_inputs_turned_by_fresh_signs_are_turned_back() -> None:
    """Each projection draws its own, so that neither may stay rotated for the other."""
    torch.manual_seed(0)
    chain = "hadamard(8, signs=fresh) >> quantize(int8, twos, group=8, absmax"
    spec = document(weights=f"{chain})", input_activations=f"{chain}, dynamic)")
    model, x = nn.Linear(16, 16), normal(4, 16).float()
    student = rhoc.compile(model, spec).trainable()
    error = (student(x) - model(x)).norm() / model(x).norm()
    assert 0 < error.item() < 0.02


def test_representations_compare_as_declared() -> None:
    assert Backward() == Backward(Representation())
    assert Backward().is_dense
    assert backward(RANDOM) == backward(RANDOM) != backward(OTHER)
    assert not backward(NEAREST).is_random
    assert str(backward(DENSE, NEAREST)) == f"dense, weights {NEAREST}"
