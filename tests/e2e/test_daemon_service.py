"""The daemon as a service: what it tells the service manager, reloading, its log, and the unit file."""
import configparser
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess

import pytest

from buildlib import ROOT, bin_dir
from daemonlib import HERE, RpcError, environments, spec, wait_until

UNIT = ROOT / "deploy" / "systemd" / "batchformerd.service"
CONFIG = ROOT / "deploy" / "systemd" / "batchformerd.json"


class Manager:
    """The service manager's end of sd_notify."""

    def __init__(self, name):
        self.name = name
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + name[1:] if name.startswith("@") else name)
        self.sock.settimeout(60)
        self.told = []

    def next(self):
        """The next message as {variable: value}."""
        text = self.sock.recv(1 << 16).decode()
        self.told.append(dict(line.split("=", 1) for line in text.split("\n")))
        return self.told[-1]

    def until(self, done):
        while not done(message := self.next()):
            pass
        return message


@pytest.fixture
def manager(tmp_path):
    manager = Manager(str(tmp_path / "notify.sock"))
    yield manager
    manager.sock.close()


def ready(message):
    return message.get("READY") == "1"


# --- sd_notify ---

@pytest.mark.sanitize
@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(make_daemon, tmp_path, abstract):
    manager = Manager(f"@batchformer-test-{os.getpid()}" if abstract else str(tmp_path / "n.sock"))
    daemon = make_daemon(start=False, behaviour="run_ms=60000", env={"NOTIFY_SOCKET": manager.name})
    daemon.spawn()
    manager.until(ready)
    with daemon.rpc() as rpc:  # without waiting: it answers now
        job = rpc.submit()
        manager.until(lambda m: "1 running" in m.get("STATUS", ""))
        assert not any("\n" in v for m in manager.told for v in m.values())
        rpc.call("job.cancel", id=job)
        rpc.wait_state(job, "cancelled")
    daemon.process.send_signal(signal.SIGTERM)
    manager.until(lambda m: m.get("STOPPING") == "1")
    assert daemon.process.wait(60) == 0
    kinds = [next(iter(m)) for m in manager.told]
    assert kinds[0] == "READY" and kinds.count("READY") == 1 and "WATCHDOG" not in kinds
    manager.sock.close()


def test_trouble_with_the_disk_is_in_the_status(make_daemon, manager):
    daemon = make_daemon(env={"NOTIFY_SOCKET": manager.name, "BATCHFORMER_FAULT": "store.commit:error"})
    with daemon.rpc() as rpc:
        with pytest.raises(RpcError):
            rpc.submit()
        manager.until(lambda m: m.get("STATUS", "").startswith("events cannot be written: "))
        assert "committing" in rpc.call("daemon.info")["trouble"]
        rpc.wait_state(rpc.submit(), "succeeded")
        manager.until(lambda m: "slots in use" in m.get("STATUS", ""))
        assert rpc.call("daemon.info")["trouble"] is None


def test_a_start_that_fails_is_never_ready(make_daemon, manager):
    first = make_daemon()
    run = subprocess.run(first.argv(), env={**first.env, "NOTIFY_SOCKET": manager.name}, capture_output=True, text=True,
                         timeout=60)
    assert run.returncode == 1 and f"another batchformerd (pid {first.process.pid})" in run.stderr
    manager.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.next()


