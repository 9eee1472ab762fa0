"""Work side by side: each job in a process with one thread, results as they come.

`Processes` keeps a few worker processes (spawned, one thread each: many small models train faster side by
side than one after the other on all cores, and one thread makes their numbers reproducible). A job is a
function that a worker can import, and arguments that can be pickled. What is promised:

- a job's error arrives at its future as it was raised, with the worker's traceback as a note;
- a worker that dies takes only its own job with it, which fails with a WorkError that says how it died;
- leaving the `with` block, by an error or Ctrl-C too, ends every worker; and when this process is killed
  outright, its workers notice and end themselves.

Which jobs need doing, and resuming what was interrupted, is not the executor's business: the store knows.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import connection as channels
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, ParamSpec, Self, TypeVar, final

from .errors import RequestError, WorkError
from .worker_process import REPORTING, read, work

P = ParamSpec("P")
T = TypeVar("T")

OnReport = Callable[[Future[Any], Any], None]

_GRACE_SECONDS = 5.0  # between asking a worker to end and ending it


def cores() -> int:
    """Cores this process may use: the default number of workers."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Executor(ABC):
    """Something that calls functions: `submit` gives a `concurrent.futures.Future`. Use it in a `with` block.

    `on_report(future, value)` hears what a job sends with `worker_process.report`.
    """

    @abstractmethod
    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have the function called."""

    @abstractmethod
    def close(self) -> None:
        """End everything now; what is not done is cancelled. To wait for jobs, wait for their futures."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@final
class Inline(Executor):
    """Calls each function at once, in this process."""

    def __init__(self, on_report: OnReport | None = None) -> None:
        self._on_report = on_report

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call it and return a future that is done. Ctrl-C is raised here, not kept."""
        future: Future[T] = Future()
        hear = self._on_report
        token = REPORTING.set(None if hear is None else lambda value: hear(future, value))
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        finally:
            REPORTING.reset(token)
        return future

    def close(self) -> None:
        """There is nothing to end."""


@dataclass(frozen=True)
class _Job:
    future: Future[Any]
    call: bytes  # the pickled function and arguments


@dataclass
class _Worker:
    process: SpawnProcess
    channel: Connection
    ready: bool = False
    job: _Job | None = None


@final
class Processes(Executor):
    """Calls functions in single-threaded worker processes, `workers` at most (by default one per core).

    Workers start when there is work for them. `on_report` is called in a thread of this object's own.
    """

    def __init__(self, workers: int | None = None, on_report: OnReport | None = None) -> None:
        if workers is not None and workers < 1:
            raise RequestError(f"at least one worker is needed, got {workers}", where="workers")
        self.workers = workers or cores()
        self._on_report = on_report
        self._context = get_context("spawn")
        self._jobs: deque[_Job] = deque()
        self._crew: list[_Worker] = []
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ear, self._bell = self._context.Pipe(duplex=False)  # wakes the manager up
        self._closed = False
        self._manager = threading.Thread(target=self._manage, name="rhoc-processes", daemon=True)
        self._manager.start()

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a worker call it. Raises RequestError when the call cannot be sent to another process."""
        if self._closed:
            raise RequestError("the executor is closed", where="submit", advice="submit inside 'with'")
        try:
            call = pickle.dumps((function, args, kwargs))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise RequestError(
                f"the call cannot be sent to another process: {error}",
                where="submit",
                advice="use a function of a module, and plain arguments",
            ) from error
        future: Future[T] = Future()
        self._inbox.put(_Job(future, call))
        self._bell.send_bytes(b"!")
        return future

    def close(self) -> None:
        """End all workers now; what is not done is cancelled. To wait for jobs, wait for their futures."""
        if self._closed:
            return
        self._closed = True
        self._inbox.put(None)
        self._bell.send_bytes(b"!")
        self._manager.join()
        self._bell.close()
        self._ear.close()

    # What follows runs in the manager's thread, which alone touches jobs and crew.

    def _manage(self) -> None:
        try:
            while self._take_orders():
                self._assign()
                ears: list[Any] = [self._ear]
                for worker in self._crew:
                    ears += [worker.channel, worker.process.sentinel]
                for signalled in channels.wait(ears):
                    self._hear(signalled)
        finally:
            self._closed = True
            self._dismiss()

    def _take_orders(self) -> bool:
        """Collect what was submitted; False when it is time to end."""
        while not self._inbox.empty():
            job = self._inbox.get()
            if job is None:
                return False
            self._jobs.append(job)
        return True

    def _assign(self) -> None:
        """Give waiting jobs to idle workers, and start workers while there are jobs for more of them."""
        for worker in self._crew:
            while worker.ready and worker.job is None and self._jobs:
                job = self._jobs.popleft()
                if job.future.set_running_or_notify_cancel():
                    worker.job = job
                    with contextlib.suppress(OSError):  # it just died, which its sentinel will say
                        worker.channel.send_bytes(job.call)
        starting = sum(not worker.ready for worker in self._crew)
        for _ in range(min(self.workers - len(self._crew), len(self._jobs) - starting)):
            here, there = self._context.Pipe()
            process = self._context.Process(target=work, args=(there,), daemon=True, name="rhoc-worker")
            process.start()
            there.close()
            self._crew.append(_Worker(process, here))

    def _hear(self, signalled: object) -> None:
        if signalled is self._ear:
            self._ear.recv_bytes()
            return
        for worker in list(self._crew):
            if signalled is worker.channel:
                self._listen(worker)
            elif signalled == worker.process.sentinel and not worker.channel.poll():
                self._bury(worker)

    def _listen(self, worker: _Worker) -> None:
        try:
            kind, value = read(worker.channel.recv_bytes())
        except (EOFError, OSError):
            self._bury(worker)
            return
        if kind == "ready":
            worker.ready = True
        elif kind == "report" and worker.job is not None and self._on_report is not None:
            self._on_report(worker.job.future, value)
        elif kind in ("done", "failed"):
            job, worker.job = worker.job, None
            _settle(job, kind == "done", value)

    def _bury(self, worker: _Worker) -> None:
        """A worker is dead: its job fails. If it never came up all jobs do, as the next would not either."""
        self._crew.remove(worker)
        worker.process.join()
        how = _death(worker.process.exitcode or 0)
        _close(worker)
        if worker.ready:
            memory = "if that was SIGKILL, memory may have run out: try fewer workers"
            _settle(worker.job, False, WorkError(f"the worker process {how}", where="worker", advice=memory))
            return
        guard = "if a script started it, put the script's work under: if __name__ == '__main__':"
        error = WorkError(f"a worker process {how} before it could start", where="worker", advice=guard)
        while self._jobs:
            job = self._jobs.popleft()
            if job.future.set_running_or_notify_cancel():
                _settle(job, False, error)

    def _dismiss(self) -> None:
        """End every worker, gently first, and cancel what is left."""
        for worker in self._crew:
            worker.process.terminate()
        for worker in self._crew:
            worker.process.join(_GRACE_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            _close(worker)
            interrupted = WorkError("interrupted before it was done", where="worker", advice="run it again")
            _settle(worker.job, False, interrupted)
        self._crew.clear()
        self._take_orders()
        while self._jobs:
            self._jobs.popleft().future.cancel()


def _settle(job: _Job | None, worked: bool, value: Any) -> None:
    if job is not None and worked:
        job.future.set_result(value)
    elif job is not None:
        job.future.set_exception(value)


def _close(worker: _Worker) -> None:
    worker.channel.close()
    worker.process.close()


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    known = {number.value: number.name for number in signal.Signals}
    return f"was killed by {known.get(-code, f'signal {-code}')}"
