"""bfctl's requests, tables and exit statuses, against a coordinator whose answers the test chooses."""
import json
import os
import pty
import select
import signal
import subprocess
import time

import pytest

from clilib import FakeCoordinator, RpcError, bfctl, bfctl_start, bin_dir

SPEC = {"version": 1, "task": "long_tailed", "data": {"format": "idx", "path": "data/fashion"},
        "model": {"arch": "resnet8"}, "train": {"epochs": 2, "batch_size": 8}, "init": {"weights": "w.safetensors"}}


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "specs" / "job.json"
    path.parent.mkdir()
    path.write_text(json.dumps(SPEC))
    return path


def progress(step, **changes):
    return {"phase": "train", "step": step, "n_steps": 100, "epoch": 1, "n_epochs": 4, "loss": 1.25,
            "images_per_s": 2500.4, "eta_s": 75, "checkpoint_step": -1, **changes}


def event(seq, state, reason="", **more):
    return {"seq": seq, "id": 7, "time": 1700000000000 + seq, "type": state, "state": state, "reason": reason, **more}


# --- usage ---

@pytest.mark.parametrize("args, part", [
    ([], "a command is missing"),
    (["frobnicate"], "unknown command"),
    (["lst"], "did you mean 'list'"),
    (["list", "--stat", "queued"], "did you mean --state"),
    (["show"], "0 operands found; usage: bfctl show ID"),
    (["show", "1", "2"], "2 operands found"),
    (["show", "one"], "a job id is accepted"),
    (["show", "0"], "a job id is accepted"),
    (["show", "-1"], "unknown option"),
    (["submit", "/nonexistent/spec.json"], "/nonexistent/spec.json"),
    (["logs", "1", "--rank", "x"], "--rank: 'x' found"),
    (["--address"], "--address needs a value"),
    (["--address", "http:host:1", "list"], "unix:PATH is accepted"),
])
def test_usage_errors(args, part):
    run = bfctl(*args)
    assert run.returncode == 2
    assert part in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize("command", ["top", "eval", "export", "report"])
def test_commands_of_later_versions_are_refused(command):
    run = bfctl(command, "1")
    assert run.returncode == 2
    assert run.stderr == f"bfctl: {command}: not available in this version\n"


@pytest.mark.parametrize("command", ["run", "submit", "list", "show", "watch", "logs", "metrics", "cancel", "validate",
                                     "info", "shutdown", "drain", "checkpoint", "explain", "nodes", "verify",
                                     "diff"])
def test_every_command_has_help(command):
    run = bfctl(command, "--help")
    assert run.returncode == 0
    assert run.stdout.startswith(f"usage: bfctl {command}")
    assert f"\n  {command}" in bfctl("--help").stdout


def test_no_coordinator(tmp_path):
    run = bfctl("list", address=f"unix:{tmp_path}/none.sock")
    assert (run.returncode, run.stdout) == (3, "")
    assert "no coordinator answers at" in run.stderr
    run = bfctl("--json", "list", env={"BATCHFORMER_ADDRESS": f"unix:{tmp_path}/none.sock"})
    assert run.returncode == 3
    assert "no coordinator" in json.loads(run.stdout)["error"]["message"]


# --- submit ---

def test_submit_prints_the_id_alone(tmp_path, spec):
    with FakeCoordinator(tmp_path, {"job.submit": lambda c, p: {"id": 7}}) as fake:
        run = bfctl("submit", spec, "--idempotency-key", "k1", address=fake.address)
        assert (run.returncode, run.stdout, run.stderr) == (0, "7\n", "")
        run = bfctl("submit", spec, "--json", address=fake.address)
        assert json.loads(run.stdout) == {"id": 7}
    assert fake.params_of("job.submit")[0]["idempotency_key"] == "k1"
    assert "idempotency_key" not in fake.params_of("job.submit")[1]


def test_relative_paths_become_absolute(tmp_path, spec):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with FakeCoordinator(tmp_path, {"job.submit": lambda c, p: {"id": 7}}) as fake:
        bfctl("submit", os.path.relpath(spec, elsewhere), address=fake.address, cwd=elsewhere)
        bfctl("submit", spec, "--set", "data.path=mine", address=fake.address, cwd=elsewhere)
        bfctl("submit", "-", address=fake.address, cwd=elsewhere, stdin=spec.read_text())
        bfctl("submit", spec, "--set", "data.path=/abs", address=fake.address)
    sent = [p["spec"] for p in fake.params_of("job.submit")]
    assert [s["data"]["path"] for s in sent] == [f"{spec.parent}/data/fashion", f"{elsewhere}/mine",
                                                 f"{elsewhere}/data/fashion", "/abs"]
    assert sent[0]["init"]["weights"] == f"{spec.parent}/w.safetensors"


