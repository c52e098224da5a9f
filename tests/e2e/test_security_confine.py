"""Paths of jobs: under --data-root or refused, at the submission and again before the start."""
import json
import os
import subprocess

import pytest

from daemonlib import Daemon, RpcError, spec, wait_until
from tlslib import copy_of

pytestmark = pytest.mark.sanitize


def reads(path, **more):
    """A spec whose data lie at a path."""
    return spec("reader", data={"format": "idx", "path": str(path), "synthetic": None}, **more)


@pytest.fixture
def places(open_path):
    """in/ and more/ are roots, out/ is none."""
    for name in ("in/set", "more", "out/set", "input"):
        (open_path / name).mkdir(parents=True)
    (open_path / "out" / "weights").touch()
    (open_path / "in" / "weights").touch()
    (open_path / "in" / "inner").symlink_to("set")
    (open_path / "in" / "escape").symlink_to(open_path / "out")
    (open_path / "in" / "across").symlink_to(open_path / "more")
    return open_path


def rooted(make_daemon, places, **kwargs):
    return make_daemon(directory=places,
                       options=["--data-root", places / "in", "--data-root", places / "more"], **kwargs)


def test_paths_inside(places, make_daemon):
    daemon = rooted(make_daemon, places, behaviour="run_ms=1")
    with daemon.rpc() as rpc:
        for path in ("in/set", "in", "in/inner", "in/across", "more"):
            job = rpc.submit(reads(places / path, init={"weights": str(places / "in/weights")}))
            assert rpc.wait_state(job, "succeeded", "failed")["state"] == "succeeded"
        rpc.submit()  # synthetic data have no path


def test_paths_outside(places, make_daemon):
    """Also for the daemon's own user and root: roots are for all."""
    daemon = rooted(make_daemon, places)
    bad = ["out/set", "input", "in/escape/set", "in/../out/set", "in/nosuch", "nosuch"]
    with daemon.rpc() as rpc:
        for path in [str(places / p) for p in bad] + ["/etc", "/", "set", "../../out", "-x", "/proc/self/cwd"]:
            with pytest.raises(RpcError) as caught:
                rpc.submit(reads(path))
            assert caught.value.code == 1002
            error, = caught.value.data["errors"]
            assert error["pointer"] == "/data/path" and f'"{path}" found' in error["message"]
            assert f"a path under {places}/in or {places}/more is accepted (--data-root)" in error["message"]
        with pytest.raises(RpcError) as caught:
            rpc.submit(reads(places / "out/set", init={"weights": str(places / "out/weights")}))
        assert [e["pointer"] for e in caught.value.data["errors"]] == ["/data/path", "/init/weights"]
        with pytest.raises(RpcError) as caught:  # one of an array's jobs
            rpc.submit(reads(places / "in/set", sweep={"data.path": [str(places / "in/set"), str(places / "out/set")]}))
        assert caught.value.code == 1002 and "out/set" in caught.value.data["errors"][0]["message"]
        assert rpc.call("job.list") == {"jobs": []}


def test_a_link_that_changes_between_submission_and_start(places, make_daemon):
    daemon = rooted(make_daemon, places, slots=1, behaviour="run_ms=600000")
    link = places / "in" / "link"
    link.symlink_to("set")
    with daemon.rpc() as rpc:
        first = rpc.submit()
        rpc.wait_state(first, "running")
        waiting = rpc.submit(reads(link))
        link.unlink()
        link.symlink_to(places / "out")
        rpc.call("job.cancel", id=first)
        record = rpc.wait_state(waiting, "failed")
        assert record["reason"].startswith(f'could not be started: /data/path: "{link}" found')
        assert "this one leads elsewhere by a link" in record["reason"]
    assert not daemon.run_dir(waiting).exists()


def test_roots_that_came_later(places, make_daemon):
    """A job that was accepted without roots does not start under a daemon that has some."""
    daemon = make_daemon(directory=places, slots=1, behaviour="run_ms=600000")
    with daemon.rpc() as rpc:
        rpc.wait_state(rpc.submit(), "running")
        waiting = rpc.submit(reads(places / "out/set"))
    daemon.kill()
    daemon.options += ["--data-root", str(places / "in")]
    daemon.start()
    with daemon.rpc() as rpc:
        rpc.call("job.cancel", id=1)
        assert "--data-root" in rpc.wait_state(waiting, "failed")["reason"]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become other users")
class TestOtherUsers:
    """A daemon that is not root runs everybody's jobs with its own rights."""

    @pytest.fixture
    def nobodys(self, places):
        """A daemon of user nobody, and what user games gets when he submits to it."""
        home = places / "home"
        home.mkdir()
        os.chown(home, 65534, 65534)
        program = copy_of("batchformerd", places)
        made = []

        class Nobodys(Daemon):
            def argv(self):
                return ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", str(program),
                        *super().argv()[1:]]

        def make(*options):
            daemon = Nobodys(home, options=options, behaviour="run_ms=1")
            made.append(daemon)
            daemon.start()
            daemon.socket.chmod(0o666)
            return daemon
        yield make
        for daemon in made:
            daemon.stop()

    @staticmethod
    def submit_as(uid, daemon, doc):
        """0, or the code and message of the refusal."""
        script = (f"import os, sys, json\nsys.path.insert(0, {os.path.dirname(__file__)!r})\n"
                  "from daemonlib import Rpc, RpcError\n"
                  f"os.setgroups([]); os.setgid({uid}); os.setuid({uid})\n"
                  f"rpc = Rpc({str(daemon.socket)!r})\n"
                  "try:\n    rpc.submit(json.loads(sys.stdin.read()))\n    print('0 taken')\n"
                  "except RpcError as e:\n    print(e.code, e.message)\n")
        out = subprocess.run(["/usr/bin/python3", "-c", script], input=json.dumps(doc), capture_output=True, text=True,
                             timeout=60)
        assert out.returncode == 0, out.stderr
        code, message = out.stdout.split(" ", 1)
        return int(code), message

    def test_without_roots(self, nobodys, places):
        daemon = nobodys()
        code, message = self.submit_as(5, daemon, reads(places / "in/set"))
        assert code == 1002 and "no --data-root says what they may read" in message
        assert self.submit_as(5, daemon, spec())[0] == 0  # it names no path
        assert self.submit_as(65534, daemon, reads(places / "in/set"))[0] == 0  # the daemon's own user
        assert self.submit_as(0, daemon, reads("/etc"))[0] == 0  # root could do so anyway

    def test_with_roots(self, nobodys, places):
        daemon = nobodys("--data-root", places / "in")
        assert self.submit_as(5, daemon, reads(places / "in/set"))[0] == 0
        for uid in (5, 65534, 0):
            assert self.submit_as(uid, daemon, reads(places / "in/escape/set"))[0] == 1002

    def test_what_the_submitter_may_not_enter(self, places, make_daemon):
        """Under root it is the submitter's own rights that count."""
        (places / "in" / "closed").mkdir(mode=0o700)
        (places / "in" / "closed" / "set").mkdir()
        daemon = rooted(make_daemon, places, behaviour="run_ms=1")
        daemon.socket.chmod(0o666)
        code, message = self.submit_as(5, daemon, reads(places / "in/closed/set"))
        assert code == 1002 and "Permission denied" in message
        assert self.submit_as(0, daemon, reads(places / "in/closed/set"))[0] == 0
        wait_until(daemon.answers, "it goes on")
