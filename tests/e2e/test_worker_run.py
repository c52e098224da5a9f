"""batchformer-worker: what a run leaves behind, and how it fails."""
import json
import os
import subprocess

import numpy as np
import pytest

from workerlib import (bin_dir, checkpoints, command, environment, idx_spec, log, losses, make_spec, metrics,
                       read_safetensors, result, run, start, wait_for, write_idx, write_job)


@pytest.mark.parametrize("env, spec, cpus, ranks, threads, source", [
    ({}, {}, 1, None, 1, "cores"),
    ({}, {}, 2, None, 2, "cores"),
    ({}, {}, 2, 2, 1, "cores"),
    ({}, {}, 2, 3, 1, "cores"),
    ({"OMP_NUM_THREADS": "3"}, {}, 2, None, 3, "OMP_NUM_THREADS"),
    ({"OMP_NUM_THREADS": "3"}, {"resources__threads_per_rank": 2}, 1, None, 2, "threads_per_rank"),
    ({"OMP_NUM_THREADS": "many"}, {}, 1, None, 1, "cores"),
    ({}, {"train__determinism": "bitwise", "train__micro_shards": 4}, 2, None, 1, "determinism"),
])
def test_threads(tmp_path, env, spec, cpus, ranks, threads, source):
    """From the affinity that the ranks get, here taskset's, on a machine with enough cores for it."""
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < cpus or host_cores() < cpus:
        pytest.skip(f"needs {cpus} cores")
    job = write_job(tmp_path, make_spec(train__epochs=1, **spec))
    args = ["taskset", "-c", ",".join(map(str, mine[:cpus])), *command(job, tmp_path / "run", ranks=ranks)]
    clean = {k: v for k, v in environment(ranks, {}).items() if k != "OMP_NUM_THREADS"}
    subprocess.run(args, env={**clean, **env}, check=True, capture_output=True, timeout=120)
    r = result(tmp_path / "run")
    assert (r["threads_per_rank"], r["threads_from"]) == (threads, source)
    sharing = ranks or 1
    for rank in range(sharing):
        assert f"threads: {threads}, by {source}; this rank may use {cpus} cores, which {sharing} ranks" in log(
            tmp_path / "run", rank)


def host_cores():
    """What the worker says: fewer than the CPUs where a core shows as several of them."""
    p = subprocess.run([str(bin_dir() / "batchformer-worker"), "--probe"], capture_output=True, check=True)
    return json.loads(p.stdout)["cores"]


def check_timings(t):
    assert set(t) == {"start_s", "comm_s", "data_s", "compile_s", "first_step_s", "train_s", "data_wait_s", "comm_wait_s",
                      "eval_s", "checkpoint_s", "total_s"}
    assert all(v >= 0 for v in t.values())
    assert t["comm_s"] + t["data_s"] + t["compile_s"] <= t["start_s"]
    assert t["first_step_s"] <= t["train_s"] and t["data_wait_s"] + t["comm_wait_s"] <= t["train_s"]
    assert t["start_s"] + t["train_s"] + t["eval_s"] + t["checkpoint_s"] <= t["total_s"]


@pytest.mark.sanitize
@pytest.mark.parametrize("launcher", ["mpi", "tcp"])
def test_waits_for_other_ranks_are_told(tmp_path, launcher):
    """In total, and since the logged step before; both are rank 0's."""
    spec = make_spec(train__log_every_steps=5)
    if launcher == "mpi":
        where, _ = run(tmp_path, spec, ranks=2)
    else:
        tasks = [start(tmp_path, spec, env=slurm_task(r, 2)) for r in range(2)]
        assert [p.wait(timeout=120) for _, p in tasks] == [0, 0]
        where = tasks[0][0]
    t = result(where)["timings"]
    check_timings(t)
    lines = metrics(where, "step")
    assert [m["step"] for m in lines] == [5, 10, 12] and t["comm_wait_s"] > 0
    for name in ("data_wait_s", "comm_wait_s"):
        assert sum(m[name] for m in lines) == pytest.approx(t[name])