def test_set_overrides_keys(tmp_path, spec):
    with FakeCoordinator(tmp_path, {"job.submit": lambda c, p: {"id": 7}}) as fake:
        run = bfctl("submit", spec, "--set", "train.epochs=5", "--set", "name=night", "--set",
                    'data.long_tail={"kind":"exp","factor":10}', address=fake.address)
        assert run.returncode == 0, run.stderr
        assert bfctl("submit", spec, "--set", "train.epochs", address=fake.address).returncode == 2
        assert bfctl("submit", spec, "--set", "version.x=1", address=fake.address).returncode == 2
    sent = fake.params_of("job.submit")
    assert len(sent) == 1
    assert sent[0]["spec"]["train"] == {"epochs": 5, "batch_size": 8}
    assert sent[0]["spec"]["name"] == "night"
    assert sent[0]["spec"]["data"]["long_tail"] == {"kind": "exp", "factor": 10}


def test_an_invalid_spec_is_not_sent(tmp_path, spec):
    with FakeCoordinator(tmp_path, {}) as fake:
        run = bfctl("submit", spec, "--set", "train.epochs=0", "--set", "x=1", address=fake.address)
        assert (run.returncode, run.stdout) == (2, "")
        assert "2 findings" in run.stderr and "/train/epochs: 0 found" in run.stderr and "/x: unknown" in run.stderr
    assert fake.calls == []


def test_a_stricter_coordinator(tmp_path, spec):
    def refuse(connection, params):
        raise RpcError(1002, "invalid spec", {"errors": [{"pointer": "/resources/ranks", "message": "99 found"}]})

    with FakeCoordinator(tmp_path, {"job.submit": refuse}) as fake:
        run = bfctl("submit", spec, address=fake.address)
        assert (run.returncode, run.stdout) == (2, "")
        assert "/resources/ranks: 99 found" in run.stderr
        run = bfctl("--json", "submit", spec, address=fake.address)
        assert json.loads(run.stdout)["errors"] == [{"pointer": "/resources/ranks", "message": "99 found"}]


def test_a_full_coordinator(tmp_path, spec):
    def refuse(connection, params):
        raise RpcError(1005, "draining")

    with FakeCoordinator(tmp_path, {"job.submit": refuse}) as fake:
        run = bfctl("submit", spec, address=fake.address)
        assert (run.returncode, run.stdout) == (1, "")
        assert "draining" in run.stderr
        error = json.loads(bfctl("--json", "submit", spec, address=fake.address).stdout)["error"]
        assert error["code"] == 1005


# --- list, show and the short ones ---

JOBS = [
    {"id": 1, "name": "first", "state": "succeeded", "user": "ada", "submitted_ms": 1000, "progress": progress(100)},
    {"id": 22, "name": "evil\u001b[2Jname", "state": "running", "user": "bob", "submitted_ms": 1000,
     "progress": progress(42)},
    {"id": 333, "name": "third", "state": "queued", "user": "ada", "submitted_ms": 1000, "progress": None},
]


def paged_list(connection, params):
    at = params.get("cursor", 0)
    page = {"jobs": JOBS[at:at + 2]}
    if at + 2 < len(JOBS):
        page["cursor"] = at + 2
    return page


def test_list(tmp_path):
    with FakeCoordinator(tmp_path, {"job.list": paged_list}) as fake:
        run = bfctl("list", "--user", "ada", "--state", "running", address=fake.address)
        lines = run.stdout.splitlines()
        assert run.returncode == 0
        assert lines[0].split() == ["ID", "NAME", "STATE", "PROGRESS", "LOSS", "IMAGES/S", "ETA", "USER", "AGE"]
        assert lines[2].split()[:8] == ["22", "evil?[2Jname", "running", "42/100", "42", "%", "1.25", "2500"]
        assert "1 m 15 s" in lines[2]
        assert "1 m 15 s" not in lines[1], "a job that has ended has no ETA"
        assert lines[3].split()[:3] == ["333", "third", "queued"]
        assert "\x1b" not in run.stdout
        assert len(bfctl("list", "--limit", "3", address=fake.address).stdout.splitlines()) == 4
        assert [p.get("limit") for p in fake.params_of("job.list")[2:]] == [3, 1]
        out = json.loads(bfctl("--json", "list", address=fake.address).stdout)
        assert out["jobs"] == JOBS
    assert fake.calls[0] == ("job.list", {"state": "running", "user": "ada"})
    assert fake.calls[1] == ("job.list", {"state": "running", "user": "ada", "cursor": 2})


