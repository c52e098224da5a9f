"""Jobs over several hosts: ranks in network namespaces, started by mpirun through a launch agent, that find the coordinator
over TLS. The numbers are those of one host."""
import json

import pytest

from daemonlib import Daemon, spec, wait_until
from hostslib import Hosts
from tlslib import Certificates

SMALL = {"train": {"epochs": 2, "batch_size": 16, "determinism": "bitwise"}, "checkpoint": {"every_steps": 2}}


@pytest.fixture
def hosts(tmp_path):
    with Hosts(tmp_path, ["hosta", "hostb"]) as there:
        yield there


@pytest.fixture
def daemon(tmp_path, hosts):
    certificates = Certificates(tmp_path / "c")
    cert, key = certificates.leaf("bridge", f"IP:{hosts.address}")
    address = f"tcp:{hosts.address}:{hosts.free_port()}"
    made = Daemon(tmp_path, launcher="mpirun", env=hosts.env,
                  options=["--node", "hosta:2", "--node", "hostb:2", "--launch-agent", hosts.agent, "--listen", address,
                           "--tls-cert", cert, "--tls-key", key, "--link", address, "--link-ca", certificates.ca])
    yield made.start()
    made.stop()


def receipts(daemon, job):
    return json.loads((daemon.run_dir(job) / "result.json").read_text())["receipts"]


def test_two_hosts_compute_what_one_does(daemon):
    with daemon.rpc() as rpc:
        wide = rpc.submit(spec(resources={"ranks": 2, "min_ranks": 2, "nodes": 2}, **SMALL))
        rpc.call("job.watch", id=wide, since=0)
        places = []
        while not places or places[-1]["state"] not in ("succeeded", "failed"):
            note = rpc.next_note()["params"]
            if note["type"] != "progress":
                places.append(note)
        assert places[-1]["state"] == "succeeded", places[-1]["reason"]
        start, = [ev for ev in places if ev["type"] == "starting"]
        assert start["place"] == "hosta:1,hostb:1"
        attached, = [ev for ev in places if ev["type"] == "attached"]
        assert "hosta" in attached["reason"]
        narrow = rpc.submit(spec(resources={"ranks": 1}, **SMALL))
        record = rpc.wait_state(narrow, "succeeded", "failed")
        assert record["state"] == "succeeded", record["reason"]
        assert receipts(daemon, wide) == receipts(daemon, narrow)


def test_a_host_that_cannot_be_reached_is_set_aside(daemon, hosts):
    (hosts.broken / "hosta").touch()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec(resources={"ranks": 1}, **SMALL))
        record = rpc.wait_state(job, "succeeded", "failed", timeout=120)
        assert record["state"] == "succeeded", record["reason"]
        assert record["attempts"] == 2
        nodes = {n["name"]: n for n in rpc.call("node.list")["nodes"]}
        assert nodes["hosta"]["health"] == "set aside" and "could not be reached" in nodes["hosta"]["reason"]
        assert nodes["hostb"]["health"] == "up"
        rpc.call("job.watch", id=job, since=0)
        reason = wait_until(lambda: next((n["params"]["reason"] for n in [rpc.next_note()]
                                          if n["params"]["type"] == "restarting"), None), "the restart's reason")
        assert "node hosta could not be reached" in reason
        (hosts.broken / "hosta").unlink()
        rpc.call("node.resume", name="hosta")
        assert {n["health"] for n in rpc.call("node.list")["nodes"]} == {"up"}
