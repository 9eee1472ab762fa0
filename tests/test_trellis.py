"""Trellis-coded quantisation: shortest paths against all paths, windows, scales, shapes, and Gaussian error."""

from __future__ import annotations

import itertools
import json
import math
import struct

import pytest
import torch
from torch import Tensor

from rhoc.runtime.errors import RequestError
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages.trellis import Trellis
from rhoc.runtime.trellises import closed, codes, make_tables, viterbi, xor
from rhoc.runtime.trellises.viterbi import Bitshift, shortest_path


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def trellis(num_bits: int, state_bits: int, dtype: torch.dtype = torch.float64) -> Bitshift:
    """A trellis whose values are random, so that no two paths cost the same."""
    return Bitshift(normal(1 << state_bits, seed=7, dtype=dtype), num_bits)


def walk(first: int, symbols: tuple[int, ...], num_bits: int, state_bits: int) -> list[int]:
    """States after each symbol, one shift at a time."""
    states = []
    for symbol in symbols:
        first = ((first << num_bits) | symbol) % (1 << state_bits)
        states.append(first)
    return states


def cost(values: list[float], states: list[int], x: list[float], weight: list[float]) -> float:
    return sum(w * (a - values[s]) ** 2 for s, a, w in zip(states, x, weight, strict=True))


def shifts(states: Tensor, num_bits: int, state_bits: int) -> bool:
    """Whether each state follows from the one before."""
    kept = (1 << (state_bits - num_bits)) - 1
    return bool((states[:, 1:] >> num_bits == states[:, :-1] & kept).all())


SIZES = [(1, 4, 6), (1, 5, 7), (2, 4, 4), (2, 5, 3), (3, 6, 2), (4, 8, 2)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("num_bits", "state_bits", "count"), SIZES)
def test_free_path_is_the_best_of_all(num_bits: int, state_bits: int, count: int, weighted: bool) -> None:
    grid, x = trellis(num_bits, state_bits), normal(3, count, seed=1)
    weight = normal(3, count, seed=2).square() + 0.1
    states = shortest_path(grid, x, weight if weighted else None)
    assert shifts(states, num_bits, state_bits)
    values, ones = grid.values.tolist(), [1.0] * count
    for row in range(3):
        counts = weight[row].tolist() if weighted else ones
        least = min(
            cost(values, walk(first, symbols, num_bits, state_bits), x[row].tolist(), counts)
            for first in range(1 << (state_bits - num_bits))  # the oldest bits leave before the first number
            for symbols in itertools.product(range(1 << num_bits), repeat=count)
        )
        assert cost(values, states[row].tolist(), x[row].tolist(), counts) == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize(
    ("num_bits", "state_bits", "count"), [(1, 4, 7), (2, 4, 5), (2, 6, 4), (3, 6, 3), (4, 8, 2)]
)
def test_path_between_given_ends_is_the_best_of_all(num_bits: int, state_bits: int, count: int) -> None:
    grid, x = trellis(num_bits, state_bits), normal(4, count, seed=3)
    first, last = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 1, 0, 2])
    states = shortest_path(grid, x, first=first, last=last)
    assert shifts(states, num_bits, state_bits)
    heads = 1 << (state_bits - num_bits)
    values, ones = grid.values.tolist(), [1.0] * count
    for row in range(4):
        paths = (
            walk(int(first[row]), symbols, num_bits, state_bits)
            for symbols in itertools.product(range(1 << num_bits), repeat=count)
        )
        ending = [path for path in paths if path[-1] % heads == last[row]]
        least = min(cost(values, path, x[row].tolist(), ones) for path in ending)
        assert states[row].tolist() in ending
        assert cost(values, states[row].tolist(), x[row].tolist(), ones) == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize(("num_bits", "state_bits"), [(1, 9), (2, 9), (2, 12), (3, 10), (4, 10)])
