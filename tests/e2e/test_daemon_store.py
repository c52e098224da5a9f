"""The daemon and its database: --check, databases of earlier versions, and damage that it must not start on."""
import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import subprocess

import pytest

from buildlib import ROOT
from daemonlib import spec

DUMPS = ROOT / "tests" / "unit" / "daemon" / "data"
NEWEST = int(re.search(r"STORE_SCHEMA_VERSION = (\d+)", (ROOT / "daemon" / "store.h").read_text())[1])


def run(daemon, *more):
    return subprocess.run([*daemon.argv(), *more], env=daemon.env, capture_output=True, text=True, timeout=60)


def sql(path, script):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(script)


def check(daemon):
    return run(daemon, "--check")


def contents(folder):
    """{name: hash} of the files of the database. SQLite's -shm is scratch."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("state.db*"))
            if not p.name.endswith("-shm")}


@pytest.fixture
def stopped(make_daemon):
    """A daemon that has ended in order, with forty jobs behind it."""
    daemon = make_daemon(behaviour="run_ms=1,steps=1", slots=8)
    with daemon.rpc() as rpc:
        for job in [rpc.submit(spec(f"job{i}")) for i in range(40)]:
            rpc.wait_state(job, "succeeded")
    daemon.stop()
    return daemon


# --- --check ---

@pytest.mark.sanitize
def test_check_and_a_running_daemon(make_daemon):
    daemon = make_daemon(behaviour="run_ms=60000", slots=1)
    with daemon.rpc() as rpc:
        running, _ = rpc.submit(), rpc.submit()
        rpc.wait_state(running, "running")
    refused = check(daemon)
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr == (f"batchformerd: another batchformerd (pid {daemon.process.pid}) already works in "
                              f"{daemon.state}\n")
    daemon.kill()
    before = contents(daemon.state)
    assert set(before) == {"state.db", "state.db-open", "state.db-wal"}
    found = check(daemon)
    assert found.returncode == 0 and found.stderr == ""
    assert found.stdout == (f"{daemon.state}: schema {NEWEST}, 2 jobs of which 2 have not ended, 5 events, "
                            "1 run directories: no fault\n")
    assert contents(daemon.state) == before  # after a crash, too, it only looks
    daemon.start()


def test_check_finds_and_says_what_to_do(stopped):
    sql(stopped.state / "state.db", "UPDATE events SET data = replace(data, 'attached', 'detached') WHERE seq ="
                                    " (SELECT min(seq) FROM events WHERE data LIKE '%attached%')")
    (stopped.state / "runs" / "99").mkdir()
    found = check(stopped)
    assert found.returncode == 1 and found.stderr == ""
    event, directory, summary = found.stdout.splitlines()
    assert event.startswith("fault: event ") and 'unknown event "detached"' in event
    assert "restore state.db from a copy" in event
    assert directory.startswith(f"fault: {stopped.state}/runs/99 belongs to no job: the database is older than")
    assert summary.endswith("41 run directories: 2 faults")
    start = run(stopped)
    assert start.returncode == 1 and "unknown event \"detached\"" in start.stderr
    assert "state.db holds what cannot be: restore it from a copy (batchformerd --check lists" in start.stderr


def test_check_of_nothing(make_daemon, tmp_path):
    daemon = make_daemon(start=False)
    found = check(daemon)
    assert found.returncode == 1 and f"{daemon.state}: No such file or directory" in found.stderr
    assert not daemon.state.exists()


# --- versions ---

def as_ours(dump):
    """Its jobs belong to the user who runs the test: under root those of others would need a home to run in."""
    dump = re.sub(r"^(INSERT INTO jobs VALUES\(\d+,)1000,", rf"\g<1>{os.getuid()},", dump, flags=re.M)
    return dump.replace('"uid":1000', f'"uid":{os.getuid()}')


@pytest.mark.parametrize("version", range(1, NEWEST + 1))
def test_a_database_of_an_earlier_version(make_daemon, version):
    daemon = make_daemon(start=False, behaviour="run_ms=1,steps=1")
    daemon.state.mkdir()
    sql(daemon.state / "state.db", as_ours((DUMPS / f"schema{version}.sql").read_text()))
    assert f"schema {version}, 6 jobs" in check(daemon).stdout
    daemon.start()
    with daemon.rpc() as rpc:
        for job, state in enumerate(["succeeded", "failed", "cancelled", "succeeded", "succeeded", "cancelled"], 1):
            rpc.wait_state(job, state)
        assert rpc.submit() == 7
    daemon.stop()
    copy = daemon.state / f"state.db.v{version}.bak"
    assert copy.exists() == (version < NEWEST)
    assert f"schema {NEWEST}, 7 jobs" in check(daemon).stdout
    if copy.exists():  # going back: the copy is a whole database of then
        for path in daemon.state.glob("state.db*"):
            if path != copy:
                path.unlink()
        copy.rename(daemon.state / "state.db")
        assert f"schema {version}, 6 jobs" in check(daemon).stdout


# --- damage ---

def flip(path, at, n=64):
    with open(path, "r+b") as f:
        f.seek(at)
        data = f.read(n)
        f.seek(at)
        f.write(bytes(b ^ 0xff for b in data))


def flip_header(db):
    flip(db, 0)


def flip_every_page(db):
    for page in range(1, db.stat().st_size // 4096):
        flip(db, page * 4096)


def cut_in_half(db):
    with open(db, "r+b") as f:
        f.truncate(db.stat().st_size // 2 // 4096 * 4096)


def cut_within_a_page(db):
    with open(db, "r+b") as f:
        f.truncate(db.stat().st_size - 1000)


def empty(db):
    db.write_bytes(b"")


def text(db):
    db.write_bytes(b"this was a database once\n" * 1000)


def stranger(db):
    db.unlink()
    sql(db, "CREATE TABLE things(x)")


def other_application(db):
    sql(db, "PRAGMA application_id = 1")


def newer(db):
    sql(db, f"PRAGMA user_version = {NEWEST + 1}")


def a_directory(db):
    db.unlink()
    db.mkdir()


RESTORE = ("state.db is damaged", "restore it from a copy, or move it and the files beside it that begin with its name")


@pytest.mark.parametrize("harm,says", [(flip_header, RESTORE), (flip_every_page, RESTORE), (cut_in_half, RESTORE),
                                       (cut_within_a_page, RESTORE), (empty, RESTORE), (text, RESTORE),
                                       (stranger, ("is a database of another program: choose another",)),
                                       (other_application, ("is a database of another program",)),
                                       (newer, (f"was written by a newer version (schema {NEWEST + 1}; this version "
                                                f"reads up to {NEWEST}): run that version",)),
                                       (a_directory, ("state.db: opening: ",))])
def test_it_does_not_start_on(stopped, harm, says):
    database = stopped.state / "state.db"
    shutil.copy(database, stopped.dir / "copy")
    harm(database)
    before = None if harm is a_directory else contents(stopped.state)
    refused, found = run(stopped), check(stopped)
    assert refused.returncode == found.returncode == 1
    assert all(part in refused.stderr for part in says), refused.stderr
    assert says[0] in found.stderr or found.stdout.startswith("fault: "), found
    assert says[0] in found.stderr or "restore state.db from a copy" in found.stdout, found
    assert before is None or contents(stopped.state) == before
    # As it says: a copy in its place, and all is well.
    for path in stopped.state.glob("state.db*"):
        path.rmdir() if path.is_dir() else path.unlink()
    shutil.copy(stopped.dir / "copy", database)
    stopped.start()
    with stopped.rpc() as rpc:
        assert len(rpc.call("job.list", limit=100)["jobs"]) == 40


def test_the_wal_is_missing(make_daemon):
    """After a crash it holds the newest events; without it the database looks whole, and is of the past."""
    daemon = make_daemon(behaviour="run_ms=60000", slots=1)
    with daemon.rpc() as rpc:
        rpc.submit()
        kept = rpc.submit()
    daemon.kill()
    wal = daemon.state / "state.db-wal"
    wal.rename(daemon.dir / "wal")
    for look in (run(daemon), run(daemon), check(daemon)):
        assert look.returncode == 1
        assert "state.db-wal is missing, which held the newest events" in look.stdout + look.stderr, look
        assert "put it back; or, if " in look.stdout + look.stderr and "remove " in look.stdout + look.stderr
    (daemon.dir / "wal").rename(wal)
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.call("job.get", id=kept)["state"] == "queued"


def test_restored_from_a_copy_after_a_crash(make_daemon):
    """The other way out that the message names."""
    daemon = make_daemon(behaviour="run_ms=1,steps=1")
    with daemon.rpc() as rpc:
        rpc.wait_state(rpc.submit(), "succeeded")
        with contextlib.closing(sqlite3.connect(daemon.state / "state.db")) as source, \
                contextlib.closing(sqlite3.connect(daemon.dir / "copy.db")) as copy:
            source.backup(copy)
        rpc.wait_state(rpc.submit(), "succeeded")
    daemon.kill()
    for path in daemon.state.glob("state.db*"):
        path.unlink()
    shutil.copy(daemon.dir / "copy.db", daemon.state / "state.db")
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.submit() == 3  # 2 has a run directory


def test_the_database_is_missing_and_its_wal_is_not(make_daemon):
    daemon = make_daemon()
    with daemon.rpc() as rpc:
        rpc.submit()
    daemon.kill()
    (daemon.state / "state.db").rename(daemon.dir / "away")
    look = run(daemon)
    assert look.returncode == 1 and "state.db is missing, but" in look.stderr and "state.db-wal is there" in look.stderr
    assert not (daemon.state / "state.db").exists()
    (daemon.dir / "away").rename(daemon.state / "state.db")
    daemon.start()
