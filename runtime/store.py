"""The store of runs: what was asked for, who is at work on it, and what came out.

A run is identified by the digest of its request, a JSON object with everything that determines the outcome
(spec document, model, data, budget, seed, code). The contract, which holds for every backend:

1. Asking for a run that exists returns it. Nothing is trained twice.
2. A run is `planned`, then `running` while one worker holds it, then `finished` or `failed`.
3. Claiming is atomic: of any number of workers that claim a run, on any number of machines, one gets it.
4. A claim whose worker died is free again: at once when its process is gone from this machine, else when its
   heartbeat is older than `patience` seconds. (Machines that share a store need clocks that nearly agree.)
5. Only the worker that holds a run may heartbeat, finish, fail or release it. A worker that lost its claim
   is told so with an error.
6. A finished run never changes, not even by hand: the database refuses.
7. A `Run` that was returned never changes either; ask again for news.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, final

from sqlalchemy import Connection, Row, insert, or_, select, update
from sqlalchemy.exc import IntegrityError, OperationalError

from .digest import digest
from .errors import RequestError, WorkError
from .store_schema import RUNS, open_database, shown_place
from .workers import is_gone, this_worker

State = Literal["planned", "running", "finished", "failed"]
Document = Mapping[str, Any]

_COLUMNS = ("loss", "params", "tokens", "seconds")
# What a row of a table says beside the further columns of a law.
_NOT_COLUMNS = frozenset({*_COLUMNS, "representation", "model", "data", "seed", "state", "id"})


@dataclass(frozen=True)
class Run:
    """One run as it was when it was read. Times are seconds since 1970, UTC; `loss` is nats per token.

    `result` is whatever the run recorded (curves among it) and `columns` further numbers that laws name.
    """

    id: str
    state: State
    request: Document = field(repr=False)
    result: Document | None = field(repr=False)
    environment: Document | None = field(repr=False)
    progress: Document | None
    error: str | None
    loss: float | None
    params: float | None
    tokens: float | None
    seconds: float | None
    worker: str | None = field(repr=False)
    heartbeat: float | None = field(repr=False)
    created: float
    started: float | None
    finished: float | None

    @property
    def representation(self) -> str:
        """Name of the spec: `request["spec"]`, or its `name` when it is a document."""
        spec = self.request.get("spec", "")
        return str(spec.get("name", "")) if isinstance(spec, Mapping) else str(spec)

    @property
    def columns(self) -> Document:
        """Further numbers of this run: `result["columns"]`."""
        return (self.result or {}).get("columns", {})  # type: ignore[no-any-return]

    def row(self) -> dict[str, Any]:
        """This run as one flat row of a table: params, tokens, loss, representation, and the rest."""
        row: dict[str, Any] = {
            "params": _whole(self.params),
            "tokens": _whole(self.tokens),
            "loss": self.loss,
        }
        row |= {"representation": self.representation, **self.columns}
        for name in ("model", "data", "seed"):
            value = self.request.get(name)
            if isinstance(value, str | int | float):
                row.setdefault(name, value)
        return row | {"seconds": self.seconds, "state": self.state, "id": self.id}


@final
class ClaimLost(WorkError):
    """The worker does not hold the run it wants to change."""


@final
class RunStore:
    """A store of runs in a SQLite file (made if absent) or a database named by URL. See the contract above.

    Each RunStore object is one worker: what it claims, it alone may finish.
    """

    def __init__(self, place: str | Path, *, patience: float = 120.0) -> None:
        self.place, self.patience = place, patience
        self._engine = open_database(place)
        self._worker = f"{this_worker()}:{uuid.uuid4().hex[:8]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database. Claims stay until they are taken over."""
        self._engine.dispose()

    # Reading

    def get(self, run_id: str) -> Run:
        """The run with this id, or the only one whose id starts so (four characters and more)."""
        same = RUNS.c.id == run_id
        if len(run_id) >= 4:
            same = or_(same, RUNS.c.id.startswith(run_id, autoescape=True))
        with self._transaction() as connection:
            rows = connection.execute(select(RUNS).where(same).order_by(RUNS.c.id)).all()
        found = [row for row in rows if row.id == run_id] or rows
        if len(found) == 1:
            return _run(found[0])
        several = f"{len(found)} runs start with {run_id!r}" if found else f"there is no run {run_id!r}"
        raise RequestError(
            several, where=f"store {shown_place(self.place)}", advice="list the runs with 'rhoc runs ls'"
        )

    def find(self, request: Document) -> Run | None:
        """The run with this request, or None."""
        with self._transaction() as connection:
            row = _row(connection, digest(request))
        return None if row is None else _run(row)

    def runs(self, *states: State, ids: Iterable[str] | None = None) -> list[Run]:
        """Runs in these states (all when none is named), only those with these ids if given, oldest first."""
        query = select(RUNS).order_by(RUNS.c.created, RUNS.c.id)
        if states:
            query = query.where(RUNS.c.state.in_(states))
        with self._transaction() as connection:
            found = [_run(row) for row in connection.execute(query)]
        wanted = None if ids is None else set(ids)
        return [run for run in found if wanted is None or run.id in wanted]

    def is_abandoned(self, run: Run) -> bool:
        """Whether a run is held by a worker that died."""
        if run.state != "running" or run.worker is None:
            return False
        return is_gone(run.worker) or time.time() - (run.heartbeat or 0.0) > self.patience

    # Asking and working

    def ensure(self, request: Document) -> Run:
        """The run with this request, planned now if there was none."""
        run_id = digest(request)
        try:
            with self._transaction() as connection:
                row = _row(connection, run_id)
                if row is None:
                    values = {
                        "id": run_id,
                        "state": "planned",
                        "request": dict(request),
                        "created": time.time(),
                    }
                    connection.execute(insert(RUNS).values(values))
        except IntegrityError:
            pass  # another process asked for it in the same moment
        return self.get(run_id)

    def claim(self, run_id: str, *, retry: bool = False) -> bool:
        """Take a planned or abandoned run, with `retry` a failed one too. False when it is not to be had."""
        run = self.get(run_id)
        free = run.state == "planned" or (retry and run.state == "failed") or self.is_abandoned(run)
        if not free:
            return False
        now = time.time()
        taken = update(RUNS).where(
            RUNS.c.id == run.id,
            RUNS.c.state == run.state,
            RUNS.c.worker.is_not_distinct_from(run.worker),
            RUNS.c.heartbeat.is_not_distinct_from(run.heartbeat),  # nobody else took it since we looked
        )
        taken = taken.values(state="running", worker=self._worker, heartbeat=now, started=now, error=None)
        with self._transaction() as connection:
            return connection.execute(taken).rowcount == 1

    def heartbeat(self, run_id: str, progress: Document | None = None) -> None:
        """Say that the work goes on, and how far it is."""
        values: dict[str, Any] = {"heartbeat": time.time()}
        self._change(run_id, values | ({} if progress is None else {"progress": dict(progress)}))

    def finish(self, run_id: str, result: Document, environment: Document | None = None) -> Run:
        """Record the outcome for good. `result` holds loss, params, tokens, seconds and anything else."""
        values = {name: result.get(name) for name in _COLUMNS}
        ended: dict[str, Any] = {"state": "finished", "result": dict(result), "finished": time.time()}
        self._change(run_id, values | ended | {"environment": dict(environment or {}), "worker": None})
        return self.get(run_id)

    def fail(self, run_id: str, error: str, environment: Document | None = None) -> Run:
        """Record that the work failed, and why."""
        ended: dict[str, Any] = {"state": "failed", "error": error, "finished": time.time(), "worker": None}
        self._change(run_id, ended | {"environment": dict(environment or {})})
        return self.get(run_id)

    def release(self, run_id: str) -> None:
        """Give a claim back unfinished: the run is planned again."""
        self._change(run_id, {"state": "planned", "worker": None, "heartbeat": None})

    # Tables

    def rows(self, *states: State) -> list[dict[str, Any]]:
        """Runs as flat rows (`Run.row`), finished ones unless other states are named."""
        return [run.row() for run in self.runs(*(states or ("finished",)))]

    def import_rows(self, rows: Iterable[Document], source: str) -> tuple[int, int]:
        """Take rows of a table over as finished runs: how many are new, how many were here already.

        A row needs params, tokens, loss and representation. Its request is the row itself and the name of its
        source, so importing twice changes nothing; a row with the id of a run that is here is that run.
        """
        given = [_without_blanks(row) for row in rows]
        known = {run.id for run in self.runs()}
        fresh: list[dict[str, Any]] = []
        for number, row in enumerate(given, 1):
            where = f"{source}, row {number}"
            if not isinstance(row.get("representation"), str):
                raise RequestError(
                    "representation must be a name", where=where, advice="nothing was imported"
                )
            numbers = {name: _number(row, name, where) for name in ("params", "tokens", "loss")}
            request = {"spec": row["representation"], "imported": source, "row": row}
            run_id = digest(request)
            if known.isdisjoint({run_id, row.get("id")}):
                known.add(run_id)
                fresh.append(_imported(run_id, request, row, numbers))
        if fresh:
            with self._transaction() as connection:
                connection.execute(insert(RUNS), fresh)
        return len(fresh), len(given) - len(fresh)

    # Inside

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise WorkError(
                f"the database does not answer: {error.orig}",
                where=f"store {shown_place(self.place)}",
                advice="nothing was changed; try again when it does",
            ) from error

    def _change(self, run_id: str, values: dict[str, Any]) -> None:
        """Change a run that this worker holds; say why not when it does not."""
        mine = (RUNS.c.id == run_id, RUNS.c.state == "running", RUNS.c.worker == self._worker)
        with self._transaction() as connection:
            if connection.execute(update(RUNS).where(*mine).values(values)).rowcount == 1:
                return
        run = self.get(run_id)
        if run.state == "finished":
            raise WorkError(
                "a finished run never changes", where=f"run {run.id}", advice="ask for another one"
            )
        held = "another worker took it over" if run.state == "running" else f"it is {run.state}"
        raise ClaimLost(
            f"this worker does not hold the run: {held}",
            where=f"run {run.id}",
            advice="claim it first; claims lapse when heartbeats stop",
        )


