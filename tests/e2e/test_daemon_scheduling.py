"""What the scheduler's decisions do to jobs: who starts where, who yields, who grows. With the fake launcher."""
import pytest

from daemonlib import RpcError, spec, wait_until

LONG = "run_ms=600000,steps=100000"
NOW = ["--grace-ms", 0, "--grow-ms", 0]


def ranks(n, low=None, high=None, **more):
    return {"resources": {"ranks": n, "min_ranks": low or n, "max_ranks": high or n}, **more}


def held(rpc, job):
    allocation = rpc.call("job.get", id=job)["allocation"]
    return allocation and allocation["ranks"]


def test_a_higher_priority_has_others_yield(make_daemon):
    daemon = make_daemon(behaviour=LONG, slots=2, options=NOW)
    with daemon.rpc() as rpc:
        low = [rpc.submit(spec(f"low{i}")) for i in range(2)]
        for job in low:
            rpc.wait_state(job, "running")
        high = rpc.submit(spec("high", scheduling={"priority": 5}))
        rpc.wait_state(high, "running")
        records = [rpc.call("job.get", id=job) for job in low]
        states = sorted(record["state"] for record in records)
        assert states == ["queued", "running"]
        victim = next(record for record in records if record["state"] == "queued")
        assert victim["yields"] == 1 and victim["attempts"] == 1
        rpc.call("job.cancel", id=high)
        rpc.wait_state(victim["id"], "running")
        same = rpc.submit(spec("same"))  # of the same priority: it waits
        text = wait_until(lambda: rpc.call("job.explain", id=same)["text"], lambda: "a sentence")
        assert f"job {same} needs 1 rank" in text
        assert rpc.call("job.get", id=same)["state"] == "queued"


def test_nobody_yields_when_that_is_switched_off(make_daemon):
    daemon = make_daemon(behaviour=LONG, slots=1, options=[*NOW, "--no-preempt"])
    with daemon.rpc() as rpc:
        low = rpc.submit()
        rpc.wait_state(low, "running")
        high = rpc.submit(spec(scheduling={"priority": 9}))
        assert "needs 1 rank" in wait_until(
            lambda: rpc.call("job.explain", id=high)["text"], lambda: "a sentence")
        assert rpc.call("job.get", id=low)["yields"] == 0
        assert rpc.call("job.get", id=low)["state"] == "running"


def test_an_elastic_job_shrinks_for_another_and_grows_again(make_daemon):
    daemon = make_daemon(behaviour=LONG, slots=4, options=NOW)
    with daemon.rpc() as rpc:
        elastic = rpc.submit(spec("elastic", **ranks(4, 1, 4)))
        rpc.wait_state(elastic, "running")
        assert held(rpc, elastic) == 4
        other = rpc.submit(spec("other", **ranks(2)))
        rpc.wait_state(other, "running")
        wait_until(lambda: held(rpc, elastic) == 2, lambda: f"2 ranks, it has {held(rpc, elastic)}")
        rpc.call("job.cancel", id=other)
        wait_until(lambda: held(rpc, elastic) == 4, lambda: f"4 ranks again, it has {held(rpc, elastic)}")
        assert rpc.call("job.get", id=elastic)["attempts"] == 1


def test_a_small_job_fills_a_gap_that_a_big_one_leaves(make_daemon):
    daemon = make_daemon(behaviour=LONG, slots=2)
    with daemon.rpc() as rpc:
        running = rpc.submit(spec(scheduling={"time_limit_s": 3000}))
        rpc.wait_state(running, "running")
        big = rpc.submit(spec("big", **ranks(2)))
        small = rpc.submit(spec("small", scheduling={"time_limit_s": 60}))
        endless = rpc.submit(spec("endless"))
        rpc.wait_state(small, "running")
        assert rpc.call("job.get", id=big)["state"] == "queued"
        assert f"job {running}" in rpc.call("job.explain", id=big)["text"]
        rpc.call("job.cancel", id=small)
        rpc.wait_state(small, "cancelled")
        assert rpc.call("job.get", id=endless)["state"] == "queued"  # would delay the big one


