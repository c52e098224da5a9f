"""What a disturbed run shows: its directory, its processes, and whether it ended as an undisturbed one."""
import contextlib
import ctypes
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess

import numpy as np

from daemonlib import FINAL, environments
from workerlib import command, environment, read_safetensors, result, write_job

# Names of a checkpoint's files while it is written, in that order.
PARTS = {"begun": "", "model": "model.safetensors", "state": "state.safetensors", "manifest": "manifest.json"}


# --- what a run directory shows ---

def tail(run_dir):
    """The last whole record of metrics.jsonl, {} when there is none."""
    try:
        with open(run_dir / "metrics.jsonl", "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - 4096))
            lines = f.read().split(b"\n")[:-1]
    except OSError:
        return {}
    return json.loads(lines[-1]) if lines and lines[-1].startswith(b"{") else {}


def writings(run_dir):
    """{pid of the writer: names in it} of the unfinished checkpoints. Writers that died leave theirs, too."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(run_dir / "checkpoints"):
            if name.startswith(".tmp-step-"):
                with contextlib.suppress(FileNotFoundError):
                    found[int(name.rsplit(".", 1)[1])] = sorted(os.listdir(run_dir / "checkpoints" / name))
    return found


class Hash128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


XXHASH = ctypes.CDLL("libxxhash.so.0")  # the worker links it
XXHASH.XXH3_128bits.restype = Hash128
XXHASH.XXH3_128bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]


def xxh3_128(data):
    h = XXHASH.XXH3_128bits(data, len(data))
    return f"{h.high:016x}{h.low:016x}"


def damage(checkpoint):
    """What is wrong with a directory step-…, None when it is whole."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        if manifest["step"] != int(checkpoint.name[5:]):
            return f"{checkpoint.name}: the manifest is of step {manifest['step']}"
        for name, file in manifest["files"].items():
            data = (checkpoint / name).read_bytes()
            if (len(data), xxh3_128(data)) != (file["bytes"], file["xxh3_128"]):
                return f"{checkpoint.name}/{name}: {len(data)} bytes, {xxh3_128(data)}; the manifest says {file}"
    except (OSError, ValueError, KeyError) as e:
        return f"{checkpoint.name}: {e!r}"
    return None


def every_checkpoint_is_whole(run_dir):
    """Whatever bears a checkpoint's name is one. A run that goes on meanwhile may retire it under our hands."""
    for checkpoint in sorted((run_dir / "checkpoints").glob("step-*")):
        wrong = damage(checkpoint)
        assert not wrong or not checkpoint.exists(), wrong


def curve(run_dir):
    """All of metrics.jsonl in its order, but for what a clock says."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "time" and not k.endswith(("images_per_s", "_wait_s"))} for r in records]


def last_checkpoint(run_dir):
    return max((run_dir / "checkpoints").glob("step-*"), key=lambda p: p.name)


def assert_bit_for_bit(run_dir, twin):
    """The same curve, every line once, and the same bytes of weights and momentum, as of a run that nobody disturbed."""
    mine, theirs = curve(run_dir), curve(twin)
    for a, b in zip(mine, theirs):
        assert a == b
    assert len(mine) == len(theirs)
    a, b = last_checkpoint(run_dir), last_checkpoint(twin)
    assert a.name == b.name
    for name in ("model.safetensors", "state.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), f"{a}/{name} differs"
    assert (run_dir / "model.safetensors").read_bytes() == (twin / "model.safetensors").read_bytes()
    a, b = result(run_dir), result(twin)
    assert a["status"] == "succeeded" and all(a[k] == b[k] for k in ("best", "eval", "validation"))


def weights(run_dir):
    """All that is trained, the module included, as one vector."""
    tensors = read_safetensors(last_checkpoint(run_dir) / "model.safetensors")
    return np.concatenate([tensors[n].ravel().astype(np.float64) for n in sorted(tensors)
                           if "running_" not in n and "num_batches" not in n])


def line_names(run_dir):
    return [(r["kind"], r["step"], r.get("split")) for r in curve(run_dir)]


def distance(run_dir, twin, start):
    """How far a run is from another one of the same lines: (largest relative difference of a loss, difference of the
    weights in parts of the way that they went from `start`)."""
    pairs = [(a[k], b[k]) for a, b in zip(curve(run_dir), curve(twin)) for k in b if k.endswith("loss")]
    a, b, at = weights(run_dir), weights(twin), weights(start)
    return max(abs(x - y) / abs(y) for x, y in pairs), float(np.linalg.norm(a - b) / np.linalg.norm(b - at))


# --- processes ---

def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def stopped(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    except OSError:
        return False


@dataclasses.dataclass
class Attempt:
    """The living processes of one attempt."""
    number: int
    mpirun: int = 0
    ranks: dict = dataclasses.field(default_factory=dict)
    others: list = dataclasses.field(default_factory=list)  # on their way to become a rank

    def pids(self):
        return [*([self.mpirun] if self.mpirun else []), *self.ranks.values(), *self.others]


class Run:
    """A run directory, and its processes; `marks` stand in the environment of each, NUMBER names its attempt."""
    NUMBER = "BATCHFORMER_ATTEMPT"

    def __init__(self, name, run_dir, n_ranks, n_steps, marks):
        self.name = name
        self.run_dir, self.n_ranks, self.n_steps, self.marks = run_dir, n_ranks, n_steps, marks

    def attempts(self):
        """{number: Attempt}, from one walk through /proc."""
        found = {}
        for pid, env in environments(*self.marks).items():
            attempt = found.setdefault(int(env[self.NUMBER]), Attempt(int(env[self.NUMBER])))
            rank = env.get("OMPI_COMM_WORLD_RANK")
            try:
                leads = os.getsid(pid) == pid
            except OSError:
                continue
            if rank is not None and int(rank) not in attempt.ranks:
                attempt.ranks[int(rank)] = pid
            elif rank is None and leads and not attempt.mpirun:
                attempt.mpirun = pid
            elif rank is not None or leads:
                assert not alive(pid), f"attempt {attempt.number} runs twice: {pid} and {attempt}"
            else:
                attempt.others.append(pid)
        return found

    def attempt(self):
        """The newest attempt that lives, or None; checks that it lives alone."""
        found = self.attempts()
        if len(found) > 1:
            self.check_overlap(found)
        return found[max(found)] if found else None

    def check_overlap(self, found):
        """The walk is no snapshot: an older attempt counts when it lives after the newer one was seen."""
        old = [pid for number in found if number != max(found) for pid in found[number].pids() if alive(pid)]
        assert not old, f"processes {old} of an older attempt live beside {found[max(found)]}"

    def step(self):
        return tail(self.run_dir).get("step", 0)

    def snapshot(self):
        last = tail(self.run_dir)
        return {"last line": f"{last.get('kind')} {last.get('split', '')} {last.get('step')}",
                "checkpoints": sorted(p.name for p in (self.run_dir / "checkpoints").glob("*"))}


class DaemonRun(Run):
    """A job of the daemon, under mpirun."""
    WEIGHTS = {"mpirun": 3, "rank 0": 4, "other rank": 3, "daemon": 3}  # how often each is killed

    def __init__(self, daemon, spec, n_steps):
        self.daemon = daemon
        with daemon.rpc() as rpc:
            self.job = rpc.submit(spec)
        super().__init__(f"job {self.job}", daemon.run_dir(self.job), spec["resources"]["ranks"], n_steps,
                         daemon.marks(self.job))

    def record(self):
        with self.daemon.rpc() as rpc:
            return rpc.call("job.get", id=self.job)

    def over(self):
        return self.record()["state"] in FINAL

    def logs(self):
        return [self.daemon.log, *sorted((self.run_dir / "log").glob("*"))]

    def launching(self, after):
        """→ whether an attempt later than `after` has begun its log, which is the last thing before its mpirun."""
        log = self.run_dir / "log" / "launcher.log"
        at = log.stat().st_size if log.exists() else 0
        began = re.compile(rb"^=== job \d+, attempt (\d+)", re.M)

        def look():
            with open(log, "rb") as f:
                f.seek(max(0, at - 4096))
                return any(int(n) > after for n in began.findall(f.read()))
        return look

    def says_since(self, at, phrase):
        """Whether the daemon's log says so of this job after its byte `at`."""
        with open(self.daemon.log, "rb") as f:
            f.seek(at)
            return any(f"job {self.job} ".encode() in line and phrase in line for line in f.read().split(b"\n")[:-1])


class HandRun(Run):
    """mpirun by hand, again with --resume after each accident and with another number of ranks."""
    NUMBER = "CHAOS_ATTEMPT"
    WEIGHTS = {"mpirun": 6, "rank 0": 3, "other rank": 3}

    def __init__(self, folder, spec, n_steps, env, sizes):
        self.folder, self.env, self.sizes = folder, env, sizes
        folder.mkdir()
        self.job = write_job(folder, spec)
        self.number, self.process = 0, None
        super().__init__(folder.name, folder / "run", 0, n_steps, (f"CHAOS_RUN={folder}",))

    def start(self):
        self.number += 1
        self.n_ranks = next(self.sizes)
        env = {**self.env, "CHAOS_RUN": str(self.folder), "CHAOS_ATTEMPT": str(self.number)}
        with open(self.folder / "mpirun.log", "ab") as log:
            log.write(f"=== attempt {self.number}, {self.n_ranks} ranks\n".encode())
            log.flush()
            self.process = subprocess.Popen(command(self.job, self.run_dir, "--resume", ranks=self.n_ranks),
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=environment(self.n_ranks, env), start_new_session=True)

    def over(self):
        return self.process.poll() is not None

    def check_overlap(self, found):
        """Ranks that lost their mpirun live on for a while, beside the next attempt, which waits for them: see
        Chaos.resume_beside()."""

    def holder(self):
        """Who works here, as the lock says."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.run_dir / "lock").read_text())
        return 0

    def is_held(self):
        with open(self.run_dir / "lock") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def says(self, phrase):
        return phrase in (self.folder / "mpirun.log").read_text()

    def logs(self):
        return [self.folder / "mpirun.log", *sorted((self.run_dir / "log").glob("*"))]

    def end(self):
        for pid in environments(*self.marks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process:
            self.process.wait()
