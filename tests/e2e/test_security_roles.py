"""Who may call what: every method against every role, by tokens over TLS; and the lists of local users."""
import json
import os
import subprocess

import pytest

from buildlib import ROOT
from daemonlib import Daemon, RpcError, spec, wait_until
from tlslib import TlsDaemon

pytestmark = pytest.mark.sanitize

ROLES = ("viewer", "user", "operator", "admin")

# The lowest role that may call a method; all of the daemon's methods stand here. "worker": a connection that attached
# with an attempt's token, whatever its role; "any": everybody.
LOWEST = {
    "daemon.info": "viewer", "daemon.drain": "operator", "daemon.shutdown": "admin",
    "node.list": "viewer", "node.drain": "operator", "node.resume": "operator",
    "spec.validate": "viewer", "spec.estimate": "viewer",
    "job.submit": "user", "job.list": "viewer", "job.get": "viewer", "job.watch": "viewer", "job.explain": "viewer",
    "job.logs": "viewer", "job.metrics": "viewer", "job.cancel": "user", "job.checkpoint": "user",
    "job.pause": "user", "job.resume": "user", "job.requeue": "user",
    "token.create": "admin", "token.list": "admin", "token.revoke": "admin",
    "worker.attach": "any", "worker.progress": "worker", "worker.metrics": "worker", "worker.done": "worker",
    "worker.hello": "any", "worker.beat": "worker", "auth.login": "any", "hello": "any",
}
# A parameter that no method has: who may call is asked before what is called with, so nothing is ever done.
STRANGE = {"no_such_parameter": 1}


@pytest.fixture(scope="module")
def served(tmp_path_factory, certificates):
    """A daemon, and the secret of a token for each role."""
    daemon = TlsDaemon(tmp_path_factory.mktemp("roles"), certificates, behaviour="run_ms=600000")
    daemon.start()
    yield daemon, {role: daemon.token(role=role)[1] for role in ROLES}
    daemon.stop()


def may(method, role):
    lowest = LOWEST[method]
    return lowest == "any" or (lowest != "worker" and ROLES.index(role) >= ROLES.index(lowest))


def test_the_table_names_every_method():
    source = "".join(p.read_text() for p in (ROOT / "daemon").glob("*.c"))
    rows = {line.split('"')[1] for line in source.replace("},", "},\n").split("\n")
            if ", ROLE_" in line and line.strip().startswith('{"')}
    assert rows == set(LOWEST)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("method", sorted(LOWEST))
def test_roles_and_methods(served, method, role):
    daemon, secrets = served
    with daemon.tls(secrets[role]) as rpc:
        assert rpc.login["role"] == role
        with pytest.raises(RpcError) as caught:
            rpc.call(method, **STRANGE)
        if may(method, role):
            assert caught.value.code == -32602 and "no_such_parameter" in caught.value.message
        else:
            assert caught.value.code == 1004 and method in caught.value.message
            if LOWEST[method] != "worker":
                assert f"your role is {role}" in caught.value.message
        assert rpc.call("job.list")["jobs"] is not None


@pytest.mark.parametrize("method", sorted(LOWEST) + ["no.such.method"])
def test_nothing_without_a_login(served, method):
    daemon, _ = served
    with daemon.tls() as rpc:
        with pytest.raises(RpcError) as caught:
            rpc.call(method, **STRANGE)
        if LOWEST.get(method) == "any":
            assert caught.value.code == -32602
        else:
            assert caught.value.code == 1006 and "auth.login" in caught.value.message


# --- other people's jobs ---

SEEING = ("job.get", "job.explain", "job.logs", "job.metrics", "job.watch")
TOUCHING = ("job.checkpoint", "job.pause", "job.resume", "job.requeue", "job.cancel")


def code(rpc, method, **params):
    try:
        rpc.call(method, **params)
        return 0
    except RpcError as e:
        return e.code


@pytest.fixture
def two_users(open_path, certificates):
    """A daemon with a job of user games, and tokens of each role for user man."""
    daemon = TlsDaemon(open_path, certificates, behaviour="run_ms=600000")
    daemon.start()
    _, owner = daemon.token(user="games")
    with daemon.tls(owner) as rpc:
        job = rpc.submit()
        rpc.wait_state(job, "running")
    yield daemon, owner, job, {role: daemon.token(user="man", role=role)[1] for role in ROLES}
    daemon.stop()


def test_a_job_of_somebody_else(two_users):
    daemon, owner, job, secrets = two_users
    for role in ROLES:
        sees, touches = role != "user", role in ("operator", "admin")
        with daemon.tls(secrets[role]) as rpc:
            for method in SEEING:
                assert code(rpc, method, id=job) == (0 if sees else 1004), (role, method)
            for method in TOUCHING:
                got = code(rpc, method, id=job) if not touches or method == "job.checkpoint" else None
                assert got in ((None, 0) if touches else (1004,)), (role, method)
            assert [j["id"] for j in rpc.call("job.list")["jobs"]] == ([job] if sees else [])
            assert code(rpc, "job.get", id=99) == 1001
    with daemon.tls(secrets["user"]) as rpc:
        with pytest.raises(RpcError) as caught:
            rpc.call("job.cancel", id=job)
        assert caught.value.message == f"job {job} belongs to games"
        with pytest.raises(RpcError) as caught:  # nor may a job come after one that is not one's own
            rpc.submit(spec(scheduling={"after": [job]}))
        assert caught.value.code == 1002
    with daemon.tls(owner) as rpc:
        assert rpc.call("job.get", id=job)["user"] == "games"
        assert [j["id"] for j in rpc.call("job.list")["jobs"]] == [job]
    with daemon.tls(secrets["operator"]) as rpc:
        assert rpc.call("job.cancel", id=job)["id"] == job
        assert rpc.wait_state(job, "cancelled")["reason"].startswith("cancelled by man")


