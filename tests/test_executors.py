"""Worker processes: their answers, their deaths, and that none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, as_completed
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rhoc.runtime.errors import RequestError, WorkError
from rhoc.runtime.executors import Executor, Inline, Processes, cores
from rhoc.runtime.worker_process import report

_JOBS = """
import os, signal, sys, time
from pathlib import Path
from rhoc.runtime.errors import RequestError
from rhoc.runtime.worker_process import report

def double(x):
    return 2 * x

def threads():
    import torch
    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]

def process():
    return os.getpid()

def refuse():
    raise RequestError("not like this", where="here", advice="do it like that")

def stumble():
    return 1 // 0

def die(number):
    os.kill(os.getpid(), number)
    time.sleep(60)

def leave(code):
    os._exit(code)

def local():
    return lambda: 1

class Unreadable(Exception):
    def __init__(self, one, two):
        super().__init__("cannot be rebuilt from one argument")

def unreadable():
    raise Unreadable(1, 2)

def tell(values):
    for value in values:
        report(value)
    return len(values)

def meet(folder, name, others):
    (Path(folder) / name).touch()
    while not all((Path(folder) / other).exists() for other in others):
        time.sleep(0.01)
    return name

def wait_and_clean_up(started, cleaned):
    Path(started).write_text(str(os.getpid()))
    try:
        time.sleep(60)
    finally:
        Path(cleaned).touch()
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of jobs that worker processes can import too."""
    (tmp_path / "some_jobs.py").write_text(_JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_jobs", raising=False)
    import some_jobs  # type: ignore[import-not-found]

    return some_jobs  # type: ignore[no-any-return]


def is_alive(process: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_answers_errors_and_threads(jobs: ModuleType) -> None:
    with Processes(2) as executor:
        doubled = [executor.submit(jobs.double, x) for x in range(20)]
        assert [future.result() for future in doubled] == [2 * x for x in range(20)]
        assert executor.submit(jobs.threads).result() == (1, "1")
        assert executor.submit(jobs.process).result() != os.getpid()

        refused = executor.submit(jobs.refuse).exception()
        assert isinstance(refused, RequestError)
        assert str(refused) == "here: not like this; do it like that"
        assert refused.exit_code == 2
        stumbled = executor.submit(jobs.stumble).exception()
        assert isinstance(stumbled, ZeroDivisionError)
        assert "return 1 // 0" in stumbled.__notes__[0]

        lost = executor.submit(jobs.local).exception()
        assert isinstance(lost, WorkError)
        assert "the result cannot be sent back" in str(lost)
        unreadable = executor.submit(jobs.unreadable).exception()
        assert isinstance(unreadable, WorkError)
        assert str(unreadable) == "worker: Unreadable: cannot be rebuilt from one argument"


def test_jobs_run_side_by_side_and_arrive_as_they_are_done(jobs: ModuleType, tmp_path: Path) -> None:
    order: list[str] = []
    with Processes(2) as executor:
        waits_for = {"first": ["second", "third"], "second": ["first"], "third": ["first"]}
        futures = [executor.submit(jobs.meet, str(tmp_path), who, them) for who, them in waits_for.items()]
        for future in futures:
            future.add_done_callback(lambda done: order.append(done.result()))
        assert {future.result() for future in as_completed(futures)} == set(waits_for)
    assert order[0] == "second"


def test_a_worker_that_dies_takes_only_its_own_job_with_it(jobs: ModuleType) -> None:
    with Processes(2) as executor:
        before = [executor.submit(jobs.double, x) for x in range(3)]
        killed = executor.submit(jobs.die, signal.SIGKILL)
        left = executor.submit(jobs.leave, 3)
        after = [executor.submit(jobs.double, x) for x in range(5)]
        assert [future.result() for future in before + after] == [0, 2, 4, 0, 2, 4, 6, 8]
        death = killed.exception()
        assert isinstance(death, WorkError)
        assert str(death).startswith("worker: the worker process was killed by SIGKILL; ")
        assert "try fewer workers" in str(death)
        assert "worker: the worker process ended with exit code 3" in str(left.exception())


def test_reports(jobs: ModuleType) -> None:
    heard: list[tuple[Future[Any], object]] = []

    def hear(future: Future[Any], value: object) -> None:
        heard.append((future, value))

    executors: list[Executor] = [Inline(hear), Processes(2, hear)]
    for executor in executors:
        heard.clear()
        with executor:
            futures = [executor.submit(jobs.tell, [n, "half", {"loss": 1.5}]) for n in range(3)]
            assert [future.result() for future in futures] == [3, 3, 3]
        if isinstance(executor, Inline):  # the futures of jobs already done are known afterwards only
            assert [value for _, value in heard][::3] == [0, 1, 2]
        else:
            for n, future in enumerate(futures):
                assert [value for who, value in heard if who is future] == [n, "half", {"loss": 1.5}]
    report("nobody listens here, and that is fine")
    with Processes(1) as silent:
        assert silent.submit(jobs.tell, [1]).result() == 1


def test_inline(jobs: ModuleType) -> None:
    with Inline() as executor:
        assert executor.submit(jobs.process).result() == os.getpid()
        assert isinstance(executor.submit(jobs.stumble).exception(), ZeroDivisionError)


def test_closing_ends_the_workers_gently(jobs: ModuleType, tmp_path: Path) -> None:
    started, cleaned = tmp_path / "started", tmp_path / "cleaned"
    with Processes(1) as executor:
        running = executor.submit(jobs.wait_and_clean_up, str(started), str(cleaned))
        waiting = executor.submit(jobs.double, 1)
        assert eventually(lambda: started.exists() and bool(started.read_text()))
    assert not is_alive(int(started.read_text()))
    assert cleaned.exists()
    with pytest.raises(WorkError, match="interrupted before it was done; run it again"):
        running.result()
    with pytest.raises(CancelledError):
        waiting.result()
    with pytest.raises(RequestError, match="the executor is closed; submit inside 'with'"):
        executor.submit(jobs.double, 1)
    assert not [thread for thread in threading.enumerate() if thread.name == "rhoc-processes"]


def test_a_job_can_be_cancelled_while_it_waits(jobs: ModuleType, tmp_path: Path) -> None:
    with Processes(1) as executor:
        first = executor.submit(jobs.meet, str(tmp_path), "first", ["go"])
        second = executor.submit(jobs.double, 2)
        assert second.cancel()
        (tmp_path / "go").touch()
        assert first.result() == "first"
        assert executor.submit(jobs.double, 3).result() == 6


def test_requests_that_cannot_be_met(jobs: ModuleType) -> None:
    with pytest.raises(RequestError, match="at least one worker is needed, got 0"):
        Processes(0)
    with Processes() as executor:
        assert executor.workers == cores() >= 1
        with pytest.raises(RequestError) as caught:
            executor.submit(lambda: 1)
        assert "the call cannot be sent to another process" in str(caught.value)
        assert "use a function of a module" in str(caught.value)


_SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
from concurrent.futures import wait
sys.path.insert(0, sys.argv[1])
import some_jobs
from rhoc.runtime.executors import Processes

def main():
    folder = sys.argv[2]
    with Processes(2) as executor:
        jobs = [
            executor.submit(some_jobs.wait_and_clean_up, f"{folder}/started{i}", f"{folder}/cleaned{i}")
            for i in range(2)
        ]
        print("submitted", flush=True)
        wait(jobs)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_an_interrupted_or_killed_parent(
    jobs: ModuleType, tmp_path: Path, number: signal.Signals
) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    started = [tmp_path / f"started{i}" for i in range(2)]
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert eventually(lambda: all(path.exists() and path.read_text() for path in started))
        workers = [int(path.read_text()) for path in started]
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)  # what Ctrl-C does: everyone in the group gets it
        else:
            os.kill(parent.pid, number)
        _, said = parent.communicate(timeout=30)
        assert eventually(lambda: not any(is_alive(worker) for worker in workers))
        if number == signal.SIGINT:
            assert said.rstrip().endswith("KeyboardInterrupt")
            assert said.count("Traceback") == 1  # the parent's own; workers end in silence
            assert all((tmp_path / f"cleaned{i}").exists() for i in range(2))
    finally:
        parent.kill()
        parent.wait()


def test_a_script_without_a_guard_is_told_what_to_do(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            from rhoc.runtime.executors import Processes
            with Processes(1) as executor:
                print(executor.submit(abs, -1).exception())
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert "a worker process ended with exit code 1 before it could start" in done.stdout
    assert "put the script's work under: if __name__ == '__main__':" in done.stdout
