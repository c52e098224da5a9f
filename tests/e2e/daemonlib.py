"""What the tests of batchformerd share: a daemon in a directory of its own, a JSON-RPC client on a raw socket, and
waiting for conditions."""
import json
import os
import pathlib
import signal
import socket
import subprocess
import time

from buildlib import ROOT, bin_dir

HERE = pathlib.Path(__file__).resolve().parent
FINAL = ("succeeded", "failed", "cancelled")


def wait_until(condition, what, timeout=60, pause=0.02):
    """Polls until condition() is true and returns its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what() if callable(what) else what}"
        time.sleep(pause)


def spec(name="test", ranks=1, **more):
    """A small valid spec; `more` are sections that replace or extend those here."""
    doc = {"version": 1, "name": name, "task": "long_tailed",
           "data": {"format": "synthetic",
                    "synthetic": {"height": 8, "width": 8, "channels": 3, "classes": 3, "train_per_class": 20,
                                  "test_per_class": 5}},
           "model": {"arch": "resnet8"}, "train": {"epochs": 1, "batch_size": 32},
           "resources": {"ranks": ranks}}
    for key, value in more.items():
        doc[key] = {**doc[key], **value} if isinstance(doc.get(key), dict) else value
    return doc


class RpcError(Exception):
    def __init__(self, error):
        super().__init__(error["message"])
        self.code, self.message, self.data = error["code"], error["message"], error.get("data")


class Rpc:
    """One connection. Notifications that come while a call waits are kept in `notes`."""

    def __init__(self, path, timeout=60):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        self.sock.connect(str(path))
        self.rest = b""
        self.notes = []
        self.last_id = 0

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send_raw(self, data):
        self.sock.sendall(data)

    def send(self, doc):
        self.send_raw(json.dumps(doc).encode() + b"\n")

    def read(self):
        """The next line as a document; None when the daemon has hung up."""
        while b"\n" not in self.rest:
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def call(self, method, **params):
        self.last_id += 1
        self.send({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params})
        while True:
            doc = self.read()
            assert doc is not None, "the daemon hung up"
            if "id" not in doc:
                self.notes.append(doc)
                continue
            assert doc["id"] == self.last_id, doc
            if "error" in doc:
                raise RpcError(doc["error"])
            return doc["result"]

    def next_note(self):
        return self.notes.pop(0) if self.notes else self.read()

    def submit(self, doc=None, **params):
        return self.call("job.submit", spec=doc or spec(), **params)["id"]

    def wait_state(self, job, *states, timeout=60):
        """Polls job.get until the job is in one of the states; returns its record."""
        last = {}

        def look():
            last.update(self.call("job.get", id=job))
            return last if last["state"] in states else None
        return wait_until(look, lambda: f"job {job} {states}, it is {last['state']}: {last['reason']}", timeout)


def events_of(rpc, job):
    """Every event of the job up to its end, which is waited for."""
    rpc.call("job.watch", id=job, since=0)
    events = []
    while True:
        ev = rpc.next_note()["params"]
        if ev["type"] == "progress":
            continue
        events.append(ev)
        if ev["state"] in FINAL:
            return events


class Daemon:
    """batchformerd in `directory`. start() waits until it answers. Options change for later starts too."""

    def __init__(self, directory, launcher="fake", behaviour="", slots=2, options=(), env=None):
        self.dir = pathlib.Path(directory)
        self.state = self.dir / "state"
        self.socket = self.dir / "d.sock"
        self.log = self.dir / "daemon.log"
        self.options = ["--launcher", launcher, "--slots", str(slots), "--retry-ms", "10", *map(str, options)]
        self.env = {**os.environ, "BATCHFORMER_FAKE": behaviour, "OMP_NUM_THREADS": "1", **(env or {})}
        self.process = None
        self.stdin = subprocess.DEVNULL

    def argv(self):
        return [str(bin_dir() / "batchformerd"), "--state-dir", str(self.state), "--listen", f"unix:{self.socket}",
                *self.options]

    def spawn(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.argv(), stdin=self.stdin, stdout=log, stderr=log, env=self.env)

    def start(self):
        self.spawn()
        wait_until(self.answers, lambda: f"the daemon answers; its log: {self.log_text()[-2000:]}")
        return self

    def answers(self):
        assert self.process.poll() is None, self.log_text()[-2000:]
        try:
            with Rpc(self.socket) as rpc:
                return rpc.call("daemon.info")
        except OSError:
            return None

    def rpc(self, timeout=60):
        return Rpc(self.socket, timeout)

    def log_text(self):
        return self.log.read_text(errors="replace")

    def run_dir(self, job):
        return self.state / "runs" / str(job)

    def processes(self, job):
        """Live processes of any attempt of the job; other daemons' jobs of the same number do not count."""
        return sorted(environments(*self.marks(job)))

    def marks(self, job):
        """What stands in the environment of each process of the job."""
        return f"BATCHFORMER_LINK=unix:{self.socket}", f"BATCHFORMER_JOB={job}"

    def kill(self):
        """As a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout=60):
        """An orderly end that cancels what runs; checks that it was one."""
        if self.process is None or self.process.poll() is not None:
            return
        try:
            with self.rpc() as rpc:
                rpc.call("daemon.shutdown", cancel=True)
        except OSError:
            self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(timeout) == 0, self.log_text()[-4000:]
        finally:
            self.process.kill()


def environments(*assignments):
    """{pid: environment} of the live processes in whose environment each NAME=value stands."""
    wanted, found = {a.encode() for a in assignments}, {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            if stat.rsplit(")", 1)[1].split()[0] in "ZX":
                continue
            env = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted <= set(env):
            found[int(entry.name)] = dict(v.decode(errors="replace").split("=", 1) for v in env if b"=" in v)
    return found


def processes_with_env(assignment):
    """pids of live processes in whose environment NAME=value stands."""
    return list(environments(assignment))
