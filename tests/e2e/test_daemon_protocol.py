"""The daemon's socket: JSON-RPC as the standard says, hostile and clumsy clients, limits, addresses, options."""
import json
import os
import random
import socket
import stat
import subprocess
import threading

import pytest

from daemonlib import Daemon, Rpc, RpcError, bin_dir, spec, wait_until

MAX_LINE = 1 << 20


def alive(rpc):
    return rpc.call("daemon.info")["version"]


# --- messages ---

BAD_LINES = [
    (b"{", -32700, "line 1, column"),
    (b"nonsense", -32700, ""),
    (b'{"jsonrpc":"2.0","method":"daemon.info","id":1} x', -32700, ""),
    (b'{"jsonrpc":"2.0","id":1,"method":"daemon.info","id":2}', -32700, "twice"),
    (b'{"jsonrpc":"2.0","method":"a\x00b","id":1}', -32700, "NUL"),
    (b"[" * 100 + b"]" * 100, -32700, "nested deeper"),
    (b"[]", -32600, "batch of 0"),
    (b"1", -32600, "an object is accepted"),
    (b'"x"', -32600, ""),
    (b"{}", -32600, "/jsonrpc"),
    (b'{"jsonrpc":"1.0","method":"daemon.info","id":1}', -32600, "/jsonrpc"),
    (b'{"jsonrpc":"2.0","method":5,"id":1}', -32600, "/method"),
    (b'{"jsonrpc":"2.0","method":"daemon.info","id":[1]}', -32600, "/id"),
    (b'{"jsonrpc":"2.0","method":"daemon.info","params":3,"id":1}', -32600, "/params"),
    (b"[" + b",".join([b"1"] * 129) + b"]", -32600, "batch of 129"),
]


