"""Killing a run at random moments, and telling the story of it.

A Run is a run directory and the processes that work in it; who starts them, the daemon or a hand, is a subclass. A
Chaos draws what to kill and when, waits until that moment is seen (a process, a step in metrics.jsonl, a checkpoint
that is being written), kills, and looks at what is left. Everything it saw is in its story, which is printed when a
test fails: the seed gives the same draws again, the machine decides at which microsecond they strike.
"""
import contextlib
import ctypes
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import time

import numpy as np

from daemonlib import FINAL, environments, wait_until
from workerlib import command, environment, read_safetensors, result, write_job

SEED = int(os.environ.get("BF_CHAOS_SEED", "1"))
KILLS = int(os.environ.get("BF_CHAOS_KILLS", "50"))
LIMIT = 180  # seconds for what takes one or two on an idle machine; nothing here depends on being fast

# Open MPI's mpirun hangs at times when a rank is killed while it connects. After so long without a rank the daemon ends
# it; by hand we do.
HANG_S = 10

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
    return [{k: v for k, v in r.items() if k != "time" and not k.endswith("images_per_s")} for r in records]


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

    def __init__(self, run_dir, n_ranks, n_steps, marks):
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

    def __init__(self, daemon, spec, n_steps):
        self.daemon = daemon
        with daemon.rpc() as rpc:
            self.job = rpc.submit(spec)
        super().__init__(daemon.run_dir(self.job), spec["resources"]["ranks"], n_steps, daemon.marks(self.job))

    def record(self):
        with self.daemon.rpc() as rpc:
            return rpc.call("job.get", id=self.job)

    def over(self):
        return self.record()["state"] in FINAL

    def logs(self):
        return [self.daemon.log, *sorted((self.run_dir / "log").glob("*"))]

    def says_since(self, at, phrase):
        """Whether the daemon's log says so of this job after its byte `at`."""
        with open(self.daemon.log, "rb") as f:
            f.seek(at)
            return any(f"job {self.job} ".encode() in line and phrase in line for line in f.read().split(b"\n")[:-1])


