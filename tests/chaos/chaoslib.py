"""Killing a run at random moments, and telling the story of it.

A Run (runlib.py) is a run directory and the processes that work in it, started by the daemon or by hand. A Chaos draws
what to kill and when, waits until that moment is seen (a process, a step in metrics.jsonl, a checkpoint that is being
written), kills, and looks at what is left. Everything it saw is in its story, which is printed when a test fails: the
seed gives the same draws again, the machine decides at which microsecond they strike.
"""
import contextlib
import dataclasses
import os
import random
import signal
import time

from daemonlib import environments, wait_until
from runlib import PARTS, DaemonRun, HandRun, alive, every_checkpoint_is_whole, stopped, tail, writings

SEED = int(os.environ.get("BF_CHAOS_SEED", "1"))
KILLS = int(os.environ.get("BF_CHAOS_KILLS", "50"))
LIMIT = 180  # seconds for what takes one or two on an idle machine; nothing here depends on being fast

# Open MPI's mpirun hangs at times when a rank is killed while it connects. After so long without a rank the daemon ends
# it; by hand we do.
HANG_S = 10


@dataclasses.dataclass
class Kill:
    run: str
    attempt: int
    targets: tuple
    moment: str
    inside: bool = False  # a checkpoint was being written; the daemon alone does not count, it writes none
    notes: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        notes = "; ".join(f"{k}: {v}" for k, v in self.notes.items())
        return f"{self.run}, attempt {self.attempt}: killed {' + '.join(self.targets)} at {self.moment}; {notes}"


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
        first = self.rng.choices(names, [self.run.WEIGHTS[n] for n in names])[0]
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
        wait_until(look, lambda: f"the moment comes: {self.run.snapshot()}", LIMIT, pause=0.0005)
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
            self.let_go(writer)
            return None
        log_at = self.log_size()
        targets = self.kill_all(self.draw_targets(attempt))
        kill = Kill(self.run.name, attempt.number, tuple(targets), f"{kind} {detail or ''}".strip())
        if writer:
            kill.inside = writer in writings(self.run.run_dir) and targets.keys() != {"daemon"}
            kill.notes["being written"] = writings(self.run.run_dir)
            self.let_go(writer)
        if not targets:
            return None
        self.kills.append(kill)
        self.aftermath(kill, attempt, targets, log_at)
        return targets.keys() != {"daemon"}

    def let_go(self, pid):
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def kill_all(self, targets):
        """At once; gives those that still were there."""
        hit = {}
        for name, pid in targets.items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                hit[name] = pid
        return hit

    def log_size(self):
        return self.run.daemon.log.stat().st_size if isinstance(self.run, DaemonRun) else 0

    def n_beside(self):
        return self.count(lambda k: "beside" in k.notes.get("next attempt", ""))

    def aftermath(self, kill, attempt, targets, log_at):
        if "daemon" in targets:
            self.run.daemon.process.wait()
        wait_until(lambda: not any(alive(pid) for pid in targets.values()), "what was killed is gone", LIMIT)
        kill.notes["found"] = self.run.snapshot()
        if "daemon" in targets:
            self.daemon_away(kill)
        elif isinstance(self.run, DaemonRun) and self.rng.random() < 0.3:
            self.kill_daemon_at_restart(kill, log_at)
        lingers = self.lingering_rank0(attempt) if isinstance(self.run, HandRun) and targets.keys() == {"mpirun"} else None
        if lingers:
            self.resume_beside(kill, lingers)
        elif targets.keys() != {"daemon"}:
            self.attempt_ends(kill, attempt)
        every_checkpoint_is_whole(self.run.run_dir)

    def lingering_rank0(self, attempt):
        """Rank 0 that outlives its mpirun, in the middle of its work: stopped, until the next attempt has come. (Not
        before mpirun's death: the kernel hangs up on stopped processes that lose their parent.)"""
        self.run.process.wait()
        rank0 = attempt.ranks.get(0)
        if not rank0 or self.run.holder() != rank0:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank0, signal.SIGSTOP)
            wait_until(lambda: stopped(rank0) or not alive(rank0), "rank 0 stands still", LIMIT, pause=0.0002)
            if stopped(rank0) and self.run.is_held():
                return rank0
        self.let_go(rank0)
        return None

    def resume_beside(self, kill, lingers):
        """The next attempt comes while rank 0 of the last one still lives, and must not touch the run before that ends."""
        kill.notes["next attempt"] = f"at once, beside rank 0 ({lingers})"
        self.run.start()
        came = self.wait_for(lambda: self.run.says(f"in use by process {lingers}:") or self.run.holder() != lingers)
        assert came and self.run.holder() == lingers, "two attempts work in one directory"
        self.let_go(lingers)

    def kill_daemon_at_restart(self, kill, log_at):
        """While it deals with the attempt's end: it has decided to restart it, or to start it, has started it (mpirun is
        there before that is in the journal), or has written so."""
        moment = self.rng.choice(["restarting from", "starting with", "is running as", "its log begins", "its log begins"])
        if moment == "its log begins":  # and mpirun is started or is just being started: stop the daemon to see which
            seen = self.run.launching(kill.attempt)
        else:
            seen = lambda: self.run.says_since(log_at, moment.encode())
        if not self.wait_for(seen):
            return
        daemon = self.run.daemon.process.pid
        os.kill(daemon, signal.SIGSTOP)
        wait_until(lambda: stopped(daemon), "the daemon stands still", LIMIT, pause=0.0002)
        second = Kill(kill.run, kill.attempt, ("daemon",), f'restart: "{moment}"')
        second.notes["then"] = [str(a) for a in self.run.attempts().values()]
        second.notes["in its log"] = self.run.says_since(log_at, b"is running as")
        self.run.daemon.kill()
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
            if self.rng.random() < 0.5:  # else as a script would, again at once
                wait_until(gone, "the attempt is gone", LIMIT)
            self.run.start()
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