def test_empty_list(tmp_path):
    with FakeCoordinator(tmp_path, {"job.list": lambda c, p: {"jobs": []}}) as fake:
        run = bfctl("list", address=fake.address)
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "no jobs\n")


def test_show(tmp_path):
    job = {**JOBS[1], "reason": "running on 2 ranks", "attempt": 2, "paths": {"run_dir": "/s/runs/22"}, "spec": SPEC}

    def get(connection, params):
        if params != {"id": 22}:
            raise RpcError(1001, f"job {params['id']} not found")
        return job

    with FakeCoordinator(tmp_path, {"job.get": get}) as fake:
        out = bfctl("show", "22", address=fake.address).stdout
        for part in ("running on 2 ranks", "42 %  step 42/100", "/s/runs/22", '"batch_size":\t8', "1970-01-01T00:00:01"):
            assert part in out
        assert "\x1b" not in out
        assert json.loads(bfctl("--json", "show", "22", address=fake.address).stdout) == job
        run = bfctl("show", "23", address=fake.address)
        assert (run.returncode, run.stdout) == (1, "")
        assert "job 23 not found" in run.stderr


def rank_row(rank, **more):
    return {"rank": rank, "host": f"node{rank // 2}", "pid": 100 + rank, "state": "ok", "step": 512, "phase": "forward",
            "waits_in": "all-gather of features", "age_s": 0.4, "step_ms": 40.0, "work_ms": 20.0 + rank / 10,
            "ratio": 1 + rank / 200, **more}


def test_show_ranks(tmp_path):
    """Who is in trouble first, then the slower ones; a rank that nobody has heard of has nothing to show."""
    rows = [rank_row(r) for r in range(30)]
    rows[7] = rank_row(7, state="slow", work_ms=36.0, ratio=1.8, waits_in=None, phase="backward")
    rows[3] = rank_row(3, state="stopped", age_s=8.0, host="evil\x1b[2J")
    rows[5] = {**dict.fromkeys(rows[5]), "rank": 5, "state": "absent"}
    with FakeCoordinator(tmp_path, {"job.get": lambda c, p: {**JOBS[1], "per_rank": rows}}) as fake:
        out = bfctl("show", "22", address=fake.address).stdout
    assert "\x1b" not in out
    lines = out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:2] == ["RANK", "HOST"])
    table = [line.split() for line in lines[head + 1:head + 17]]
    assert [row[0] for row in table] == ["7", "3", "5"] + [str(r) for r in range(29, 16, -1)]
    assert table[0] == "7 node3 slow 512 40 ms 36 ms 1.80 400 ms backward".split()
    assert table[3][-3:] == ["all-gather", "of", "features"]
    assert lines[head + 17] == "and 14 more; --json has all"


def test_short_requests(tmp_path):
    methods = {
        "job.cancel": lambda c, p: {"id": p["id"], "cancelling": True},
        "job.checkpoint": lambda c, p: {"state": "running"},
        "job.explain": lambda c, p: {"text": "waits for 2 slots; 0 of 4 are free"},
        "daemon.info": lambda c, p: {"version": "0.1.0", "uptime_s": 61, "jobs": {"queued": 2}},
        "daemon.drain": lambda c, p: {},
        "daemon.shutdown": lambda c, p: {},
        "node.list": lambda c, p: {"nodes": [{"name": "here", "health": "ok", "slots": 4, "slots_free": 1,
                                              "gpus": 2, "gpus_free": 0, "jobs": [3, 4]}]},
    }
    with FakeCoordinator(tmp_path, methods) as fake:
        def ask(*args):
            run = bfctl(*args, address=fake.address)
            assert run.returncode == 0, run.stderr
            return run.stdout
        assert ask("cancel", "7") == "cancelling\n"
        assert ask("checkpoint", "7") == "running\n"
        assert ask("explain", "7") == "waits for 2 slots; 0 of 4 are free\n"
        assert ask("info") == "version: 0.1.0\nuptime: 1 m 01 s\njobs:\n  queued: 2\n"
        assert ask("nodes").splitlines()[1].split() == ["here", "ok", "4", "1", "2", "0", "[3,4]", "-"]
        assert ask("drain") == "" and ask("shutdown") == "" and ask("shutdown", "--cancel") == ""
        assert json.loads(ask("--json", "info"))["uptime_s"] == 61
        assert json.loads(ask("info", "--json"))["uptime_s"] == 61
    assert fake.params_of("job.cancel") == [{"id": 7}]
    assert [p["cancel"] for p in fake.params_of("daemon.shutdown")] == [False, True]


