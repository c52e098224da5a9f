"""TCP: only with TLS, only with a token; what is refused, and that nobody else notices."""
import json
import os
import random
import socket
import ssl
import subprocess
import threading

import pytest

from clilib import bfctl
from daemonlib import Daemon, RpcError, spec, wait_until
from tlslib import Certificates, TlsDaemon, TlsRpc, wait_for_log

pytestmark = pytest.mark.sanitize


@pytest.fixture
def daemon(make_tls_daemon):
    return make_tls_daemon()


def alive(daemon, token=None):
    """Both ways in work."""
    with daemon.rpc() as rpc:
        assert rpc.call("daemon.info")["version"]
    with daemon.tls(token or daemon.token()[1]) as rpc:
        assert rpc.call("job.list")["jobs"] is not None


def closed(sock):
    """Reads to the end, which must come; what came before it."""
    data = b""
    try:
        while True:
            chunk = sock.recv(1 << 16)
            if not chunk:
                return data
            data += chunk
    except (ssl.SSLError, ConnectionError):
        return data


# --- options ---

def test_refused_at_start(tmp_path, certificates):
    cert, key = str(certificates.cert), str(certificates.key)
    readable = tmp_path / "readable.key"
    readable.write_bytes(certificates.key.read_bytes())
    readable.chmod(0o644)
    other_key = str(certificates.leaf("unlike", "DNS:x")[1])
    cases = [
        (["--listen", "tcp:127.0.0.1:0"], 2, "needs --tls-cert FILE and --tls-key FILE"),
        (["--listen", "tcp:127.0.0.1:0", "--tls-cert", cert], 2, "--tls-cert and --tls-key belong together"),
        (["--listen", "tcp:127.0.0.1:0", "--tls-key", key], 2, "--tls-cert and --tls-key belong together"),
        (["--tls-cert", cert, "--tls-key", key], 2, "are for --listen tcp:HOST:PORT"),
        (["--listen", "tcp:127.0.0.1:0", "--tls-cert", cert, "--tls-key", str(readable)], 1, "has mode 0644"),
        (["--listen", "tcp:127.0.0.1:0", "--tls-cert", cert, "--tls-key", other_key], 1, "does not fit"),
        (["--listen", "tcp:127.0.0.1:0", "--tls-cert", "/nonexistent", "--tls-key", key], 1, "/nonexistent: No such"),
        (["--listen", "tcp:127.0.0.1", "--tls-cert", cert, "--tls-key", key], 2, "tcp:HOST:PORT"),
        (["--listen", "tcp:no.such.host.invalid:1", "--tls-cert", cert, "--tls-key", key], 1, "no.such.host.invalid"),
    ]
    for options, status, says in cases:
        daemon = Daemon(tmp_path, options=options)
        run = subprocess.run(daemon.argv(), capture_output=True, text=True, timeout=60)
        assert run.returncode == status and says in run.stderr, (options, run.stderr)


def test_tcp_alone_gets_a_socket_for_its_workers(tmp_path, certificates):
    daemon = TlsDaemon(tmp_path, certificates)
    argv = [a for a in daemon.argv() if a != f"unix:{daemon.socket}"]
    argv.remove("--listen")  # the first: the one before the address that was taken out
    with open(daemon.log, "ab") as log:
        daemon.process = subprocess.Popen(argv, stdout=log, stderr=log, env=daemon.env)
    wait_for_log(daemon, "launcher fake")
    daemon.socket = daemon.state / "batchformer.sock"
    assert daemon.answers()
    daemon.stop()


# --- handshakes ---

