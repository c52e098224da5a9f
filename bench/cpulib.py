"""What bench/run is made of: programs of ours, processes of PyTorch's, rounds in turn, and what the machine says of
itself."""
import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PEER = ROOT / "bench/peers/torch_cpu.py"
VENV = ROOT / "build/bench-venv"
DEBIAN_PYTHON = "/usr/bin/python3"
ROOT_MAY = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

# What PyTorch's own tuning guide and measurements say is fastest: memory that malloc keeps rather than gives back and
# faults in anew in every step, and threads that stay on their cores.
TORCH_ENV = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30), "MALLOC_TOP_PAD_": str(64 << 20),
             "TORCHINDUCTOR_CACHE_DIR": str(ROOT / "build/bench-inductor"), "TORCH_CPP_LOG_LEVEL": "ERROR"}
BOUND = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
SLOW_STEP_S = 4  # above it a case gets the fewest steps


def say(text):
    print(text, file=sys.stderr, flush=True)


def clean_env(more=None):
    """The caller's, without what would set threads for one side only."""
    return {**{k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "MALLOC_"))}, **ROOT_MAY,
            **(more or {})}


def last_line(text, otherwise):
    """What a program said of its failure: the last line that speaks of an error, else the last."""
    lines = text.strip().splitlines() or [otherwise]
    return next((x.strip() for x in reversed(lines) if "Error:" in x), lines[-1])


def run_group(cmd, env, limit):
    """subprocess.run() that leaves no grandchild behind when the time is over."""
    p = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)
    try:
        out, err = p.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        p.communicate()
        raise
    return subprocess.CompletedProcess(cmd, p.returncode, out, err)


# ---- the machine ----

def cpu_name():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def cpu_flags():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return sorted(f for f in line.split() if f.startswith(("avx", "amx", "fma")))
    return []


def memory_free():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0


def busy_share(seconds=0.1):
    """Share of all cores' time that was not idle."""
    def read():
        v = list(map(int, pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:]))
        return v[3] + v[4], sum(v)
    idle, total = read()
    time.sleep(seconds)
    idle2, total2 = read()
    return 1 - (idle2 - idle) / max(1, total2 - total)


def cpu_seconds(pids):
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            v = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(v[11]) + int(v[12])
    return total / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(patience=5):
    """Other load is not what is to be measured: waits for a moment without it, not for ever. Returns what there was."""
    end = time.monotonic() + patience
    while True:
        busy = busy_share()
        if busy < 0.1 or time.monotonic() > end:
            return busy


class Lock:
    """A lock on a file, for machines where others measure, too: exclusive while something is timed, shared while this
    program makes work (a compiler, say) that would disturb them."""

    def __init__(self, path):
        self.path = path

    def __call__(self):
        return self.held(fcntl.LOCK_EX)

    def shared(self):
        return self.held(fcntl.LOCK_SH)

    @contextlib.contextmanager
    def held(self, how):
        if not self.path:
            yield
            return
        with open(self.path, "a") as f:
            fcntl.flock(f, how)
            yield


# ---- ours ----

def build(folder):
    """The programs, unless the caller says where they are."""
    if folder:
        return pathlib.Path(folder).resolve()
    folder = ROOT / "build/release"
    if not (folder / "build.ninja").exists():
        subprocess.run(["cmake", "--preset", "release"], cwd=ROOT, check=True, stdout=sys.stderr)
    subprocess.run(["cmake", "--build", str(folder), "--target", "batchformer-worker", "batchformerd", "bfctl", "bench_step"],
                   cwd=ROOT, check=True, stdout=sys.stderr)
    return folder


def ranks_command(ranks, command):
    return command if ranks == 1 else ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks), *command]


NET_KEYS = ("arch", "precision", "batch", "size", "channels", "classes", "features", "heads", "dropout")


def step_command(bin_dir, c, steps, warm, watched=0):
    cmd = [str(bin_dir / "bench_step")]
    for k in NET_KEYS:
        if k in c:
            cmd += [f"--{k}", str(c[k])]
    cmd += ["--batchformer", str(int(c.get("batchformer", True))), "--threads", str(c["threads"]), "--warm", str(warm),
            "--steps", str(steps), "--watched", str(watched)]
    return ranks_command(c["ranks"], cmd)


def ours(bin_dir, c, steps, warm=3, limit=600):
    """One run of bench_step: its document, or {"error"}."""
    try:
        p = run_group(step_command(bin_dir, c, steps, warm), clean_env(), limit)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {limit} s"}
    if p.returncode:
        lines = [x for x in p.stderr.splitlines() if x.startswith("bench_step:")]
        return {"error": lines[0] if lines else last_line(p.stderr, f"exit status {p.returncode}")}
    return json.loads(p.stdout)