@pytest.mark.parametrize("line,code,says", BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_line_is_answered_and_the_connection_goes_on(daemon, line, code, says):
    with daemon.rpc() as rpc:
        rpc.send_raw(line + b"\n")
        doc = rpc.read()
        assert doc["error"]["code"] == code and doc["id"] is None
        assert says in doc["error"]["message"]
        assert alive(rpc)


BAD_CALLS = [
    ("nothing.here", {}, -32601, "nothing.here"),
    ("job.lits", {}, -32601, 'did you mean "job.list"'),
    ("job.pause", {"id": 9}, 1001, "no job 9"),
    ("job.get", {}, -32602, "/params/id"),
    ("job.get", {"id": "1"}, -32602, "/params/id"),
    ("job.get", {"id": 1.5}, -32602, "/params/id"),
    ("job.get", {"id": 0}, -32602, "/params/id"),
    ("job.get", {"id": 1, "colour": 2}, -32602, '"colour"; accepted: id'),
    ("job.get", {"id": 9}, 1001, "no job 9"),
    ("job.cancel", {"id": 9}, 1001, "no job 9"),
    ("job.watch", {"id": 9}, 1001, "no job 9"),
    ("job.watch", {"since": 5}, -32602, "/params/since"),
    ("job.logs", {"id": 9}, 1001, ""),
    ("job.list", {"state": "ruling"}, -32602, "running"),
    ("job.list", {"limit": 0}, -32602, "/params/limit"),
    ("job.submit", {}, -32602, "/params/spec"),
    ("job.submit", {"spec": 5}, 1002, "invalid spec"),
    ("job.submit", {"spec": {"version": 1}, "idempotency_key": ""}, -32602, "idempotency_key"),
    ("daemon.shutdown", {"cancel": "yes"}, -32602, "/params/cancel"),
    ("worker.progress", {"step": 1}, 1004, "workers"),
    ("worker.attach", {"job": 1}, -32602, "/params/attempt"),
    ("worker.attach", {"job": 1, "attempt": 1, "token": "", "pid": 1, "host": "h", "ranks": 1}, 1004, "token"),
]


@pytest.mark.parametrize("method,params,code,says", BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_bad_call(daemon, method, params, code, says):
    with daemon.rpc() as rpc:
        with pytest.raises(RpcError) as caught:
            rpc.call(method, **params)
        assert caught.value.code == code
        assert says in caught.value.message
        assert alive(rpc)


def test_params_by_position_are_refused(daemon):
    with daemon.rpc() as rpc:
        rpc.send({"jsonrpc": "2.0", "id": 1, "method": "job.get", "params": [1]})
        assert rpc.read()["error"]["code"] == -32602


def test_ids_come_back_as_they_were(daemon):
    with daemon.rpc() as rpc:
        for an_id in ("text", 7, -1, 1.5, None, ""):
            rpc.send({"jsonrpc": "2.0", "id": an_id, "method": "node.list"})
            doc = rpc.read()
            assert doc["id"] == an_id and "result" in doc


def test_notifications_are_not_answered(daemon):
    with daemon.rpc() as rpc:
        rpc.send({"jsonrpc": "2.0", "method": "daemon.info"})
        rpc.send({"jsonrpc": "2.0", "method": "no.such.method"})
        rpc.send({"jsonrpc": "2.0", "method": "job.submit", "params": {"spec": spec()}})
        wait_until(lambda: rpc.call("job.list")["jobs"], "the notified submission is there")
        assert rpc.notes == []


def test_batch(daemon):
    with daemon.rpc() as rpc:
        rpc.send([{"jsonrpc": "2.0", "id": 1, "method": "daemon.info"},
                  {"jsonrpc": "2.0", "method": "daemon.info"},
                  5,
                  {"jsonrpc": "2.0", "id": "s", "method": "job.submit", "params": {"spec": spec()}},
                  {"jsonrpc": "2.0", "id": 2, "method": "none"}])
        answers = rpc.read()
        by_id = {a["id"]: a for a in answers}
        assert len(answers) == 4
        assert by_id[1]["result"]["version"]
        assert by_id["s"]["result"]["id"] == 1
        assert by_id[2]["error"]["code"] == -32601
        assert by_id[None]["error"]["code"] == -32600
        rpc.send([{"jsonrpc": "2.0", "method": "daemon.info"}])  # nothing but notifications: no answer at all
        assert alive(rpc)


def test_lines_up_to_the_limit(daemon):
    with daemon.rpc() as rpc:
        head, tail = b'{"jsonrpc":"2.0","id":1,"method":"', b'"}'
        rpc.send_raw(head + b"x" * (MAX_LINE - len(head) - len(tail)) + tail + b"\n")
        assert rpc.read()["error"]["code"] == -32601
        rpc.send_raw(head + b"x" * (MAX_LINE - len(head) - len(tail) + 1) + tail + b"\n")
        doc = rpc.read()
        assert doc["error"]["code"] == -32600 and "too long" in doc["error"]["message"]
        rpc.send_raw(b"y" * (5 * MAX_LINE) + b"\n")
        assert "too long" in rpc.read()["error"]["message"]
        assert alive(rpc)


def test_bytes_one_by_one_and_many_at_once(daemon):
    with daemon.rpc() as rpc:
        for byte in b'{"jsonrpc":"2.0","id":1,"method":"node.list"}\r\n':
            rpc.send_raw(bytes([byte]))
        assert rpc.read()["id"] == 1
        many = b"".join(b'\n{"jsonrpc":"2.0","id":%d,"method":"node.list"}\n' % i for i in range(2000))
        writer = threading.Thread(target=rpc.send_raw, args=(many,))
        writer.start()
        assert [rpc.read()["id"] for _ in range(2000)] == list(range(2000))
        writer.join()


def test_noise(daemon):
    rng = random.Random(7)
    words = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\\", b"1e999", b"-", b"null", b'"jsonrpc":"2.0"',
             b'"method":"job.submit"', b'"id":1', b'"params":{}', b"\xff\xfe", b"\x00", b"\xed\xa0\x80"]
    for _ in range(30):
        with daemon.rpc() as rpc:
            rpc.send_raw(b"".join(rng.choice(words) for _ in range(rng.randrange(400))))
    with daemon.rpc() as rpc:
        assert alive(rpc)


# --- many clients, slow clients ---

def test_a_client_that_does_not_read_is_disconnected_and_nobody_else_is(daemon):
    with daemon.rpc() as rpc:
        for i in range(40):
            rpc.submit(spec(f"padding-{i}"))
    slow = Rpc(daemon.socket)
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "job.list"}).encode() + b"\n"

    def flood():
        try:
            while True:
                slow.send_raw(request * 100)
        except OSError:
            pass
    writer = threading.Thread(target=flood)
    writer.start()
    with daemon.rpc() as other:
        wait_until(lambda: alive(other) and other.call("daemon.info")["stats"]["clients_dropped"] == 1,
                   "the client that does not read is dropped")
    writer.join(timeout=30)
    assert not writer.is_alive()
    slow.close()
    assert "does not read" in daemon.log_text()


