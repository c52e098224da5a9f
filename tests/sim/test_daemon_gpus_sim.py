"""The coordinator gives GPUs to jobs: CUDA_VISIBLE_DEVICES of the workers, on simulated GPUs."""
import os
import pathlib
import socket
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from buildlib import bin_dir  # noqa: E402
from daemonlib import Daemon, environments, spec, wait_until  # noqa: E402

SIM = "batchformer-worker-sim"
pytestmark = pytest.mark.skipif(not (bin_dir() / SIM).exists(), reason="built without CUDA's headers")


@pytest.fixture
def daemon(tmp_path):
    made = Daemon(tmp_path, launcher="mpirun",
                  options=["--node", f"{socket.gethostname()}:4:3", "--worker", bin_dir() / SIM])
    yield made.start()
    made.stop()


def gpu_job(ranks, epochs):
    return spec(resources={"ranks": ranks, "min_ranks": ranks, "gpus_per_rank": 1},
                train={"epochs": epochs, "batch_size": 16})


def seen_gpus(daemon, job):
    return {env.get("CUDA_VISIBLE_DEVICES") for env in environments(*daemon.marks(job)).values()
            if "OMPI_COMM_WORLD_RANK" in env}


def test_jobs_beside_each_other_have_gpus_of_their_own(daemon):
    with daemon.rpc() as rpc:
        wide, narrow = rpc.submit(gpu_job(2, 1000)), rpc.submit(gpu_job(1, 1000))
        for job, gpus in ((wide, {"0,1"}), (narrow, {"2"})):
            rpc.wait_state(job, "running")
            wait_until(lambda: seen_gpus(daemon, job) == gpus, lambda: f"{gpus}, it is {seen_gpus(daemon, job)}")
        waiting = rpc.submit(gpu_job(1, 1))
        assert "GPU" in wait_until(lambda: rpc.call("job.explain", id=waiting)["text"], lambda: "a sentence")
        rpc.call("job.cancel", id=wide)
        rpc.call("job.cancel", id=narrow)
        record = rpc.wait_state(waiting, "succeeded", "failed")
        assert record["state"] == "succeeded", record["reason"]
        assert os.path.exists(record["paths"]["model"])
