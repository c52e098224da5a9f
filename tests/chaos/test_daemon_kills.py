"""The daemon is killed again and again while clients submit, cancel, list and watch.

Nothing that it acknowledged is lost, nothing runs twice at once, no number is given twice, no event is missed or
doubled by a watcher, what runs is taken up by the next daemon, and every job ends.

BF_CHAOS_KILLS=1000 for a soak (50 by default), BF_CHAOS_SEED=N for another story.
"""
import collections
import itertools
import random
import re
import subprocess
import time

import pytest

from chaoslib import KILLS, SEED
from daemonlib import Daemon, RpcError, environments, spec, wait_until
from disklib import SmallDisk
from loadlib import Gone, Link, Load
from workerlib import ENV, MPI_ENV, make_spec

LIMIT = 120  # seconds for what takes one or two on an idle machine
# Where the daemon kills itself: around a commit, between it and what follows from it, around a launch.
POINTS = ["store.commit", "store.committed", "journal.applied",
          "actions.launch", "actions.prepared", "actions.launched"]


class Killer:
    """One story: a daemon, its clients, and what happened to it."""

    def __init__(self, daemon, name, most, make_spec, moment=40, passes=25):
        """`moment`: events until a kill, at most; `passes`: how often a fault point is passed until it strikes."""
        self.daemon, self.name, self.moment, self.passes = daemon, name, moment, passes
        self.rng = random.Random(f"{SEED} {name}")
        self.load = Load(daemon.socket, f"{SEED} {name}", most, make_spec)
        self.book = self.load.book
        self.kills, self.checks, self.began = collections.Counter(), 0, time.monotonic()
        self.points = []  # still to come, before each comes again

    def summary(self):
        did = "; ".join(f"{n} {c}" for n, c in sorted(self.book.counts.items()))
        ends = collections.Counter(job["state"] for job in self.book.jobs.values())
        return (f"{self.name}: seed {SEED}, {self.kills.total()} kills in {time.monotonic() - self.began:.0f} s: "
                + "; ".join(f"{n} {c}" for n, c in sorted(self.kills.items()))
                + f"\n      {len(self.book.jobs)} jobs ({'; '.join(f'{n} {c}' for n, c in sorted(ends.items()))}), "
                f"{len(self.book.events)} events; clients: {did}\n      {self.checks} checks of the stopped store")

    def story(self):
        tail = self.daemon.log.read_text(errors="replace")[-8000:]
        return f"BF_CHAOS_SEED={SEED} BF_CHAOS_KILLS={KILLS}\n{self.summary()}\n--- the end of its log\n{tail}"

    # --- lives of the daemon ---

    def answers(self):
        """True, or False when it died before."""
        box = []

        def look():
            if self.daemon.process.poll() is not None:
                return True
            try:
                with Link(self.daemon.socket) as link:
                    box.append(link.call("daemon.info"))
            except Gone:
                return False
            return True
        wait_until(look, lambda: f"the daemon answers; {self.daemon.log_text()[-2000:]}", LIMIT, pause=0.005)
        return bool(box)

    def died(self, how):
        assert self.daemon.process.wait(LIMIT) == -9, self.story()
        self.kills[how] += 1

    def kill_while_it_starts(self):
        """So early that it may have done anything, or nothing, of what a start is."""
        self.daemon.spawn()
        time.sleep(self.rng.uniform(0, 0.06))
        self.daemon.process.kill()
        self.died("while it started")

    def life(self, fault):
        """From a start to a kill."""
        self.daemon.env.pop("BATCHFORMER_FAULT", None)
        if fault:
            self.daemon.env["BATCHFORMER_FAULT"] = f"{fault}:kill@{self.rng.randint(1, self.passes)}"
        self.daemon.spawn()
        if not self.answers():
            self.died(f"at {fault}" if fault else "for no reason")
            return
        try:
            self.nothing_is_lost()
        except Gone:
            assert fault, "it died by itself"
        if fault:
            wait_until(lambda: self.no_failure() and self.daemon.process.poll() is not None,
                       lambda: f"{fault} is reached; {self.book.counts}", LIMIT)
            self.died(f"at {fault}")
            return
        target = self.book.last() + self.rng.randint(0, self.moment)
        self.book.wait(lambda: self.book.last() >= target, LIMIT)
        assert self.daemon.process.poll() is None, "it died by itself"
        if self.rng.random() < 0.1:
            self.daemon.process.terminate()
            assert self.daemon.process.wait(LIMIT) == 0
            self.kills["in order"] += 1
        else:
            self.daemon.process.kill()
            self.died("between events")

    def no_failure(self):
        """True; raises what a client found."""
        return self.book.wait(lambda: True, 0)

    def draw_point(self):
        if not self.points:
            self.points = self.rng.sample(POINTS, len(POINTS))
        return self.points.pop()

    def many(self, wanted):
        while self.kills.total() < wanted:
            draw = self.rng.random()
            if draw < 0.12:
                self.kill_while_it_starts()
            else:
                self.life(self.draw_point() if draw < 0.45 else None)
            if self.kills.total() <= 60 or self.kills.total() % 20 == 0:
                self.check_store()

    # --- what must hold ---

    def check_store(self):
        """With no daemon there: the store itself finds no fault."""
        run = subprocess.run([self.daemon.argv()[0], "--check", "--state-dir", self.daemon.state], capture_output=True,
                             text=True, timeout=LIMIT)
        if run.returncode and "there is nothing to check" in run.stderr:
            assert self.book.last() == 0  # killed before it had a store
            return
        assert run.returncode == 0 and run.stdout.endswith("no fault\n"), run.stdout + run.stderr
        self.checks += 1

    def listed(self):
        """{id: state} of all jobs."""
        found, cursor = {}, {}
        with Link(self.daemon.socket) as link:
            while True:
                page = link.call("job.list", limit=500, **cursor)
                found.update((job["id"], job["state"]) for job in page["jobs"])
                if "cursor" not in page:
                    return found
                cursor = {"cursor": page["cursor"]}

    def nothing_is_lost(self):
        """Right after a start. The whole list now and then, what is open each time."""
        known = self.book.acknowledged()
        if self.kills.total() % 20 == 0:
            missing = set(known) - set(self.listed())
            assert not missing, f"acknowledged and lost: {missing}"
        with Link(self.daemon.socket) as link:
            for job in self.book.still_open():
                assert link.call("job.get", id=job)["id"] == job

    def finish(self):
        """A last daemon, that nobody kills; all jobs end."""
        self.load.closing.set()
        self.daemon.env.pop("BATCHFORMER_FAULT", None)
        self.daemon.start()
        keyed = [c for c in self.load.clients if getattr(c, "keys", False)]
        wait_until(lambda: self.no_failure() and not any(c.pending for c in keyed), "every key has its answer", LIMIT)
        assert self.book.wait(lambda: not self.book.open, LIMIT), f"jobs do not end: {self.book.still_open()}"
        self.load.stop()
        with self.daemon.rpc() as rpc:
            assert rpc.call("daemon.info")["stats"]["events"] == self.book.last()
        assert self.listed() == {id_: job["state"] for id_, job in self.book.jobs.items()}
        self.daemon.stop()
        self.check_store()

    def books_agree(self):
        """What was acknowledged, and what the journal tells."""
        for name, job in self.book.sent.items():
            if job:
                assert self.book.names[name] == job, f"{name} was acknowledged as job {job}"
            else:
                assert name.startswith("p"), f"{name} has a key and no answer"
        assert set(self.book.names) <= set(self.book.sent), "jobs that nobody sent"
        for id_, state in self.book.cancelled.items():
            job = self.book.jobs[id_]
            assert job["cancels"] == 1, f"job {id_}: {job['cancels']} cancellations in the journal"
            assert job["state"] == "cancelled" or (job["state"] == "succeeded" and state != "cancelled"), job

    def traces(self):
        """{id: [(what, attempt, token or how)]} of the fake launcher."""
        found = {}
        for path in sorted(self.daemon.state.glob("runs/*/fake.log")):
            lines = [line.split() for line in path.read_text().splitlines()]
            found[int(path.parent.name)] = [(what, int(attempt), word) for what, attempt, word, _ in lines]
        return found