# --- watch ---

def watching(*events, then=None):
    def watch(connection, params):
        for ev in events:
            if ev["type"] == "progress" or ev["seq"] > params["since"]:
                connection.notify("job.event", ev)
        if then:
            then(connection)
        return {"seq": 3}
    return {"job.watch": watch, "job.get": lambda c, p: {"id": 7, "paths": {"run_dir": "/nowhere"}}}


RUNNING = [event(1, "queued", "submitted by ada"), event(3, "running", "running on 2 ranks"),
           {**progress(42), "seq": 3, "id": 7, "time": 1, "type": "progress"}]


@pytest.mark.parametrize("state, status", [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_watch_ends_with_the_job(tmp_path, state, status):
    with FakeCoordinator(tmp_path, watching(*RUNNING, event(9, state, "that is why"))) as fake:
        run = bfctl("watch", "7", address=fake.address)
        assert run.returncode == status
        assert "running on 2 ranks" in run.stderr and "step 42/100" in run.stderr
        assert run.stdout.splitlines()[0] == f"job 7 {state}" + (": that is why" if status else "")
        run = bfctl("watch", "7", "--json", address=fake.address)
        assert run.returncode == status
        assert [json.loads(line) for line in run.stdout.splitlines()] == RUNNING + [event(9, state, "that is why")]


def test_submit_watch(tmp_path, spec):
    methods = {**watching(*RUNNING, event(9, "failed", "no data")), "job.submit": lambda c, p: {"id": 7}}
    with FakeCoordinator(tmp_path, methods) as fake:
        run = bfctl("submit", spec, "--watch", address=fake.address)
        assert (run.returncode, run.stdout) == (1, "7\n")
        assert "job 7 failed: no data" in run.stderr


def test_watch_survives_a_restart_of_the_coordinator(tmp_path):
    """The connection ends twice; every event is shown exactly once."""
    script = [RUNNING[:1], RUNNING[1:], [event(4, "running", "checkpoint"), event(9, "succeeded")]]

    def watch(connection, params):
        part = script[min(len(since), 2)]
        since.append(params["since"])
        for ev in part:
            connection.notify("job.event", ev)
        if len(since) < 3:
            connection.close_after_reply()
        return {"seq": 1}

    since = []
    with FakeCoordinator(tmp_path, {"job.watch": watch}) as fake:
        run = bfctl("watch", "7", "--json", address=fake.address)
        assert run.returncode == 0, run.stderr
        assert "trying again" in run.stderr
    assert since == [0, 1, 3]
    assert [json.loads(line) for line in run.stdout.splitlines()] == sum(script, [])


def test_watch_of_a_job_that_is_not_there(tmp_path):
    def watch(connection, params):
        raise RpcError(1001, "job 7 not found")

    with FakeCoordinator(tmp_path, {"job.watch": watch}) as fake:
        run = bfctl("watch", "7", address=fake.address)
        assert run.returncode == 1 and "job 7 not found" in run.stderr


def test_interrupted_watch_leaves_the_job_alone(tmp_path):
    with FakeCoordinator(tmp_path, watching(*RUNNING)) as fake:
        process = bfctl_start("watch", "7", address=fake.address)
        assert "submitted by ada" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
    assert fake.params_of("job.cancel") == []


def test_progress_on_a_terminal_is_one_line(tmp_path):
    """The bar rewrites its line; transitions stand on lines of their own."""
    steps = [{**progress(step, phase=f"p{step}"), "seq": 3, "id": 7, "time": 1, "type": "progress"}
             for step in (10, 50, 100)]
    with FakeCoordinator(tmp_path, watching(*RUNNING[:2], *steps, event(9, "succeeded", "done"))) as fake:
        ours, theirs = pty.openpty()
        process = subprocess.Popen([bin_dir() / "bfctl", "--address", fake.address, "watch", "7"], stderr=theirs,
                                   stdout=subprocess.DEVNULL)
        os.close(theirs)
        seen, deadline = b"", time.monotonic() + 20
        while time.monotonic() < deadline and select.select([ours], [], [], 20)[0]:
            try:
                chunk = os.read(ours, 4096)
            except OSError:
                break
            if not chunk:
                break
            seen += chunk
        assert process.wait(timeout=20) == 0
        os.close(ours)
    text = seen.decode()
    assert text.count("\n") == 3, text
    for part in (" 10 %", " 50 %", "100 %"):
        assert f"{part}  step" in text
    assert "\r\x1b[K[" in text and "[########################]" in text
    assert text.rstrip().endswith("done")


# --- logs and metrics ---

def test_logs(tmp_path):
    lines = [{"rank": 0, "line": "hello"}, {"rank": 1, "line": "bad\u001b[2J"}]
    with FakeCoordinator(tmp_path, {"job.logs": lambda c, p: {"lines": lines}}) as fake:
        run = bfctl("logs", "7", address=fake.address)
        assert (run.returncode, run.stdout) == (0, "[0] hello\n[1] bad?[2J\n")
        assert bfctl("logs", "7", "--rank", "launcher", address=fake.address).returncode == 0
        run = bfctl("logs", "7", "--rank", "1", "--tail", "5", address=fake.address)
        assert run.stdout == "hello\nbad?[2J\n"
        assert json.loads(bfctl("--json", "logs", "7", address=fake.address).stdout) == {"lines": lines}
    assert fake.params_of("job.logs")[1] == {"id": 7, "rank": "launcher"}
    assert fake.params_of("job.logs")[2] == {"id": 7, "rank": 1, "tail": 5}


def test_follow_logs(tmp_path):
    def logs(connection, params):
        for line in more:
            connection.notify("job.log", {"id": 7, "rank": 1, "line": line})
        if ends:
            connection.notify("job.log", {"id": 7, "end": True})
        return {"lines": [{"rank": 0, "line": "old"}]}

    more, ends = ["new", "newer"], True
    with FakeCoordinator(tmp_path, {"job.logs": logs}) as fake:
        run = bfctl("logs", "7", "-f", address=fake.address)
        assert (run.returncode, run.stdout) == (0, "[0] old\n[1] new\n[1] newer\n")
        run = bfctl("logs", "7", "-f", "--json", address=fake.address)
        assert [json.loads(line)["line"] for line in run.stdout.splitlines()] == ["old", "new", "newer"]
        ends = False
        process = bfctl_start("logs", "7", "--follow", address=fake.address)
        for line in process.stdout:
            if "newer" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
    assert fake.params_of("job.logs")[0] == {"id": 7, "follow": True}


def test_metrics(tmp_path):
    series = {"loss": [[0, 2.0], [10, None], [20, 0.5]], "lr": [[0, 0.1], [20, 0.1]], "val_top1": []}
    with FakeCoordinator(tmp_path, {"job.metrics": lambda c, p: {"series": series}}) as fake:
        run = bfctl("metrics", "7", "--name", "loss", "--name", "lr", "--since-step", "0", address=fake.address)
        rows = [line.split() for line in run.stdout.splitlines()]
        assert rows[0] == ["METRIC", "POINTS", "STEP", "FIRST", "LAST", "MIN", "MAX"]
        assert rows[1] == ["loss", "2", "20", "2", "0.5", "0.5", "2"]
        assert rows[2] == ["lr", "2", "20", "0.1", "0.1", "0.1", "0.1"]
        assert rows[3] == ["val_top1", "0"]
        plot = bfctl("metrics", "7", "--plot", address=fake.address).stdout.splitlines()
        assert plot[0] == "loss" and plot[1].startswith("         2 |*") and plot[12].rstrip().endswith("*")
        assert json.loads(bfctl("metrics", "7", "--json", address=fake.address).stdout) == {"series": series}
    assert fake.params_of("job.metrics")[0] == {"id": 7, "names": ["loss", "lr"], "since_step": 0}