def test_events_of_somebody_else(two_users):
    """Each watcher gets the events of the jobs that he may see, and no other's; his own job marks the end."""
    daemon, _, other, secrets = two_users
    for role in ("user", "viewer"):
        with daemon.tls(secrets[role]) as watcher, daemon.tls(secrets["operator"]) as worker:
            watcher.call("job.watch", since=0)
            own = worker.submit()  # user man's, as the watcher is
            seen = set()
            while own not in seen:
                seen.add(watcher.next_note()["params"]["id"])
            assert (other in seen) == (role == "viewer")
            worker.call("job.cancel", id=own)


def test_a_token_s_user_must_be_one_and_its_role_too(served):
    daemon, _ = served
    with daemon.rpc() as rpc:
        for params, says in ((dict(user="no-such-user"), "/params/user: 'no-such-user' found"),
                             (dict(user=""), "/params/user"), (dict(role="king"), "/params/role: 'king' found"),
                             (dict(role="worker"), "/params/role"), (dict(expires_s=-1), "/params/expires_s"),
                             (dict(expires_s=10 ** 12), "/params/expires_s"), (dict(note="x" * 201), "/params/note"),
                             (dict(note="two\nlines"), "/params/note"), (dict(expires="1d"), "accepted: user role")):
            with pytest.raises(RpcError) as caught:
                rpc.call("token.create", **params)
            assert caught.value.code == -32602 and says in caught.value.message


@pytest.mark.skipif(os.getuid() != 0, reason="needs a daemon that is root")
def test_only_root_makes_tokens_for_root(two_users):
    daemon, _, _, secrets = two_users
    with daemon.tls(secrets["admin"]) as rpc:
        for user in ("root", "0"):
            with pytest.raises(RpcError) as caught:
                rpc.call("token.create", user=user)
            assert caught.value.code == 1004 and "root's alone to make" in caught.value.message
        assert rpc.call("token.create")["user"] == "man"
        assert rpc.call("token.create", user="games", role="admin")["user"] == "games"


# --- local users ---

@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become other users")
def test_roles_of_local_users(open_path, make_daemon):
    daemon = make_daemon(directory=open_path, options=["--viewers", "daemon", "--operators", "@nogroup", "--operators",
                                                       "4242", "--admins", "bin"])
    daemon.socket.chmod(0o666)
    script = f"""
import os, json, sys
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from daemonlib import Rpc, RpcError
def role(uid, gid, groups):
    pipe = os.pipe()
    if os.fork() == 0:
        os.setgroups(groups); os.setgid(gid); os.setuid(uid)
        rpc, got = Rpc({str(daemon.socket)!r}), {{}}
        for method in ("job.list", "job.submit", "daemon.drain", "token.list"):
            try:
                rpc.call(method, no_such_parameter=1)
            except RpcError as e:
                got[method] = e.code
        os.write(pipe[1], json.dumps([got[m] == -32602 for m in got]).encode())
        os._exit(0)
    os.wait()
    return json.loads(os.read(pipe[0], 1000))
print(json.dumps([role(1, 1, []), role(5555, 5555, []), role(5555, 5555, [65534]), role(5555, 65534, []),
                  role(4242, 1, []), role(2, 2, []), role(0, 0, [])]))
"""
    out = subprocess.run(["/usr/bin/python3", "-c", script], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    viewer, user = [True, False, False, False], [True, True, False, False]
    operator, admin = [True, True, True, False], [True, True, True, True]
    assert json.loads(out.stdout) == [viewer, user, operator, operator, operator, admin, admin]


def test_lists_in_the_config_file(make_daemon, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"viewers": ["root"], "operators": ["@root", "0"], "admins": [], "max_user_jobs": 3}))
    daemon = make_daemon(options=["--config", config])
    with daemon.rpc() as rpc:  # the daemon's own user is an administrator whatever the lists say
        assert rpc.call("token.list") == {"tokens": []}
    wait_until(lambda: daemon.answers()["stats"]["clients"] == 1, "the probes have hung up")


@pytest.mark.parametrize("option", ["--viewers", "--operators", "--admins"])
def test_lists_with_names_that_nobody_has(tmp_path, option):
    daemon = Daemon(tmp_path, options=[option, "no-such-user"])
    run = subprocess.run(daemon.argv(), capture_output=True, text=True, timeout=30)
    assert run.returncode == 2 and f"{option}: 'no-such-user' found" in run.stderr
