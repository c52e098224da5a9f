"""Under root a job runs as the user who submitted it: ids, groups, environment, files, sockets; and what a user may put
into his run directory does no harm."""
import json
import os
import pathlib
import stat
import subprocess

import pytest

from daemonlib import Rpc, RpcError, environments, spec, wait_until
from tlslib import Certificates, TlsDaemon, copy_of

pytestmark = [pytest.mark.sanitize,
              pytest.mark.skipif(os.getuid() != 0, reason="needs root to start jobs as other users")]

NOBODY = 65534
LONG = {"train": {"epochs": 100000, "batch_size": 32}}


def token_for(daemon, user, role="user"):
    with daemon.rpc() as rpc:
        return rpc.call("token.create", user=user, role=role)["token"]


def login(daemon, user, role="user"):
    """A connection that is the user's, over the Unix socket."""
    rpc = daemon.rpc()
    rpc.call("auth.login", token=token_for(daemon, user, role))
    return rpc


@pytest.fixture
def daemon(open_path, make_daemon):
    return make_daemon(directory=open_path, launcher="mpirun",
                       options=["--worker", copy_of("batchformer-worker", open_path)],
                       env={"SECRET_OF_ROOT": "s3cret", "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")})


def running(rpc, job):
    rpc.wait_state(job, "running")
    return rpc.call("job.get", id=job)


def status_of(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.split("\n") if ":\t" in line)


def family(daemon, job):
    """Everything that runs below the job's run directory, whoever started it."""
    mark = str(daemon.run_dir(job)).encode()
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_job_runs_as_who_submitted_it(daemon):
    with login(daemon, "nobody") as rpc:
        job = rpc.submit(spec("nobodys", ranks=2, **LONG))
        record = running(rpc, job)
        assert record["user"] == "nobody" and record["uid"] == NOBODY
        members = family(daemon, job)
        assert len(members) == 3  # mpirun and two ranks
        for pid in members:
            status = status_of(pid)
            assert status["Uid"].split() == [str(NOBODY)] * 4 and status["Gid"].split() == [str(NOBODY)] * 4
            assert status["Groups"].split() == [str(NOBODY)]
            assert status["CapPrm"] == status["CapEff"] == "0" * 16 and status["NoNewPrivs"] == "1"
            env = (pathlib.Path(f"/proc/{pid}") / "environ").read_bytes().split(b"\0")
            names = {v.split(b"=")[0] for v in env}
            assert b"HOME=/nonexistent" in env and b"USER=nobody" in env and b"LOGNAME=nobody" in env
            assert not names & {b"SECRET_OF_ROOT", b"BATCHFORMER_FAKE", b"SUDO_USER", b"SSH_AUTH_SOCK", b"XDG_RUNTIME_DIR",
                                b"OMPI_ALLOW_RUN_AS_ROOT"}
            assert f"BATCHFORMER_LINK=unix:{daemon.state}/workers.sock".encode() in env
        rpc.call("job.checkpoint", id=job)
        wait_until(lambda: rpc.call("job.get", id=job)["checkpoint_step"] > 0, "a checkpoint is written")
        assert rpc.call("job.logs", id=job, rank=0)["lines"]
        wait_until(lambda: rpc.call("job.metrics", id=job)["series"].get("loss"), "losses are logged")
        rpc.call("job.cancel", id=job)
        rpc.wait_state(job, "cancelled")
    run = daemon.run_dir(job)
    for path in (run, *run.rglob("*")):
        info = path.lstat()
        assert (info.st_uid, info.st_gid) == (NOBODY, NOBODY), path
        assert not info.st_mode & 0o002, path
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert stat.S_IMODE(daemon.state.stat().st_mode) == stat.S_IMODE(run.parent.stat().st_mode) == 0o711
    for name in ("state.db", "state.db-wal", "tokens.json", "lock"):
        assert not (daemon.state / name).stat().st_mode & 0o077, name
    assert family(daemon, job) == []


def test_root_s_jobs_stay_root_s(daemon):
    with daemon.rpc() as rpc, login(daemon, "nobody") as other:
        mine, his = rpc.submit(spec(**LONG)), other.submit(spec(**LONG))
        running(rpc, mine)
        running(other, his)
        assert {status_of(p)["Uid"].split()[0] for p in family(daemon, mine)} == {"0"}
        assert {status_of(p)["Uid"].split()[0] for p in family(daemon, his)} == {str(NOBODY)}
        env = next(iter(environments(*daemon.marks(mine)).values()))
        assert env["SECRET_OF_ROOT"] == "s3cret"  # root's own environment is root's to use
        assert stat.S_IMODE(daemon.run_dir(mine).stat().st_mode) == 0o700
        for rpc_of, job in ((rpc, mine), (other, his)):
            rpc_of.call("job.cancel", id=job)
            rpc_of.wait_state(job, "cancelled")