def test_a_row_in_blocks_is_a_row_in_one(
    num_bits: int, state_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows too long for memory are walked twice; rows are also split to stay near the core."""
    grid, x = trellis(num_bits, state_bits), normal(5, 61, seed=4)
    whole = shortest_path(grid, x)
    monkeypatch.setattr(viterbi, "_MEMORY", 1 << 15)
    monkeypatch.setattr(viterbi, "_CACHE", 3 * 8 << state_bits)
    assert torch.equal(shortest_path(grid, x), whole)


@pytest.mark.parametrize(("num_bits", "state_bits"), [(1, 8), (2, 8), (3, 7), (4, 8)])
def test_cost_agrees_with_plain_recursion_on_long_rows(num_bits: int, state_bits: int) -> None:
    """The textbook recursion, state by state, in natural order."""
    grid, x = trellis(num_bits, state_bits), normal(1, 100, seed=5)
    costs, values = [0.0] * (1 << state_bits), grid.values.tolist()
    for number in x[0].tolist():
        costs = [
            min(
                costs[(oldest << (state_bits - num_bits)) | state >> num_bits]
                for oldest in range(1 << num_bits)
            )
            + (number - values[state]) ** 2
            for state in range(1 << state_bits)
        ]
    found = (x - grid.values[shortest_path(grid, x).long()]).square().sum()
    assert float(found) == pytest.approx(min(costs), rel=1e-12)


@pytest.mark.parametrize(("num_bits", "state_bits"), [(1, 6), (2, 7), (3, 8)])
def test_closed_paths_close_and_are_nearly_the_best(num_bits: int, state_bits: int) -> None:
    grid = trellis(num_bits, state_bits)
    for count in (1, 2, 3, 5, 8, 13, 40, 200):
        x = normal(2, count, seed=count)
        states = closed.closed_path(grid, x)
        again = walk(int(states[0, -1]), tuple((states[0] % (1 << num_bits)).tolist()), num_bits, state_bits)
        assert again == states[0].tolist()
        heads = torch.arange(grid.heads)
        if count * num_bits < state_bits:  # no path between all ends
            continue
        every = shortest_path(grid, x[:1].expand(len(heads), -1), first=heads, last=heads)
        best = (x[:1] - grid.values[every.long()]).square().sum(1).min()
        assert best <= (x[0] - grid.values[states[0].long()]).square().sum() <= best * 1.1 + 0.05


@pytest.mark.parametrize(("num_bits", "state_bits", "count"), [(1, 8, 1), (1, 8, 7), (2, 9, 3), (4, 10, 2)])
def test_short_rows_are_the_best_of_all_closed_paths(num_bits: int, state_bits: int, count: int) -> None:
    grid, x = trellis(num_bits, state_bits), normal(3, count, seed=6)
    weight = normal(3, count, seed=2).square() + 0.1
    states = closed.closed_path(grid, x, weight)
    turns = -(-state_bits // (num_bits * count))
    for row in range(3):
        paths = [
            walk(0, symbols * (turns + 1), num_bits, state_bits)[-count:]
            for symbols in itertools.product(range(1 << num_bits), repeat=count)
        ]
        assert states[row].tolist() in paths
        prices = [cost(grid.values.tolist(), path, x[row].tolist(), weight[row].tolist()) for path in paths]
        assert prices[paths.index(states[row].tolist())] == pytest.approx(min(prices), rel=1e-12)


@pytest.mark.parametrize("code", ["xor", "1mad", "3inst"])
def test_every_window_decodes_to_its_value(code: codes.CodeName) -> None:
    """The bits of a row as one string, wrapped around: each number is the value of the L bits up to its own."""
    stage, x = Trellis(3, 10, code, strategy="channel"), normal(2, 3, 11)
    carry, fields = stage.encode(x)
    restored, values = stage.decode(carry, fields), codes.values(code, 3, 10)
    for row, column in itertools.product(range(2), range(3)):
        bits = "".join(f"{symbol:03b}" for symbol in carry[row, column].tolist())
        for place in range(11):
            window = (bits * 3)[33 + 3 * place + 3 - 10 : 33 + 3 * place + 3]
            expected = float(values[int(window, 2)]) * float(fields["scale"][row, column])
            assert float(restored[row, column, place]) == pytest.approx(expected, rel=1e-12)


def test_published_codes_by_hand() -> None:
    """1MAD and 3INST of a few states, in plain integers and bytes."""
    for state in (0, 1, 77, 4095, 65535):
        word = (34038481 * state + 76625530) % 2**32
        assert (
            float(codes.one_mad(torch.tensor(state)))
            == (sum(struct.pack("<I", word)) - 510) / 147.800537109375
        )
        word = ((89226354 * state + 64248484) % 2**32 & 0x8FFF8FFF) ^ 0x3B603B60
        low, high = struct.unpack("<2e", struct.pack("<I", word))
        assert float(codes.three_inst(torch.tensor(state))) == low + high
    assert struct.unpack("<e", struct.pack("<H", 0x3B60))[0] == pytest.approx(0.922, abs=5e-4)


@pytest.mark.parametrize(
    ("num_bits", "state_bits"), [(1, 4), (1, 9), (2, 4), (2, 12), (3, 6), (3, 11), (4, 8), (4, 12)]
)
def test_xor_code_has_the_structure_that_is_asked_of_it(num_bits: int, state_bits: int) -> None:
    values = xor.xor_values(num_bits, state_bits)
    count = 1 << state_bits
    ranks = values.argsort().argsort()
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(count).double() + 0.5) / count)
    assert torch.allclose(values.sort().values, quantiles * math.sqrt(1 - 4.0**-num_bits), atol=1e-9)
    assert torch.equal(ranks + ranks.flip(0), torch.full_like(ranks, count - 1))
    strata = ranks >> (state_bits - num_bits)
    every = torch.arange(1 << num_bits)
    for leaving in (strata.view(-1, 1 << num_bits), strata.view(1 << num_bits, -1).T):
        assert torch.equal(leaving.sort(1).values, every.expand_as(leaving))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 1), (0, 5), (5, 0), (2, 3, 17), (4, 64)])
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for stage in (
        Trellis(2, 8),
        Trellis(1, 6, strategy="channel"),
        Trellis(3, 8, strategy="group", group_size=4),
    ):
        representation = Representation((stage,))
        x = normal(*shape, dtype=dtype)
        code = representation.encode(x)
        declared = representation.layout(shape, dtype)
        assert {n: (tuple(t.shape), t.dtype) for n, t in code.named().items()} == {
            n: (field.shape, field.dtype) for n, field in declared.items()
        }
        meta = representation.encode(x.to("meta"))
        assert {n: t.shape for n, t in meta.named().items()} == {n: t.shape for n, t in code.named().items()}
        stored = representation.pack(code)
        assert sum(t.nbytes for t in stored.values()) == representation.nbytes(shape, dtype)
        projected = representation.project(x)
        assert projected.dtype == dtype
        assert torch.equal(representation.decode(representation.unpack(stored, shape, dtype)), projected)
        assert torch.equal(representation.project(x), projected)


def test_bits_are_those_of_the_numbers_and_the_scale() -> None:
    assert Representation((Trellis(2, 16),)).nbytes((3, 4096), torch.float32) == 3 * 1024 + 4
    assert Representation((Trellis(3, 16, strategy="channel"),)).nbytes((5, 10), torch.float16) == 5 * (4 + 2)


@pytest.mark.parametrize(("strategy", "group_size"), [("tensor", None), ("channel", None), ("group", 6)])
def test_zeros_stay_zeros_beside_numbers(strategy: codes.CodeName, group_size: int | None) -> None:
    representation = Representation((Trellis(2, 8, strategy=strategy, group_size=group_size),))
    x = normal(3, 20)
    x[1] = 0
    x[0, :12] = 0
    projected = representation.project(x)
    assert bool(projected.isfinite().all())
    if strategy != "tensor":
        assert not projected[1].any()
    if strategy == "group":
        assert not projected[0, :12].any()
    assert not representation.project(torch.zeros(2, 9)).any()


@pytest.mark.parametrize("factor", [1e-30, 2.0**-7, 1e30])
def test_scale_is_the_rms_and_the_codes_do_not_depend_on_it(factor: float) -> None:
    stage, x = Trellis(2, 8, strategy="group", group_size=16), normal(3, 40)
    carry, fields = stage.encode(x)
    assert torch.allclose(fields["scale"][:, 2], x[:, 32:].square().mean(1).sqrt())
    again, scaled = stage.encode(x * factor)
    assert torch.equal(again, carry)
    assert torch.allclose(scaled["scale"], fields["scale"] * factor, rtol=1e-12)


def test_importance_moves_the_error_to_where_it_counts_less() -> None:
    stage, x = Trellis(2, 8), normal(8, 64)
    importance = torch.where(torch.arange(64) % 2 == 0, 25.0, 1.0)
    carry, fields, handed_on = stage.encode_weighted(x, importance)
    assert handed_on is None
    plain, weighted = ((x - stage.decode(c, fields)).square() for c in (stage.encode(x)[0], carry))
    assert (weighted * importance).sum() < 0.8 * (plain * importance).sum()
    assert weighted.sum() > plain.sum()
    assert torch.equal(stage.encode_weighted(x, torch.tensor(3.0))[0], stage.encode(x)[0])


def test_groups_of_different_size_weigh_by_their_scale() -> None:
    """The path is the best for the tensor's own errors, not for those of the scaled numbers."""
    x = normal(16, 64) * torch.where(torch.arange(64) // 4 % 2 == 0, 8.0, 1.0)
    stage = Trellis(2, 8, strategy="group", group_size=4)
    carry, fields = stage.encode(x)
    factors = fields["scale"].repeat_interleave(4, -1)
    grid = Bitshift(codes.values("xor", 2, 8).double(), 2)
    alike = closed.closed_path(grid, x / factors)
    error = (x - stage.decode(carry, fields)).square().sum()
    assert error < 0.97 * (x - grid.values[alike.long()] * factors).square().sum()


def test_a_latent_with_a_gradient_and_other_memory_orders() -> None:
    stage, x = Trellis(2, 8), normal(24, 6, dtype=torch.float32)
    expected = stage.encode(x.T.contiguous())
    carry, fields = stage.encode(x.T.requires_grad_())
    assert torch.equal(carry, expected[0])
    assert not fields["scale"].requires_grad


def test_not_finite_numbers_do_not_break_other_rows() -> None:
    stage, x = Trellis(2, 8, strategy="channel"), normal(3, 16)
    expected = stage.decode(*stage.encode(x))
    x[1, 3] = torch.nan
    projected = stage.decode(*stage.encode(x))
    assert torch.equal(projected[[0, 2]], expected[[0, 2]])
    assert projected[1].isnan().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_bits": 5}, "num_bits must be between 1 and 4, got 5"),
        ({"num_bits": 3, "state_bits": 5}, "state_bits must be between 6 and 20 for 3 bits, got 5"),
        ({"state_bits": 21}, "state_bits must be between 4 and 20 for 2 bits, got 21"),
        ({"code": "table", "state_bits": 16}, "code 'table' has state_bits 8, 10, 12, not 16"),
        ({"group_size": 4}, "strategy 'group' and group_size go together"),
        ({"strategy": "group", "group_size": 0}, "group_size must be positive, got 0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Trellis(**options)  # type: ignore[arg-type]


def test_refusals() -> None:
    with pytest.raises(RequestError, match="a single number has none"):
        Representation((Trellis(2, 8),)).check(())
    with pytest.raises(RequestError, match="do not fit in float16"):
        Trellis(2, 8, scale_dtype="float16").encode(torch.full((8,), 1e6))


def test_shipped_tables_are_what_their_facts_say() -> None:
    from safetensors import safe_open

    with safe_open(str(codes.FILE), framework="pt") as file:
        facts = json.loads(file.metadata()["tables"])
        tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert (
        set(facts)
        == set(tables)
        == {codes.table_name(k, n) for k in range(1, 5) for n in codes.TABLE_STATE_BITS}
    )
    for name, table in tables.items():
        assert make_tables.digest(table) == facts[name]["sha256"]
        assert table.dtype == torch.float16
        assert table.shape == (1 << (facts[name]["state_bits"] - 1),)


def test_a_table_is_trained_again() -> None:
    """The first of the shipped tables, at a twentieth of its rounds, comes near to what ships."""
    plan = make_tables.Plan(2, 8, rounds=10, rows=16)
    table = make_tables.compute(plan)
    assert torch.equal(make_tables.compute(plan), table)
    shipped = codes.values("table", 2, 8)[: len(table)]
    start = xor.xor_values(2, 8)[: len(table)]
    assert (table - shipped).square().mean() < 0.5 * (start - shipped).square().mean()


# Squared error per number that Gaussian data must not exceed, at a tenth of the numbers of a full estimate.
SMALL = [
    ("xor", 1, 10, 0.278),
    ("xor", 2, 10, 0.0745),
    ("xor", 3, 10, 0.0199),
    ("xor", 4, 10, 0.0054),
    ("table", 2, 10, 0.0735),
    ("table", 3, 10, 0.0193),
    ("table", 4, 10, 0.0053),
]
LLOYD_MAX = {1: 1 - 2 / math.pi, 2: 0.1174819, 3: 0.0345478, 4: 0.00950101}


@pytest.mark.parametrize(("code", "num_bits", "state_bits", "most"), SMALL)
def test_gaussian_error_of_small_trellises(
    code: codes.CodeName, num_bits: int, state_bits: int, most: float
) -> None:
    """Between Shannon's bound and what was measured; far below the best scalar quantiser of as many bits."""
    x = normal(8, 1024, seed=11, dtype=torch.float32)
    representation = Representation((Trellis(num_bits, state_bits, code),))
    error = float((x - representation.project(x)).square().sum() / x.square().sum())
    assert 4.0**-num_bits < error < most < 0.8 * LLOYD_MAX[num_bits]


@pytest.mark.slow
@pytest.mark.parametrize(("num_bits", "most"), [(1, 0.271), (2, 0.0689), (3, 0.0178), (4, 0.00455)])
def test_gaussian_error_of_sixteen_bits_of_state(num_bits: int, most: float) -> None:
    """Three standard errors below what the best known trellises of this size are said to reach."""
    x = normal(8, 4096, seed=12, dtype=torch.float32)
    errors = (x - Representation((Trellis(num_bits, 16),)).project(x)).square().sum(1) / x.square().sum(1)
    assert float(errors.mean() + 3 * errors.std() / math.sqrt(8)) < most
