"""Tokens: made, shown once, used, revoked, expired, kept over restarts; and the limits of one user."""
import json
import re
import signal
import stat
import subprocess
import time

import pytest

from clilib import bfctl
from daemonlib import RpcError, bin_dir, spec, wait_until
from tlslib import wait_for_log

pytestmark = pytest.mark.sanitize


@pytest.fixture
def daemon(make_tls_daemon):
    return make_tls_daemon()


def refused(rpc, method, **params):
    with pytest.raises(RpcError) as caught:
        rpc.call(method, **params)
    return caught.value


def cannot_login(daemon, secret):
    with daemon.tls() as rpc:
        error = refused(rpc, "auth.login", token=secret)
        assert error.code == 1006 and "is not known here" in error.message
        assert rpc.read() is None  # and the connection has ended


# --- their life ---

def test_a_token_by_bfctl(daemon):
    address = f"unix:{daemon.socket}"
    run = bfctl("token", "create", "--user", "games", "--role", "viewer", "--expires", "12h", "--note", "a laptop",
                address=address)
    assert run.returncode == 0, run.stderr
    secret = run.stdout.strip()
    assert re.fullmatch("bft_[0-9a-f]{64}", secret) and secret not in run.stderr
    assert "token 1 for games, role viewer" in run.stderr
    listed = json.loads(bfctl("--json", "token", "list", address=address).stdout)["tokens"]
    assert len(listed) == 1 and secret not in json.dumps(listed)
    token = listed[0]
    assert (token["id"], token["user"], token["role"], token["note"]) == (1, "games", "viewer", "a laptop")
    assert token["expires"] - token["created"] == 12 * 3600 * 1000 and token["used"] is None and not token["expired"]
    table = bfctl("token", "list", address=address).stdout
    assert "games" in table and "a laptop" in table and "viewer" in table
    with daemon.tls(secret) as rpc:
        assert rpc.login == {"user": "games", "role": "viewer", "expires": token["expires"]}
        used = json.loads(bfctl("--json", "token", "list", address=address).stdout)["tokens"][0]["used"]
        assert used % 3600000 == 0 and 0 <= time.time() * 1000 - used < 2 * 3600000  # by the hour
        run = bfctl("token", "revoke", "1", address=address)
        assert run.returncode == 0 and "connections ended: 1" in run.stderr
        assert rpc.read()["error"]["code"] == 1006
        assert rpc.read() is None
    cannot_login(daemon, secret)
    assert bfctl("token", "revoke", "1", address=address).returncode == 1


@pytest.mark.parametrize("args, says", [
    (["token"], "operands found"), (["token", "make"], "create, list or revoke is accepted"),
    (["token", "revoke"], "0 operands found"), (["token", "revoke", "x"], "a token's id is accepted"),
    (["token", "create", "me"], "1 operands found"), (["token", "create", "--expires", "soon"], "'soon' found"),
    (["token", "create", "--expires", "0d"], "'0d' found"), (["token", "create", "--expires", "5"], "'5' found"),
])
def test_bfctl_usage(args, says):
    run = bfctl(*args, address="unix:/nonexistent")
    assert run.returncode == 2 and says in run.stderr