def s_client(daemon, *options):
    return subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{daemon.port}", "-CAfile",
                           str(daemon.certificates.ca), "-verify_return_error", "-cipher", "ALL:@SECLEVEL=0", *options],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("version, fits", [("-tls1", False), ("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_versions(daemon, version, fits):
    run = s_client(daemon, version)
    assert (run.returncode == 0) == fits, run.stderr
    if not fits:
        wait_for_log(daemon, "TLS handshake: unsupported protocol")
    alive(daemon)


def test_no_weak_ciphers_and_no_renegotiation(daemon):
    run = s_client(daemon, "-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0")  # no forward secrecy
    assert run.returncode != 0
    run = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{daemon.port}", "-tls1_2"], input="R\n",
                         capture_output=True, text=True, timeout=60)
    assert "RENEGOTIATING" in run.stdout + run.stderr and run.returncode != 0
    alive(daemon)


def test_plain_text_to_the_tls_port(daemon):
    with socket.create_connection(("127.0.0.1", daemon.port), 60) as sock:
        sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"daemon.info"}\n')
        assert b"jsonrpc" not in closed(sock)
    wait_for_log(daemon, "disconnected: TLS handshake:")
    alive(daemon)


def test_slow_handshakes_end_and_are_in_nobody_s_way(make_tls_daemon):
    daemon = make_tls_daemon(options=["--login-ms", 3000])
    token = daemon.token()[1]
    hello = ssl.MemoryBIO()
    client = ssl.create_default_context(cafile=str(daemon.certificates.ca)).wrap_bio(ssl.MemoryBIO(), hello,
                                                                                    server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    first = hello.read()
    silent = [socket.create_connection(("127.0.0.1", daemon.port), 60) for _ in range(20)]
    half = [socket.create_connection(("127.0.0.1", daemon.port), 60) for _ in range(20)]
    for i, sock in enumerate(half):
        sock.sendall(first[:1 + i * (len(first) - 2) // 20])
    alive(daemon, token)
    drip = threading.Thread(target=drip_feed, args=(half[0], first[1:]))
    drip.start()
    for sock in silent + half:
        assert closed(sock) == b""
        sock.close()
    drip.join()
    wait_for_log(daemon, "its TLS handshake took too long (--login-ms)")
    alive(daemon, token)


def drip_feed(sock, data):
    """A byte now and then, until the other side has had enough; the daemon's clock does not start anew with each."""
    stop = threading.Event()
    try:
        for byte in data * 1000:
            sock.sendall(bytes([byte]))
            stop.wait(0.02)
    except OSError:
        return
    raise AssertionError("a byte at a time was taken for ever")


def test_a_handshake_without_a_login_ends(make_tls_daemon):
    daemon = make_tls_daemon(options=["--login-ms", 2000])
    with daemon.tls() as rpc:
        assert rpc.read() is None
    wait_for_log(daemon, "it has not logged in in time (--login-ms)")
    alive(daemon)


def test_too_much_said_before_a_login(daemon):
    with daemon.tls() as rpc:
        for i in range(40):
            rpc.send({"jsonrpc": "2.0", "id": i, "method": "job.list"})
        answers = []
        while (doc := rpc.read()) is not None:
            answers.append(doc)
    assert [a["error"]["code"] for a in answers] == [1006] * 16
    alive(daemon)


def test_noise_on_the_socket_and_in_tls(daemon):
    rng = random.Random(5)
    token = daemon.token()[1]
    for i in range(150):
        data = rng.randbytes(rng.randrange(1, 3000))
        if i % 3 == 0:
            data = b"\x16\x03" + bytes([rng.randrange(5)]) + data  # as far as TLS's own parser
        with socket.create_connection(("127.0.0.1", daemon.port), 60) as sock:
            sock.sendall(data)
    words = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\\", b"1e999", b'"jsonrpc":"2.0"', b'"method":"auth.login"',
             b'"params":{"token":"', b"\x00", b"\xff", b'"id":1']
    for i in range(60):
        with daemon.tls(token if i % 2 else None) as rpc:
            rpc.send_raw(b"".join(rng.choice(words) for _ in range(rng.randrange(200))) + rng.randbytes(100) + b"\n")
    with daemon.rpc() as rpc:
        for _ in range(60):
            rpc.send_raw(rng.randbytes(rng.randrange(1, 3000)) + b"\n")
    alive(daemon, token)
    wait_until(lambda: daemon.answers()["stats"]["clients"] == 1, "nothing is left of it")


def test_one_byte_changed_on_the_way(daemon):
    """A record that was tampered with ends its connection, and what it said is not done."""
    context = ssl.create_default_context(cafile=str(daemon.certificates.ca))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", daemon.port), 60) as sock:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(1 << 16))
        sock.sendall(outgoing.read())
        client.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "auth.login",
                                 "params": {"token": daemon.token()[1]}}).encode() + b"\n")
        record = bytearray(outgoing.read())
        record[-5] ^= 1
        sock.sendall(record)
        closed(sock)
    wait_for_log(daemon, "disconnected: TLS:")
    assert "by token" not in daemon.log_text()
    alive(daemon)


