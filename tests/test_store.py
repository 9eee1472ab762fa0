"""The contract of the store, held by every backend: SQLite, and a real PostgreSQL where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from rhoc.runtime.digest import digest
from rhoc.runtime.errors import RequestError, WorkError
from rhoc.runtime.store import ClaimLost, RunStore
from rhoc.runtime.store_schema import open_database
from rhoc.runtime.workers import is_gone, this_worker

REQUEST = {"spec": {"name": "int4", "rules": []}, "model": "llama(width=32)", "seed": 1, "tokens": 1000}
RESULT = {
    "loss": 1.5,
    "params": 26784,
    "tokens": 1024,
    "seconds": 2.5,
    "train_curve": [[1, 512, 1.75], [2, 1024, 1.5]],
    "columns": {"gmse_weight": 0.0115, "weight_bits": 4},
}

# Backends


def _postgres_bin() -> Path | None:
    """The folder of PostgreSQL's own programs, on the path or where Debian keeps them."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "pg_ctl").exists()), None)


def _as_user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root; its own system user stands in."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("postgres")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL database: the one configured, or a temporary server of this machine's own."""
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed (pip install 'rhoc[postgres]')")
    configured = os.environ.get("RHOC_TEST_POSTGRES_URL")
    if configured:
        yield configured
        return
    programs = _postgres_bin()
    if programs is None:
        pytest.skip("no RHOC_TEST_POSTGRES_URL, and no PostgreSQL server on this machine")
    try:
        user = _as_user()
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and this machine has no user 'postgres'")
    folder = Path(tempfile.mkdtemp(prefix="rhoc-pg-"))
    if user:
        os.chown(folder, user["user"], user["group"])
    log = folder / "log"

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [programs / program, *arguments],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **user,
        )
        said = log.read_text() if log.exists() else ""
        assert done.returncode == 0, f"{program}: {done.stderr}\n{said}"

    data = str(folder / "data")
    try:
        run("initdb", "-D", data, "-A", "trust", "-U", "rhoc", "--no-sync", "-E", "UTF8")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -F"
        run("pg_ctl", "-D", data, "-l", str(log), "-o", options, "-w", "start")
        yield f"postgresql://rhoc@/postgres?host={folder}"
    finally:
        subprocess.run(
            [programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"],
            cwd=folder,
            capture_output=True,
            **user,
        )
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store is."""
    if request.param == "sqlite":
        return str(tmp_path / "folder" / "runs.db")
    url: str = request.getfixturevalue("postgres")
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE runs, store_version"))
    engine.dispose()
    return url


@pytest.fixture
def store(place: str) -> Iterator[RunStore]:
    with RunStore(place) as opened:
        yield opened


@pytest.fixture
def other(place: str) -> Iterator[RunStore]:
    """A second worker at the same store."""
    with RunStore(place) as opened:
        yield opened


# The life of a run


def test_a_run_is_named_by_its_request(store: RunStore, other: RunStore) -> None:
    assert store.find(REQUEST) is None
    run = store.ensure(REQUEST)
    assert run.id == digest(REQUEST)
    assert run.state == "planned"
    assert run.request == REQUEST
    assert run.representation == "int4"
    assert other.ensure(dict(reversed(REQUEST.items()))) == run
    assert other.ensure(REQUEST | {"seed": 2}).id != run.id
    assert store.find(REQUEST) == store.get(run.id) == run
    assert len(store.runs()) == 2


def test_from_plan_to_finish(store: RunStore, place: str) -> None:
    run = store.ensure(REQUEST)
    started = time.time()
    assert store.claim(run.id)
    store.heartbeat(run.id, {"step": 3, "loss": 2.0})
    running = store.get(run.id)
    assert (running.state, running.progress) == ("running", {"step": 3, "loss": 2.0})
    assert not store.is_abandoned(running)
    finished = store.finish(run.id, RESULT, {"python": "3"})
    assert finished.state == "finished"
    assert finished.result == RESULT
    assert finished.environment == {"python": "3"}
    assert (finished.loss, finished.params, finished.tokens, finished.seconds) == (1.5, 26784, 1024, 2.5)
    assert finished.columns == {"gmse_weight": 0.0115, "weight_bits": 4}
    assert finished.created <= started <= finished.started <= finished.finished <= time.time()  # type: ignore[operator]
    with RunStore(place) as later:
        assert later.ensure(REQUEST) == finished
        assert not later.claim(run.id)
        assert not later.claim(run.id, retry=True)
    assert run.state == "planned"  # what was returned earlier did not change
    with pytest.raises(FrozenInstanceError):
        run.state = "failed"  # type: ignore[misc]


def test_numbers_come_back_to_the_last_bit(store: RunStore) -> None:
    losses = [0.1 + 0.2, 1 / 3, 1e-300, 1e300]
    for seed, loss in enumerate(losses):
        run = store.ensure({"seed": seed})
        store.claim(run.id)
        finished = store.finish(run.id, {"loss": loss, "curve": [loss]})
        assert (finished.loss, finished.result) == (loss, {"loss": loss, "curve": [loss]})


def test_a_failed_run_keeps_its_reason_and_may_be_tried_again(store: RunStore, other: RunStore) -> None:
    run = store.ensure(REQUEST)
    store.claim(run.id)
    failed = store.fail(run.id, "the loss became nan at step 4", {"python": "3"})
    assert (failed.state, failed.error) == ("failed", "the loss became nan at step 4")
    assert failed.environment == {"python": "3"}
    assert not other.claim(run.id)
    assert other.claim(run.id, retry=True)
    assert store.get(run.id).error is None
    assert other.finish(run.id, RESULT).state == "finished"


def test_a_released_run_is_planned_again(store: RunStore, other: RunStore) -> None:
    run = store.ensure(REQUEST)
    store.claim(run.id)
    store.release(run.id)
    assert store.get(run.id).state == "planned"
    assert other.claim(run.id)


def test_listing(store: RunStore) -> None:
    runs = [store.ensure({"spec": "dense", "seed": seed}) for seed in range(4)]
    for run in runs[:3]:
        store.claim(run.id)
    store.finish(runs[0].id, RESULT)
    store.fail(runs[1].id, "no")
    assert [run.id for run in store.runs()] == [run.id for run in runs]
    states = {state: [run.id for run in store.runs(state)] for state in ("planned", "running", "finished")}
    assert states == {"planned": [runs[3].id], "running": [runs[2].id], "finished": [runs[0].id]}
    assert [run.id for run in store.runs("failed", "planned")] == [runs[1].id, runs[3].id]
    assert [run.id for run in store.runs(ids=[runs[2].id, "unknown"])] == [runs[2].id]
    assert store.get(runs[2].id[:10]).id == runs[2].id


# Immutable


def test_a_finished_run_never_changes(store: RunStore, place: str) -> None:
    run = store.ensure(REQUEST)
    store.claim(run.id)
    finished = store.finish(run.id, RESULT)
    attempts: list[Callable[[], object]] = [
        lambda: store.finish(run.id, {**RESULT, "loss": 1.0}),
        lambda: store.fail(run.id, "no"),
        lambda: store.heartbeat(run.id),
        lambda: store.release(run.id),
    ]
    for attempt in attempts:
        with pytest.raises(WorkError) as caught:
            attempt()
        assert str(caught.value) == f"run {run.id}: a finished run never changes; ask for another one"
    assert not store.claim(run.id, retry=True)
    engine = open_database(place)
    for statement in ("UPDATE runs SET loss = 1", "UPDATE runs SET state = 'planned'", "DELETE FROM runs"):
        with pytest.raises(DatabaseError, match="a finished run never changes"), engine.begin() as connection:
            connection.execute(text(statement))
    engine.dispose()
    assert store.get(run.id) == finished


# Claims


def test_only_the_worker_that_holds_a_run_may_change_it(store: RunStore, other: RunStore) -> None:
    run = store.ensure(REQUEST)
    with pytest.raises(WorkError, match="this worker does not hold the run: it is planned; claim it first"):
        store.finish(run.id, RESULT)
    assert store.claim(run.id)
    assert not store.claim(run.id)
    assert not other.claim(run.id)
    for attempt in (
        other.heartbeat,
        other.release,
        lambda i: other.fail(i, "no"),
        lambda i: other.finish(i, {}),
    ):
        with pytest.raises(WorkError, match="this worker does not hold the run: another worker took it over"):
            attempt(run.id)
    assert store.finish(run.id, RESULT).state == "finished"


def test_a_claim_without_heartbeat_lapses(
    store: RunStore, other: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("rhoc.runtime.store.time", SimpleNamespace(time=lambda: now[0]))
    run = store.ensure(REQUEST)
    store.claim(run.id)
    now[0] += 119
    assert not other.claim(run.id)
    store.heartbeat(run.id)
    now[0] += 119
    assert not other.is_abandoned(store.get(run.id))
    assert not other.claim(run.id)
    now[0] += 2
    assert other.is_abandoned(store.get(run.id))
    assert other.claim(run.id)
    with pytest.raises(ClaimLost, match="another worker took it over"):
        store.finish(run.id, RESULT)
    assert other.finish(run.id, RESULT).loss == 1.5


def test_of_two_that_saw_the_same_only_one_gets_it(
    store: RunStore, other: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and taking, another worker takes: a planned run, and an abandoned one."""
    for patience in (120.0, -1.0):
        run = store.ensure({"patience": patience})
        if patience < 0:
            assert store.claim(run.id)  # and then it dies
        as_seen = store.get(run.id)
        other.patience = store.patience = patience
        assert other.claim(run.id)
        with monkeypatch.context() as patch:
            patch.setattr(store, "get", lambda _, seen=as_seen: seen)
            assert not store.claim(run.id)
        assert other.finish(run.id, RESULT).state == "finished"


_CLAIM_ALL = """
import sys
from rhoc.runtime.store import ClaimLost, RunStore
store, ids = RunStore(sys.argv[1]), sys.argv[2].split(",")
print("ready", flush=True)
sys.stdin.readline()
print(*[run for run in ids if store.claim(run)], flush=True)
sys.stdin.readline()
"""


def _claimer(place: str, ids: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CLAIM_ALL, place, ",".join(ids)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_never_get_the_same_run_and_a_killed_ones_runs_are_free_at_once(place: str) -> None:
    with RunStore(place) as store:
        ids = [store.ensure({"seed": seed}).id for seed in range(60)]
        claimers = [_claimer(place, ids) for _ in range(3)]
        try:
            for claimer in claimers:
                assert claimer.stdout is not None
                assert claimer.stdout.readline() == "ready\n"
            got = []
            for claimer in claimers:  # all three go at once
                assert claimer.stdin is not None
                claimer.stdin.write("\n")
                claimer.stdin.flush()
            for claimer in claimers:
                assert claimer.stdout is not None
                got.append(claimer.stdout.readline().split())
            assert sorted(run for claimed in got for run in claimed) == sorted(ids)
            mine = got.index(max(got, key=len))
            assert not any(store.claim(run) for run in ids)
            os.kill(claimers[mine].pid, signal.SIGKILL)
            claimers[mine].wait()
            assert [run for run in ids if store.claim(run)] == [run for run in ids if run in got[mine]]
        finally:
            for claimer in claimers:
                claimer.kill()
                claimer.communicate()


def test_threads_share_a_store(store: RunStore) -> None:
    def ask(seed: int) -> str:
        run = store.ensure({"seed": seed % 5})
        if store.claim(run.id):
            store.finish(run.id, {"loss": float(seed % 5)})
        return run.id

    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(ask, range(40)))
    assert len(set(ids)) == 5
    assert sorted(run.loss or 0.0 for run in store.runs("finished")) == [0, 1, 2, 3, 4]


def test_processes_that_are_gone() -> None:
    assert not is_gone(this_worker())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        machine, _, start = this_worker().split(":")
        stat = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        name = f"{machine}:{child.pid}:{stat[19]}"
        assert not is_gone(name)
        assert is_gone(f"{machine}:{child.pid}:{start}x")  # the number belongs to another process by now
        assert not is_gone(f"elsewhere:{child.pid}:{start}")
        child.kill()
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        assert is_gone(name)  # dead, though nobody has collected it yet
    assert is_gone(name)
    assert not is_gone("nonsense")


# Tables


def test_rows_and_their_import(store: RunStore) -> None:
    for seed in (1, 2):
        run = store.ensure(REQUEST | {"seed": seed})
        store.claim(run.id)
        store.finish(run.id, RESULT)
    store.ensure(REQUEST)
    rows = store.rows()
    assert rows[0] == {
        "params": 26784,
        "tokens": 1024,
        "loss": 1.5,
        "representation": "int4",
        "gmse_weight": 0.0115,
        "weight_bits": 4,
        "model": "llama(width=32)",
        "seed": 1,
        "seconds": 2.5,
        "state": "finished",
        "id": digest(REQUEST),
    }
    assert json.dumps(rows[0]["params"]) == "26784"
    assert list(rows[0])[:4] == ["params", "tokens", "loss", "representation"]
    assert json.loads(json.dumps(rows)) == rows
    assert store.import_rows(rows, "export.csv") == (0, 2)  # they are these runs

    published = [
        {"params": 3e7, "tokens": 3e9, "loss": 3.2, "representation": "w4a4", "weight_bits": 4},
        {"params": 5e7, "tokens": 5e9, "loss": 3.1, "representation": "dense"},
        {"params": 6e7, "tokens": 5e9, "loss": 3.0, "representation": "dense", "weight_bits": float("nan")},
    ]
    assert store.import_rows(published, "published.csv") == (3, 0)
    assert store.import_rows(published, "published.csv") == (0, 3)
    del published[2]["weight_bits"]  # a cell that says nothing
    imported = store.rows()[2:]
    for given, row in zip(published, sorted(imported, key=lambda row: row["params"]), strict=True):
        assert {name: row[name] for name in given} == given
        assert row["state"] == "finished"


def test_rows_that_cannot_be_imported(store: RunStore) -> None:
    good: dict[str, Any] = {"params": 1.0, "tokens": 1.0, "loss": 1.0, "representation": "dense"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"loss": -1.0}, "f.csv, row 2: loss must be a positive number, got -1.0; nothing was imported"),
        ({"params": "1"}, "f.csv, row 2: params must be a positive number, got '1'; nothing was imported"),
        ({"tokens": float("inf")}, "f.csv, row 2: tokens must be a positive number, got inf"),
        ({"representation": None}, "f.csv, row 2: representation must be a name; nothing was imported"),
    ]
    for bad, phrase in cases:
        with pytest.raises(RequestError) as caught:
            store.import_rows([good, {**good, **bad}], "f.csv")
        assert phrase in str(caught.value)
    assert store.runs() == []


