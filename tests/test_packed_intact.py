"""A packed model is a module like others: copied, moved, pickled, loaded into, compiled by torch."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import rhoc
from rhoc import specs
from rhoc.runtime.generation.memory import held_bytes
from rhoc.runtime.llama import Llama, LlamaShape
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import Packed, packed_weights

from .bench.gpt2_shape import Gpt2
from .models import CASES
from .test_forms import on

SHAPE = LlamaShape(width=64, layers=1, heads=2, hidden=96, vocabulary=64, context=16)
TOKENS = torch.arange(2 * 8).reshape(2, 8) * 7 % 64
QUICK = {
    "2of4-int4", "caldera", "ecsq3", "fp8-block", "higgs2", "int4-g128", "int4-g128-asym", "kmeans4", "llm-int8",
    "low-rank-nf4", "mxfp4-a4", "quarot-int4", "quip-sharp2", "sparse50", "w4a8",
}  # fmt: skip
"""A spec of each family; all others take minutes together."""

NAMES = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in sorted(specs.names())
]

# How torch itself traces: a warning about a class of its own, and one about memos that it looks behind.
traced = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning", "ignore:Dynamo detected a call to a `functools"
)


def forms(spec: object, folder: Path, model: nn.Module | None = None) -> dict[str, nn.Module]:
    """The packed form with its graphs, and what loading it gives, which runs module by module."""
    torch.manual_seed(0)
    model = Llama(SHAPE) if model is None else model
    compiled = rhoc.compile(model, spec)  # type: ignore[arg-type]
    compiled.save(folder)
    return {"graph": compiled.packed(), "modules": load_packed(folder, model)}


def ties(model: nn.Module) -> list[tuple[str, ...]]:
    """Paths of packed weights that are one and the same."""
    found: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Packed):
            found.setdefault(id(module), []).append(path)
    return sorted(tuple(paths) for paths in found.values())


@traced
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_torch_compiles_every_form_whole(name: str, tmp_path: Path) -> None:
    for model in forms(name, tmp_path / "packed").values():
        torch._dynamo.reset()
        counters.clear()
        found = torch.compile(model, fullgraph=True, backend="eager")(TOKENS)
        assert not counters["graph_break"]
        assert torch.equal(found, model(TOKENS))


@traced
@pytest.mark.parametrize("kind", ["graph", "modules"])
@torch.no_grad()
def test_matrices_from_the_other_side_and_tied_ones_compile_too(kind: str, tmp_path: Path) -> None:
    """Through functionalisation as well, and again after fields were replaced."""
    torch.manual_seed(0)
    model = Gpt2(layers=1, width=32, heads=2, vocabulary=64).eval()
    spec = {
        "version": 1,
        "rules": {"targets": ["Linear", "Conv1D", "Embedding"], "weights": "quantize(int4, channel)"},
    }
    packed = forms(spec, tmp_path / "packed", model)[kind]
    torch._dynamo.reset()
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(TOKENS), packed(TOKENS))
    other = copy.deepcopy(packed)
    for buffer in other.buffers():
        if buffer.dtype == torch.uint8:
            buffer.bitwise_not_()
    packed.load_state_dict(other.state_dict())
    assert torch.equal(packed(TOKENS), other(TOKENS))
    assert torch.equal(compiled(TOKENS), packed(TOKENS))


@pytest.mark.parametrize("spec", ["int8-a8", "int2-a2", "nvfp4-a4", "mxfp4-a4", "w4a8"])
def test_gradients_pass_projected_inputs_as_if_they_were_not_projected(spec: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(32, 8)
    packed = rhoc.compile(linear, spec).packed()
    (weight,) = packed_weights(packed).values()
    x = torch.randn(5, 32)
    given = x.clone().requires_grad_()
    result = packed(given)
    assert torch.allclose(result, packed(x), rtol=1e-4, atol=1e-4)
    result.square().sum().backward()
    assert given.grad is not None
    expected = 2 * result.detach().double() @ weight.decode().double()
    torch.testing.assert_close(given.grad.double(), expected, rtol=1e-4, atol=1e-4)


@traced
@pytest.mark.parametrize("kind", ["graph", "modules"])
@pytest.mark.parametrize("spec", ["int8-channel", "int8", "int8-a8", "nvfp4-a4"])
def test_gradients_pass_a_compiled_packed_model(spec: str, kind: str, tmp_path: Path) -> None:
    """To whatever lies before packed weights, and to biases: what adapters are trained by."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8))
    packed = forms(spec, tmp_path / "packed", net)[kind]
    for parameter in packed.parameters():
        parameter.requires_grad_(True)

    def gradients(model: nn.Module) -> list[Tensor]:
        x = torch.linspace(-1, 1, 3 * 16).reshape(3, 16).requires_grad_()
        model(x).square().sum().backward()
        found = [x.grad, *(parameter.grad for parameter in packed.parameters())]
        packed.zero_grad()
        return [gradient for gradient in found if gradient is not None]

    torch._dynamo.reset()
    expected = gradients(packed)
    found = gradients(torch.compile(packed, fullgraph=True, backend="aot_eager"))  # type: ignore[arg-type]
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["graph", "modules"])
@pytest.mark.parametrize("spec", ["int4", "w8a8"])
@torch.no_grad()
def test_copies_share_nothing_and_keep_ties(kind: str, spec: str, tmp_path: Path) -> None:
    model = forms(on("tied", spec), tmp_path / "packed", CASES["tied"].make())[kind]
    x = CASES["tied"].inputs(3)
    before = model(x)
    twin = copy.deepcopy(model)
    assert ties(twin) == ties(model)
    assert any(len(paths) > 1 for paths in ties(twin))
    assert held_bytes(twin) == held_bytes(model)
    places = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()) if tensor.numel()}
    assert places.isdisjoint(t.data_ptr() for t in (*twin.parameters(), *twin.buffers()) if t.numel())
    assert torch.equal(twin(x), before)
    for weight in packed_weights(twin).values():
        for tensor in weight.fields().values():
            tensor.zero_()
    assert torch.equal(model(x), before)
    assert not torch.equal(twin(x), before)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), before)


