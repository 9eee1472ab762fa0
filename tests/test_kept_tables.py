"""Activations under codebooks that are parameters: every form alike, gradients by hand, usage, resumed runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.runtime.code_usage import reassign
from rhoc.runtime.codec import codecs
from rhoc.runtime.errors import InvalidDocument, RequestError
from rhoc.runtime.estimators import Commit, Gumbel
from rhoc.runtime.events import Event, Stepped
from rhoc.runtime.learned import learned_parameters
from rhoc.runtime.load import load_packed
from rhoc.runtime.table_projection import TableProject, first_tables
from rhoc.runtime.text_parser import from_text
from rhoc.runtime.vector_levels import levels_of

from . import patches_runs

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = "codebook(4, nbits_per_codebook=3)"
PRODUCT = "codebook(4, num_codebooks=2, product, nbits_per_codebook=3)"
CASCADE = "codebook(4, num_codebooks=2, nbits_per_codebook=3)"
BOTH = "codebook(4, num_codebooks=2, product, nbits_per_codebook=3) + codebook(4, nbits_per_codebook=2)"
EVERY = [ONE, PRODUCT, CASCADE, BOTH]

Array = NDArray[np.float64]


class Python(nn.Sequential):
    """Layers in code that no graph captures: they run as Python."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.abs().sum()) < 0 else super().forward(x)


