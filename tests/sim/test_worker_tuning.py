"""Engines that are measured: by rank 0, kept in plans.json, and taken again by a run that goes on, whatever the clock then
says. The simulated cuDNN (cudnn_sim.cpp) has three deterministic engines that round differently, and CUSIM_ENGINE_MS says
what each takes; a part for each rank.
"""
import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
pytest.register_assert_rewrite("gpuclaims")
from buildlib import bin_dir  # noqa: E402
from gpuclaims import STEPS, Gpus, differing, run_on, spec_of, train  # noqa: E402
from workerlib import log, result, run  # noqa: E402

SIM = "batchformer-worker-sim"
pytestmark = pytest.mark.skipif(not (bin_dir() / SIM).exists(), reason="built without CUDA's headers")
GPUS = Gpus(program=SIM, count=2)

# Milliseconds of engine 0, which is never deterministic, 1, 2, which is TF32, and 3 with two values of its knob.
LAST, FIRST = "1,9,1,8,7", "1,7,1,8,9"
EARLIER, LATER = {"CUSIM_ENGINE_MS": LAST}, {"CUSIM_ENGINE_MS": FIRST}


def plans(where):
    return json.loads((where / "plans.json").read_text())["plans"]


def engines(where):
    """Without the number of the knob: {"eng3=5"}."""
    return {choice[:choice.index("_k")] + choice[choice.index("="):] for choice in plans(where).values()}


def go_on(folder, spec, ranks, name, env):
    """A run that is stopped after three steps, and goes on in another environment. (dump of the last step, directory)"""
    run_on(GPUS, folder, spec, ranks, "--max-steps", 3, run_dir=name, env=EARLIER)
    return train(GPUS, folder, spec, ranks, name, "--resume", env=env)


def test_the_fastest_that_is_deterministic_is_taken_and_kept(tmp_path):
    for name, env, engine in (("a", EARLIER, "eng3=5"), ("b", LATER, "eng1=2")):
        where, _ = run_on(GPUS, tmp_path, spec_of(1), 1, "--max-steps", 1, run_dir=name, env=env)
        assert engines(where) == {engine}
        n = len(plans(where))
        assert n > 10 and f"engines: 0 as plans.json says, {n} chosen now" in log(where)
    where, _ = run_on(GPUS, tmp_path, spec_of(1, train__precision="tf32"), 1, "--max-steps", 1, run_dir="c", env=EARLIER)
    assert engines(where) == {"eng2=3"}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_has_the_bits_of_one_that_was_never_stopped(tmp_path, ranks, precision):
    """The clock changes its mind in between. Beside it, a run that measures for itself then, and has other bits."""
    spec = spec_of(1, train__precision=precision)
    whole, where = train(GPUS, tmp_path, spec, ranks, "whole", env=EARLIER)
    parts, there = go_on(tmp_path, spec, ranks, "parts", LATER)
    anew, _ = train(GPUS, tmp_path, spec, ranks, "anew", env=LATER)
    assert differing(whole, parts) == [] and differing(whole, anew) != []
    assert result(where)["receipts"] == result(there)["receipts"]
    assert (where / "plans.json").read_bytes() == (there / "plans.json").read_bytes()
    assert f"engines: {len(plans(there))} as plans.json says, 0 chosen now" in log(there)


@pytest.mark.parametrize("rows", [5, 23])
def test_ranks_agree_though_their_clocks_and_rows_do_not(tmp_path, rows):
    """5 rows are 2 and 3. The clock of rank 1 favours another engine; what it says must not matter."""
    spec = spec_of(1, train__batch_size=rows)
    one_mind, where = train(GPUS, tmp_path, spec, 2, "one_mind", env=EARLIER)
    two_minds, there = train(GPUS, tmp_path, spec, 2, "two_minds", env={"CUSIM_ENGINE_MS": f"{LAST}/{FIRST}"})
    other_mind, _ = train(GPUS, tmp_path, spec, 2, "other_mind", env={"CUSIM_ENGINE_MS": f"{FIRST}/{LAST}"})
    assert differing(one_mind, two_minds) == [] and differing(one_mind, other_mind) != []
    assert plans(where) == plans(there)
    assert "all as rank 0 chose" in log(there, 1)
    assert not any(f" ({rows - rows // 2}, " in key for key in plans(there)), "problems have rank 0's rows"
    parts, _ = go_on(tmp_path, spec, 2, "parts", {"CUSIM_ENGINE_MS": f"{FIRST}/{LAST}"})
    assert differing(one_mind, parts) == []


def test_another_number_of_ranks_measures_for_its_rows(tmp_path):
    spec = spec_of(1)
    run_on(GPUS, tmp_path, spec, 2, "--max-steps", 2, env=EARLIER)
    where, _ = run_on(GPUS, tmp_path, spec, 1, "--max-steps", 4, "--resume", env=LATER)
    of_two, of_one = ({v for k, v in plans(where).items() if f" ({rows}, 12, 12, " in k} for rows in (12, 24))
    assert [len(v) for v in (of_two, of_one)] == [1, 1] and of_two != of_one
    before = plans(where)
    run_on(GPUS, tmp_path, spec, 2, "--max-steps", STEPS, "--resume", env=LATER)
    assert plans(where) == before


