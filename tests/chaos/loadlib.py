"""Clients that load a daemon while it is killed, and the book they keep of what it told them.

A Book holds every durable event in order, as one watcher sees it that never loses its place, and what was acknowledged
to whom. Each client is a thread that does one thing over and over, connects again whenever the daemon is gone, and
checks at once what can be checked at once. Whatever a client finds wrong ends the test.
"""
import random
import threading

from daemonlib import FINAL, Rpc, RpcError, spec

STEPS = {("new", "submitted"): "queued",
         ("queued", "starting"): "starting", ("queued", "cancel_requested"): "cancelled",
         ("starting", "started"): "starting", ("starting", "attached"): "running",
         ("starting", "cancel_requested"): "starting", ("starting", "restarting"): "queued",
         ("starting", "succeeded"): "succeeded", ("starting", "cancelled"): "cancelled",
         ("running", "started"): "running", ("running", "cancel_requested"): "running",
         ("running", "checkpointed"): "running", ("running", "restarting"): "queued",
         ("running", "succeeded"): "succeeded", ("running", "cancelled"): "cancelled"}


class Gone(Exception):
    """The daemon hung up: nobody knows whether it did what it was asked."""


class Link(Rpc):
    """A connection whose loss is an exception of its own."""

    def __init__(self, path):
        try:
            super().__init__(path)
        except OSError as e:
            raise Gone from e

    def send_raw(self, data):
        try:
            super().send_raw(data)
        except OSError as e:
            raise Gone from e

    def read(self):
        doc = super().read()
        if doc is None:
            raise Gone
        return doc


class Book:
    """Safe for threads. What is asked often is counted along, for a soak has ten thousands of jobs."""

    def __init__(self):
        self.lock = threading.Condition()
        self.events, self.jobs = [], {}
        self.last_id = 0
        self.names = {}      # name → id, by the events
        self.sent = {}       # name → id, None while nobody knows
        self.open = set()    # ids that are known in any way and have not ended
        self.cancelled = {}  # id → state in the answer
        self.counts = {}     # what clients did
        self.failures = []

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def failed(self, e):
        with self.lock:
            if e not in self.failures:  # wait() gives it to everyone
                self.failures.append(e)
            self.lock.notify_all()

    # --- what the watcher sees ---

    def add(self, ev):
        with self.lock:
            assert ev["seq"] == len(self.events) + 1, f"event {ev['seq']} after {len(self.events)}"
            job = self.jobs.setdefault(ev["id"], {"state": "new", "attempt": 0, "cancels": 0})
            to = STEPS.get((job["state"], ev["type"]))
            assert to == ev["state"], f"{ev} of a job that is {job}"
            if ev["type"] == "submitted":
                assert ev["id"] > self.last_id, f"{ev}: ids rise"
                assert ev["name"] not in self.names, f"{ev['name']} was job {self.names[ev['name']]} already"
                self.last_id = self.names[ev["name"]] = ev["id"]
                self.open.add(ev["id"])
            if ev["type"] == "starting":
                assert ev["attempt"] == job["attempt"] + 1, ev
                job["attempt"] = ev["attempt"]
            if ev["type"] == "restarting":
                assert ev["attempt"] == job["attempt"] + 1, ev
            job["cancels"] += ev["type"] == "cancel_requested"
            job["state"] = to
            if to in FINAL:
                self.open.discard(ev["id"])
            self.events.append(ev)
            self.lock.notify_all()

    def last(self):
        return len(self.events)

    # --- what was acknowledged ---

    def sending(self, name):
        with self.lock:
            self.sent.setdefault(name, None)

    def acknowledge(self, name, job):
        with self.lock:
            assert self.sent[name] in (None, job), f"{name} was acknowledged as {self.sent[name]} and as {job}"
            assert self.names.get(name, job) == job, f"{name} is job {self.names[name]}, {job} was acknowledged"
            self.sent[name] = job
            if job not in self.jobs:
                self.open.add(job)
            self.lock.notify_all()

    def acknowledged(self):
        with self.lock:
            return [job for job in self.sent.values() if job]

    def still_open(self):
        with self.lock:
            return sorted(self.open)

    # --- waiting ---

    def wait(self, condition, timeout):
        """Waits until condition() holds; False when it does not in time. Raises what a client found."""
        with self.lock:
            held = self.lock.wait_for(lambda: self.failures or condition(), timeout)
            if self.failures:
                raise self.failures[0]
            return held


class Client(threading.Thread):
    """Calls self.turn(link) over and over until stop() is called, each time as a little program that may break off."""

    def __init__(self, load, name):
        super().__init__(name=name, daemon=True)
        self.load, self.book, self.rng = load, load.book, random.Random(f"{load.seed} {name}")

    def run(self):
        try:
            while not self.load.stopping.is_set():
                try:
                    with Link(self.load.path) as link:
                        while not self.load.stopping.is_set():
                            self.turn(link)
                except Gone:
                    self.book.count("hung up")
                    self.load.stopping.wait(0.01)  # as a client does, before it tries again
        except BaseException as e:
            self.book.failed(e)


