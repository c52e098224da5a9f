"""Whatever is killed, and whenever: the run ends with the bits of a run that nobody disturbed.

BF_CHAOS_KILLS=1000 for a soak (50 by default, under the daemon; a third of it more by hand), BF_CHAOS_SEED=N for another
story.
"""
import itertools
import os
import shutil

import pytest

from chaoslib import (KILLS, Chaos, DaemonRun, HandRun, Kill, assert_bit_for_bit, curve, every_checkpoint_is_whole,
                      weights)
from daemonlib import Daemon, environments, events_of, wait_until
from workerlib import ENV, MPI_ENV, make_spec, run, worst

STEPS_AN_EPOCH = 5
KILLS_A_RUN = 14
WEIGHT, LOSS = 1e-3, 1e-3


def job(epochs, **changes):
    """A step takes some milliseconds, so that a daemon can come back before the run is over."""
    return make_spec(**{"train__epochs": epochs, "train__batch_size": 96, "data__synthetic__train_per_class": 250,
                        "optim__lr": 0.02, "eval__every_epochs": 2, "checkpoint__every_steps": 4, **changes})


def under_daemon(ranks, epochs):
    return job(epochs, resources={"ranks": ranks}, scheduling={"max_restarts": 1000})


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """twin(spec, ranks) → the directory of the same run, by hand and undisturbed."""
    made = {}

    def make(spec, ranks):
        key = str((spec, ranks))
        if key not in made:
            made[key], _ = run(tmp_path_factory.mktemp("twin"), spec, ranks=ranks)
        return made[key]
    return make


@pytest.fixture
def scraps(tmp_path):
    """Where Open MPI keeps session directories and shared memory: a killed mpirun leaves them behind."""
    folders = [tmp_path / "t", f"/dev/shm/batchformer-chaos-{os.getpid()}"]
    for folder in folders:
        os.mkdir(folder)
    yield folders
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture
def env(scraps):
    """mpirun kills the ranks that are left without giving them the second that it usually gives: that is most of the
    time that a restart takes. The story under the daemon has that second at times."""
    return {**ENV, **MPI_ENV, "TMPDIR": str(scraps[0]), "OMPI_MCA_btl_vader_backing_directory": str(scraps[1]),
            "OMPI_MCA_odls_base_sigkill_timeout": "0"}


def clear(folders):
    """Between runs, so that a soak does not fill the disk."""
    for folder in folders:
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


@pytest.fixture
def daemon(tmp_path, env):
    daemon = Daemon(tmp_path, launcher="mpirun", slots=3, env=env).start()
    yield daemon
    daemon.stop()


@pytest.fixture
def show(capsys):
    def line(text):
        with capsys.disabled():
            print(text)
    return line


def finished(chaos, run_):
    """The run's end is a success, and nothing of it is left."""
    record = wait_until(lambda: run_.over() and run_.record(), lambda: run_.record(), 120)
    assert record["state"] == "succeeded", record["reason"]
    strikes = chaos.count(lambda k: k.run == run_.run_dir.name and k.targets != ("daemon",))
    assert record["attempts"] - 1 <= strikes, "it was restarted without a cause"
    wait_until(lambda: not environments(*run_.marks), "no process is left")
    every_checkpoint_is_whole(run_.run_dir)


def lines_key(record):
    return record["kind"], record["step"], record.get("split")


def test_under_the_daemon(daemon, scraps, twin, show):
    """A rank, mpirun, the daemon, two of them at once."""
    chaos, wanted = Chaos("under the daemon"), max(50, KILLS)
    with chaos.told(show):
        while len(chaos.kills) < wanted:
            before, spec = len(chaos.kills), under_daemon(chaos.rng.choice([2, 3]), epochs=100)
            disturbed = DaemonRun(daemon, spec, 100 * STEPS_AN_EPOCH)
            chaos.disturb(disturbed, min(KILLS_A_RUN, wanted - before))
            finished(chaos, disturbed)
            assert_bit_for_bit(disturbed.run_dir, twin(spec, disturbed.n_ranks))
            clear(scraps)
            assert len(chaos.kills) > before, "a run ended before anything was killed"
        assert chaos.count(lambda k: k.inside) >= wanted // 6, "too few kills hit a checkpoint that was being written"
        for target in ("rank 0", "other rank", "mpirun", "daemon"):
            assert chaos.count(lambda k: target in k.targets) >= wanted // 12, f"too few kills of: {target}"
        assert chaos.count(lambda k: len(k.targets) == 2) >= wanted // 16


@pytest.mark.parametrize("point", ["checkpoint.mid_write", "checkpoint.before_rename", "checkpoint.before_remove"])
def test_every_attempt_dies_in_its_second_checkpoint(daemon, twin, show, point):
    spec = under_daemon(2, epochs=8)
    daemon.kill()
    daemon.env["BATCHFORMER_FAULT"] = f"{point}:kill@2"  # the jobs inherit it
    daemon.start()
    chaos = Chaos(point)
    with chaos.told(show):
        chaos.run = disturbed = DaemonRun(daemon, spec, 8 * STEPS_AN_EPOCH)
        with daemon.rpc(timeout=120) as rpc:
            restarts = [ev for ev in events_of(rpc, disturbed.job) if ev["type"] == "restarting"]
        for n, ev in enumerate(restarts, 1):
            assert "rank 0" in ev["reason"] and "killed by signal 9" in ev["reason"]
            chaos.kills.append(Kill(disturbed.run_dir.name, n, ("rank 0",), point, point != "checkpoint.before_remove"))
        finished(chaos, disturbed)
        # Each attempt leaves one more checkpoint, or two where the second has its name before the kill.
        assert len(restarts) == (5 if point == "checkpoint.before_remove" else 9)
        assert_bit_for_bit(disturbed.run_dir, twin(spec, 2))


def test_by_hand_with_other_ranks_each_time(tmp_path, env, scraps, twin, show):
    """Each attempt has another number of ranks, so the sums have another order: the same function within rounding."""
    chaos, wanted, spec, epochs = Chaos("by hand"), max(15, KILLS // 3), job(16), 16
    whole = twin(spec, 2)
    sizes = itertools.cycle([2, 3, 1, 4])
    with chaos.told(show):
        while len(chaos.kills) < wanted:
            before = len(chaos.kills)
            disturbed = HandRun(tmp_path / f"run{before}", spec, epochs * STEPS_AN_EPOCH, env, sizes)
            try:
                disturbed.start()
                chaos.disturb(disturbed, min(KILLS_A_RUN, wanted - before))
                assert disturbed.process.wait(120) == 0
            finally:
                disturbed.end()
            every_checkpoint_is_whole(disturbed.run_dir)
            a, b = curve(disturbed.run_dir), curve(whole)
            assert [lines_key(r) for r in a] == [lines_key(r) for r in b]
            assert max(abs(x["loss"] - y["loss"]) / abs(y["loss"]) for x, y in zip(a, b) if "loss" in x) <= LOSS
            assert worst(weights(whole), weights(disturbed.run_dir)) < (WEIGHT, "")
            clear(scraps)
            assert len(chaos.kills) > before, "a run ended before anything was killed"
        assert chaos.count(lambda k: k.inside) >= wanted // 6, "too few kills hit a checkpoint that was being written"