def none_ran_twice_at_once(killer):
    """Starts and ends alternate, of the attempts that the journal tells of, in their order; each with its own token."""
    tokens = collections.Counter()
    for job, lines in killer.traces().items():
        assert [what for what, _, _ in lines] == ["start", "end"] * (len(lines) // 2), f"job {job}: {lines}"
        for (_, began, token), (_, ended, _) in zip(lines[::2], lines[1::2]):
            assert began == ended, f"job {job}: {lines}"
            tokens[token] += 1
        attempts = [attempt for what, attempt, _ in lines if what == "start"]
        assert attempts == sorted(set(attempts)), f"job {job}: {lines}"
        assert attempts[-1] <= killer.book.jobs[job]["attempt"], f"job {job}: {lines}"
    assert max(tokens.values()) == 1


@pytest.fixture
def tell(capsys):
    """Runs a story; prints all of it when it fails, and its summary when it does not."""
    def told(killer, story):
        try:
            story()
        except BaseException:
            print(killer.story())
            raise
        finally:
            killer.load.stop()
            if killer.daemon.process:
                killer.daemon.process.kill()
        with capsys.disabled():
            print("\n    " + killer.summary())
    return told


def stubborn(name):
    """A job that is restarted as often as it takes."""
    return spec(name, scheduling={"max_restarts": 1000})


def test_jobs_that_go_on_without_it(tmp_path, tell):
    """As under mpirun, with jobs that are timers: each is started exactly once, whatever happens to the daemon."""
    daemon = Daemon(tmp_path, behaviour="run_ms=150,steps=3,survive=1", slots=4)
    killer = Killer(daemon, "jobs that go on", 30, stubborn)

    def story():
        killer.load.start(keyed=3, plain=2)
        killer.many(max(75, KILLS))
        killer.finish()
        killer.books_agree()
        none_ran_twice_at_once(killer)
        jobs, traces = killer.book.jobs, killer.traces()
        assert {job["attempt"] for job in jobs.values()} <= {0, 1}, "a job was started again"
        assert all(len(lines) == 2 for lines in traces.values())
        assert {n for n, job in jobs.items() if job["state"] == "succeeded"} <= set(traces)
        assert set(traces) <= {n for n, job in jobs.items() if job["attempt"]}
        for point in POINTS:
            assert killer.kills[f"at {point}"], f"{point} was never struck"
    tell(killer, story)


def test_jobs_that_die_with_it(tmp_path, tell):
    """As when the machine goes down: what ran is restarted, one attempt after the other."""
    daemon = Daemon(tmp_path, behaviour="run_ms=100,steps=3", slots=4)
    killer = Killer(daemon, "jobs that die with it", 30, stubborn)

    def story():
        killer.load.start(keyed=2, plain=1)
        killer.many(max(12, KILLS // 5))
        killer.finish()
        killer.books_agree()
        none_ran_twice_at_once(killer)
        assert max(job["attempt"] for job in killer.book.jobs.values()) > 1, "nothing was ever interrupted"
    tell(killer, story)


def test_a_disk_that_fills_up(tmp_path, tell):
    """Full and empty by turns, with the daemon killed now and then while it is full."""
    disk = SmallDisk(tmp_path / "disk", 64 << 10)
    if not disk.mounted:
        pytest.skip(f"no file system can be mounted: {disk.why}")
    daemon = Daemon(tmp_path, behaviour="run_ms=150,steps=3,survive=1", slots=4)
    daemon.state = disk.path / "state"
    killer = Killer(daemon, "a disk that fills up", 30, stubborn)
    book = killer.book

    numbers = itertools.count()

    def submit(link):
        """Refused, as a rule; but the WAL may have room within itself, which no full disk takes away."""
        name = f"k-more-{next(numbers)}"
        try:
            book.sending(name)
            book.acknowledge(name, link.submit(stubborn(name), idempotency_key=name))
            book.count("taken on a full disk")
        except RpcError as e:
            assert e.code == 1005 and "the disk is full" in e.message, e
            del book.sent[name]
            book.count("refused on a full disk")

    def fill_and_free():
        at = book.last() + killer.rng.randint(5, killer.moment)
        assert book.wait(lambda: book.last() >= at, LIMIT), "the jobs go on"
        disk.fill()
        with Link(daemon.socket) as link:
            for _ in range(5):
                submit(link)
            link.call("job.list")
        if killer.rng.random() < 0.5:
            daemon.process.kill()
            killer.died("on a full disk")
            daemon.spawn()
            assert killer.answers()
        disk.free()
        killer.no_failure()
        book.count("disk was full")

    def story():
        daemon.start()
        killer.load.start(keyed=3, plain=2)
        for _ in range(max(10, min(KILLS // 5, 200))):
            fill_and_free()
        killer.daemon.kill()
        killer.finish()
        killer.books_agree()
        none_ran_twice_at_once(killer)
        assert {job["attempt"] for job in book.jobs.values()} <= {0, 1}, "a job was started again"
        assert book.counts["refused on a full disk"] >= 5  # all of the first time
    try:
        tell(killer, story)
    finally:
        disk.unmount()


def training(name):
    """Seconds of real work on two ranks."""
    return make_spec(name=name, train__epochs=4, resources={"ranks": 2}, scheduling={"max_restarts": 1000})


def test_real_jobs(tmp_path, tell):
    """mpirun and its ranks train on, and the next daemon takes them up: not one is started a second time."""
    daemon = Daemon(tmp_path, launcher="mpirun", slots=4, env={**ENV, **MPI_ENV})
    killer = Killer(daemon, "real jobs", 3, training, moment=5, passes=3)

    def story():
        killer.load.start(keyed=1, plain=1, cancellers=0)
        killer.many(max(10, min(KILLS // 5, 100)))
        killer.finish()
        killer.books_agree()
        assert {job["attempt"] for job in killer.book.jobs.values()} == {1}, "a job was started again"
        assert {job["state"] for job in killer.book.jobs.values()} == {"succeeded"}
        for job in killer.book.jobs:
            log = (daemon.run_dir(job) / "log" / "rank-0000.log").read_text()
            assert len(re.findall(r"\bpid \d+$", log, re.M)) == 1, f"job {job}: rank 0 was started again:\n{log}"
        wait_until(lambda: not environments(f"BATCHFORMER_LINK=unix:{daemon.socket}"), "no process is left")
    tell(killer, story)