def test_jobs_lie_on_the_nodes_that_there_are(make_daemon):
    daemon = make_daemon(behaviour=LONG, options=["--node", "a:2", "--node", "b:2", "--node", "c:1:1"])
    with daemon.rpc() as rpc:
        wide = rpc.submit(spec(**ranks(4)))
        record = rpc.wait_state(wide, "running")
        assert [(n["name"], n["ranks"]) for n in record["allocation"]["nodes"]] == [("a", 2), ("b", 2)]
        nodes = {n["name"]: n for n in rpc.call("node.list")["nodes"]}
        assert nodes["a"]["slots_free"] == 0 and nodes["c"]["slots_free"] == 1 and nodes["b"]["jobs"] == [wide]
        info = rpc.call("daemon.info")
        assert info["nodes"] == 3 and info["slots"] == {"total": 5, "used": 4}
        for doc, pointer in ((spec(**ranks(6)), "/resources/min_ranks"),
                             (spec(resources={"ranks": 4, "min_ranks": 4, "nodes": 4}), "/resources/nodes")):
            with pytest.raises(RpcError) as caught:
                rpc.submit(doc)
            assert [e["pointer"] for e in caught.value.data["errors"]] == [pointer]


def test_gpus_are_given_out_one_by_one(make_daemon):
    daemon = make_daemon(behaviour=LONG, options=["--node", "a:4:3"])

    def gpu_job(n):
        return {"resources": {"ranks": n, "min_ranks": n, "gpus_per_rank": 1}}
    with daemon.rpc() as rpc:
        first, second = rpc.submit(spec(**gpu_job(2))), rpc.submit(spec(**gpu_job(1)))
        gpus = [rpc.wait_state(job, "running")["allocation"]["nodes"][0]["gpus"] for job in (first, second)]
        assert gpus == [[0, 1], [2]]
        third = rpc.submit(spec(**gpu_job(1)))
        assert "GPU" in wait_until(lambda: rpc.call("job.explain", id=third)["text"], lambda: "a sentence")
        rpc.call("job.cancel", id=first)
        assert rpc.wait_state(third, "running")["allocation"]["nodes"][0]["gpus"] == [0]
        node, = rpc.call("node.list")["nodes"]
        assert node["gpus"] == 3 and node["gpus_free"] == 1
        with pytest.raises(RpcError) as caught:
            rpc.submit(spec(**gpu_job(4)))
        assert "at most 3" in caught.value.data["errors"][0]["message"]


def test_a_drained_node_takes_nothing_new(make_daemon):
    daemon = make_daemon(behaviour=LONG, options=["--node", "a:1", "--node", "b:1"])
    with daemon.rpc() as rpc:
        first = rpc.submit()
        assert rpc.wait_state(first, "running")["allocation"]["node"] == "a"
        rpc.call("node.drain", name="b", reason="a fan")
        waiting = rpc.submit()
        text = wait_until(lambda: rpc.call("job.explain", id=waiting)["text"], lambda: "a sentence")
        assert f"job {waiting} needs 1 rank" in text
        rpc.call("node.drain", name="a")
        assert rpc.call("job.get", id=first)["state"] == "running"
        rpc.call("job.cancel", id=first)
        rpc.wait_state(first, "cancelled")
    daemon.kill()
    daemon.start()  # it is remembered
    with daemon.rpc() as rpc:
        nodes = {n["name"]: n for n in rpc.call("node.list")["nodes"]}
        assert nodes["b"]["health"] == "drained" and "a fan" in nodes["b"]["reason"]
        assert "drained" in wait_until(lambda: rpc.call("job.explain", id=waiting)["text"], lambda: "a sentence")
        rpc.call("node.resume", name="b")
        assert rpc.wait_state(waiting, "running")["allocation"]["node"] == "b"
        with pytest.raises(RpcError) as caught:
            rpc.call("node.drain", name="z")
        assert caught.value.code == 1001