def test_a_job_goes_on_over_restarts(daemon):
    """A lost rank, and a daemon that is killed: the user stays the user."""
    with login(daemon, "nobody") as rpc:
        job = rpc.submit(spec(ranks=2, **LONG, checkpoint={"every_steps": 20}))
        running(rpc, job)
        wait_until(lambda: rpc.call("job.get", id=job)["checkpoint_step"] > 0, "a checkpoint is written")
        ranks = [p for p in family(daemon, job) if b"mpirun" not in pathlib.Path(f"/proc/{p}/cmdline").read_bytes()]
        os.kill(ranks[0], 9)
        wait_until(lambda: rpc.call("job.get", id=job)["attempts"] == 2, "it was started again")
        running(rpc, job)
    daemon.kill()
    assert family(daemon, job)
    daemon.start()
    with login(daemon, "nobody") as rpc:
        def attached():
            return f"job {job}: rank 0 of 2" in daemon.log_text().rsplit("listening on", 1)[1]
        wait_until(attached, "the worker is back")
        assert {status_of(p)["Uid"].split()[0] for p in family(daemon, job)} == {str(NOBODY)}
        rpc.call("job.cancel", id=job)
        record = rpc.wait_state(job, "cancelled")
        assert record["attempts"] == 2


def test_what_the_user_may_not_run_or_enter(open_path, make_daemon):
    private = open_path / "private"
    private.mkdir(mode=0o700)
    worker = copy_of("batchformer-worker", private)
    daemon = make_daemon(directory=open_path, launcher="mpirun", options=["--worker", worker])
    with login(daemon, "nobody") as rpc:
        record = rpc.wait_state(rpc.submit(), "failed")
        assert record["reason"] == (f"could not be started: the worker cannot be run as {worker} by user nobody: "
                                    "Permission denied")
        open_path.chmod(0o700)
        record = rpc.wait_state(rpc.submit(), "failed")
        assert "user nobody cannot work in" in record["reason"]
        open_path.chmod(0o711)
    with daemon.rpc() as rpc:
        nameless = rpc.call("token.create", user="3999999999")["token"]
    with daemon.rpc() as rpc:
        rpc.call("auth.login", token=nameless)
        record = rpc.wait_state(rpc.submit(), "failed")
        assert "no user of this machine has the number 3999999999" in record["reason"]


# --- the workers' own socket ---

def test_the_socket_for_workers_takes_workers_only(daemon):
    path = daemon.state / "workers.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    with Rpc(path) as rpc:
        for method, params in (("daemon.info", {}), ("job.list", {}), ("job.submit", {"spec": spec()}),
                               ("worker.progress", {"step": 1}), ("no.such", {})):
            with pytest.raises(RpcError) as caught:
                rpc.call(method, **params)
            assert caught.value.code == 1006
        with pytest.raises(RpcError) as caught:
            rpc.call("auth.login", token=token_for(daemon, "root", "admin"))
        assert caught.value.code == 1004 and "for workers" in caught.value.message
        with pytest.raises(RpcError) as caught:
            rpc.call("worker.attach", job=1, attempt=1, token="x", pid=1, host="h", ranks=1)
        assert caught.value.code == 1004


def test_only_the_job_s_user_comes_in_by_the_socket_for_workers(daemon):
    """With the right token, too; and his own second connection replaces the first."""
    with login(daemon, "nobody") as rpc:
        job = rpc.submit(spec(**LONG))
        running(rpc, job)
        env = next(iter(environments(f"BATCHFORMER_LINK=unix:{daemon.state}/workers.sock").values()))
        who = dict(job=job, attempt=1, token=env["BATCHFORMER_TOKEN"], pid=1, host="h", ranks=1)
        with Rpc(daemon.state / "workers.sock") as roots:
            with pytest.raises(RpcError) as caught:
                roots.call("worker.attach", **who)
            assert caught.value.code == 1004 and "is not running here with this token" in caught.value.message
            with pytest.raises(RpcError) as caught:
                roots.call("worker.hello", job=job, attempt=1, token=who["token"], rank=0, pid=1, host="h")
            assert caught.value.code == 1004 and "has no rank 0 here with this token" in caught.value.message
        out = subprocess.run(["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups",
                              "/usr/bin/python3", "-c", ATTACH, str(daemon.state / "workers.sock"), json.dumps(who)],
                             capture_output=True, text=True, timeout=60)
        assert json.loads(out.stdout)["result"] == {"accepted": True}, out.stderr
        rpc.call("job.cancel", id=job)
        rpc.wait_state(job, "cancelled")


ATTACH = """
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
f = s.makefile("rw")
print(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "worker.attach", "params": json.loads(sys.argv[2])}), file=f, flush=True)
print(f.readline())
"""