def test_the_watchdog_hears_from_the_loop(make_daemon, manager):
    daemon = make_daemon(env={"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "100000"})
    for _ in range(5):
        manager.until(lambda m: m.get("WATCHDOG") == "1")
    os.kill(daemon.process.pid, signal.SIGSTOP)  # a loop that hangs
    stat = pathlib.Path(f"/proc/{daemon.process.pid}/stat")
    wait_until(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "T", "it stops")
    manager.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            manager.next()  # what was under way; then nothing comes
    manager.sock.settimeout(0.5)  # five times the interval
    with pytest.raises(TimeoutError):
        manager.next()
    os.kill(daemon.process.pid, signal.SIGCONT)
    manager.sock.settimeout(60)
    manager.until(lambda m: m.get("WATCHDOG") == "1")


@pytest.mark.parametrize("more,says", [({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, None),
                                       ({"WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC 'soon' is not used"),
                                       ({"WATCHDOG_USEC": "-5"}, "WATCHDOG_USEC '-5' is not used")])
def test_a_watchdog_that_is_not_ours(make_daemon, manager, more, says):
    daemon = make_daemon(env={"NOTIFY_SOCKET": manager.name, **more}, behaviour="run_ms=50")
    with daemon.rpc() as rpc:
        rpc.wait_state(rpc.submit(), "succeeded")  # fifty of its intervals
    daemon.stop()
    manager.until(lambda m: m.get("STOPPING") == "1")
    assert not any("WATCHDOG" in m for m in manager.told)
    assert ("WATCHDOG" in daemon.log_text()) == bool(says) and (not says or says in daemon.log_text())


@pytest.mark.parametrize("name,says", [("relative/path", "NOTIFY_SOCKET 'relative/path' is not used"),
                                       ("vsock:2:1234", "NOTIFY_SOCKET 'vsock:2:1234' is not used"),
                                       ("/" + "x" * 200, "is not used: a path or @name of at most 107 bytes"),
                                       ("/nonexistent/socket", "the service manager cannot be told: No such file")])
def test_a_bad_socket_stops_nothing(make_daemon, name, says):
    daemon = make_daemon(env={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000"})
    with daemon.rpc() as rpc:
        rpc.wait_state(rpc.submit(), "succeeded")
    assert daemon.log_text().count(says) == 1


def test_jobs_are_not_the_service(make_daemon, manager):
    daemon = make_daemon(launcher="mpirun", options=["--worker", HERE / "fake_worker.py"],
                         env={"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "500000"})
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=100000+ms=20"))
        rpc.wait_state(job, "running")
        found = environments(*daemon.marks(job))
        assert found and not any({"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(env) for env in found.values())
        rpc.call("job.cancel", id=job)
        rpc.wait_state(job, "cancelled")


def test_a_private_coordinator_is_not_the_service(make_daemon, manager):
    daemon = make_daemon(start=False, options=["--lifeline"],
                         env={"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "1000"})
    ours, theirs = os.pipe()
    daemon.stdin = ours
    daemon.start()
    os.close(ours)
    os.close(theirs)
    assert daemon.process.wait(60) == 0
    manager.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.next()


# --- reload ---

def reload(daemon, manager, config, doc):
    """Writes the file, sends SIGHUP and waits until the daemon says that it is done; gives the log's new lines."""
    at = len(daemon.log_text())
    config.write_text(doc if isinstance(doc, str) else json.dumps(doc))
    daemon.process.send_signal(signal.SIGHUP)
    assert int(manager.until(lambda m: m.get("RELOADING") == "1")["MONOTONIC_USEC"]) > 0
    manager.until(ready)
    return daemon.log_text()[at:]


@pytest.mark.sanitize
def test_reload(make_daemon, manager, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"stop_ms": 1000, "max_clients": 100, "slots": 7, "log_level": "info"}))
    daemon = make_daemon(options=["--config", config], env={"NOTIFY_SOCKET": manager.name}, behaviour="run_ms=60000")
    manager.until(ready)

    log = reload(daemon, manager, config, {"stop_ms": 2000, "max_clients": 1, "slots": 7, "kill_ms": 77})
    assert "reload: stop-ms is 2000 from now on, it was 1000" in log
    assert "reload: kill-ms is 77 from now on, it was 10000" in log
    assert "reload: max-clients is 1 from now on, it was 100" in log
    assert "slots" not in log  # the command line says 2, whatever the file says
    with daemon.rpc() as rpc:
        job = rpc.submit()
        rpc.wait_state(job, "running")
        with daemon.rpc() as second:
            assert second.read()["error"]["message"].startswith("too many clients: 1 are")
        rpc.call("job.cancel", id=job)
        rpc.wait_state(job, "cancelled")
    assert "SIGTERM in 2000 ms, SIGKILL 77 ms after that" in daemon.log_text()

    # What needs a restart is named, and what does not is taken over all the same.
    log = reload(daemon, manager, config, {"hang_ms": 5000, "stop_ms": 3000, "mpirun": "/bin/true",
                                           "listen": ["unix:/tmp/elsewhere"]})
    assert "reload: hang-ms stays 30000 until a restart, which will make it 5000" in log
    assert "reload: mpirun stays none until a restart, which will make it /bin/true" in log
    assert "listen" not in log and "reload: stop-ms is 3000 from now on, it was 2000" in log
    assert "reload: max-clients is 512 from now on, it was 1" in log  # left out: the default again

    log = reload(daemon, manager, config, {"log_level": "error", "log_format": "json"})
    assert reload(daemon, manager, config, {"log_level": "error", "log_format": "json"}) == ""


@pytest.mark.parametrize("doc,says", [({"stop_ms": 5, "max_clients": 0}, "--max-clients: '0' found"),
                                      ({"stop_ms": 5, "slotz": 1}, 'unknown key "slotz"'),
                                      ({"stop_ms": 5, "log_level": "loud"}, "log level 'loud'"),
                                      ({"stop_ms": 5, "hang_ms": 1}, "--hang-ms: '1' found"),
                                      ('{"stop_ms": 5', "not valid JSON")])
def test_an_invalid_file_changes_nothing(make_daemon, manager, tmp_path, doc, says):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"stop_ms": 1000}))
    daemon = make_daemon(options=["--config", config], env={"NOTIFY_SOCKET": manager.name})
    manager.until(ready)
    log = reload(daemon, manager, config, doc)
    assert "ERROR" in log and "reload: everything stays as it was: " in log and says in log
    assert "from now on" not in log
    config.unlink()
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "No such file" in daemon.log_text(), "the missing file is told")
    log = reload(daemon, manager, config, {"stop_ms": 1000})
    assert "from now on" not in log  # it was 1000 all the time


def test_hangup_without_a_config_file(make_daemon):
    daemon = make_daemon()
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "there is no config file to read again" in daemon.log_text(), "it is told")
    with daemon.rpc() as rpc:
        rpc.wait_state(rpc.submit(), "succeeded")


# --- SIGTERM ---

def test_sigterm_drains(make_daemon):
    """What was asked before it is answered and durable; nothing starts any more; what runs goes on."""
    daemon = make_daemon(behaviour="run_ms=60000", slots=1)
    with daemon.rpc() as rpc:
        rpc.wait_state(rpc.submit(), "running")
        daemon.process.send_signal(signal.SIGSTOP)
        for i in range(20):  # all of this waits in the socket when the signal comes
            rpc.send({"jsonrpc": "2.0", "id": i, "method": "job.submit", "params": {"spec": spec(f"late{i}")}})
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        answers = []
        while (answer := rpc.read()) is not None:
            answers.append(answer)
    assert daemon.process.wait(60) == 0
    taken = [a["result"]["id"] for a in answers if "result" in a]
    assert all(a["error"]["code"] == 1005 for a in answers if "error" in a)
    daemon.start()
    with daemon.rpc() as rpc:
        states = {job["id"]: job["state"] for job in rpc.call("job.list")["jobs"]}
        assert set(taken) <= set(states)
        assert all(states[job] == "queued" for job in taken[1:])


# --- logs ---

def test_log_as_json(make_daemon):
    daemon = make_daemon(options=["--log-format", "json"])
    with daemon.rpc() as rpc:
        rpc.submit()
        job = rpc.submit(spec("second"))
        rpc.wait_state(job, "succeeded")
        with pytest.raises(RpcError):
            rpc.call("job.get", id=99)
    daemon.stop()
    lines = [json.loads(line) for line in daemon.log_text().splitlines()]
    always = {"time", "level", "component", "message"}
    assert all(always <= set(line) <= always | {"job"} for line in lines)
    mine = [line["message"] for line in lines if line.get("job") == job]
    assert mine and all(m.startswith(f"job {job} ") for m in mine) and "finished" in mine[-1]
    assert "job" not in lines[0] and {line["level"] for line in lines} == {"info"}
    run = subprocess.run([*daemon.argv(), "--lifeline"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                         env=daemon.env, timeout=60)
    assert run.returncode == 2 and "--lifeline" in json.loads(run.stderr.splitlines()[-1])["message"]


def test_bad_log_format(make_daemon):
    daemon = make_daemon(start=False, options=["--log-format", "xml"])
    run = subprocess.run(daemon.argv(), capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and "log format 'xml': accepted are text, json" in run.stderr


# --- the unit file ---

def unit():
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read(UNIT)
    return parser


def test_the_unit_says_what_jobs_need():
    service = unit()["Service"]
    assert service["Type"] == "notify" and float(service["WatchdogSec"]) > 1
    assert service["KillMode"] == "process" and service["OOMPolicy"] == "continue"
    assert service["Restart"] == "on-failure" and service["RestartPreventExitStatus"] == "2"
    assert service["NoNewPrivileges"] == "yes" and service["ProtectSystem"] == "strict"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert int(service["LimitNOFILE"]) >= 4096
    for breaks_jobs in ("PrivateTmp", "PrivateDevices", "MemoryDenyWriteExecute", "PrivateNetwork", "PrivateIPC",
                        "ProtectProc"):
        assert breaks_jobs not in service
    program, *rest = service["ExecStart"].split()
    assert program.endswith("/batchformerd") and rest == ["--config", "/etc/batchformer/batchformerd.json"]
    assert service["ExecReload"].endswith("-HUP $MAINPID")


def test_the_config_file_of_the_unit_is_valid(tmp_path):
    config = json.loads(CONFIG.read_text())
    service = unit()["Service"]
    assert config["state_dir"] == f"/var/lib/{service['StateDirectory']}"
    assert config["listen"][0].startswith(f"unix:/run/{service['RuntimeDirectory']}/")
    run = subprocess.run([bin_dir() / "batchformerd", "--config", CONFIG, "--check", "--state-dir", tmp_path],
                         capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "there is nothing to check" in run.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path):
    copy = tmp_path / UNIT.name
    program = (bin_dir() / "batchformerd").resolve()
    copy.write_text(UNIT.read_text().replace("/usr/local/bin/batchformerd", str(program)))
    run = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and UNIT.name not in run.stderr, run.stderr