@pytest.mark.sanitize
def test_alone(tmp_path):
    where, p = run(tmp_path, make_spec())
    r = result(where)
    assert r["status"] == "succeeded" and r["reason"] is None
    assert r["world_size"] == 1 and r["batchformer"] is True and r["task"] == "long_tailed"
    assert r["steps"] == r["n_steps"] == 12 and r["epochs"] == 3
    ev = r["eval"]
    assert len(ev["per_class"]) == 4 and ev["samples"] == 80 and ev["transductive"] is False
    assert ev["top1"] == pytest.approx(np.mean(ev["per_class"]))  # the test set is balanced
    assert ev["groups"]["rule"] == "counts" and ev["many"] is None  # no class has more than 100 images
    few = [ev["per_class"][c] for c in ev["groups"]["few"]]
    assert few and ev["few"] == pytest.approx(np.mean(few))
    assert r["best"]["val_top1"] == max(m["val_top1"] for m in metrics(where, "eval") if m["split"] == "validation")
    assert r["images_per_s"] > 0
    check_timings(r["timings"])
    assert r["timings"]["comm_wait_s"] == 0
    assert all(m["data_wait_s"] >= 0 and m["comm_wait_s"] == 0 for m in metrics(where, "step"))

    assert list(losses(where)) == list(range(1, 13))
    assert [m["epoch"] for m in metrics(where, "epoch")] == [1, 2, 3]
    assert [(m["split"], m["epoch"]) for m in metrics(where, "eval")] == [
        ("validation", 1), ("validation", 2), ("validation", 3), ("test", 3)]
    for i, m in enumerate(metrics(where, "epoch")):
        assert m["epoch_loss"] == pytest.approx(np.mean([losses(where)[s] for s in range(4 * i + 1, 4 * i + 5)]))
    assert checkpoints(where) == [10, 12]
    assert json.loads((where / "job.json").read_text())["train"]["epochs"] == 3
    assert "succeeded" in log(where) and "succeeded" in p.stderr
    assert list((where / "tensorboard").glob("events.out.tfevents.*"))

    model, whole = read_safetensors(where / "model.safetensors"), read_safetensors(
        where / "checkpoints/step-00000012/model.safetensors")
    assert not [n for n in model if n.startswith("batchformer.")]
    assert [n for n in whole if n.startswith("batchformer.self_attn.")]
    assert all(np.array_equal(whole[n], model[n]) for n in model)
    assert model["bn1.num_batches_tracked"] == 12
    assert r["parameters"] == sum(a.size for n, a in whole.items() if "running_" not in n and "num_batches" not in n)


def test_learns(tmp_path):
    """More than chance, by far: with the module, without it, and with balanced softmax."""
    easy = dict(data__augment=None, data__long_tail=None, data__synthetic__train_per_class=100, train__epochs=12,
                optim__lr=0.1, checkpoint__every_steps=0, model__width=0.5)
    for i, changes in enumerate([{}, {"batchformer__enabled": False}, {"loss": {"kind": "balanced_softmax"}}]):
        where, _ = run(tmp_path, make_spec(**easy, **changes), run_dir=f"run{i}")
        assert result(where)["eval"]["top1"] > 0.8, changes
        assert result(where)["eval"]["groups"]["rule"] == "thirds"


@pytest.mark.sanitize
def test_module_at_evaluation(tmp_path):
    where, _ = run(tmp_path, make_spec(batchformer__eval=True), ranks=2)
    alone, _ = run(tmp_path, make_spec(batchformer__eval=True), run_dir="alone")
    assert result(where)["eval"]["transductive"] is True
    assert result(where)["eval"]["loss"] == pytest.approx(result(alone)["eval"]["loss"], rel=1e-4)
    plain, _ = run(tmp_path, make_spec(), run_dir="plain")
    assert result(plain)["eval"]["loss"] != pytest.approx(result(alone)["eval"]["loss"], rel=1e-4)