# --- lines over TLS ---

def test_long_lines_and_many(daemon):
    with daemon.tls(daemon.token()[1]) as rpc:
        head, tail = b'{"jsonrpc":"2.0","id":1,"method":"', b'"}'
        rpc.send_raw(head + b"x" * ((1 << 20) - len(head) - len(tail)) + tail + b"\n")
        assert rpc.read()["error"]["code"] == -32601
        rpc.send_raw(b"y" * (3 << 20) + b"\n")
        assert "too long" in rpc.read()["error"]["message"]
        many = b"".join(b'{"jsonrpc":"2.0","id":%d,"method":"node.list"}\n' % i for i in range(2000))
        rpc.send_raw(many)  # the daemon keeps the answers; two threads may not use one TLS connection of Python's at once
        assert [rpc.read()["id"] for _ in range(2000)] == list(range(2000))


def test_who_does_not_read_is_disconnected(daemon):
    token = daemon.token(role="admin")[1]
    with daemon.rpc() as rpc:
        for i in range(40):
            rpc.submit(spec(f"padding-{i}"))
    slow = daemon.tls(token)
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "job.list"}).encode() + b"\n"

    def flood():
        try:
            while True:
                slow.send_raw(request * 100)
        except OSError:
            pass
    writer = threading.Thread(target=flood)
    writer.start()
    wait_for_log(daemon, "it does not read what it asked for")
    writer.join(timeout=60)
    assert not writer.is_alive()
    slow.close()
    alive(daemon)


# --- certificates ---

def test_a_renewed_certificate_is_used_without_a_restart(tmp_path, certificates):
    own = Certificates(tmp_path / "own")
    daemon = TlsDaemon(tmp_path, own)
    daemon.start()
    kept = daemon.tls(daemon.token()[1])
    before = kept.sock.getpeercert()["serialNumber"]
    cert, key = own.leaf("renewed", "DNS:localhost")
    os.replace(cert, own.cert)  # the key does not fit yet: the old ones stay in use
    wait_for_log(daemon, "the new certificate is not used")
    with daemon.tls() as rpc:
        assert rpc.sock.getpeercert()["serialNumber"] == before
    os.replace(key, own.key)

    def serial():
        with daemon.tls() as rpc:
            return rpc.sock.getpeercert()["serialNumber"]
    wait_until(lambda: serial() != before, "the new certificate is shown")
    assert kept.call("job.list") == {"jobs": []}  # who was there stays
    kept.close()
    daemon.stop()


# --- bfctl ---

@pytest.fixture
def token_file(daemon, tmp_path):
    path = tmp_path / "token"
    path.write_text(daemon.token(role="admin", note="tests")[1] + "\n")
    path.chmod(0o600)
    return path


def remote(daemon, token_file=None, ca=None, **env):
    return {"BATCHFORMER_ADDRESS": daemon.address, "BATCHFORMER_CA": str(daemon.certificates.ca if ca is None else ca),
            "BATCHFORMER_TOKEN": "", "BATCHFORMER_TOKEN_FILE": str(token_file or ""), **env}


def test_bfctl_over_tls(daemon, token_file, tmp_path):
    env = remote(daemon, token_file)
    (tmp_path / "spec.json").write_text(json.dumps(spec("far")))
    run = bfctl("submit", tmp_path / "spec.json", "--watch", env=env)
    assert run.returncode == 0 and run.stdout == "1\n" and "succeeded" in run.stderr
    assert [j["name"] for j in json.loads(bfctl("--json", "list", env=env).stdout)["jobs"]] == ["far"]
    assert bfctl("logs", "1", "-f", env=env).returncode == 0
    run = bfctl("--ca", daemon.certificates.ca, "--address", daemon.address, "show", "1",
                env=remote(daemon, token_file, ca="/nonexistent"))
    assert run.returncode == 0, run.stderr
    secret = token_file.read_text().strip()
    assert bfctl("info", env=remote(daemon, BATCHFORMER_TOKEN=secret)).returncode == 0


