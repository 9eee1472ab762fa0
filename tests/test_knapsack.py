"""The exact solution of the multiple-choice knapsack: against brute force, and what it makes of its solver."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from rhoc.compiler import knapsack
from rhoc.compiler.knapsack import Option, Problem, nearest, solve
from rhoc.compiler.quiet import without_line
from rhoc.runtime.errors import WorkError


def brute_force(problem: Problem) -> float | None:
    """The least value of every combination within the limits."""
    best = None
    for chosen in itertools.product(*problem.groups):
        costs = [sum(option.costs[k] for option in chosen) for k in range(len(problem.limits))]
        if all(cost <= limit for cost, limit in zip(costs, problem.limits, strict=True)):
            value = sum(option.value for option in chosen)
            best = value if best is None else min(best, value)
    return best


def random_problem(seed: int) -> Problem:
    """Up to seven groups of three options, some of them equal, with one cost or two, small or huge."""
    numbers = random.Random(seed)
    kinds, largest = numbers.choice((1, 1, 2)), numbers.choice((9, 100, 10**6, 10**10, 10**13))
    draw = (numbers.random, lambda: numbers.lognormvariate(0, 8), lambda: float(numbers.randint(-3, 3)))
    groups: list[tuple[Option, ...]] = []
    for _ in range(numbers.randint(1, 7)):
        if groups and numbers.random() < 0.3:
            groups.append(numbers.choice(groups))
            continue
        costs = [tuple(numbers.randint(0, largest) for _ in range(kinds)) for _ in range(3)]
        groups.append(tuple(Option(numbers.choice(draw)(), cost) for cost in costs))
    free = Problem(tuple(groups), (0,) * kinds)
    most = [sum(max(option.costs[k] for option in group) for group in groups) for k in range(kinds)]
    share = numbers.choice((-0.05, 0.0, 0.2, 0.5, 0.8, 1.0))
    return replace(
        free, limits=tuple(int(a + (b - a) * share) for a, b in zip(free.smallest, most, strict=True))
    )


def test_solutions_equal_brute_force() -> None:
    infeasible = 0
    for seed in range(150):
        problem = random_problem(seed)
        best, solution = brute_force(problem), solve(problem)
        infeasible += best is None
        if best is None:
            assert solution is None, seed
            over = [c > limit for c, limit in zip(nearest(problem), problem.limits, strict=True)]
            assert any(over), seed
            continue
        assert solution is not None, seed
        largest = max(abs(option.value) for group in problem.groups for option in group)
        assert solution.objective == pytest.approx(best, rel=0, abs=1e-10 * largest), seed
        assert (solution.status, solution.objective) == ("optimal", problem.value(solution.choices))
        assert 0 <= solution.objective - solution.bound <= 1e-10 * largest, seed
        assert all(c <= limit for c, limit in zip(solution.costs, problem.limits, strict=True))
        assert solve(problem) == solution
    assert 10 < infeasible < 100


def test_two_hundred_layers_with_twelve_candidates_are_proven() -> None:
    numbers = random.Random(0)
    bits = (1, 1.58, 2, 2.25, 3, 3.25, 4, 4.25, 4.5, 6, 8, 16)
    groups = []
    for number in range(200):
        weights, sensitivity = (4096, 11008)[number % 3 == 0] * 4096, numbers.lognormvariate(0, 1)
        groups.append(tuple(Option(sensitivity * 4.0**-b, (int(weights * b / 8),)) for b in bits))
    solution = solve(Problem(tuple(groups), (sum(group[4].costs[0] for group in groups),)))
    assert solution is not None
    assert (solution.status, len(solution.choices)) == ("optimal", 200)
    assert solution.gap < 1e-9
    # Lagrange: for any price of a byte, no choice is better than this bound, which here is close.
    price = max(
        (sum(min(o.value + 2.0**-e * o.costs[0] for o in g) for g in groups) - 2.0**-e * solution.costs[0], e)
        for e in range(10, 60)
    )[0]
    assert price <= solution.objective * (1 + 1e-9)
    assert solution.objective < 1.2 * price


def test_a_solver_that_overruns_a_limit_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(((Option(1.0, (5,)), Option(0.0, (9,))),), (8,))
    solution = solve(problem)
    assert solution is not None
    assert solution.choices == (0,)
    found = SimpleNamespace(status=0, x=[0.0, 1.0], fun=0.0, mip_dual_bound=0.0, mip_node_count=1, message="")
    monkeypatch.setattr(knapsack, "_milp", lambda *rest: found)
    with pytest.raises(WorkError, match="a choice that costs 9, over the limit of 8"):
        solve(problem)


def test_a_solver_that_is_stopped_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(((Option(1.0, (5,)), Option(0.0, (9,))), (Option(4.0, (1,)), Option(2.0, (2,)))), (11,))
    scale = 2.0**15  # of a largest difference of 2, to below 1e5
    found = SimpleNamespace(
        status=1, x=[1.0, 0.0, 0.0, 1.0], fun=scale, mip_dual_bound=0.25 * scale, mip_node_count=1, message=""
    )
    monkeypatch.setattr(knapsack, "_milp", lambda *rest: found)
    solution = solve(problem, seconds=1)
    assert solution is not None
    assert (solution.status, solution.objective, solution.bound, solution.gap) == ("stopped", 3.0, 2.25, 0.25)
    monkeypatch.setattr(
        knapsack, "_milp", lambda *rest: SimpleNamespace(status=1, x=None, message="time limit")
    )
    with pytest.raises(WorkError, match=r"the solver found no choice \(time limit\); give it more seconds"):
        solve(problem, seconds=1)


def test_one_known_line_is_kept_off_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    libc = ctypes.CDLL(None)
    libc.puts(b"chatter before")
    with without_line("chatter"):
        libc.puts(b"chatter")
        os.write(1, b"chatter, and more\n")
        print("from Python")
        libc.puts(b"from C")
        libc.puts(b"chatter")
    print("after")
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines[1:-1]) == ["chatter, and more", "from C", "from Python"]
    assert (lines[0], lines[-1]) == ("chatter before", "after")