def model(make: type[nn.Sequential] = nn.Sequential, convolution: bool = False) -> nn.Module:
    torch.manual_seed(0)
    if convolution:
        return make(nn.Conv2d(2, 8, 2), nn.ReLU(), nn.Conv2d(8, 3, 2))
    return make(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def inputs(convolution: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((3, 2, 5, 5) if convolution else (20, 6), generator=generator)


def compiled(text: str, made: nn.Module, kind: Any = "gumbel", **rule: Any) -> Compiled:
    given = {"targets": ["0"], "weights": "dense", "output_activations": text}
    given |= {"estimator": {"output_activations": kind}} | rule
    return rhoc.compile(made, {"version": 1, "rules": [given]})


def steps_of(student: nn.Module, count: int, x: Tensor) -> None:
    """Train a form for a few steps."""
    torch.manual_seed(2)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    rhoc.attach(student, optimizer, count)
    for _ in range(count):
        optimizer.zero_grad()
        student(x).square().mean().backward()
        optimizer.step()


def brute_force(text: str, x: Tensor, tables: list[Tensor]) -> tuple[NDArray[np.int64], Array]:
    """Codes and what they decode to, in float64, by looking at every vector."""
    vectors = x.detach().double().numpy().reshape(-1, 4)
    rest, total, codes = vectors.copy(), np.zeros_like(vectors), []
    for stage, table in zip(levels_of(from_text(text)).stages, tables, strict=True):
        books = table.detach().half().double().numpy()
        for place, book in enumerate(books):
            columns = slice(0, 4)
            if stage.composition == "product":
                columns = slice(book.shape[1] * place, book.shape[1] * (place + 1))
            far = ((rest[:, None, columns] - book[None]) ** 2).sum(-1)
            codes.append(far.argmin(1))
            total[:, columns] += book[codes[-1]]
            rest[:, columns] -= book[codes[-1]]
    return np.stack(codes, 1), total.reshape(x.shape)


@pytest.mark.parametrize("text", EVERY)
def test_codes_are_the_nearest_vectors_level_by_level(text: str) -> None:
    levels = levels_of(from_text(text))
    tables, x = levels.stored(levels.first()), torch.randn(30, 8, generator=torch.Generator().manual_seed(3))
    codes, values = brute_force(text, x, tables)
    found = levels.encode(x, tables)
    assert np.array_equal(found.reshape(-1, levels.count).numpy(), codes)
    np.testing.assert_allclose(levels.decode(found, tables).numpy(), values, atol=1e-6)
    assert levels.bits == {ONE: 3, PRODUCT: 6, CASCADE: 6, BOTH: 8}[text]


@pytest.mark.parametrize("text", EVERY)
def test_a_codebook_of_a_weight_under_these_tables_gives_the_same(text: str) -> None:
    """One line of YAML is the format of an activation and of a weight: residual product quantisation."""
    representation, x = from_text(text), torch.randn(40, 8, generator=torch.Generator().manual_seed(4))
    code = representation.encode(x)
    tables = [t[0].float() for n, t in code.named().items() if n.endswith("codebook")]
    found = levels_of(representation).encode(x, tables)
    assert torch.equal(levels_of(representation).decode(found, tables), representation.project(x))


@pytest.mark.parametrize("estimator", ["gumbel", "commit"])
@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("make", [nn.Sequential, Python])
@pytest.mark.parametrize("text", [PRODUCT, BOTH])
def test_every_form_gives_the_same_bits(
    text: str, make: type[nn.Sequential], convolution: bool, estimator: str, tmp_path: Path
) -> None:
    x = inputs(convolution)
    made = compiled(text, model(make, convolution), estimator)
    student = made.trainable()
    steps_of(student, 3, x)
    with torch.no_grad():
        wanted = student.eval()(x)
        forms = [made.packed(student), made.reference(student)]
        made.save(tmp_path / "packed", student)
        forms.append(load_packed(tmp_path / "packed", model(make, convolution)))
        assert all(torch.equal(form(x), wanted) for form in forms)
        state = student.state_dict()
        dense = model(make, convolution)
        dense.load_state_dict({n: t for n, t in state.items() if "output_" not in n})
        hidden = dense[0](x).movedim(1, -1)  # type: ignore[index]
        tables = [t for n, t in state.items() if "output_codebook" in n]
        _, values = brute_force(text, hidden, tables)
        by_hand = dense[1:](torch.from_numpy(values).float().movedim(-1, 1))  # type: ignore[index]
    torch.testing.assert_close(wanted, by_hand, atol=1e-5, rtol=1e-5)
    assert list(codecs(forms[2])) == ["0.weight"] == list(codecs(forms[0]))


@pytest.mark.parametrize("make", [nn.Sequential, Python])
def test_a_represented_weight_may_have_encoded_outputs(make: type[nn.Sequential], tmp_path: Path) -> None:
    x = inputs()
    made = compiled(PRODUCT, model(make), weights="int8")
    student = made.trainable()
    steps_of(student, 3, x)
    made.save(tmp_path / "packed", student)
    packed, loaded = made.packed(student), load_packed(tmp_path / "packed", model(make))
    with torch.no_grad():
        assert torch.equal(packed(x), loaded(x))
        torch.testing.assert_close(made.reference(student)(x), student.eval()(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(codecs(packed)["0.weight"].tables[0], codecs(loaded)["0.weight"].tables[0])


def test_an_untrained_form_is_packed_with_the_tables_that_training_begins_with() -> None:
    made = compiled(CASCADE, model())
    with torch.no_grad():
        assert torch.equal(made.packed()(inputs()), made.trainable().eval()(inputs()))


def test_a_forward_pass_leaves_parameters_alone_and_eval_counts_nothing() -> None:
    student = compiled(PRODUCT, model()).trainable()
    rhoc.attach(student, torch.optim.SGD(student.parameters(), lr=0.1), 10)
    before = copy.deepcopy(student.state_dict())
    student(inputs())
    after = student.state_dict()
    assert [n for n in before if not torch.equal(before[n], after[n])] == ["0.weight_output_seen"]
    assert after["0.weight_output_seen"].sum(1).tolist() == [40, 40]  # 20 rows of 8 numbers, 4 in a vector
    student.eval()(inputs())
    with torch.no_grad():
        student.train()(inputs())
    assert torch.equal(student.state_dict()["0.weight_output_seen"], after["0.weight_output_seen"])


def test_what_is_learned_beside_a_weight_has_a_rate_of_its_own() -> None:
    names = {name for name, _ in learned_parameters(compiled(BOTH, model()).trainable())}
    ends = ("codebook_0", "codebook_1", "inverse_temperature")
    assert names == {f"0.weight_output_{end}" for end in ends}


def projection(text: str, estimator: Any, size: int) -> tuple[TableProject, tuple[Tensor, ...]]:
    representation = from_text(text)
    found = TableProject(representation, (estimator,))
    found.stepped = True
    return found, first_tables(representation, (estimator,), torch.zeros(size, 1, requires_grad=True))


def test_gumbel_draws_vectors_with_the_probabilities_of_the_softmax() -> None:
    torch.manual_seed(5)
    found, beside = projection("codebook(2, nbits_per_codebook=2)", Gumbel(inverse_temperature=2.0), 2)
    table = beside[0][0].detach().half().float()
    x = torch.tensor([0.3, -0.2])
    drawn = found(x.expand(20000, 2), *beside).detach()
    shares = [(drawn == vector).all(1).double().mean() for vector in table]
    wanted = torch.softmax(-2.0 * (x - table).square().sum(1).double(), 0)
    # 20000 draws: a standard deviation is at most .0036
    assert torch.allclose(torch.stack(shares), wanted, atol=0.015)
    assert beside[2].argmax() == wanted.argmax()
    assert int((beside[2] > 0).sum()) == 1


def test_the_gradient_of_gumbel_is_that_of_the_softmax_that_was_drawn() -> None:
    found, beside = projection("codebook(2, nbits_per_codebook=2)", Gumbel(inverse_temperature=3.0), 2)
    x = torch.tensor([[0.3, -0.2], [0.1, 0.5]], requires_grad=True)
    upstream = torch.tensor([[1.0, -2.0], [0.5, 0.25]])
    torch.manual_seed(6)
    found(x, *beside).backward(upstream)
    torch.manual_seed(6)
    noise = -np.log(-np.log(torch.rand(2, 1, 4).double().numpy()[:, 0]))
    points, g = beside[0].detach().half().double().numpy()[0], upstream.double().numpy()
    apart = x.detach().double().numpy()[:, None] - points
    far = (apart**2).sum(-1)
    logits = -3.0 * far + noise
    soft = np.exp(logits - logits.max(1, keepdims=True))
    soft /= soft.sum(1, keepdims=True)
    to_weights = g @ points.T
    to_logits = soft * (to_weights - (soft * to_weights).sum(1, keepdims=True))
    to_x = (to_logits[..., None] * -3.0 * 2 * apart).sum(1)
    hard = np.eye(4)[logits.argmax(1)]
    to_points = hard.T @ g + (to_logits[..., None] * 3.0 * 2 * apart).sum(0)
    assert x.grad is not None
    assert beside[0].grad is not None
    assert beside[3].grad is not None
    np.testing.assert_allclose(x.grad.numpy(), to_x, atol=1e-5)
    np.testing.assert_allclose(beside[0].grad[0].numpy(), to_points, atol=1e-5)
    np.testing.assert_allclose(beside[3].grad.item(), (to_logits * -far).sum(), rtol=1e-4)


def test_an_inverse_temperature_below_its_bound_counts_as_the_bound_and_can_rise_again() -> None:
    found, beside = projection(ONE, Gumbel(inverse_temperature=2.0, lowest=2.0), 4)
    with torch.no_grad():
        beside[3].fill_(-5.0)
    low = projection(ONE, Gumbel(inverse_temperature=2.0, lowest=2.0), 4)[1]
    x, results = torch.randn(9, 4), []
    for own in (beside, low):
        torch.manual_seed(0)
        results.append(found(x, *own))
        results[-1].sum().backward()
    assert torch.equal(*results)
    assert beside[3].grad is not None
    assert low[3].grad is not None
    assert torch.equal(beside[3].grad, low[3].grad)
    assert float(beside[3].grad.abs()) > 0


@pytest.mark.parametrize("text", [PRODUCT, CASCADE])
def test_the_gradient_of_commit_passes_straight_through_beside_its_two_terms(text: str) -> None:
    found, beside = projection(text, Commit(weight=0.5), 4)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(7)).requires_grad_()
    upstream = torch.randn(7, 4, generator=torch.Generator().manual_seed(8))
    result = found(x, *beside)
    result.backward(upstream)
    codes, values = brute_force(text, x, [beside[0]])
    np.testing.assert_allclose(result.detach().numpy(), values, atol=1e-6)
    points = beside[0].detach().half().double().numpy()
    rest, to_x, to_points = (
        x.detach().double().numpy().copy(),
        upstream.double().numpy(),
        np.zeros(points.shape),
    )
    for place in range(2):
        columns = slice(2 * place, 2 * place + 2) if text == PRODUCT else slice(0, 4)
        apart = rest[:, columns] - points[place][codes[:, place]]
        many = rest.size
        to_x[:, columns] += 0.5 * 2 * apart / many
        np.add.at(to_points[place], codes[:, place], -2 * apart / many)
        if text == CASCADE:
            rest[:, columns] = apart
    assert x.grad is not None
    assert beside[0].grad is not None
    np.testing.assert_allclose(x.grad.numpy(), to_x, atol=1e-6)
    np.testing.assert_allclose(beside[0].grad.numpy(), to_points, atol=1e-6)


def test_a_recomputed_forward_pass_draws_the_same() -> None:
    found, beside = projection(PRODUCT, Gumbel(inverse_temperature=3.0), 4)
    x = torch.randn(50, 4, requires_grad=True)
    grads = []
    for again in (False, True):
        torch.manual_seed(9)
        run = checkpoint(lambda x: found(x, *beside), x, use_reentrant=False) if again else found(x, *beside)
        grads.append(torch.autograd.grad(run.square().sum(), [x, beside[0]]))  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_usage_is_a_moving_average_over_steps() -> None:
    student = compiled(ONE, model(), {"kind": "commit", "ema": 0.5, "reassign": None}).trainable()
    usage, x = np.full(8, 1 / 8), inputs()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    rhoc.attach(student, optimizer, 4)
    for _ in range(3):
        state = student.state_dict()
        hidden = F.linear(x, state["0.weight"], state["0.bias"])
        codes, _ = brute_force(ONE, hidden, [state["0.weight_output_codebook"]])
        usage = 0.5 * usage + 0.5 * np.bincount(codes[:, 0], minlength=8) / len(codes)
        optimizer.zero_grad()
        student(x).square().mean().backward()
        optimizer.step()
    np.testing.assert_allclose(student.state_dict()["0.weight_output_usage"][0].numpy(), usage, atol=1e-6)


def test_dead_vectors_become_copies_of_the_most_chosen_which_share_their_frequency() -> None:
    table = torch.arange(8.0).reshape(8, 1) + 1
    usage = torch.tensor([0.4, 0.0, 0.1, 0.2, 0.0, 0.05, 0.15, 0.1])
    assert reassign(table, usage, 1e-6, seed=0) == 2
    assert table.flatten().tolist() == pytest.approx([1, 1, 3, 4, 4, 6, 7, 8], abs=0.02)
    assert table[1] != 1  # else none is ever nearer to it
    assert usage.tolist() == pytest.approx([0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.15, 0.1])


def test_only_as_many_dead_vectors_are_replaced_as_are_alive() -> None:
    table, usage = torch.arange(8.0).reshape(8, 1), torch.tensor([0.0] * 5 + [0.5, 0.3, 0.2])
    assert reassign(table, usage, 1e-6, seed=0) == 3
    assert table.flatten().tolist() == pytest.approx([5, 6, 7, 3, 4, 5, 6, 7], abs=0.02)
    assert float(usage.sum()) == pytest.approx(1)
    assert reassign(table, torch.zeros(8), 1e-6, seed=0) == 0


class _Stopped(Exception):
    pass


def test_a_resumed_run_ends_on_the_same_bits(tmp_path: Path) -> None:
    estimator = {"kind": "gumbel", "reassign": 4, "below": 0.01}
    codebook = {"kind": "codebook", "in_group_size": 16, "nbits_per_codebook": 5}

    def run(**options: Any) -> dict[str, Tensor]:
        made = patches_runs.compiled(codebook, estimator)
        return patches_runs.fit(made, 14, 0, **options).state_dict()

    def stop(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 9:
            raise _Stopped

    saving: dict[str, Any] = {"checkpoint_dir": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(_Stopped):
        run(listener=stop, **saving)
    whole, resumed = run(), run(**saving)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_training_without_attach_is_refused() -> None:
    with pytest.raises(RequestError, match="knows of no optimiser"):
        compiled(ONE, model()).trainable()(inputs())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"weights": ONE, "estimator": {"weights": "gumbel"}}, "trains tables of output_activations"),
        ({"output_activations": "quantize(int8, token, dynamic)"}, "keeps tables of codebooks"),
        ({"output_activations": "codebook(4, rms)"}, "has scales"),
        ({"output_activations": "codebook(4, e8p)"}, "e8p|source"),
        ({"output_activations": "codebook(4, num_codebooks=2, additive)"}, "searches codes together"),
        ({"output_activations": "codebook(4) + codebook(2)"}, "same in_group_size"),
        ({"output_activations": "codebook(3)"}, "not a multiple of in_group_size 3"),
        ({"estimator": {"output_activations": ["gumbel", "ste"]}}, "alone how gradients pass"),
        ({"estimator": {"output_activations": {"kind": "gumbel", "lowest": 80}}}, "at least lowest"),
    ],
)
def test_what_makes_no_sense_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidDocument, RequestError), match=message):
        compiled(ONE, model(), **rule)


