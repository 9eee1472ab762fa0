"""The decoder against an independent one in float64, its sizes against closed forms, and its capture."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rhoc.runtime.determinism import seeded
from rhoc.runtime.errors import RequestError
from rhoc.runtime.llama import Llama, LlamaShape, count_parameters, llama, rotary_tables, rotate

SMALL = LlamaShape(width=24, layers=2, heads=3, hidden=32, vocabulary=50, context=20)


@pytest.fixture(scope="module")
def model() -> Llama:
    with seeded(0):
        built = Llama(SMALL)
        for parameter in built.parameters():  # away from the near-linear start, so that mistakes show
            nn.init.normal_(parameter, mean=0.1, std=0.3)
    return built


def tokens(batch: int, length: int) -> Tensor:
    with seeded(1):
        return torch.randint(0, SMALL.vocabulary, (batch, length))


def reference(state: dict[str, Tensor], shape: LlamaShape, given: Tensor) -> Tensor:
    """The same network written from the papers, one position at a time, in float64 and complex numbers."""
    weights = {name: tensor.double() for name, tensor in state.items()}
    size = shape.width // shape.heads

    def norm(x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weights[f"{name}.weight"]

    def turn(x: Tensor, position: int) -> Tensor:
        pairs = torch.complex(x[..., : size // 2], x[..., size // 2 :])
        angles = torch.tensor([position * 10000 ** (-2 * j / size) for j in range(size // 2)]).double()
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((turned.real, turned.imag), -1)

    def attend(x: Tensor, name: str) -> Tensor:
        q, k, v = (
            (x @ weights[f"{name}.{part}_proj.weight"].T).reshape(len(x), shape.heads, size) for part in "qkv"
        )
        out = torch.zeros_like(q)
        for i in range(len(x)):
            for head in range(shape.heads):
                scores = [turn(q[i, head], i) @ turn(k[j, head], j) / math.sqrt(size) for j in range(i + 1)]
                share = torch.softmax(torch.stack(scores), 0)
                out[i, head] = share @ v[: i + 1, head]
        return out.reshape(len(x), -1) @ weights[f"{name}.o_proj.weight"].T

    def feed(x: Tensor, name: str) -> Tensor:
        gate, up = (x @ weights[f"{name}.{part}_proj.weight"].T for part in ("gate", "up"))
        return (gate / (1 + torch.exp(-gate)) * up) @ weights[f"{name}.down_proj.weight"].T

    logits = []
    for sequence in given:
        x = weights["embed_tokens.weight"][sequence]
        for layer in range(shape.layers):
            name = f"layers.{layer}"
            x = x + attend(norm(x, f"{name}.input_layernorm"), f"{name}.self_attn")
            x = x + feed(norm(x, f"{name}.post_attention_layernorm"), f"{name}.mlp")
        logits.append(norm(x, "norm") @ weights["lm_head.weight"].T)
    return torch.stack(logits)


def test_logits_equal_an_independent_float64_model(model: Llama) -> None:
    given = tokens(2, 9)
    expected = reference(model.state_dict(), SMALL, given)
    torch.testing.assert_close(model(given).double(), expected, rtol=1e-4, atol=1e-4)


def test_a_later_token_changes_no_earlier_logit(model: Llama) -> None:
    given = tokens(1, 12)
    changed = given.clone()
    changed[0, 7] = (changed[0, 7] + 1) % SMALL.vocabulary
    before, after = model(given), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


def test_rotary_products_depend_on_the_distance_alone() -> None:
    cosine, sine = (table.double() for table in rotary_tables(64, 16))
    with seeded(2):
        q, k = torch.randn(2, 16, dtype=torch.float64)
    turned_q, turned_k = rotate(q, cosine, sine), rotate(k, cosine, sine)  # at all 64 positions
    scores = turned_q @ turned_k.T
    for distance in (-20, -3, 0, 1, 17):
        along = torch.diagonal(scores, distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.diagonal(), (q @ k).expand(64), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "width", "heads", "params"),
    [
        (6, 640, 5, 30482560),
        (7, 768, 6, 49556736),
        (8, 1024, 8, 102777856),
        (10, 1280, 10, 203188480),
        (13, 1664, 13, 443068288),
        (16, 2048, 16, 822151168),
    ],
)
def test_sizes_of_quest(layers: int, width: int, heads: int, params: int) -> None:
    """N of QuEST's models (papers.md 3.5), whose hidden width is 8/3 of the width rounded up to 256."""
    hidden = -(-8 * width // (3 * 256)) * 256
    with torch.device("meta"):
        model = Llama(LlamaShape(width, layers, heads, hidden))
    assert count_parameters(model) == params


@pytest.mark.parametrize("width", [16, 32, 48, 64, 80, 96, 128, 256])
def test_one_dial(width: int) -> None:
    shape = LlamaShape.of_width(width)
    assert shape.width == width
    assert shape.layers == max(2, math.floor(width / 32 + 0.5))
    assert width // shape.heads in (16, 32)
    assert width % shape.heads == 0
    assert shape.hidden % 32 == 0
    assert 0 <= shape.hidden - 8 * width / 3 < 32
    each = 4 * width**2 + 3 * width * shape.hidden + 2 * width
    model = llama(width, vocabulary=300, context=8)
    assert count_parameters(model) == shape.layers * each + width
    assert count_parameters(model, embedding=True) == count_parameters(model) + 2 * 300 * width


@pytest.mark.parametrize(("width", "nearest"), [(40, "32 and 48"), (1, "16 and 32"), (-16, "16 and 32")])
def test_a_width_that_does_not_fit(width: int, nearest: str) -> None:
    with pytest.raises(RequestError) as caught:
        llama(width)
    text = f"llama: width {width} is not a positive multiple of 16; the nearest widths are {nearest}"
    assert str(caught.value) == text


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(RequestError, match=r"width 21 is not 7 heads of an even number of features; .* 14"):
        LlamaShape(width=21, layers=1, heads=7, hidden=8)
    with pytest.raises(RequestError, match="every size of a model must be at least 1"):
        llama(32, context=0)


def test_names_and_start() -> None:
    with seeded(3):
        model = llama(64)
    names = {
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    projections = {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    assert names == {*projections, "lm_head"}
    state = model.state_dict()
    assert not any("bias" in name or "cosine" in name for name in state)
    for name, tensor in state.items():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor))
        else:
            assert tensor.std().item() == pytest.approx(0.5 / 8, rel=0.05), (
                name
            )  # 0.5 over the root of the width


def test_tracing_keeps_batch_and_length_free(model: Llama) -> None:
    traced = torch.fx.symbolic_trace(model)
    length = torch.export.Dim("length", min=2, max=SMALL.context)
    dynamic = ({0: torch.export.Dim("batch", min=2), 1: length},)
    exported = torch.export.export(model, (tokens(3, 11),), dynamic_shapes=dynamic).module()
    for shape in ((2, 20), (5, 7), (3, 2)):
        expected = model(tokens(*shape))
        assert torch.equal(traced(tokens(*shape)), expected)
        torch.testing.assert_close(exported(tokens(*shape)), expected)


def test_counting_in_other_models() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 4)
            self.body = nn.ModuleDict({"a": nn.Linear(4, 6), "b": nn.Linear(6, 4, bias=False)})
            self.again = self.body["b"]
            self.lm_head = nn.Linear(4, 10, bias=False)
            self.lm_head.weight = self.words.weight

    assert count_parameters(Tied()) == 4 * 6 + 6 + 6 * 4
    assert count_parameters(Tied(), embedding=True) == 4 * 6 + 6 + 6 * 4 + 40