def _whole(number: float | None) -> float | None:
    """Counts are stored as floats, which hold 3e9 and 2.5e13 alike; shown, they are whole."""
    return int(number) if number is not None and number.is_integer() else number


def _row(connection: Connection, run_id: str) -> Row[Any] | None:
    return connection.execute(select(RUNS).where(RUNS.c.id == run_id)).one_or_none()


def _run(row: Row[Any]) -> Run:
    return Run(**row._mapping)


def _imported(run_id: str, request: Document, row: Document, numbers: dict[str, float]) -> dict[str, Any]:
    """A finished run made of a row: the numbers everything needs, and the others as columns."""
    seconds = row.get("seconds")
    columns = {name: value for name, value in row.items() if name not in _NOT_COLUMNS}
    now = time.time()
    return {
        "id": run_id,
        "state": "finished",
        "request": request,
        "result": {**numbers, "columns": columns},
        **numbers,
        "seconds": float(seconds) if isinstance(seconds, int | float) else None,
        "created": now,
        "finished": now,
    }


def _without_blanks(row: Document) -> dict[str, Any]:
    """The cells of a row that say something: no None, no empty text, no NaN."""
    return {name: value for name, value in row.items() if value not in (None, "") and value == value}


def _number(row: Document, name: str, where: str) -> float:
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise RequestError(
        f"{name} must be a positive number, got {value!r}", where=where, advice="nothing was imported"
    )
