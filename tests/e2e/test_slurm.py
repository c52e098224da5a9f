"""Jobs under a real Slurm: srun without PMIx, whose tasks meet in the run directory and speak TCP; srun with PMIx; a
batch script and mpirun in an allocation. In bitwise mode all end with the receipts of one rank alone."""
import getpass
import os
import signal
import socket

import pytest

from slurmlib import Slurm
from test_bitwise import spec_of
from workerlib import (MPI_ENV, bin_dir, checkpoints, command, log, losses, make_spec, metrics, read_safetensors, result, run,
                       wait_for, worst, write_job)

HOST = socket.gethostname()
NOTE = "goes through rank 0 over TCP"
ENDLESS = {"train__epochs": 100000, "checkpoint__every_steps": 0, "eval__every_epochs": 0}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        yield slurm.start()
    finally:
        slurm.stop()


@pytest.fixture
def slurm(cluster):
    """The cluster, with an empty queue before and after."""
    assert cluster.alive()
    yield cluster
    cluster.clear()


def srun(ranks, *args, mpi="none"):
    return ["srun", f"--mpi={mpi}", "--overcommit", "-n", str(ranks), *args]


def spec(**changes):
    return spec_of(**{"train__epochs": 2, **changes})


def train(slurm, folder, doc, ranks, name, *args, mpi="none", expect=0, env=None):
    p = slurm.call(*srun(ranks, mpi=mpi), *command(write_job(folder, doc, f"{name}.json"), folder / name, *args), env=env)
    assert p.returncode == expect, f"exit status {p.returncode}\n{p.stdout}\n{p.stderr}"
    return folder / name, p


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    where, _ = run(tmp_path_factory.mktemp("alone"), spec())
    return where


def same_end(a, b):
    assert result(a)["receipts"] == result(b)["receipts"] != []
    assert losses(a) == losses(b)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert result(a)["eval"] == result(b)["eval"]


@pytest.mark.sanitize
@pytest.mark.parametrize("ranks", [2, 3])
def test_srun_without_pmix(slurm, tmp_path, alone, ranks):
    """The same receipts as one rank and as mpirun; nothing of the meeting is left; the warning comes once."""
    where, p = train(slurm, tmp_path, spec(), ranks, "srun")
    by_mpirun, _ = run(tmp_path, spec(), ranks=ranks, run_dir="mpirun")
    same_end(alone, where)
    same_end(by_mpirun, where)
    assert result(where)["world_size"] == ranks
    assert sorted(f.name for f in where.iterdir()) == sorted(f.name for f in by_mpirun.iterdir())
    assert log(where, 0).count(NOTE) == p.stderr.count(NOTE) == 1
    assert all(NOTE not in log(where, r) for r in range(1, ranks))
    assert NOTE not in log(by_mpirun, 0)


def test_gradients(slurm, tmp_path):
    """In the default mode, where sums and gathers go through rank 0: 24 rows over 5 ranks."""
    one, _ = run(tmp_path, make_spec(), "--max-steps", 5, "--dump-step", f"5:{tmp_path}/one.st", run_dir="one")
    where, _ = train(slurm, tmp_path, make_spec(), 5, "many", "--max-steps", 5, "--dump-step", f"5:{tmp_path}/many.st")
    a, b = read_safetensors(tmp_path / "one.st"), read_safetensors(tmp_path / "many.st")
    assert abs(a["loss"] - b["loss"]) <= 1e-4 * abs(a["loss"])
    assert worst(a, b, "grad.") < (1e-4, "")
    assert result(where)["world_size"] == 5


def test_srun_with_pmix(slurm, tmp_path, alone):
    where, _ = train(slurm, tmp_path, spec(), 2, "pmix", mpi="pmix", env=MPI_ENV)
    same_end(alone, where)
    assert result(where)["world_size"] == 2 and NOTE not in log(where, 0)


def test_one_task(slurm, tmp_path, alone):
    where, _ = train(slurm, tmp_path, spec(), 1, "one")
    same_end(alone, where)
    assert result(where)["world_size"] == 1 and NOTE not in log(where, 0)


def test_batch_script_and_mpirun_in_an_allocation(slurm, tmp_path, alone):
    """A worker that a batch script starts itself is one rank, whatever was allocated; mpirun there starts the others."""
    job = write_job(tmp_path, spec())
    script = tmp_path / "job.sh"
    mpirun = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", "2"]
    script.write_text("#!/bin/bash\nset -e\n" + " ".join(command(job, tmp_path / "bare")) + "\n"
                      + " ".join(mpirun + command(job, tmp_path / "mpirun")) + "\n")
    p = slurm.call("sbatch", "--wait", "--overcommit", "-n", "2", "-o", str(tmp_path / "out"), str(script), env=MPI_ENV)
    assert p.returncode == 0, p.stderr + (tmp_path / "out").read_text()
    for name, ranks in (("bare", 1), ("mpirun", 2)):
        same_end(alone, tmp_path / name)
        assert result(tmp_path / name)["world_size"] == ranks