def test_cap_on_clients(make_daemon):
    daemon = make_daemon(options=["--max-clients", 4])
    wait_until(lambda: daemon.answers()["stats"]["clients"] == 1, "the probes have hung up")
    kept = [daemon.rpc() for _ in range(4)]
    for rpc in kept:
        alive(rpc)
    with daemon.rpc() as one_too_many:
        doc = one_too_many.read()
        assert doc["error"]["code"] == 1005 and "too many clients" in doc["error"]["message"]
        assert one_too_many.read() is None
    kept.pop().close()
    wait_until(lambda: alive(kept[0]) and kept[0].call("daemon.info")["stats"]["clients"] == 3, "one has left")
    with daemon.rpc() as rpc:
        assert alive(rpc)
    for rpc in kept:
        rpc.close()


def test_fifty_clients_at_once(make_daemon):
    daemon = make_daemon(behaviour="run_ms=1,steps=2")
    seen, errors = [], []

    def client(number):
        try:
            with daemon.rpc() as rpc:
                ids = [rpc.submit(spec(f"c{number}")) for _ in range(4)]
                for job in ids:
                    rpc.wait_state(job, "succeeded")
                seen.extend(ids)
        except Exception as e:  # noqa: BLE001 - handed to the main thread
            errors.append(e)
    threads = [threading.Thread(target=client, args=(i,)) for i in range(50)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors[:3]
    assert sorted(seen) == list(range(1, 201))


# --- who may do what ---

@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_users_touch_only_their_own_jobs(open_path, make_daemon):
    daemon = make_daemon(directory=open_path)
    daemon.socket.chmod(0o666)
    with daemon.rpc() as rpc:
        mine = rpc.submit(spec("roots"))
    script = f"""
import sys, json
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
import os
from daemonlib import Rpc, RpcError, spec  # before: the checkout may be for root's eyes only
os.setgroups([]); os.setgid(65534); os.setuid(65534)
rpc, codes = Rpc({str(daemon.socket)!r}), {{}}
own = rpc.submit(spec("nobodys"))
def code(method, **params):
    try:
        rpc.call(method, **params)
        return 0
    except RpcError as e:
        return e.code
for m in ("get", "cancel", "logs", "metrics", "explain", "checkpoint", "watch"):
    codes[m] = code("job." + m, id={mine})
codes["own"] = code("job.get", id=own)
codes["list"] = code("job.list")
codes["shutdown"], codes["drain"] = code("daemon.shutdown"), code("daemon.drain")
rpc.call("job.watch", since=0)
users = set()
while True:
    note = rpc.next_note()["params"]
    users.add(note["id"])
    if note["id"] == own and note["state"] == "succeeded":
        break
codes["watched"] = sorted(users)
codes["own_id"] = own
print(json.dumps(codes))
"""
    out = subprocess.run(["/usr/bin/python3", "-c", script], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    codes = json.loads(out.stdout)
    for method in ("get", "cancel", "logs", "metrics", "explain", "checkpoint", "watch", "shutdown", "drain"):
        assert codes[method] == 1004, method
    assert codes["own"] == 0 and codes["list"] == 0
    assert codes["watched"] == [codes["own_id"]]
    with daemon.rpc() as rpc:
        assert rpc.call("job.get", id=codes["own_id"])["user"] == "nobody"


# --- addresses, state directory, options ---

def test_socket_mode(daemon):
    assert stat.S_IMODE(os.stat(daemon.socket).st_mode) == 0o660


def test_second_daemon_on_the_same_state_is_refused(daemon, tmp_path):
    second = subprocess.run([*daemon.argv()[:3], "--listen", f"unix:{tmp_path}/other.sock", "--launcher", "fake"],
                            capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert f"(pid {daemon.process.pid}) already works in {daemon.state}" in second.stderr


def test_socket_that_somebody_answers_on_is_not_taken(daemon, tmp_path):
    second = subprocess.run([daemon.argv()[0], "--state-dir", tmp_path / "second", *daemon.argv()[3:5],
                             "--launcher", "fake"], capture_output=True, text=True, timeout=30)
    assert second.returncode == 1 and "another program answers there" in second.stderr
    assert daemon.answers()


def test_stale_socket_is_replaced(make_daemon):
    daemon = make_daemon()
    daemon.kill()
    assert daemon.socket.exists()
    daemon.start()


def test_file_in_the_socket_s_place(tmp_path):
    daemon = Daemon(tmp_path)
    daemon.socket.write_text("precious")
    run = subprocess.run(daemon.argv(), capture_output=True, text=True, timeout=30)
    assert run.returncode == 1 and "is not a socket" in run.stderr
    assert daemon.socket.read_text() == "precious"


def test_socket_goes_with_the_daemon(make_daemon):
    daemon = make_daemon()
    daemon.stop()
    assert not daemon.socket.exists()


def test_several_sockets(make_daemon, tmp_path):
    make_daemon(options=["--listen", f"unix:{tmp_path}/second.sock"])
    with Rpc(tmp_path / "second.sock") as rpc:
        assert alive(rpc)


BAD_OPTIONS = [
    (["--listen", "tcp:localhost:1234"], "needs --tls-cert FILE and --tls-key FILE"),
    (["--listen", "/a/path"], "unix:PATH is accepted"),
    (["--http", "localhost:80"], "not available in this version"),
    (["--slots", "0"], "from 1 to"),
    (["--slots", "many"], "--slots"),
    (["--launcher", "slurm"], "mpirun or fake"),
    (["--log-level", "loud"], "debug, info, warn, error"),
    (["--slotz", "2"], "did you mean --slots"),
    (["stray"], "unexpected argument 'stray'"),
    (["--lifeline"], "--lifeline: standard input"),
]


@pytest.mark.parametrize("options,says", BAD_OPTIONS, ids=range(len(BAD_OPTIONS)))
def test_bad_options(tmp_path, options, says):
    args = [bin_dir() / "batchformerd", "--state-dir", tmp_path / "s"]
    if "--listen" not in options:
        args += ["--listen", f"unix:{tmp_path}/s.sock"]
    run = subprocess.run([*args, *options], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert run.returncode == 2, run.stderr
    assert says in run.stderr


def test_bad_behaviour_of_the_fake_launcher(tmp_path):
    daemon = Daemon(tmp_path, behaviour="run_ms=5,sleps=3")
    run = subprocess.run(daemon.argv(), capture_output=True, text=True, timeout=30, env=daemon.env)
    assert run.returncode == 1 and "'sleps=3' found" in run.stderr


def test_help_and_version():
    run = subprocess.run([bin_dir() / "batchformerd", "--help"], capture_output=True, text=True, timeout=30)
    assert run.returncode == 0
    for option in ("--config", "--state-dir", "--listen", "--slots", "--launcher", "--lifeline", "--log-level"):
        assert option in run.stdout
    run = subprocess.run([bin_dir() / "batchformerd", "--version"], capture_output=True, text=True, timeout=30)
    assert run.returncode == 0 and run.stdout.startswith("batchformerd ")


def test_config_file_and_the_command_line_that_wins(make_daemon, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"slots": 7, "max_clients": 9, "listen": [f"unix:{tmp_path}/unused.sock"]}))
    daemon = make_daemon(slots=3, options=["--config", config])
    assert daemon.answers()["slots"]["total"] == 3
    assert not (tmp_path / "unused.sock").exists()
    config.write_text('{"slotz": 7}')
    run = subprocess.run([bin_dir() / "batchformerd", "--config", config], capture_output=True, text=True, timeout=30)
    assert run.returncode == 2 or run.returncode == 1
    assert "slotz" in run.stderr


def test_socket_path_that_is_too_long(tmp_path):
    run = subprocess.run([bin_dir() / "batchformerd", "--state-dir", tmp_path / "s", "--listen",
                          f"unix:{tmp_path}/{'x' * 120}", "--launcher", "fake"], capture_output=True, text=True,
                         timeout=30)
    assert run.returncode == 1 and "at most 107 are possible" in run.stderr


def test_half_open_clients_do_not_hold_up_the_end(make_daemon):
    daemon = make_daemon()
    idle = daemon.rpc()
    half = daemon.rpc()
    half.send_raw(b'{"jsonrpc":')
    shut = daemon.rpc()
    shut.sock.shutdown(socket.SHUT_RD)
    daemon.stop(timeout=20)
    for rpc in (idle, half, shut):
        rpc.close()
