"""Tables of the store of runs, and how a database is opened.

Two tables: `runs`, one row a run with its payloads as JSON, and `store_version`, one row. That a finished run
never changes is a trigger in the database itself, so that no hand-written statement gets round it either.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.schema import CreateIndex, CreateTable

from .errors import RequestError, WorkError

VERSION = 1
_BUSY_SECONDS = 60.0  # how long a SQLite writer waits for another one
_LOCK = 0x72686F63  # any fixed number: PostgreSQL's advisory lock while the tables are made

_metadata = MetaData()

RUNS = Table(
    "runs",
    _metadata,
    Column("id", String(16), primary_key=True),  # digest of the request
    Column("state", String(8), nullable=False, index=True),
    Column("request", JSON, nullable=False),
    Column("result", JSON),
    Column("environment", JSON),
    Column("progress", JSON),
    Column("error", Text),
    Column("loss", Float),
    Column("params", Float),
    Column("tokens", Float),
    Column("seconds", Float),
    Column("worker", String(80)),
    Column("heartbeat", Float),  # all times are seconds since 1970, UTC
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float),
)

_VERSIONS = Table("store_version", _metadata, Column("version", Integer, primary_key=True))

_SQLITE_TRIGGERS = tuple(
    f"CREATE TRIGGER IF NOT EXISTS runs_no_{verb.lower()} BEFORE {verb} ON runs WHEN OLD.state = 'finished' "
    "BEGIN SELECT RAISE(ABORT, 'a finished run never changes'); END"
    for verb in ("UPDATE", "DELETE")
)
_POSTGRESQL_TRIGGERS = (
    "CREATE OR REPLACE FUNCTION rhoc_finished_run_never_changes() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'a finished run never changes'; END $$",
    "CREATE OR REPLACE TRIGGER runs_never_change BEFORE UPDATE OR DELETE ON runs "
    "FOR EACH ROW WHEN (OLD.state = 'finished') EXECUTE FUNCTION rhoc_finished_run_never_changes()",
)


class _Cursor(Protocol):
    def execute(self, statement: str, /) -> Any: ...
    def fetchone(self) -> Any: ...
    def close(self) -> None: ...


class _Raw(Protocol):
    """A connection of Python's sqlite3."""

    isolation_level: str | None

    def cursor(self) -> _Cursor: ...


def open_database(place: str | Path) -> Engine:
    """An engine on a SQLite file (made if absent) or a database URL, with the tables in place.

    Raises RequestError for a URL or file that cannot be a store, WorkError when the database does not answer.
    """
    url = _url(place)
    shown = shown_place(place)
    try:
        engine = _engine(url)
        _make_tables(engine, shown)
    except ModuleNotFoundError as error:
        raise RequestError(
            f"the driver {error.name} is not installed", where=shown, advice="pip install 'rhoc[postgres]'"
        ) from error
    except OperationalError as error:
        raise WorkError(
            f"the database does not answer: {error.orig}",
            where=shown,
            advice="check the address, the rights and that the server runs",
        ) from error
    except DBAPIError as error:
        raise RequestError(
            f"not a store of runs: {error.orig}", where=shown, advice="give the path of a new file"
        ) from error
    return engine


def shown_place(place: str | Path) -> str:
    """The place of a store as messages may show it: without its password."""
    given = str(place)
    return make_url(given).render_as_string(hide_password=True) if "://" in given else given


def _url(place: str | Path) -> URL:
    given = str(place)
    if "://" not in given:
        path = Path(given).expanduser()
        if path.is_dir():
            raise RequestError("this is a folder", where=given, advice="give the path of a file in it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f"its folder cannot be made: {error.strerror}", where=given, advice="give another path"
            ) from error
        return URL.create("sqlite", database=str(path))
    try:
        url = make_url(given)
        url.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise RequestError(
            "not an address of a database",
            where=given.partition("://")[0] + "://...",
            advice="give the path of a file, or postgresql://USER@HOST/DATABASE",
        ) from error
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": _BUSY_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(raw: _Raw, _record: object) -> None:
    """Write-ahead log: readers and one writer at a time do not wait for each other."""
    raw.isolation_level = None  # transactions are begun by `_begin_sqlite`, not by sqlite3
    cursor = raw.cursor()
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:  # the switch itself does not wait its turn, so two processes making one file may collide
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            break
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock first: a transaction that reads and then writes could otherwise fail in between."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _make_tables(engine: Engine, shown: str) -> None:
    with engine.begin() as connection:
        postgresql = engine.dialect.name == "postgresql"
        if postgresql:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        else:
            _check_own(inspect(connection).get_table_names(), shown)
        for table in (RUNS, _VERSIONS):
            connection.execute(CreateTable(table, if_not_exists=True))
        for index in RUNS.indexes:
            connection.execute(CreateIndex(index, if_not_exists=True))
        for statement in _POSTGRESQL_TRIGGERS if postgresql else _SQLITE_TRIGGERS:
            connection.exec_driver_sql(statement)
        found = connection.execute(select(_VERSIONS.c.version)).scalar()
        if found is None:
            connection.execute(insert(_VERSIONS).values(version=VERSION))
        elif found != VERSION:
            raise RequestError(
                f"the store has version {found} and this rhoc writes version {VERSION}",
                where=shown,
                advice="use the rhoc that wrote it, or export its runs there and import them here",
            )


def _check_own(tables: list[str], shown: str) -> None:
    """A SQLite file with tables of something else is not ours to add to; a server may hold several stores."""
    if tables and _VERSIONS.name not in tables:
        raise RequestError(
            f"this file holds something else (tables {', '.join(tables[:3])})",
            where=shown,
            advice="give the path of a new file",
        )
