"""Whatever is killed, and whenever: the run ends with the bits of a run that nobody disturbed.

BF_CHAOS_KILLS=1000 for a soak (50 by default, under the daemon; a third of it more by hand), BF_CHAOS_SEED=N for another
story.
"""
import itertools
import os
import shutil

import pytest

from chaoslib import HANG_S, KILLS, LIMIT, Chaos, Kill
from daemonlib import Daemon, environments, events_of, wait_until
from runlib import DaemonRun, HandRun, assert_bit_for_bit, distance, every_checkpoint_is_whole, line_names
from workerlib import ENV, MPI_ENV, make_spec, run

STEPS_AN_EPOCH = 5
KILLS_A_RUN = 14
# Runs of 40 steps on 1 and 3 ranks are up to 1e-5 (loss) and 1e-3 (way of the weights) from one on 2: few of these
# runs have a ReLU input so close to zero that its unit is on for one number of ranks only (see test_exactness.py).
EPOCHS_BY_HAND, LOSS, WAY = 8, 2e-4, 5e-3


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
    daemon = Daemon(tmp_path, launcher="mpirun", slots=3, options=["--hang-ms", HANG_S * 1000], env=env).start()
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
    strikes = chaos.count(lambda k: k.run == run_.name and k.targets != ("daemon",))
    assert record["attempts"] - 1 <= strikes, "it was restarted without a cause"
    wait_until(lambda: not environments(*run_.marks), "no process is left")
    every_checkpoint_is_whole(run_.run_dir)


def test_under_the_daemon(daemon, scraps, twin, show):
    """A rank, mpirun, the daemon, two of them at once."""
    chaos, wanted = Chaos("under the daemon"), max(50, KILLS)
    with chaos.told(show):
        for n in itertools.count():
            spec = under_daemon(chaos.rng.choice([2, 3]), epochs=100)
            disturbed = DaemonRun(daemon, spec, 100 * STEPS_AN_EPOCH)
            chaos.disturb(disturbed, min(KILLS_A_RUN, wanted - len(chaos.kills)))
            finished(chaos, disturbed)
            assert_bit_for_bit(disturbed.run_dir, twin(spec, disturbed.n_ranks))
            clear(scraps)
            if len(chaos.kills) >= wanted:
                break
            assert n < 10 * wanted, "runs end before anything is killed"
        hung = daemon.log_text().count("mpirun has been without a rank")
        chaos.remarks.append(f"mpirun hung without ranks {hung} times")
        assert chaos.count(lambda k: k.inside) >= wanted // 8, "too few kills hit a checkpoint that was being written"
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
            chaos.kills.append(Kill(disturbed.name, n, ("rank 0",), point, point != "checkpoint.before_remove"))
        finished(chaos, disturbed)
        # Each attempt leaves one more checkpoint, or two where the second has its name before the kill.
        assert len(restarts) == (5 if point == "checkpoint.before_remove" else 9)
        assert_bit_for_bit(disturbed.run_dir, twin(spec, 2))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A run whose weights are where the others begin."""
    where, _ = run(tmp_path_factory.mktemp("start"), job(1, optim__lr=1e-15), "--max-steps", 1, ranks=1)
    return where


def test_by_hand_with_other_ranks_each_time(tmp_path, env, scraps, twin, start, show):
    """Each attempt has another number of ranks, so the sums have another order: the same function within rounding."""
    chaos, wanted, spec = Chaos("by hand"), max(15, KILLS // 3), job(EPOCHS_BY_HAND)
    whole, sizes, far = twin(spec, 2), itertools.cycle([2, 3, 1, 4]), [(0.0, 0.0)]
    with chaos.told(show):
        for n in itertools.count():
            disturbed = HandRun(tmp_path / f"run{n}", spec, EPOCHS_BY_HAND * STEPS_AN_EPOCH, env, sizes)
            try:
                disturbed.start()
                chaos.disturb(disturbed, KILLS_A_RUN)
                assert disturbed.process.wait(LIMIT) == 0
            finally:
                disturbed.end()
            every_checkpoint_is_whole(disturbed.run_dir)
            assert line_names(disturbed.run_dir) == line_names(whole)
            far.append(distance(disturbed.run_dir, whole, start))
            assert far[-1][0] <= LOSS and far[-1][1] <= WAY
            clear(scraps)
            if len(chaos.kills) >= wanted and chaos.n_beside() >= 2:
                break
            assert n < 10 * wanted, "runs end before anything is killed"
        chaos.remarks.append(f"{chaos.n_beside()} attempts came while rank 0 of the last one still lived")
        chaos.remarks.append(f"furthest from the undisturbed run: loss {max(f[0] for f in far):.1e} (at most {LOSS}), "
                             f"weights {max(f[1] for f in far):.1e} of their way (at most {WAY})")
        assert chaos.count(lambda k: k.inside) >= wanted // 6, "too few kills hit a checkpoint that was being written"


def test_the_comparison_can_fail(tmp_path, twin, start):
    """What attends over one rank's rows only is another function, and far away."""
    spec = job(EPOCHS_BY_HAND)
    where, _ = run(tmp_path, job(EPOCHS_BY_HAND, batchformer__scope="local"), ranks=3)
    loss, way = distance(where, twin(spec, 2), start)
    assert loss > 10 * LOSS and way > 10 * WAY