class HandRun(Run):
    """mpirun by hand, again with --resume after each accident and with another number of ranks."""
    NUMBER = "CHAOS_ATTEMPT"

    def __init__(self, folder, spec, n_steps, env, sizes):
        self.folder, self.env, self.sizes = folder, env, sizes
        folder.mkdir()
        self.job = write_job(folder, spec)
        self.number, self.process = 0, None
        super().__init__(folder / "run", 0, n_steps, (f"CHAOS_RUN={folder}",))

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
        """Ranks that lost their mpirun live on for a while; the next attempt must wait for them. The lock says who works."""
        newest = found.pop(max(found))
        old = [a.ranks[0] for a in found.values() if 0 in a.ranks and alive(a.ranks[0])]
        holder = (self.run_dir / "lock").read_text().strip() if old else ""
        assert not old or holder != str(newest.ranks.get(0)) or not any(alive(pid) for pid in old), \
            f"rank 0 of {newest} works although {old} of an older attempt lives"

    def logs(self):
        return [self.folder / "mpirun.log", *sorted((self.run_dir / "log").glob("*"))]

    def end(self):
        for pid in environments(*self.marks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process:
            self.process.wait()


# --- the story ---

@dataclasses.dataclass
class Kill:
    run: str
    attempt: int
    targets: tuple
    moment: str
    inside: bool = False  # a checkpoint was being written
    notes: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        notes = "; ".join(f"{k}: {v}" for k, v in self.notes.items())
        return f"run {self.run} attempt {self.attempt}: killed {' + '.join(self.targets)} at {self.moment}; {notes}"


class Chaos:
    def __init__(self, name):
        self.name, self.rng = name, random.Random(f"{SEED} {name}")
        self.kills, self.run, self.began = [], None, time.monotonic()
        self.remarks = []

    @contextlib.contextmanager
    def told(self, show):
        """Prints the story when the test fails, and one line when it does not."""
        try:
            yield
        except BaseException:
            print(self.story())
            raise
        show("\n    ".join(["", self.summary(), *self.remarks]))

    def count(self, of):
        return sum(1 for k in self.kills if of(k))

    def summary(self):
        targets, moments = {}, {}
        for k in self.kills:
            for counts, name in ((targets, " + ".join(k.targets)), (moments, k.moment.split()[0])):
                counts[name] = counts.get(name, 0) + 1
        listed = ["; ".join(f"{n} {c}" for n, c in sorted(counts.items())) for counts in (targets, moments)]
        return (f"{self.name}: seed {SEED}, {len(self.kills)} kills in {time.monotonic() - self.began:.0f} s, "
                f"{self.count(lambda k: k.inside)} inside a checkpoint's writing\n      {listed[0]}\n      {listed[1]}")

    def story(self):
        parts = [f"BF_CHAOS_SEED={SEED} BF_CHAOS_KILLS={KILLS}", self.summary(), *map(str, self.kills)]
        if self.run:
            parts += [f"now: {self.run.snapshot()}", f"processes: {environments(*self.run.marks).keys()}"]
            for path in self.run.logs():
                with contextlib.suppress(OSError):
                    parts += [f"--- the end of {path}", path.read_text(errors="replace")[-6000:]]
        return "\n".join(parts)

    # --- drawing ---

    def draw_moment(self, fresh, left):
        """(kind, detail). Moments of a start only make sense when there is one."""
        kinds = ["step"] * 5 + ["write"] * 5 + ["validation"]
        if fresh:
            kinds += ["launch", "ranks", "start"]
        kind = self.rng.choice(kinds)
        if kind == "step":
            at = self.run.step()
            return kind, at + self.rng.randint(1, max(1, 2 * (self.run.n_steps - at) // (left + 1)))
        return kind, self.rng.choice(list(PARTS)) if kind == "write" else None

    def draw_targets(self, attempt):
        """Names with pids, in the order of killing: one, or two at once."""
        there = {"mpirun": attempt.mpirun, "rank 0": attempt.ranks.get(0)}
        others = sorted(r for r in attempt.ranks if r > 0)
        if others:
            rank = self.rng.choice(others)
            there["other rank"] = attempt.ranks[rank]
        if isinstance(self.run, DaemonRun):
            there["daemon"] = self.run.daemon.process.pid
        names = [n for n in there if there[n]]
        weights = {"mpirun": 3, "rank 0": 4, "other rank": 3, "daemon": 3}
        first = self.rng.choices(names, [weights[n] for n in names])[0]
        rest = [n for n in names if n != first]
        chosen = [first, self.rng.choice(rest)] if rest and self.rng.random() < 0.25 else [first]
        return {name: there[name] for name in chosen}

    # --- waiting for a moment ---

    def wait_for(self, seen):
        """Polls until seen() is true and gives its value; None when the run is over before."""
        box, last_look = [], [0.0]

        def look():
            value = seen()
            if not value and time.monotonic() - last_look[0] > 0.05:
                last_look[0] = time.monotonic()
                self.run.attempt()  # checks that it lives alone
                if self.run.over():
                    return True
            if value:
                box.append(value)
            return value
        wait_until(look, lambda: f"the moment comes: {self.run.snapshot()}", LIMIT, pause=0.001)
        return box[0] if box else None

    def catch_writer(self, part):
        """Stops rank 0 while it writes a checkpoint, and gives its pid: whatever is done next is done inside."""
        def seen():
            for pid, names in writings(self.run.run_dir).items():
                if not any(n.startswith(PARTS[part]) for n in names or [""]) or not alive(pid):
                    continue
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    wait_until(lambda: stopped(pid) or not alive(pid), "the writer stands still", LIMIT, pause=0.0002)
                    if pid in writings(self.run.run_dir):
                        return pid
                    os.kill(pid, signal.SIGCONT)  # it was quicker than we
            return None
        return self.wait_for(seen)

    def full(self):
        attempt = self.run.attempt()
        return attempt if attempt and attempt.mpirun and len(attempt.ranks) == self.run.n_ranks else None

    def started(self):
        attempt = self.full()
        log = self.run.run_dir / "log" / "rank-0000.log"
        return attempt if attempt and log.exists() and f"pid {attempt.ranks[0]}\n" in log.read_text() else None

    def reach(self, kind, detail):
        """Waits for the moment; gives the attempt that meets it and the pid of a writer that was stopped for it."""
        seen = {"launch": self.run.attempt, "ranks": self.full, "start": self.started,
                "step": lambda: self.run.step() >= detail,
                "validation": lambda: tail(self.run.run_dir).get("kind") in ("epoch", "eval")}
        if kind != "write":
            return self.run.attempt() if self.wait_for(seen[kind]) else None, None
        writer = self.catch_writer(detail)
        return self.run.attempt() if writer else None, writer

    # --- killing ---

    def strike(self, left, fresh):
        """One kill and what follows. True: the attempt was struck; False: only the daemon; None: the run was over."""
        kind, detail = self.draw_moment(fresh, left)
        attempt, writer = self.reach(kind, detail)
        if not attempt or not attempt.pids():
            if writer:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(writer, signal.SIGCONT)
            return None
        targets, log_at = self.draw_targets(attempt), self.log_size()
        kill = Kill(self.run.run_dir.name, attempt.number, tuple(targets), f"{kind} {detail or ''}".strip())
        self.kills.append(kill)
        for pid in targets.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if writer:
            kill.inside = writer in writings(self.run.run_dir)
            kill.notes["being written"] = writings(self.run.run_dir)
            with contextlib.suppress(ProcessLookupError):
                os.kill(writer, signal.SIGCONT)
        self.aftermath(kill, attempt, targets, log_at)
        return targets.keys() != {"daemon"}

    def log_size(self):
        return self.run.daemon.log.stat().st_size if isinstance(self.run, DaemonRun) else 0

    def aftermath(self, kill, attempt, targets, log_at):
        if "daemon" in targets:
            self.run.daemon.process.wait()
        wait_until(lambda: not any(alive(pid) for pid in targets.values()), "what was killed is gone", LIMIT)
        kill.notes["found"] = self.run.snapshot()
        if "daemon" in targets:
            self.daemon_away(kill)
        elif isinstance(self.run, DaemonRun) and self.rng.random() < 0.3:
            self.kill_daemon_at_restart(kill, log_at)
        if targets.keys() != {"daemon"}:
            self.attempt_ends(kill, attempt)
        every_checkpoint_is_whole(self.run.run_dir)

    def kill_daemon_at_restart(self, kill, log_at):
        """While it deals with the attempt's end: it has decided to restart it, or to start it, has started it (mpirun is
        there before that is in the journal), or has written so."""
        moment = self.rng.choice(["restarting from", "starting with", "is running as", "mpirun is there", "mpirun is there"])
        seen = {"mpirun is there": lambda: any(n > kill.attempt and a.mpirun for n, a in self.run.attempts().items())}
        if not self.wait_for(seen.get(moment, lambda: self.run.says_since(log_at, moment.encode()))):
            return
        self.run.daemon.kill()
        second = Kill(kill.run, kill.attempt, ("daemon",), f'restart: "{moment}"')
        second.notes["found"] = self.run.snapshot()
        self.kills.append(second)
        self.daemon_away(second)

    def daemon_away(self, kill):
        """The next daemon comes at once, when the job has gone on without one, or when nothing of it is left."""
        at, until = self.run.step(), self.rng.choice(["at once", "at once", "5 steps later", "when all is gone"])
        kill.notes["next daemon"] = until
        if until == "5 steps later":
            wait_until(lambda: self.run.step() >= at + 5 or not self.run.attempts(), "the job goes on", LIMIT)
        elif until == "when all is gone" and kill.targets != ("daemon",):
            wait_until(lambda: not self.run.attempts(), "nothing of the job is left", LIMIT)
        # How long mpirun leaves the other ranks alive when one is lost; 1 is what it does by itself.
        self.run.daemon.env["OMPI_MCA_odls_base_sigkill_timeout"] = self.rng.choice("0001")
        self.run.daemon.start()

    def attempt_ends(self, kill, attempt):
        """Of the attempt that was struck nothing stays, whether or not it is the next one's turn already."""
        def gone():
            return not any(alive(pid) for pid in attempt.pids()) and attempt.number not in self.run.attempts()
        if isinstance(self.run, HandRun):
            self.mpirun_ends(kill)
            if self.rng.random() < 0.5:  # else as a script would: again at once, beside ranks that still live
                wait_until(gone, "the attempt is gone", LIMIT)
                kill.notes["next attempt"] = "when all was gone"
            else:
                kill.notes["next attempt"] = "at once"
        else:
            wait_until(lambda: gone() or self.run.attempt() is None, "the attempt is gone", LIMIT)

    def mpirun_ends(self, kill):
        alone_since = [time.monotonic()]

        def ended():
            attempt = self.run.attempts().get(self.run.number)
            if attempt and attempt.ranks:
                alone_since[0] = time.monotonic()
            if time.monotonic() - alone_since[0] > HANG_S:
                kill.notes["mpirun"] = "hung without a rank"
                self.run.process.kill()
            return self.run.over()
        wait_until(ended, "mpirun ends", LIMIT)

    def disturb(self, run, n):
        """Up to n kills of one run."""
        self.run, fresh = run, True
        for left in range(n, 0, -1):
            struck = self.strike(left, fresh)
            if struck is None:
                return
            fresh = struck
            if struck and isinstance(run, HandRun):
                run.start()