def test_explain_counts_tables_and_frequencies() -> None:
    plain = rhoc.compile(model(), {"version": 1, "rules": [{"targets": ["0"], "weights": "dense"}]}).explain()
    found = compiled(BOTH, model()).explain()
    tables, frequencies = 2 * (2 * 8 * 2 + 4 * 4), 2 * (2 * 8 + 4)
    assert found.total_bytes - plain.total_bytes == tables + frequencies
    row = next(row for row in found.parameters if row.path == "0.weight")
    assert "8 bits for each 4 of them" in row.reason
    assert f"{tables + frequencies} bytes" in row.reason
    packed = compiled(BOTH, model()).packed()
    assert codecs(packed)["0.weight"].nbytes == tables + frequencies


def test_compiled_forms_are_one_graph_and_agree() -> None:
    made, x = compiled(BOTH, model()), inputs()
    student = made.trainable()
    steps_of(student, 1, x)
    graph: Any = torch.compile(student, fullgraph=True, backend="aot_eager")
    drawn = []
    for form in (student, graph):
        torch.manual_seed(0)
        drawn.append(form(x))
    torch.testing.assert_close(*drawn)
    assert student.state_dict()["0.weight_output_seen_1"].sum() == 2 * 40
    student.eval()
    packed = made.packed(student)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), student(x))
        together: Any = torch.compile(packed, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(together(x), packed(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_train_and_pack(dtype: torch.dtype) -> None:
    made, x = compiled(BOTH, model().to(dtype)), inputs().to(dtype)
    student = made.trainable()
    steps_of(student, 2, x)
    with torch.no_grad():
        wanted = student.eval()(x)
        assert wanted.dtype == dtype
        assert torch.equal(made.packed(student)(x), wanted)