def test_bfctl_refuses_who_is_not_the_coordinator(daemon, token_file):
    cases = [(remote(daemon, token_file, ca=daemon.certificates.other), daemon.address, "is not accepted"),
             (remote(daemon, token_file, ca=""), daemon.address, "the system's certificates"),
             (remote(daemon, token_file), f"tcp:127.0.0.2:{daemon.port}", "no coordinator answers")]
    for env, address, says in cases:
        run = bfctl("info", address=address, env=env)
        assert run.returncode == 3 and says in run.stderr, run.stderr
    assert "by token" not in daemon.log_text()  # it kept its token to itself


def test_bfctl_checks_the_host_name(tmp_path, certificates):
    cert, key = certificates.leaf("elsewhere", "DNS:elsewhere.example")
    daemon = TlsDaemon(tmp_path, certificates, options=["--tls-cert", cert, "--tls-key", key])
    daemon.start()
    for host in ("127.0.0.1", "localhost"):
        run = bfctl("info", address=f"tcp:{host}:{daemon.port}", env=remote(daemon, BATCHFORMER_TOKEN="x"))
        assert run.returncode == 3 and "mismatch" in run.stderr and host in run.stderr, run.stderr
    daemon.stop()


def test_bfctl_without_a_token_or_with_a_known_one(daemon, token_file, tmp_path):
    run = bfctl("info", env=remote(daemon))
    assert run.returncode == 2 and "needs a token" in run.stderr
    token_file.chmod(0o640)
    run = bfctl("info", env=remote(daemon, token_file))
    assert run.returncode == 2 and "has mode 0640" in run.stderr
    token_file.chmod(0o600)
    assert bfctl("info", env=remote(daemon, token_file)).returncode == 0
    run = bfctl("info", env=remote(daemon, tmp_path))
    assert run.returncode == 2 and "is not a file" in run.stderr
    empty = tmp_path / "empty"
    empty.touch(0o600)
    run = bfctl("info", env=remote(daemon, empty))
    assert run.returncode == 2 and "there is no token" in run.stderr
    run = bfctl("info", env=remote(daemon, BATCHFORMER_TOKEN="bft_" + "0" * 64))
    assert run.returncode == 1 and "this token is not known here" in run.stderr
    run = bfctl("info", env=remote(daemon, "", ca=tmp_path / "nosuch.pem", BATCHFORMER_TOKEN="x"))
    assert run.returncode == 1 and "nosuch.pem" in run.stderr


def test_two_hosts_at_once(make_tls_daemon):
    """Clients over TCP count as clients; one too many is told so, through its handshake."""
    daemon = make_tls_daemon(options=["--max-clients", 3])
    token = daemon.token()[1]
    wait_until(lambda: daemon.answers()["stats"]["clients"] == 1, "the probes have hung up")
    kept = [daemon.tls(token) for _ in range(3)]
    with TlsRpc(daemon.port, daemon.certificates.ca) as rpc:
        doc = rpc.read()
        assert doc["error"]["code"] == 1005 and "--max-clients" in doc["error"]["message"]
        assert rpc.read() is None
    kept.pop().close()
    wait_until(lambda: kept[0].call("daemon.info")["stats"]["clients"] == 2, "one has left")
    daemon.tls(token).close()
    for rpc in kept:
        rpc.close()


def test_strangers_do_not_take_other_people_s_places(make_tls_daemon):
    """However many connect over TCP and say nothing, local users come in, and who has a token once there is room."""
    daemon = make_tls_daemon(options=["--max-clients", 30, "--max-user-clients", 10, "--login-ms", 60000])
    token = daemon.token()[1]
    strangers = [socket.create_connection(("127.0.0.1", daemon.port), 60) for _ in range(80)]
    wait_for_log(daemon, "clients over TCP were turned away")
    local = [daemon.rpc() for _ in range(15)]
    for rpc in local:
        assert rpc.call("daemon.info")["stats"]["clients"] <= 30
    for sock in strangers:
        sock.close()
    wait_until(lambda: daemon.answers()["stats"]["clients"] <= 16, "they have hung up")
    daemon.tls(token).close()
    for rpc in local:
        rpc.close()


def test_worker_attach_is_the_other_way_in(daemon):
    with daemon.tls() as rpc:
        with pytest.raises(RpcError) as caught:
            rpc.call("worker.attach", job=1, attempt=1, token="x", pid=1, host="h", ranks=1)
        assert caught.value.code == 1004 and "is not running here" in caught.value.message
        with pytest.raises(RpcError) as caught:
            rpc.call("worker.progress", step=1)
        assert caught.value.code == 1006
