"""As which matrix an operation reads its weight: its columns are what the operation sums over, as autograd sees it."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rhoc.runtime.arrangement import PLAIN, Arrangement, summed_over
from rhoc.runtime.operations import OPERATIONS, Operation, operation_on

from .dependence import dependence, kept, summed
from .projected import normal

_aten = torch.ops.aten


def random_arrangement(choice: random.Random) -> tuple[Arrangement, tuple[int, ...]]:
    shape = tuple(choice.choice((1, 2, 3, 4, 6)) for _ in range(choice.randint(1, 4)))
    view = shape
    if choice.random() < 0.5:
        place = choice.randrange(len(shape))
        inner = choice.choice([d for d in (1, 2, 3) if shape[place] % d == 0])
        view = (*shape[:place], inner, shape[place] // inner, *shape[place + 1 :])
    order = tuple(choice.sample(range(len(view)), len(view)))
    columns = choice.randint(1, len(view))
    return Arrangement(view if view != shape else (), order, columns), shape


@pytest.mark.parametrize("seed", range(60))
def test_a_matrix_is_restored_and_its_shape_foretold(seed: int) -> None:
    arrangement, shape = random_arrangement(random.Random(seed))
    weight = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    matrix = arrangement.matrix(weight)
    assert arrangement.shape(shape) == tuple(matrix.shape)
    assert torch.equal(arrangement.restore(matrix, shape), weight)
    assert sorted(matrix.flatten().tolist()) == weight.flatten().tolist()


def test_the_plain_arrangement_changes_nothing() -> None:
    weight = torch.randn(3, 4)
    assert PLAIN.matrix(weight) is weight
    assert PLAIN.restore(weight, (3, 4)) is weight
    assert summed_over(3, (-1,)) == PLAIN
    assert summed_over(3, (0, 2)) == Arrangement((), (1, 0, 2), 2)


def found(
    function: Any, args: tuple[Any, ...], weight: Tensor, **options: Any
) -> tuple[Operation | None, list[Any]]:
    operation = operation_on(function, args, options, lambda argument: argument is weight)
    return operation, [] if operation is None else operation.positional(args, options)[0]


def columns_of(arrangement: Arrangement, rank: int) -> set[int]:
    """The dimensions that an arrangement without a view takes as columns."""
    assert not arrangement.view
    order = arrangement.order or tuple(range(rank))
    return set(order[rank - arrangement.columns :])


def equation(choice: random.Random) -> tuple[str, tuple[int, ...], tuple[int, ...], int]:
    """A random product of two operands, the sizes of both and which is the weight."""
    letters = choice.sample("abcdefghij", 6)
    kinds = {
        "batch": letters[: choice.randint(0, 1)],
        "sum": letters[1 : 1 + choice.randint(1, 2)],
        "weight": letters[3 : 3 + choice.randint(1, 2)],
        "input": letters[5 : 5 + choice.randint(0, 1)],
    }
    own = [*kinds["batch"], *kinds["sum"], *kinds["weight"]]
    other = [*kinds["batch"], *kinds["sum"], *kinds["input"]]
    result = [*kinds["batch"], *kinds["weight"], *kinds["input"]]
    for term in (own, other, result):
        choice.shuffle(term)
    if choice.random() < 0.2 and len(kinds["weight"]) > 1:
        result.remove(kinds["weight"][0])  # of the weight alone, and summed over
    sizes = {letter: choice.choice((2, 3)) for letter in letters}
    weight = choice.randint(0, 1)
    terms = [own, other] if weight == 0 else [other, own]
    shapes = [tuple(sizes[c] for c in term) for term in terms]
    texts = ["".join(term) for term in terms]
    ends = "".join(result)
    if choice.random() < 0.4:  # batches that only one operand has
        side = 1 - weight
        texts[side], ends, shapes[side] = f"...{texts[side]}", f"...{ends}", (2, *shapes[side])
    usual = len(result) == len(kinds["weight"]) + len(kinds["input"])  # all that only one operand has
    implicit = choice.random() < 0.3 and not kinds["batch"] and usual
    text = ", ".join(texts) if implicit else f"{texts[0]},{texts[1]} -> {ends}"
    return text, shapes[0], shapes[1], weight


@pytest.mark.parametrize("seed", range(120))
def test_einsums_sum_over_what_autograd_says(seed: int) -> None:
    text, first, second, which = equation(random.Random(seed))
    operands = [normal(*first).abs() + 1, normal(*second).abs() + 1]
    weight, other = operands[which], operands[1 - which]
    operation, given = found(torch.einsum, (text, *operands), weight)
    assert operation is not None, text

    def as_weight(w: Tensor) -> Tensor:
        return torch.einsum(text, *([w, other] if which == 0 else [other, w]))

    def as_input(x: Tensor) -> Tensor:
        return torch.einsum(text, *([weight, x] if which == 0 else [x, weight]))

    arrangement = operation.arrange(tuple(weight.shape), given)
    reads, enters = dependence(as_weight, weight), dependence(as_input, other)
    assert columns_of(arrangement, weight.dim()) == summed(reads), text
    assert operation.channel % other.dim() in summed(enters), text
    result = as_weight(weight)
    features = operation.features % result.dim()
    outputs = reads.reshape(*result.shape, -1).movedim(features, 0)  # which weights each feature reads
    rows = outputs.reshape(result.shape[features], -1, weight.numel()).any(1)
    assert bool((rows.sum(0) == 1).all()), text  # every weight is for one of them


NO_PRODUCTS = [
    ("ab,ab->ab", (2, 3), (2, 3)),  # nothing is summed over
    ("aa,ab->b", (3, 3), (3, 2)),  # a diagonal
    ("ab->ba", (2, 3), None),
]


@pytest.mark.parametrize(("text", "first", "second"), NO_PRODUCTS)
def test_einsums_that_are_no_product_with_a_weight(text: str, first: Any, second: Any) -> None:
    weight = normal(*first)
    rest = () if second is None else (normal(*second),)
    assert found(torch.einsum, (text, weight, *rest), weight)[0] is None
    assert found(torch.einsum, ([text], weight, *rest), weight)[0] is None
    three = (normal(2, 3), normal(3, 4), weight)
    assert found(torch.einsum, ("ab,bc,cd->ad", *three), weight)[0] is None


def product_cases() -> list[Any]:
    """Functions with the weight in each of its places: (function, arguments, position of the weight)."""
    x, xb, v = normal(4, 3), normal(2, 4, 3), normal(3)
    w, wb = normal(3, 5), normal(2, 3, 5)
    cases = [(F.linear, (x, normal(5, 3), normal(5)), 1), (_aten.linear.default, (xb, normal(5, 3)), 1)]
    cases += [(f, (x, w), i) for f in (torch.matmul, torch.mm, torch.Tensor.__matmul__) for i in (0, 1)]
    cases += [(f, (xb, wb), i) for f in (torch.bmm, torch.Tensor.bmm, torch.matmul) for i in (0, 1)]
    cases += [(torch.matmul, (xb, w), 1), (torch.matmul, (x, v), 0), (_aten.mm.default, (x, w), 1)]
    cases += [(torch.addmm, (normal(5), x, w), 2), (torch.Tensor.addmm, (normal(4, 5), x, w), 2)]
    return [
        *cases,
        (torch.baddbmm, (normal(2, 4, 5), xb, wb), 2),
        (_aten.addmm.default, (normal(5), x, w), 2),
    ]


@pytest.mark.parametrize("case", product_cases(), ids=lambda c: f"{getattr(c[0], '__name__', c[0])}-{c[2]}")
def test_products_sum_over_what_autograd_says(case: Any) -> None:
    function, args, position = case
    weight = args[position]
    operation, given = found(function, args, weight)
    assert operation is not None
    depends = dependence(lambda w: function(*(w if a is weight else a for a in args)), weight)
    assert columns_of(operation.arrange(tuple(weight.shape), given), weight.dim()) == summed(depends)
    source = args[operation.input]
    enters = dependence(lambda x: function(*(x if a is source else a for a in args)), source)
    assert max(operation.channel, -source.dim()) % source.dim() in summed(enters)
    assert summed(depends).isdisjoint(kept(depends))


def convolutions() -> list[Any]:
    cases = []
    for size, groups, transposed in itertools.product((1, 2, 3), (1, 2), (False, True)):
        name = f"conv{'_transpose' if transposed else ''}{size}d"
        shape = (4, 6 // groups) if transposed else (6, 4 // groups)
        cases.append((name, size, groups, transposed, (*shape, *([2] * size))))
    return cases


@pytest.mark.parametrize(("name", "size", "groups", "transposed", "shape"), convolutions())
def test_every_output_of_a_convolution_reads_one_row(
    name: str, size: int, groups: int, transposed: bool, shape: tuple[int, ...]
) -> None:
    """And all the outputs of one channel together read all of it, and nothing else."""
    function, weight, x = getattr(F, name), normal(*shape), normal(1, 4, *([3] * size))
    operation, given = found(function, (x, weight, None, *_options(transposed, groups)), weight)
    assert operation is not None
    rows = operation.arrange(shape, given)
    numbers = rows.matrix(torch.arange(weight.numel()).reshape(shape)).flatten(0, -2)
    depends = dependence(lambda w: function(x, w, groups=groups), weight).flatten(1)
    channels = depends.unflatten(0, (6, -1)).any(1)
    for channel in range(6):
        assert set(channels[channel].nonzero().flatten().tolist()) == set(numbers[channel].tolist())
    assert operation.channel_of(weight.dim()) == operation.features_of(weight.dim()) == -1 - size


def _options(transposed: bool, groups: int) -> tuple[Any, ...]:
    return (1, 0, 0, groups, 1) if transposed else (1, 0, 1, groups)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_overloads_of_a_graph_are_read_like_the_functions(transposed: bool) -> None:
    weight = normal(4, 3, 2, 2) if transposed else normal(6, 2, 2, 2)
    x, name = normal(1, 4, 5, 5), "conv_transpose2d" if transposed else "conv2d"
    operation, given = found(getattr(F, name), (x, weight, None, *_options(transposed, 2)), weight)
    overload = _aten.conv_transpose2d.input if transposed else _aten.conv2d.default
    spread = (x, weight, None, [1, 1], [0, 0], *([[0, 0]] if transposed else [[1, 1]]), 2)
    other, spread_given = found(overload, spread, weight)
    args = (x, weight, None, [1, 1], [0, 0], [1, 1], transposed, [0, 0], 2)
    third, third_given = found(_aten.convolution.default, args, weight)
    assert operation is not None
    assert other is not None
    assert third is not None
    shape = tuple(weight.shape)
    expected = operation.arrange(shape, given)
    assert other.arrange(shape, spread_given) == third.arrange(shape, third_given) == expected


def test_lookups_that_write_to_their_weight_are_none() -> None:
    weight, tokens = normal(4, 3), torch.tensor([1])
    for function in (F.embedding, F.embedding_bag):
        assert found(function, (tokens, weight), weight)[0] is not None
        assert found(function, (tokens, weight), weight, max_norm=None)[0] is not None
        assert found(function, (tokens, weight), weight, max_norm=1.0)[0] is None
        assert found(function, (tokens, weight, None, 1.0), weight)[0] is None


def test_every_operation_names_what_it_reads() -> None:
    for function, operations in OPERATIONS.items():
        for operation in operations:
            places = [p for p in (operation.weight, operation.input, operation.bias) if p is not None]
            assert max(places) < len(operation.names), function
            assert len(set(places)) == len(places), function