# ---- PyTorch ----

def has_torch(python):
    return shutil.which(python) and subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0


def find_torch(python):
    """(python, where from): the one named, PyPI's in an environment of its own, else Debian's."""
    if python:
        if not has_torch(python):
            sys.exit(f"--python: {python} cannot import torch")
        return python, "named by --python"
    mine = VENV / "bin/python"
    if not has_torch(str(mine)):
        say(f"PyTorch from PyPI into {VENV}: gigabytes, once")
        VENV.parent.mkdir(exist_ok=True)
        done = subprocess.run([sys.executable, "-m", "venv", str(VENV)]).returncode == 0 and \
            subprocess.run([str(mine), "-m", "pip", "install", "--quiet", "torch", "numpy", "setuptools"]).returncode == 0
        if not done or not has_torch(str(mine)):
            if has_torch(DEBIAN_PYTHON):
                return DEBIAN_PYTHON, "Debian's python3-torch, because PyPI's could not be installed"
            return None, "absent: neither PyPI's could be installed nor is Debian's python3-torch there"
    return str(mine), "PyPI"


class Torch:
    """A process of torch_cpu.py for one case and setting. A setting is (layout, mode, bound)."""

    def __init__(self, python, c, setting):
        self.c, self.setting = c, setting
        env = clean_env({**TORCH_ENV, "OMP_NUM_THREADS": str(c["threads"]),
                         **(BOUND if setting["bound"] and c["ranks"] == 1 else {})})
        self.p = subprocess.Popen([python, str(PEER), "--threads", str(c["threads"]), "--ranks", str(c["ranks"])], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
        self.errors = []
        threading.Thread(target=self.read_errors, daemon=True).start()
        self.pids = [self.p.pid]
        self.about = self.read()

    def read_errors(self):
        for line in self.p.stderr:
            self.errors = (self.errors + [line.strip()])[-20:]

    def read(self):
        line = self.p.stdout.readline()
        if line:
            return json.loads(line)
        self.p.wait()
        return {"error": f"the peer ended ({self.p.returncode}): {(self.errors or ['nothing said'])[-1]}"}

    def measure(self, steps, warm):
        if "error" in self.about:
            return self.about
        q = {**{k: self.c[k] for k in NET_KEYS if k in self.c}, "batchformer": self.c.get("batchformer", True),
             "layout": self.setting["layout"], "mode": self.setting["mode"], "warm": warm, "steps": steps, "seconds": 0}
        try:
            print(json.dumps(q), file=self.p.stdin, flush=True)
        except BrokenPipeError:
            pass  # reading says how it ended
        a = self.read()
        self.pids = a.get("pids", self.pids)
        return a

    def close(self):
        with contextlib.suppress(BrokenPipeError):  # it ended, and what it was told last is still here
            self.p.stdin.close()
        try:
            self.p.wait(10)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()


def setting_name(s):
    return f"{s['layout']}, {s['mode']}" + ("" if s["bound"] else ", not bound")


# ---- in turn ----

def steps_for(step_s, seconds):
    return max(2, min(1000, int(seconds / max(step_s, 1e-6))))


def begin(python, c, setting):
    """(a process for the setting, its first answer): imported, compiled where that is the setting, warm."""
    torch = Torch(python, c, setting)
    return torch, torch.measure(1, 2)


def scout_setting(torch, a, seconds):
    """Of two measurements the better one: other load only takes away."""
    for _ in range(2):
        if "error" in a or a["step_ms"]["median"] / 1e3 > SLOW_STEP_S:
            break
        b = torch.measure(steps_for(a["step_ms"]["median"] / 1e3, seconds), 0)
        a = b if "error" in b or b["step_ms"]["median"] < a["step_ms"]["median"] else a
    return a


def scout(python, c, settings, begun, seconds):
    """Every setting, each in a process of its own, so that its memory is its own; `begun` are those of some already.
    Returns the rows, and the process of the fastest, which lives on."""
    rows, best, best_ms = [], None, None
    for s in settings:
        row = {"setting": setting_name(s), **s}
        torch, a = begun.pop(row["setting"], None) or begin(python, c, s)
        a = scout_setting(torch, a, seconds)
        if "error" in a:
            row["error"] = a["error"]
        else:
            row.update({k: a[k] for k in ("images_per_s", "peak_rss_bytes", "import_rss_bytes")},
                       step_ms={k: v for k, v in a["step_ms"].items() if k != "all"})
        say(f"  PyTorch {row['setting']}: {row.get('error') or round(row['images_per_s']['median'], 1)}")
        rows.append(row)
        if "error" not in row and (best is None or row["step_ms"]["median"] < best_ms):
            best, torch, best_ms = torch, best, row["step_ms"]["median"]
        if torch:
            torch.close()
    return rows, best


def spread(v):
    return {"median": statistics.median(v), "min": min(v), "max": max(v), "runs": v}


def rounds(bin_dir, c, peer, first, peer_ms, n, seconds):
    """Ours and the peer's best in turn: A B A B …"""
    slow = peer_ms / 1e3 > SLOW_STEP_S
    ours_steps, peer_steps = steps_for(first["step_ms"]["median"] / 1e3, seconds), steps_for(peer_ms / 1e3, seconds)
    a, b, idle, busy = [], [], [], []
    for _ in range(1 if slow else n):
        busy.append(wait_for_quiet(2))
        before, start = cpu_seconds(peer.pids), time.monotonic()
        doc = ours(bin_dir, c, ours_steps, 1 if slow else 3)
        idle.append((cpu_seconds(peer.pids) - before) / (time.monotonic() - start))
        answer = peer.measure(peer_steps, 1)
        for d in (doc, answer):
            if "error" in d:
                return {"error": d["error"]}
        a.append(doc)
        b.append(answer)
    rate = [[d["images_per_s"]["median"] for d in x] for x in (a, b)]
    ratios = [x / y for x, y in zip(*rate)]
    return {"ours": spread(rate[0]), "peer": spread(rate[1]),
            "ratio": {"median": statistics.median(rate[0]) / statistics.median(rate[1]), "min": min(ratios), "max": max(ratios)},
            "peer_cpu_share_while_idle": max(idle), "machine_busy_before": max(busy),
            "ours_peak_rss_bytes": max(sum(d["peak_rss_bytes"]) for d in a), "arena_bytes": a[0]["arena_bytes"],
            "ours_gflop_per_s": statistics.median(d["gflop_per_s"] * d["ranks"] for d in a)}


def timed_case(bin_dir, python, c, settings, begun, args):
    """What is to be timed of a case, as members of its row."""
    wait_for_quiet()
    first = ours(bin_dir, c, 3, 2)
    if "error" in first:
        return {"error": first["error"]}
    say(f"  ours: {first['images_per_s']['median']:.1f}")
    if not python:
        return {"ours": first["images_per_s"], "ours_peak_rss_bytes": sum(first["peak_rss_bytes"]), "peer": "absent"}
    rows, best = scout(python, c, settings, begun, args.scout_seconds)
    if not best:
        return {"settings": rows, "ours": first["images_per_s"], "error": "no setting of PyTorch's ran"}
    r = min((r for r in rows if "error" not in r), key=lambda r: r["step_ms"]["median"])
    done = rounds(bin_dir, c, best, first, r["step_ms"]["median"], args.rounds, args.seconds)
    best.close()
    if "error" in done:
        return {"settings": rows, "best_setting": r["setting"], **done}
    peak, alone = sum(r["peak_rss_bytes"]), r["import_rss_bytes"] * c["ranks"]
    say(f"  ratio {done['ratio']['median']:.2f} ({done['ratio']['min']:.2f} – {done['ratio']['max']:.2f})")
    return {"settings": rows, "best_setting": r["setting"], **done, "peer_peak_rss_bytes": peak, "peer_import_rss_bytes": alone,
            "memory_ratio": done["ours_peak_rss_bytes"] / peak,
            "memory_ratio_without_import": done["ours_peak_rss_bytes"] / max(1, peak - alone)}


def compare(bin_dir, python, c, settings, args, lock):
    """A row: ours, each of PyTorch's settings, the ratio against the best of them. What is compiled is compiled before
    anything is timed."""
    say(f"{c['case']}:")
    begun = {}
    with lock.shared():
        tried = ours(bin_dir, c, 1, 0)
        if "error" in tried:
            say(f"  refused: {tried['error']}")
            return {**c, "refused": tried["error"]}
        for s in settings if python else ():
            if s["mode"] != "eager":
                begun[setting_name(s)] = begin(python, c, s)
    with lock():
        return {**c, **timed_case(bin_dir, python, c, settings, begun, args)}


# ---- start-up ----

START_LIMIT_S = 40


def start_spec(batch):
    return {"version": 1, "name": "start", "task": "long_tailed",
            "data": {"format": "synthetic", "synthetic": {"height": 28, "width": 28, "channels": 1, "classes": 10,
                                                          "train_per_class": 200, "test_per_class": 2}, "augment": None},
            "model": {"arch": "resnet20"}, "train": {"epochs": 1, "batch_size": batch, "log_every_steps": 1},
            "eval": {"every_epochs": 0}, "checkpoint": {"every_steps": 0}, "resources": {"ranks": 2, "threads_per_rank": 1}}


def start_ours(bin_dir, batch):
    """Seconds from exec of mpirun to the end of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "job.json").write_text(json.dumps(start_spec(batch)))
        cmd = ranks_command(2, [str(bin_dir / "batchformer-worker"), "--job", str(folder / "job.json"), "--run-dir",
                                str(folder / "run"), "--max-steps", "1"])
        start = time.time()
        p = run_group(cmd, clean_env(), START_LIMIT_S)
        whole = time.time() - start
        if p.returncode:
            raise RuntimeError(last_line(p.stderr, f"exit status {p.returncode}"))
        lines = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
        return next(wall_time(m["time"]) for m in lines if m["kind"] == "step") - start, whole


def wait_for(condition, what, limit=START_LIMIT_S):
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {limit} s: {what}")
        time.sleep(0.01)


def start_submitted(bin_dir, batch):
    """Seconds from exec of bfctl submit, with a coordinator at rest, to the end of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        spec = start_spec(batch)
        spec["train"]["epochs"] = 1
        (folder / "job.json").write_text(json.dumps(spec))
        address = f"unix:{folder}/socket"
        daemon = subprocess.Popen([str(bin_dir / "batchformerd"), "--state-dir", str(folder / "state"), "--listen", address],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_env(), start_new_session=True)
        ctl = [str(bin_dir / "bfctl"), "--address", address]
        try:
            wait_for(lambda: subprocess.run([*ctl, "info"], capture_output=True).returncode == 0, "an answer of batchformerd")
            start = time.time()
            p = subprocess.run([*ctl, "submit", str(folder / "job.json")], capture_output=True, text=True, env=clean_env())
            if p.returncode:
                raise RuntimeError(last_line(p.stderr, f"exit status {p.returncode}"))
            run = folder / "state/runs" / p.stdout.strip()
            wait_for(lambda: (run / "result.json").exists(), f"{run / 'result.json'}")
            lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            return next(wall_time(m["time"]) for m in lines if m["kind"] == "step") - start
        finally:
            daemon.terminate()
            daemon.wait(30)


def wall_time(iso):
    return datetime.datetime.fromisoformat(iso.replace("Z", "+00:00")).timestamp()


def start_torch(python, batch):
    q = {"arch": "resnet20", "precision": "fp32", "batch": batch, "size": 28, "channels": 1, "classes": 10, "batchformer": True,
         "heads": 4, "dropout": 0.5, "layout": "channels_last", "mode": "eager", "warm": 0, "steps": 1, "seconds": 0}
    cmd = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PEER), "--threads", "1",
           "--once", json.dumps(q)]
    start = time.time()
    p = run_group(cmd, clean_env({**TORCH_ENV, "OMP_NUM_THREADS": "1"}), START_LIMIT_S)
    if p.returncode:
        raise RuntimeError(last_line(p.stderr, f"exit status {p.returncode}"))
    line = next(x for x in p.stdout.splitlines() if x.startswith("{"))
    return json.loads(line)["first_step_at"] - start