@pytest.mark.parametrize("kind", ["graph", "modules"])
@torch.no_grad()
def test_dtypes_and_devices_change_and_fields_stay(kind: str, tmp_path: Path) -> None:
    model = forms("int4-g128", tmp_path / "packed")[kind]
    stored = {
        name: t.clone()
        for name, t in model.state_dict().items()
        if name.rpartition(".")[0].endswith("weight")
    }
    size = sum(weight.nbytes for weight in packed_weights(model).values())
    for dtype in (torch.bfloat16, torch.float64):
        model.to(dtype)
        assert model(TOKENS).dtype == dtype
        assert sum(weight.nbytes for weight in packed_weights(model).values()) == size
    state = model.state_dict()
    assert all(torch.equal(state[name], t) for name, t in stored.items())
    model.to("meta")
    assert all(t.is_meta for weight in packed_weights(model).values() for t in weight.fields().values())


@torch.no_grad()
def test_a_loaded_model_is_pickled_and_runs_elsewhere(tmp_path: Path) -> None:
    model = forms("w4a8", tmp_path / "packed")["modules"]
    expected = model(TOKENS)  # kernels are chosen and fields prepared, none of which is pickled
    content = pickle.dumps(model)
    assert len(content) < 1.1 * held_bytes(model) + 40_000
    again = pickle.loads(content)
    assert torch.equal(again(TOKENS), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    (tmp_path / "model.pt").write_bytes(buffer.getvalue())
    code = (
        "import sys, torch; model = torch.load(sys.argv[1], weights_only=False);"
        "run = torch.compile(model, fullgraph=True, backend='eager');"
        "tokens = torch.arange(2 * 8).reshape(2, 8) * 7 % 64;"
        "torch.set_grad_enabled(False); assert torch.equal(run(tokens), model(tokens));"
        "torch.save(model(tokens), sys.argv[2])"
    )
    call = [sys.executable, "-c", code, tmp_path / "model.pt", tmp_path / "result.pt"]
    run = subprocess.run(call, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert torch.equal(torch.load(tmp_path / "result.pt"), expected)


def test_a_model_made_in_inference_mode(tmp_path: Path) -> None:
    with torch.inference_mode():
        model = forms("int4-g128", tmp_path / "packed")["modules"]
        first = model(TOKENS)
    assert torch.equal(model(TOKENS), first)


class _Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x) + x @ self.first.weight.t()


class _Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(64, 4, batch_first=True), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0])


@traced
@pytest.mark.parametrize("make", [_Transposed, _Attends])
def test_one_graph_where_a_weight_is_read_as_a_tensor(make: type[nn.Module]) -> None:
    """Products that decode the weight are traced too, without what follows from the spec."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 64)
    packed = rhoc.compile(make().eval(), "int4-g128", (x,)).packed()
    torch._dynamo.reset()
    with torch.no_grad():
        whole = torch.compile(packed, backend="aot_eager", fullgraph=True)
        assert torch.equal(whole(x), packed(x))
        assert torch.equal(torch.export.export(packed, (x,)).module()(x), packed(x))