def test_a_worker_s_token_opens_its_own_job_and_nothing_else(tmp_path):
    """Over TLS, as a rank on another machine would come; it replaces the link that there was."""
    daemon = TlsDaemon(tmp_path, Certificates(tmp_path / "c"), launcher="mpirun")
    daemon.start()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec(**LONG))
        running(rpc, job)
        token = next(iter(environments(*daemon.marks(job)).values()))["BATCHFORMER_TOKEN"]
        who = dict(job=job, attempt=1, pid=1, host="far", ranks=1)
        with daemon.tls() as link:
            with pytest.raises(RpcError) as caught:
                link.call("worker.attach", **who, token=token[:-1] + ("0" if token[-1] != "0" else "1"))
            assert caught.value.code == 1004
            assert link.call("worker.attach", **who, token=token) == {"accepted": True}
            link.send({"jsonrpc": "2.0", "method": "worker.metrics",
                       "params": {"step": 1, "epoch": 0, "kind": "far", "values": {"x": 4.5}}})
            wait_until(lambda: (rpc.call("job.get", id=job)["metrics"] or {}).get("far"), "its report has come")
            for method in ("job.list", "job.get", "job.cancel", "daemon.info"):
                with pytest.raises(RpcError) as caught:
                    link.call(method, **({"id": job} if method.startswith("job.") and method != "job.list" else {}))
                assert caught.value.code == 1006
        rpc.call("job.cancel", id=job)
        rpc.wait_state(job, "cancelled")
    daemon.stop()


# --- hostile jobs, hostile run directories ---

HOSTILE_NAMES = ["-n", "--help", "-rf", "a b", "a\nb", "a;reboot", "$(reboot)", "`reboot`", "a/../b", "", "a" * 200, "\u202ename", "%s%n", "'", '"', "|x", "&", ">x", "*"]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_hostile_names_are_refused(make_daemon, name):
    with make_daemon().rpc() as rpc:
        with pytest.raises(RpcError) as caught:
            rpc.submit(spec(name))
        assert caught.value.code == 1002 and caught.value.data["errors"][0]["pointer"] == "/name"


def test_no_field_of_a_job_is_an_argument(daemon):
    """The strings of a spec are in no command line and no environment; a path with everything that a shell would take is
    a path."""
    weird = "/tmp/-x --job /etc/passwd; $(touch /tmp/pwned) `id` \"'|&>*?~{}"
    doc = spec("Hostile-Name_1.0+x=y", ranks=2, **LONG, init={"weights": weird})
    with login(daemon, "nobody") as rpc:
        job = rpc.submit(doc)
        record = rpc.wait_state(job, "failed")  # there is no such file
        assert weird[:60] in record["reason"]
        assert record["attempts"] == 1
    doc["init"] = {"weights": None}
    with login(daemon, "nobody") as rpc:
        job = rpc.submit(doc)
        running(rpc, job)
        for pid in family(daemon, job):
            entry = pathlib.Path(f"/proc/{pid}")
            assert b"Hostile" not in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        line = next(pathlib.Path(f"/proc/{p}/cmdline").read_bytes().split(b"\0") for p in family(daemon, job)
                    if b"mpirun" in pathlib.Path(f"/proc/{p}/cmdline").read_bytes())
        run = str(daemon.run_dir(job)).encode()
        assert line[-6:] == [str(daemon.dir / "batchformer-worker").encode(), b"--job", run + b"/job.json", b"--run-dir",
                             run, b""]
        rpc.call("job.cancel", id=job)
        rpc.wait_state(job, "cancelled")
    assert not pathlib.Path("/tmp/pwned").exists()


def as_nobody(script):
    subprocess.run(["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "sh", "-ec", script],
                   check=True, timeout=60)


def test_traps_in_a_run_directory(daemon, open_path):
    """Its owner makes links to what only root may read or write, and pipes that nobody writes to."""
    secret = open_path / "secret"
    secret.write_text('{"status": "succeeded", "reason": "s3cret", "step": 1, "kind": "s3cret", "loss": 42}\n')
    secret.chmod(0o600)
    before = secret.read_bytes()
    with login(daemon, "nobody") as rpc, daemon.rpc() as root:
        roots = root.submit(spec("roots"))
        root.wait_state(roots, "succeeded")
        job = rpc.submit(spec(**LONG))
        running(rpc, job)
        run = daemon.run_dir(job)
        # By renaming: the worker would make a file anew that is missing for a moment.
        as_nobody(f"cd {run}; mv log log.away; ln -s {daemon.run_dir(roots)}/log log;"
                  f"ln -s {daemon.run_dir(roots)}/metrics.jsonl x; mv -T x metrics.jsonl; ln -s {secret} x;"
                  f"mv -T x result.json; ln -s {secret} job.json.tmp.{daemon.process.pid}")
        assert rpc.call("job.logs", id=job)["lines"] == []
        with pytest.raises(RpcError) as caught:
            rpc.call("job.metrics", id=job)
        assert caught.value.code == -32603 and "Too many levels" in caught.value.message
        rpc.call("job.cancel", id=job)
        record = rpc.wait_state(job, "cancelled", "failed")
        assert "s3cret" not in str(record)
        wait_until(lambda: family(daemon, job) == [], "nobody else works there")
        as_nobody(f"cd {run}; rm -f result.json metrics.jsonl log; mkdir log;"
                  "mkfifo result.json metrics.jsonl log/rank-0000.log")
        assert rpc.call("job.logs", id=job)["lines"] == []
        with pytest.raises(RpcError) as caught:
            rpc.call("job.metrics", id=job)
        assert "is not a file" in caught.value.message
        assert "s3cret" not in str(rpc.call("job.get", id=job))
        assert root.call("daemon.info")["version"]
    assert secret.read_bytes() == before