def begin(slurm, folder, doc, ranks, *options, name="run"):
    """A run that has made some steps; and its ranks' pids."""
    p = slurm.popen(*srun(ranks, *options), *command(write_job(folder, doc), folder / name))
    where = folder / name
    wait_for(lambda: p.poll() is not None or len(metrics(where, "step")) > 3, "some steps")
    assert p.poll() is None, p.communicate()
    return where, p, [int(log(where, r).split("pid ")[1].split()[0]) for r in range(ranks)]


@pytest.mark.parametrize("victim, options", [(0, []), (1, []), (2, []), (1, ["--kill-on-bad-exit"])])
def test_killed_rank_is_named(slurm, tmp_path, victim, options):
    """The others notice at once and say who it was; the step ends, and the run goes on from its checkpoint."""
    doc = spec(**{**ENDLESS, "checkpoint__every_steps": 2})
    where, p, pids = begin(slurm, tmp_path, doc, 3, *options)
    wait_for(lambda: checkpoints(where), "a checkpoint")
    os.kill(pids[victim], signal.SIGKILL)
    _, err = p.communicate(timeout=60)
    assert p.returncode not in (0, None)
    gone = f"rank {victim} on {HOST} is gone"
    for r in {0, 1, 2} - {victim}:
        assert gone in log(where, r), log(where, r)
    if victim == 0:  # who would tell has been killed
        assert not (where / "result.json").exists()
        assert f"task {victim}: Killed" in err
    else:
        reason = result(where)["reason"]
        assert reason.startswith("rank 0: ") and gone in reason
        assert result(where)["status"] == "failed" and result(where)["peer_lost"] is True
        assert err.count(gone) == 1
    last = checkpoints(where)[-1] + 2
    train(slurm, tmp_path, doc, 2, "run", "--resume", "--max-steps", last)
    undisturbed, _ = run(tmp_path, doc, "--max-steps", last, run_dir="undisturbed")
    assert result(where)["receipts"] == result(undisturbed)["receipts"]


def test_a_rank_that_fails_alone_tells_why(slurm, tmp_path):
    """Rank 0 cannot write its metrics any more; rank 1 is told, ends with the same status, and leaves the result."""
    doc = spec(**ENDLESS)
    worker = " ".join(command(write_job(tmp_path, doc), tmp_path / "run"))
    # 16 KiB a file: SIGXFSZ is ignored, so that the write fails.
    p = slurm.call(*srun(2, "bash", "-c", f"trap '' XFSZ; [ $SLURM_PROCID != 0 ] || ulimit -f 16; exec {worker}"))
    where = tmp_path / "run"
    assert p.returncode == 1, p.stderr
    r = result(where)
    assert r["status"] == "failed" and r["reason"].startswith("rank 0: ") and "File too large" in r["reason"]
    assert r["peer_lost"] is False
    assert p.stderr.count("File too large") == 1 and "rank 1" not in p.stderr
    assert f"rank 0 on {HOST} gave up with status 1" in log(where, 1)


def test_signal_stops_with_a_checkpoint(slurm, tmp_path):
    where, p, _ = begin(slurm, tmp_path, spec(**ENDLESS), 2)
    job = slurm.call("squeue", "-h", "-o", "%A").stdout.strip()
    assert slurm.call("scancel", "--signal=USR1", "--user", getpass.getuser(), job).returncode == 0
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130, err
    assert result(where)["status"] == "stopped" and "SIGUSR1" in result(where)["reason"]
    assert checkpoints(where) == [result(where)["steps"]]


def test_bad_spec_is_told_once(slurm, tmp_path):
    _, p = train(slurm, tmp_path, make_spec(train__epochs=0), 3, "bad", expect=2)
    assert p.stderr.count("/train/epochs") == 1
    assert list((tmp_path / "bad").iterdir()) == []  # the meeting place


def test_an_older_pmi_is_refused(slurm, tmp_path):
    """Debian's Open MPI does not speak PMI-2: no rank may believe to be alone."""
    p = slurm.call(*srun(2, mpi="pmi2"), *command(write_job(tmp_path, spec()), tmp_path / "run"))
    assert p.returncode != 0 and not (tmp_path / "run").exists()