def compare_start(bin_dir, python, c, args, lock):
    say(f"{c['case']}:")
    ours_s, peer_s, whole, submitted = [], [], [], []
    for _ in range(args.rounds + 1):
        with lock():
            wait_for_quiet()
            first, all_s = start_ours(bin_dir, c["batch"])
            ours_s.append(first)
            whole.append(all_s)
            submitted.append(start_submitted(bin_dir, c["batch"]))
            if python:
                peer_s.append(start_torch(python, c["batch"]))
    ours_s, peer_s = ours_s[1:], peer_s[1:]  # the first one reads files from disk
    row = {**c, "ours_s": spread(ours_s), "ours_whole_s": spread(whole[1:]), "submitted_s": spread(submitted[1:])}
    if peer_s:
        row.update(peer_s=spread(peer_s), best_setting="torchrun, gloo, eager",
                   ratio={"median": statistics.median(peer_s) / statistics.median(ours_s),
                          "min": min(b / a for a, b in zip(ours_s, peer_s)), "max": max(b / a for a, b in zip(ours_s, peer_s))})
    say(f"  first step after {row['ours_s']['median']:.2f} s, submitted {row['submitted_s']['median']:.2f} s, "
        f"PyTorch {statistics.median(peer_s) if peer_s else 0:.2f} s")
    return row