def test_no_hold_out(tmp_path):
    where, _ = run(tmp_path, make_spec(data__holdout_per_class=0))
    r = result(where)
    assert r["best"] is None and r["validation"] is None and r["eval"]["samples"] == 80


def test_information_options(tmp_path):
    worker = str(bin_dir() / "batchformer-worker")
    probe = json.loads(subprocess.run([worker, "--probe"], capture_output=True, check=True).stdout)
    assert probe["cores"] >= 1 and probe["memory_bytes"] > 1 << 20 and probe["version"] and isinstance(probe["gpus"], list)
    assert probe["version"] in subprocess.run([worker, "--version"], capture_output=True, text=True, check=True).stdout
    assert "--run-dir" in subprocess.run([worker, "--help"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("args, message", [
    ([], "--job is missing"),
    (["--job", "x"], "--run-dir is missing"),
    (["--jobs", "x"], "did you mean --job"),
    (["--job", "x", "--run-dir", "y", "--max-steps", "0"], "--max-steps"),
    (["--job", "x", "--run-dir", "y", "--dump-step", "3"], "N:FILE"),
    (["more"], "'more'"),
])
def test_usage(args, message):
    p = subprocess.run([str(bin_dir() / "batchformer-worker"), *args], capture_output=True, text=True)
    assert p.returncode == 2 and message in p.stderr


def test_bad_spec(tmp_path):
    where, p = run(tmp_path, make_spec(train__batch_size=0), expect=2)
    assert "/train/batch_size" in p.stderr and not where.exists()
    _, p = run(tmp_path, make_spec(train__batch_size=0), ranks=2, expect=2)
    assert p.stderr.count("/train/batch_size") == 1  # said once, not once a rank


def test_dump_beyond_the_end(tmp_path):
    _, p = run(tmp_path, make_spec(), "--dump-step", f"13:{tmp_path}/d", expect=2)
    assert "step 13" in p.stderr and "1 to 12" in p.stderr


@pytest.mark.sanitize
@pytest.mark.parametrize("ranks", [None, 2])
def test_unwritable_run_dir(tmp_path, ranks):
    (tmp_path / "file").write_text("not a directory")
    _, p = run(tmp_path, make_spec(), run_dir="file/run", ranks=ranks, expect=1)
    assert p.stderr.count("file/run") >= 1 and p.stderr.count("ERROR") == 1


def test_used_run_dir(tmp_path):
    where, _ = run(tmp_path, make_spec())
    before = {f: f.read_bytes() for f in where.rglob("*") if f.is_file()}
    _, p = run(tmp_path, make_spec(seed=4), ranks=2, expect=1)
    assert "already holds a run" in p.stderr and "--resume" in p.stderr
    assert before == {f: f.read_bytes() for f in where.rglob("*") if f.is_file()}


@pytest.mark.sanitize
@pytest.mark.parametrize("ranks", [None, 2])
def test_bad_data_file(tmp_path, ranks):
    write_idx(tmp_path / "data", damage="train-images-idx3-ubyte")
    where, p = run(tmp_path, idx_spec(tmp_path / "data"), ranks=ranks, expect=1)
    assert "train-images-idx3-ubyte" in p.stderr and p.stderr.count("ERROR") == 1
    r = result(where)
    assert r["status"] == "failed" and "train-images-idx3-ubyte" in r["reason"]


def test_idx_data(tmp_path):
    write_idx(tmp_path / "data")
    where, _ = run(tmp_path, idx_spec(tmp_path / "data"), ranks=2)
    assert result(where)["eval"]["samples"] == 20


def test_more_ranks_than_rows(tmp_path):
    where, p = run(tmp_path, make_spec(train__batch_size=2), ranks=3, expect=2)
    assert "3 ranks" in p.stderr and "2 rows" in p.stderr and "/train/batch_size" in p.stderr
    assert result(where)["status"] == "failed"
    _, p = run(tmp_path, make_spec(eval__batch_size=2), ranks=3, run_dir="other", expect=2)
    assert "3 ranks" in p.stderr and "/eval/batch_size" in p.stderr


def test_clipping_bounds_the_step(tmp_path):
    """A clipped first step without momentum, decay or warm-up moves the weights by lr · max_grad_norm."""
    spec = make_spec(train__max_grad_norm=0.01, train__epochs=1)
    spec["optim"] = {"kind": "sgd", "lr": 0.5, "momentum": 0, "weight_decay": 0, "schedule": {"kind": "constant"}}
    for step in (1, 2):
        run(tmp_path, spec, "--dump-step", f"{step}:{tmp_path}/{step}.st", "--max-steps", 2, run_dir=f"run{step}")
    one, two = (read_safetensors(tmp_path / f"{s}.st") for s in (1, 2))
    moved = np.sqrt(sum(np.sum((one[n].astype(float) - two[n]) ** 2) for n in one if n.startswith("param.")))
    norm = np.sqrt(sum(np.sum(two[n].astype(float) ** 2) for n in two if n.startswith("grad.")))
    assert norm > 0.011  # else the test would say nothing
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-3)


@pytest.mark.parametrize("ranks", [None, 2])
def test_killed_rank_ends_the_run(tmp_path, ranks):
    """SIGKILL in the middle leaves no process behind and no result that claims anything."""
    where, p = start(tmp_path, make_spec(train__epochs=100000, checkpoint__every_steps=0), ranks=ranks)
    try:
        wait_for(lambda: metrics(where, "step"), "a first step")
        pid = int(log(where, 0 if ranks is None else 1).split("pid ")[1].split()[0])
        subprocess.run(["kill", "-KILL", str(pid)], check=True)
        assert p.wait(timeout=60) != 0
        assert not (where / "result.json").exists() or result(where)["status"] == "failed"
    finally:
        p.kill()
        p.communicate()


def slurm_task(task, n_tasks):
    """The environment of a task of srun without PMIx. A real Slurm is in test_slurm.py."""
    return {"SLURM_STEP_NUM_TASKS": str(n_tasks), "SLURM_PROCID": str(task), "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0"}


@pytest.mark.sanitize
def test_tasks_of_srun_without_pmix_are_ranks(tmp_path):
    """They meet in the run directory, which is new; what they compute is what ranks of mpirun compute."""
    spec = make_spec(train__determinism="bitwise", train__epochs=1)
    tasks = [start(tmp_path, spec, run_dir="a/new/run", env=slurm_task(r, 3)) for r in range(3)]
    where = tasks[0][0]
    for _, p in tasks:
        _, err = p.communicate(timeout=120)
        assert p.returncode == 0, err
    alone, _ = run(tmp_path, spec, run_dir="alone")
    assert result(where)["receipts"] == result(alone)["receipts"] != []
    assert result(where)["world_size"] == 3
    assert not list(where.glob(".*"))


def test_one_process_of_slurm_is_one_rank(tmp_path):
    """srun of one task; and a batch script, where the number of tasks is what the job may start."""
    run(tmp_path, make_spec(train__epochs=1), run_dir="srun", env=slurm_task(0, 1))
    run(tmp_path, make_spec(train__epochs=1), run_dir="batch",
        env={"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "17"})


def test_bad_environment_of_slurm_is_refused(tmp_path):
    for change, text in (({"SLURM_PROCID": "4"}, "SLURM_PROCID: 4 found, less than SLURM_STEP_NUM_TASKS=4 is accepted"),
                         ({"SLURM_JOB_ID": "../1"}, "SLURM_JOB_ID: '../1' found, a number is accepted")):
        where, p = run(tmp_path, make_spec(), env={**slurm_task(0, 4), **change}, expect=2)
        assert text in p.stderr and not where.exists()
