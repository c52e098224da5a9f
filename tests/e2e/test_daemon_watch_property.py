"""Following without loss: whatever breaks (connections, slow readers, the daemon itself with SIGKILL), a client that goes on
from its last `seq` sees every event once and in order. Random, seeded, and bounded by counts."""
import json
import random
import socket
import sqlite3

import pytest

from daemonlib import FINAL, Daemon, Rpc, RpcError, spec, wait_until

N_WATCHERS, N_JOBS, N_KILLS, TURNS = 6, 60, 4, 400
LARGE = 1 << 20


class Watcher:
    """Follows all jobs, or those of one; keeps what it has handled and nothing else over a break."""

    def __init__(self, daemon, rng, job=None):
        self.daemon, self.rng, self.job = daemon, rng, job
        self.seq, self.seen, self.rpc, self.n_breaks = 0, [], None, 0

    def connect(self):
        try:
            self.rpc = Rpc(self.daemon.socket)
            # A small buffer makes a reader that is slow in earnest: the daemon must hold its events back.
            self.rpc.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            params = {"since": self.seq, **({"id": self.job} if self.job else {})}
            self.rpc.send({"jsonrpc": "2.0", "id": 1, "method": "job.watch", "params": params})
            self.rpc.sock.setblocking(False)
        except OSError:
            self.drop()

    def drop(self):
        if self.rpc:
            self.rpc.close()
        self.rpc, self.n_breaks = None, self.n_breaks + 1

    def handle(self, doc):
        assert "error" not in doc, doc
        ev = doc.get("params", {})
        if doc.get("method") != "job.event" or ev["type"] == "progress":
            return
        self.seen.append((ev["seq"], ev["id"], ev["type"]))
        self.seq = ev["seq"]

    def read_some(self, n_lines):
        """At most so many lines, of which half a one may be left in the buffer; False when nothing is there."""
        if not self.rpc:
            self.connect()
        for _ in range(n_lines):
            if not self.rpc or not self.line():
                return False
        return True

    def line(self):
        while b"\n" not in self.rpc.rest:
            try:
                data = self.rpc.sock.recv(self.rng.choice((7, 100, 4096)))
            except BlockingIOError:
                return False
            except OSError:
                data = b""
            if not data:
                self.drop()
                return False
            self.rpc.rest += data
        line, self.rpc.rest = self.rpc.rest.split(b"\n", 1)
        self.handle(json.loads(line))
        return True


def journal(daemon, job=None):
    """What there is to see, from the database itself."""
    db = sqlite3.connect(f"file:{daemon.state}/state.db?mode=ro", uri=True)
    try:
        return [(seq, id_, json.loads(data)["type"]) for seq, id_, data in
                db.execute("SELECT seq, job, data FROM events ORDER BY seq") if not job or id_ == job]
    finally:
        db.close()


def submit(daemon, key, rng):
    """As a careful client does: the key makes a submission that was cut off harmless to repeat."""
    try:
        with daemon.rpc() as rpc:
            return rpc.submit(spec(name="x" * rng.choice((1, 40, 120))), idempotency_key=key)
    except (OSError, AssertionError):
        return None


def steer(daemon, rng, jobs):
    try:
        with daemon.rpc() as rpc:
            rpc.call(rng.choice(("job.pause", "job.resume", "job.requeue", "job.cancel", "job.checkpoint")), id=rng.choice(jobs))
    except (OSError, AssertionError, RpcError):
        pass


@pytest.mark.parametrize("seed", range(4))
def test_every_event_once_and_in_order(make_daemon, seed):
    rng = random.Random(seed)
    daemon = make_daemon(behaviour="run_ms=20,steps=4,lose=1", slots=4)
    watchers = [Watcher(daemon, random.Random(f"{seed} {i}")) for i in range(N_WATCHERS)]
    jobs, todo, kills = [], [f"job {i}" for i in range(N_JOBS)], sorted(rng.sample(range(TURNS), N_KILLS))
    for turn in range(TURNS):
        if turn in kills:
            daemon.kill()
            for w in watchers[::2]:  # half of them notice only when they read
                w.read_some(rng.randrange(50))
            daemon.start()
        if todo and rng.random() < 0.3:
            id_ = submit(daemon, todo[0], rng)
            if id_:
                todo.pop(0)
                jobs.append(id_)
                if len(watchers) < 2 * N_WATCHERS:
                    watchers.append(Watcher(daemon, random.Random(f"{seed} {id_}"), id_))
        if jobs and rng.random() < 0.2:
            steer(daemon, rng, jobs)
        w = rng.choice(watchers)
        if rng.random() < 0.1:
            w.drop()
        else:
            w.read_some(rng.choice((1, 3, 200)))
    for key in todo:
        jobs.append(wait_until(lambda: submit(daemon, key, rng), "a submission goes through"))
    assert len(set(jobs)) == N_JOBS
    with daemon.rpc() as rpc:
        for id_ in jobs:
            if rpc.call("job.get", id=id_)["state"] == "paused":
                rpc.call("job.resume", id=id_)
            rpc.wait_state(id_, *FINAL)
    for w in watchers:
        want = journal(daemon, w.job)
        wait_until(lambda: w.read_some(1000) or w.seq >= want[-1][0], lambda: f"{len(w.seen)} of {len(want)} events")
        assert w.seen == want
    assert sum(w.n_breaks for w in watchers) >= N_KILLS * N_WATCHERS / 2


def test_a_slow_reader_is_held_back_and_misses_nothing(make_daemon):
    """More events than the daemon keeps unsent for a connection, none of them read before the last has happened."""
    daemon = make_daemon(behaviour="run_ms=1,steps=1", slots=4)
    slow = Watcher(daemon, random.Random(1))
    slow.connect()
    with daemon.rpc() as rpc:
        ids = [rpc.submit(spec(name="n" * 120)) for _ in range(500)]
        for id_ in ids:
            rpc.wait_state(id_, "succeeded")
        want = journal(daemon)
        assert len(want) >= 2500  # of some 250 bytes each
        wait_until(lambda: slow.read_some(LARGE) or slow.seq >= want[-1][0], lambda: f"{len(slow.seen)} of {len(want)} events")
        assert slow.seen == want and slow.n_breaks == 0
        assert rpc.call("daemon.info")["stats"]["clients_dropped"] == 0