def test_no_secret_is_kept(daemon):
    secrets = [daemon.token(note=f"n{i}")[1] for i in range(3)]
    with daemon.tls(secrets[0]):
        pass
    for path in daemon.dir.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(s.encode() in data or s[4:].encode() in data for s in secrets), path
    assert stat.S_IMODE((daemon.state / "tokens.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((daemon.state / "state.db").stat().st_mode) == 0o600


def test_they_outlive_the_daemon(daemon):
    (_, kept), (gone, revoked) = daemon.token(), daemon.token()
    with daemon.rpc() as rpc:
        rpc.call("token.revoke", id=gone)
    daemon.kill()
    daemon.start()
    with daemon.tls(kept) as rpc:
        assert rpc.call("job.list") == {"jobs": []}
    cannot_login(daemon, revoked)
    assert daemon.token()[0] == 3  # no number is used again


def test_default_expiry_and_none(daemon):
    with daemon.rpc() as rpc:
        before = time.time() * 1000
        month = rpc.call("token.create")["expires"] - before
        assert abs(month - 30 * 86400 * 1000) < 3600 * 1000
        assert rpc.call("token.create", expires_s=0)["expires"] is None
    run = bfctl("--json", "token", "create", "--expires", "never", address=f"unix:{daemon.socket}")
    assert json.loads(run.stdout)["expires"] is None


def edit(daemon, change):
    path = daemon.state / "tokens.json"
    doc = json.loads(path.read_text())
    change(doc["tokens"])
    new = daemon.dir / "tokens.new"
    new.touch(0o600)
    new.write_text(json.dumps(doc))
    new.rename(path)


def test_expiry_ends_connections_that_are_open(daemon):
    (first, secret), (_, other) = daemon.token(), daemon.token()
    with daemon.tls(secret) as rpc, daemon.tls(other) as stays:
        rpc.call("job.watch")
        edit(daemon, lambda tokens: tokens[0].update(expires_ms=1000))  # as if its time had come
        doc = rpc.read()
        assert doc["error"]["code"] == 1006 and "expired" in doc["error"]["message"] and doc["id"] is None
        assert rpc.read() is None
        assert stays.call("job.list") == {"jobs": []}
    cannot_login(daemon, secret)
    with daemon.rpc() as rpc:
        assert [t["expired"] for t in rpc.call("token.list")["tokens"]] == [True, False]
    assert first == 1


def test_a_file_that_was_changed_by_hand(daemon):
    (_, one), (_, two) = daemon.token(), daemon.token()
    with daemon.tls(two) as rpc:
        edit(daemon, lambda tokens: tokens.pop())
        assert rpc.read()["error"]["code"] == 1006
    cannot_login(daemon, two)
    path = daemon.state / "tokens.json"
    path.write_text("{")  # a mistake changes nothing
    wait_for_log(daemon, "the changed file of tokens is not used")
    with daemon.tls(one) as rpc:
        assert rpc.call("job.list") == {"jobs": []}
    path.unlink()  # no file is no token
    wait_until(lambda: "0 tokens" in daemon.log_text(), "the file's end is noticed")
    cannot_login(daemon, one)


def test_a_damaged_file_is_no_reason_to_let_nobody_or_everybody_in(make_tls_daemon):
    daemon = make_tls_daemon()
    daemon.stop()
    path = daemon.state / "tokens.json"
    path.write_text("not json")
    path.chmod(0o600)
    daemon.spawn()
    assert daemon.process.wait(60) == 1
    assert str(path) in daemon.log_text()
    path.write_text('{"version":1,"last_id":0,"tokens":[]}')
    path.chmod(0o666)
    daemon.spawn()
    assert daemon.process.wait(60) == 1
    assert "has mode 0666" in daemon.log_text()


def test_revoking_one_s_own_token(daemon):
    """It is answered, and then it is over."""
    number, secret = daemon.token(role="admin")
    with daemon.tls(secret) as rpc, daemon.tls(secret) as second:
        second.call("job.watch")
        rpc.send({"jsonrpc": "2.0", "id": 7, "method": "token.revoke", "params": {"id": number}})
        seen = []
        while (doc := rpc.read()) is not None:
            seen.append(doc)
        assert {"connections": 2, "id": number} in [d.get("result") for d in seen]
        assert 1006 in [d["error"]["code"] for d in seen if "error" in d]
        assert second.read()["error"]["code"] == 1006
        assert second.read() is None


# --- logins ---

def test_wrong_tokens(daemon):
    secret = daemon.token()[1]
    flipped = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    for wrong in ("", "x", secret[:-1], secret + "0", flipped, secret.upper(), secret[4:], "bft_" + "0" * 64, "y" * 5000):
        cannot_login(daemon, wrong)
    with daemon.tls() as rpc:
        assert refused(rpc, "auth.login").code == 1006
    with daemon.tls() as rpc:
        assert refused(rpc, "auth.login", token=5).code == -32602
        rpc.call("auth.login", token=secret)
        assert refused(rpc, "auth.login", token=secret).code == 1003  # once is enough
        assert rpc.call("job.list") == {"jobs": []}


def test_a_batch_logs_in_by_its_first_message(daemon):
    secret = daemon.token()[1]
    with daemon.tls() as rpc:
        rpc.send([{"jsonrpc": "2.0", "id": 1, "method": "job.list"},
                  {"jsonrpc": "2.0", "id": 2, "method": "auth.login", "params": {"token": secret}},
                  {"jsonrpc": "2.0", "id": 3, "method": "job.list"}])
        answers = {a["id"]: a for a in rpc.read()}
        assert answers[1]["error"]["code"] == 1006 and "result" in answers[2] and "result" in answers[3]


def test_a_login_over_the_unix_socket_takes_rights_away(daemon):
    """Who logs in is the token's user from then on, and what he watched before ends."""
    viewer = daemon.token(role="viewer")[1]
    with daemon.rpc() as rpc, daemon.rpc() as other:
        rpc.call("job.watch", since=0)
        rpc.call("auth.login", token=viewer)
        job = other.submit()
        other.wait_state(job, "succeeded")
        assert refused(rpc, "daemon.shutdown").code == 1004
        assert rpc.call("job.get", id=job)["state"] == "succeeded"
        assert rpc.notes == []


# --- limits of one user ---

def limit(error):
    assert error.code == 1005 and error.data["limit"] in error.message, error.message
    return error.data["limit"]


def first_refusal(call):
    """The error that ends many calls; each adds to what is used up faster than it comes back."""
    for _ in range(5000):
        try:
            call()
        except RpcError as e:
            return e
    raise AssertionError("everything was taken")


def test_clients_and_jobs_of_one_user(make_tls_daemon):
    daemon = make_tls_daemon(behaviour="run_ms=600000",
                             options=["--max-user-clients", 2, "--max-user-jobs", 3, "--max-jobs", 5])
    games, man = daemon.token(user="games")[1], daemon.token(user="man")[1]
    with daemon.tls(games) as rpc, daemon.tls(games) as second:
        with daemon.tls() as third:
            assert limit(refused(third, "auth.login", token=games)) == "max-user-clients"
            assert third.read() is None
        with daemon.tls() as third:  # and in one batch it is nobody after it
            third.send([{"jsonrpc": "2.0", "id": 1, "method": "auth.login", "params": {"token": games}},
                        {"jsonrpc": "2.0", "id": 2, "method": "job.list"}])
            assert {a["id"]: a["error"]["code"] for a in third.read()} == {1: 1005, 2: 1006}
        jobs = [rpc.submit() for _ in range(3)]
        assert limit(refused(rpc, "job.submit", spec=spec())) == "max-user-jobs"
        assert limit(refused(second, "job.submit", spec=spec())) == "max-user-jobs"
        second.call("job.cancel", id=jobs[-1])
        second.wait_state(jobs[-1], "cancelled")
        rpc.submit()
        with daemon.tls(man) as other:  # each has his own
            for _ in range(2):
                other.submit()
            assert limit(refused(other, "job.submit", spec=spec())) == "max-jobs"
        with daemon.rpc() as admin:
            assert limit(refused(admin, "job.submit", spec=spec())) == "max-jobs"  # there is no room for anybody
    wait_until(lambda: daemon.answers()["stats"]["clients"] == 1, "they have hung up")
    daemon.tls(games).close()


def test_jobs_of_one_batch_count(make_tls_daemon):
    """What is on its way to the disk together counts already."""
    daemon = make_tls_daemon(behaviour="run_ms=600000", options=["--max-user-jobs", 3])
    with daemon.tls(daemon.token(user="games")[1]) as rpc:
        rpc.send([{"jsonrpc": "2.0", "id": i, "method": "job.submit", "params": {"spec": spec()}} for i in range(8)])
        answers = rpc.read()
        assert sum("result" in a for a in answers) == 3
        assert all(a["error"]["data"]["limit"] == "max-user-jobs" for a in answers if "error" in a)
        assert len(rpc.call("job.list")["jobs"]) == 3


def test_rate_of_submissions(make_tls_daemon):
    daemon = make_tls_daemon(behaviour="run_ms=1", options=["--user-submits-per-s", 1, "--user-submit-burst", 4])
    with daemon.tls(daemon.token(user="games")[1]) as rpc, daemon.tls(daemon.token(user="man")[1]) as other:
        error = first_refusal(rpc.submit)
        assert limit(error) == "user-submits-per-s" and 0 < error.data["retry_ms"] <= 1000
        other.submit()
        assert rpc.call("job.list")["jobs"]  # it may still look
    with daemon.rpc() as admin:
        for _ in range(20):
            admin.submit()


def test_rate_of_requests(make_tls_daemon):
    daemon = make_tls_daemon(options=["--user-requests-per-s", 1, "--user-request-burst", 60])
    games, man = daemon.token(user="games")[1], daemon.token(user="man")[1]
    with daemon.tls(games) as rpc, daemon.tls(games) as second, daemon.tls(man) as other:
        assert rpc.call("node.list")
        error = first_refusal(lambda: rpc.call("job.list"))
        assert limit(error) == "user-requests-per-s" and error.data["value"] == 1
        assert limit(first_refusal(lambda: second.call("job.list"))) == "user-requests-per-s"  # whatever connection
        assert limit(first_refusal(lambda: rpc.call("no.such.method"))) == "user-requests-per-s"  # whatever it asks
        assert other.call("job.list") == {"jobs": []}
        # A series out of a file is as much work as fifty plain requests, which are gone now.
        assert limit(first_refusal(lambda: other_metrics(other))) == "user-requests-per-s"
    with daemon.rpc() as admin:
        for _ in range(200):
            admin.call("job.list")  # administrators are not limited so


def other_metrics(rpc):
    try:
        rpc.call("job.metrics", id=1)
    except RpcError as e:
        if e.code != 1001:
            raise


def test_size_of_a_spec_and_arrays(make_tls_daemon):
    daemon = make_tls_daemon(options=["--max-spec-bytes", 1500, "--max-user-jobs", 5, "--user-submit-burst", 10])
    with daemon.tls(daemon.token(user="games")[1]) as rpc:
        long = spec(data={"format": "idx", "path": "/" + "x" * 2000, "synthetic": None})
        error = refused(rpc, "job.submit", spec=long)
        assert error.code == 1002 and "--max-spec-bytes" in error.data["errors"][0]["message"]
        assert error.data["errors"][0]["pointer"] == ""
        error = refused(rpc, "job.submit", spec=spec(sweep={"seed": list(range(6))}))
        assert limit(error) == "max-user-jobs"  # all of an array or nothing
        assert rpc.call("job.list")["jobs"] == []
        assert len(rpc.call("job.submit", spec=spec(sweep={"seed": [1, 2, 3]}))["ids"]) == 3


def test_limits_and_roots_change_with_the_config_file(make_tls_daemon, tmp_path):
    config, data = tmp_path / "config.json", tmp_path / "data"
    data.mkdir()
    config.write_text(json.dumps({"max_user_jobs": 1, "data_root": ["/nonexistent"]}))
    daemon = make_tls_daemon(behaviour="run_ms=600000", options=["--config", config])
    reads = spec(data={"format": "idx", "path": str(data), "synthetic": None})
    with daemon.tls(daemon.token(user="games")[1]) as rpc, daemon.rpc() as admin:
        rpc.submit()
        assert limit(refused(rpc, "job.submit", spec=spec())) == "max-user-jobs"
        assert refused(admin, "job.submit", spec=reads).code == 1002
        config.write_text(json.dumps({"max_user_jobs": 2, "data_root": [str(tmp_path)]}))
        daemon.process.send_signal(signal.SIGHUP)
        wait_for_log(daemon, "reload: max-user-jobs is 2 from now on, it was 1")
        rpc.submit()
        assert limit(refused(rpc, "job.submit", spec=spec())) == "max-user-jobs"
        admin.submit(reads)


def test_limits_in_the_help():
    run = subprocess.run([bin_dir() / "batchformerd", "--help"], capture_output=True, text=True, timeout=30)
    for option in ("--max-clients", "--max-user-clients", "--max-jobs", "--max-user-jobs", "--max-spec-bytes",
                   "--user-requests-per-s", "--user-request-burst", "--user-submits-per-s", "--user-submit-burst",
                   "--login-ms", "--tls-cert", "--tls-key", "--data-root", "--viewers", "--operators", "--admins"):
        assert option in run.stdout