def test_what_the_file_does_not_say_is_measured(tmp_path):
    where, _ = run_on(GPUS, tmp_path, spec_of(1), 1, "--max-steps", 2, env=EARLIER)
    doc = json.loads((where / "plans.json").read_text())
    gone = sorted(doc["plans"])[0]
    del doc["plans"][gone]
    (where / "plans.json").write_text(json.dumps(doc))
    run_on(GPUS, tmp_path, spec_of(1), 1, "--max-steps", 4, "--resume", env=LATER)
    assert f"engines: {len(doc['plans'])} as plans.json says, 1 chosen now" in log(where)
    now = plans(where)
    assert now.pop(gone).startswith("eng1_") and now == doc["plans"]


def test_an_engine_that_there_is_no_more(tmp_path):
    where, _ = run_on(GPUS, tmp_path, spec_of(1), 2, "--max-steps", 2, env=EARLIER)
    doc = json.loads((where / "plans.json").read_text())
    lost = sorted(doc["plans"])[0]
    doc["plans"][lost] = "eng77_k1=1"
    (where / "plans.json").write_text(json.dumps(doc))
    run_on(GPUS, tmp_path, spec_of(1), 2, "--max-steps", 4, "--resume", env=EARLIER)
    assert f"WARN  rank 0: cuDNN does not offer eng77_k1=1 for {lost}: its first engine is taken" in log(where)
    assert "does not offer" not in log(where, 1), "it has what rank 0 took"
    now = plans(where)
    assert now.pop(lost).startswith("eng1_") and all(doc["plans"][k] == v for k, v in now.items())


def test_another_kind_of_gpu(tmp_path):
    name = {"CUSIM_NAME": "GPU B"}
    where, _ = run_on(GPUS, tmp_path, spec_of(1), 1, "--max-steps", 2, env=EARLIER)
    n = len(plans(where))
    run_on(GPUS, tmp_path, spec_of(1), 1, "--max-steps", 4, "--resume", env={**LATER, **name})
    assert f"plans.json has none for this kind of GPU, this library and this number of rows: {n} chosen anew" in log(where)
    by_gpu = [{v for k, v in plans(where).items() if gpu in k} for gpu in ("simulated device", "GPU B")]
    assert len(plans(where)) == 2 * n and [v.pop()[:5] for v in by_gpu] == ["eng3_", "eng1_"]


def test_a_rank_with_another_kind_of_gpu_than_rank_0(tmp_path):
    where, _ = run_on(GPUS, tmp_path, spec_of(1), 2, "--max-steps", 2, env={"CUSIM_NAME": "GPU A/GPU B"})
    assert "WARN  rank 1: engines: 0 as rank 0 chose; for " in log(where, 1)
    assert "which rank 0 does not know (is this another kind of GPU?)" in log(where, 1)
    assert all("GPU A" in k for k in plans(where))


def test_a_damaged_file_is_an_error_and_is_left_alone(tmp_path):
    where, _ = run_on(GPUS, tmp_path, spec_of(1), 2, "--max-steps", 2)
    (where / "plans.json").write_text('{"version": 1, "plans": {"a": ')
    _, p = run_on(GPUS, tmp_path, spec_of(1), 2, "--resume", expect=1)
    assert "plans.json: not valid JSON" in p.stderr and "(without the file they are chosen anew)" in p.stderr
    assert (where / "plans.json").read_text().endswith('"a": ')
    (where / "plans.json").unlink()
    run_on(GPUS, tmp_path, spec_of(1), 2, "--max-steps", 4, "--resume")
    assert plans(where)


def test_a_spec_that_does_not_fit_leaves_the_file(tmp_path):
    where, _ = run_on(GPUS, tmp_path, spec_of(1), 1, "--max-steps", 2)
    before = (where / "plans.json").read_bytes()
    _, p = run_on(GPUS, tmp_path, spec_of(1, train__batch_size=20), 1, "--resume", expect=2)
    assert "/train/batch_size" in p.stderr and (where / "plans.json").read_bytes() == before


def test_not_wanted(tmp_path):
    """The first of the heuristics, and no file; switched on later, the run may go on."""
    spec = spec_of(1, train__autotune=False)
    a, where = train(GPUS, tmp_path, spec, 2, "a", env=EARLIER)
    b, _ = train(GPUS, tmp_path, spec, 2, "b", env=LATER)
    assert differing(a, b) == [] and not (where / "plans.json").exists() and "engines:" not in log(where)
    run_on(GPUS, tmp_path, spec_of(1), 2, "--max-steps", STEPS + 2, "--resume", run_dir="a")
    assert plans(where)


def test_on_cpus_it_is_refused(tmp_path):
    _, p = run(tmp_path, spec_of(0, train__autotune=True), expect=2)
    assert "/train/autotune: true found, false is accepted while resources.gpus_per_rank is 0" in p.stderr
    where, _ = run(tmp_path, spec_of(0), "--max-steps", 1)
    assert json.loads((where / "job.json").read_text())["train"]["autotune"] is False
    assert not (where / "plans.json").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_compile(tmp_path, rank):
    """Its memory is too small for the activations. The other waits for its choices, or has given its own; both end."""
    spec = spec_of(1)
    spec["data"]["synthetic"].update(height=40, width=40)
    memory = ["8192", "8192"]
    memory[rank] = "34"
    _, p = run_on(GPUS, tmp_path, spec, 2, expect=1, env={"CUSIM_MEMORY_MB": "/".join(memory)})
    assert f"rank {rank}: activations: cuda: out of memory" in p.stderr
