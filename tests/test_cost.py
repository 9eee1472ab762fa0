"""What runs will cost: how jobs are put side by side, and the time that is left while they end."""

from __future__ import annotations

from itertools import product

import pytest

from rhoc.compiler.cost import Pace, Timing, estimate, evaluation_windows, makespan, measure
from rhoc.compiler.experiment import Experiment
from rhoc.compiler.model_reference import ModelReference
from rhoc.compiler.spec import load_spec
from rhoc.runtime.train import TrainSettings


def experiment(**changed: object) -> Experiment:
    settings: dict[str, object] = {"tokens": 640, "batch_size": 2, "context": 32, "eval_tokens": 256}
    model = ModelReference.parse("rhoc.runtime.llama:llama(width=16)")
    return Experiment(load_spec("int2"), model, "stdlib", TrainSettings(**settings | changed))  # type: ignore[arg-type]


def best_makespan(jobs: list[float], workers: int) -> float:
    """By trying every assignment."""
    return min(
        max(sum(job for job, worker in zip(jobs, chosen, strict=True) if worker == w) for w in range(workers))
        for chosen in product(range(workers), repeat=len(jobs))
    )


@pytest.mark.parametrize(
    "jobs", [[3.0], [3.0, 2.0, 2.0, 1.0], [5.0, 4.0, 3.0, 3.0, 3.0], [1.0] * 5, [7.0, 1.0, 1.0]]
)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_makespan_is_between_the_best_and_four_thirds_of_it(jobs: list[float], workers: int) -> None:
    # Graham 1969: longest first is at most 4/3 - 1/(3m) of the best.
    best = best_makespan(jobs, workers)
    assert best <= makespan(jobs, workers) <= (4 / 3 - 1 / (3 * workers)) * best + 1e-12


def test_no_jobs_take_no_time() -> None:
    assert makespan([], 2) == 0.0


def test_time_left_is_by_cost_and_not_by_count() -> None:
    pace = Pace({"long": 90.0, "a": 5.0, "b": 5.0}, workers=1)
    assert pace.left(0.0) == 100.0  # as planned, before anything is known
    pace.advance("long", 0.0, now=10.0)  # the worker is up; starting took 10 s
    pace.end("long", now=190.0)  # twice as slow as planned
    assert pace.done == pytest.approx(0.9)
    assert pace.left(190.0) == pytest.approx(20.0)
    pace.end("a", now=200.0)
    assert pace.left(200.0) == pytest.approx(10.0)
    pace.end("b", now=210.0)
    assert (pace.done, pace.left(210.0)) == (pytest.approx(1.0), 0.0)


def test_runs_in_progress_count_with_what_they_have_done() -> None:
    pace = Pace({"a": 10.0, "b": 10.0}, workers=2)
    for second in range(6):
        pace.advance("a", second / 10, now=float(second))
        pace.advance("b", second / 10, now=float(second))
    assert pace.left(5.0) == pytest.approx(5.0)


def test_the_longest_run_left_bounds_the_time() -> None:
    pace = Pace({"long": 100.0, "short": 10.0}, workers=2)
    pace.advance("long", 0.0, now=0.0)
    pace.advance("long", 0.1, now=10.0)
    pace.end("short", now=10.0)
    assert pace.left(10.0) == pytest.approx(90.0)  # not 45: nobody can help with the last run


def test_what_was_done_before_says_nothing_about_the_speed() -> None:
    pace = Pace({"resumed": 100.0, "elsewhere": 50.0, "broken": 50.0}, workers=1)
    pace.advance("resumed", 0.8, now=0.0, resumed=0.8)
    pace.end("elsewhere", now=0.0, trained=False)
    pace.end("broken", now=0.0, trained=False)
    pace.advance("resumed", 0.9, now=20.0, resumed=0.8)
    assert pace.left(20.0) == pytest.approx(20.0)


def test_without_estimates_runs_count_alike() -> None:
    pace = Pace({"a": 0.0, "b": 0.0}, workers=1)
    assert pace.left(0.0) is None
    pace.advance("a", 0.0, now=0.0)
    pace.end("a", now=8.0)
    assert (pace.done, pace.left(8.0)) == (0.5, pytest.approx(8.0))


def test_a_run_costs_its_steps_and_its_evaluations() -> None:
    timing = Timing(setup=1.0, step=0.5, evaluation=0.25)
    once = experiment()  # 10 steps; 8 windows of evaluation in 4 batches
    assert evaluation_windows(once) == 8
    assert timing.of(once) == 1.0 + 10 * 0.5 + 4 * 0.25
    often = experiment(eval_every=5)  # after step 5, and at the end
    assert timing.of(often) == 1.0 + 10 * 0.5 + 2 * 4 * 0.25


def test_measuring_gives_times_and_is_done_once_for_each_kind_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = measure(experiment())
    assert min(timing.setup, timing.step, timing.evaluation) > 0
    asked: list[Experiment] = []

    def counted(asking: Experiment) -> Timing:
        asked.append(asking)
        return timing

    monkeypatch.setattr("rhoc.compiler.cost.measure", counted)
    runs = {"short": experiment(), "long": experiment(tokens=1280), "seed": experiment(seed=1)}
    seconds = estimate(runs | {"batch": experiment(batch_size=4)})
    assert len(asked) == 2
    assert seconds["long"] - seconds["short"] == pytest.approx(10 * timing.step)
    assert seconds["seed"] == seconds["short"]