class Watcher(Client):
    """Sees everything once and in order, over all restarts."""

    def turn(self, link):
        since = self.book.last()
        assert link.call("job.watch", since=since)["seq"] >= since, "events that were seen are gone"
        while not self.load.stopping.is_set():
            note = link.next_note()["params"]
            if note["type"] == "progress":
                assert note["seq"] <= self.book.last() + 1
            else:
                self.book.add(note)


class Traveller(Client):
    """Sees some part of the past again, and it is what it was."""

    def turn(self, link):
        last = self.book.last()
        since = self.rng.randint(0, last)
        with Link(self.load.path) as journey:
            journey.call("job.watch", since=since)
            for seq in range(since + 1, min(last, since + 200) + 1):
                while (note := journey.next_note()["params"])["type"] == "progress":
                    pass
                assert note == self.book.events[seq - 1]
        self.book.count("looked back")


class Submitter(Client):
    """With keys it asks again until it has an answer; without, it never knows what became of a broken request."""

    def __init__(self, load, name, keys):
        super().__init__(load, name)
        self.keys, self.number, self.pending, self.asked = keys, 0, None, 0

    def turn(self, link):
        if not self.pending:
            self.load.wait_for_room()
            if self.load.stopping.is_set():
                return
            self.number += 1
            self.pending = f"{self.name}-{self.number}"
        name = self.pending
        if not self.keys:
            self.pending = None
        self.book.sending(name)
        self.asked += 1
        try:
            job = link.submit(self.load.spec(name), **({"idempotency_key": name} if self.keys else {}))
        except RpcError as e:
            assert e.code == 1005, e
            self.book.count("refused")
            if not self.keys:
                with self.book.lock:
                    del self.book.sent[name]  # it was not done
            self.load.stopping.wait(0.05)
            return
        self.book.acknowledge(name, job)
        self.book.count("submitted with a key" if self.keys else "submitted")
        if self.keys and self.asked > 1:
            self.book.count("submitted with a key again")
        self.pending, self.asked = None, 0


class Canceller(Client):
    def turn(self, link):
        self.book.wait(lambda: self.book.open or self.load.stopping.is_set(), None)
        there, at = self.book.still_open(), self.book.last()
        if not there:
            return
        job = self.rng.choice(there)
        try:
            answer = link.call("job.cancel", id=job)
            assert answer["cancelling"] or answer["state"] == "cancelled", answer
            with self.book.lock:
                self.book.cancelled.setdefault(job, answer["state"])
            self.book.count("cancelled")
        except RpcError as e:
            assert e.code in (1003, 1005), e
        self.book.wait(lambda: self.book.last() > at + 15 or self.load.stopping.is_set(), None)


class Reader(Client):
    """Lists, gets and asks why."""

    def __init__(self, load, name):
        super().__init__(load, name)
        self.ends = {}

    def turn(self, link):
        known = self.book.acknowledged()
        page = link.call("job.list", limit=50)["jobs"]
        ids = [job["id"] for job in page]
        assert ids == sorted(set(ids), reverse=True)
        assert all(job in ids for job in known if ids and job >= ids[-1]), "an acknowledged job is not listed"
        for job in page:
            assert self.ends.setdefault(job["id"], job["state"]) == job["state"] or self.ends[job["id"]] not in FINAL
            self.ends[job["id"]] = job["state"]
        if known:
            job = self.rng.choice(known)
            record = link.call("job.get", id=job)
            assert record["id"] == job and self.book.sent[record["name"]] == job
            assert link.call("job.explain", id=job)["text"].startswith(f"job {job} ")
        self.book.count("listed")


class Load:
    """All clients together. `most` bounds the jobs that wait or run."""

    def __init__(self, path, seed, most, make_spec=spec):
        self.path, self.seed, self.most, self.spec = path, seed, most, make_spec
        self.book, self.stopping, self.closing = Book(), threading.Event(), threading.Event()
        self.watcher = Watcher(self, "watcher")
        self.clients = []

    def wait_for_room(self):
        self.book.wait(lambda: self.stopping.is_set() or (
            not self.closing.is_set() and len(self.book.open) < self.most), None)

    def start(self, keyed, plain, readers=1, travellers=1, cancellers=1):
        self.clients = [*(Submitter(self, f"k{i}", True) for i in range(keyed)),
                        *(Submitter(self, f"p{i}", False) for i in range(plain)),
                        *(Canceller(self, f"c{i}") for i in range(cancellers)),
                        *(Reader(self, f"r{i}") for i in range(readers)),
                        *(Traveller(self, f"t{i}") for i in range(travellers))]
        for client in [self.watcher, *self.clients]:
            client.start()

    def stop(self):
        self.stopping.set()
        with self.book.lock:
            self.book.lock.notify_all()