# Messages


def test_unknown_and_ambiguous_runs(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"there is no run 'abcd'; list the runs with 'rhoc runs ls'"):
        store.get("abcd")
    with pytest.raises(RequestError, match="there is no run"):
        store.get("%")  # no wildcards
    monkeypatch.setattr("rhoc.runtime.store.digest", lambda request: f"abcdef{request['n']}")
    store.ensure({"n": 1})
    store.ensure({"n": 11})
    with pytest.raises(RequestError, match="2 runs start with 'abcd'"):
        store.get("abcd")
    assert store.get("abcdef1").request == {"n": 1}
    with pytest.raises(RequestError, match="there is no run 'abc'"):
        store.get("abc")


def test_places_that_cannot_be_a_store(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is a text file, " * 100)
    (tmp_path / "file").write_text("")
    expected: dict[str | Path, str] = {
        tmp_path / "text.db": "not a store of runs: file is not a database; give the path of a new file",
        tmp_path: "this is a folder; give the path of a file in it",
        tmp_path / "file" / "runs.db": "its folder cannot be made: ",
        "mysq://somewhere": "not an address of a database; give the path of a file, or postgresql://",
    }
    for place, phrase in expected.items():
        with pytest.raises(RequestError) as caught:
            RunStore(place)
        assert phrase in str(caught.value)


def test_a_store_of_another_version(tmp_path: Path) -> None:
    place = tmp_path / "runs.db"
    engine = open_database(place)
    with engine.begin() as connection:
        connection.execute(text("UPDATE store_version SET version = 99"))
    engine.dispose()
    with pytest.raises(RequestError, match="the store has version 99 and this rhoc writes version 1"):
        RunStore(place)


def test_a_missing_driver_names_the_extra_and_hides_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(RequestError) as caught:
        RunStore("postgresql://me:secret@host/runs")
    message = str(caught.value)
    assert "the driver psycopg is not installed; pip install 'rhoc[postgres]'" in message
    assert "secret" not in message


def test_a_server_that_does_not_answer() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'rhoc[postgres]')")
    with pytest.raises(WorkError, match="the database does not answer") as caught:
        RunStore("postgresql://me:secret@localhost:1/runs")
    assert "secret" not in str(caught.value)
