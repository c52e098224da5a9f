"""PyTorch as referee: 50 steps of ResNet-20 with the BatchFormer on real images, from the same weights file and in the
same order. tests/golden/referee.py computed the committed curves with PyTorch in fp64, one process, the whole
mini-batch; the worker must give them on any number of ranks, in fp32, within 1e-4 at each step, and within 1e-5 over
the first 20, where fp32's trajectories have not parted yet.

The learning rate is one at which fp32 can do that (docs/results.md). The worker's own wrong settings, attention and
batch norm per rank, must be farther off, and must give what PyTorch gives for the same mistake.
"""
import json
import sys

import pytest

from buildlib import ROOT
from workerlib import losses, run

sys.path.insert(0, str(ROOT / "tests/golden"))
import referee_job as job  # noqa: E402
import referee_tables  # noqa: E402

LIMIT = 1e-4
EARLY, EARLY_LIMIT = 20, 1e-5
REFEREE = json.loads((ROOT / "tests/golden/data/referee.json").read_text())
CURVES = REFEREE["losses"]


def curve(folder, ranks, **changes):
    spec = job.make_spec(**changes)
    spec["init"] = {"weights": job.write_weights(folder / "initial.safetensors")}
    where, _ = run(folder, spec, "--max-steps", job.STEPS, ranks=ranks, timeout=600)
    found = losses(where)
    assert set(found) == set(range(1, job.STEPS + 1))
    return [found[s] for s in sorted(found)]


def off(name, found, steps=job.STEPS):
    return job.curve_deviation(CURVES[name][:steps], found[:steps])


def agrees(name, found):
    return off(name, found) < LIMIT and off(name, found, EARLY) < EARLY_LIMIT


def test_the_committed_curves_are_of_this_job():
    spec = job.make_spec()
    data = job.Data(spec)
    assert REFEREE["spec"] == spec
    assert REFEREE["initial_weights_sha256"] == job.hash_of(job.initial_weights().values())
    assert REFEREE["first_batch_sha256"] == job.hash_of([data.images(0), data.labels(0)])


@pytest.mark.parametrize("ranks", [None, 2, 3])
def test_worker_gives_pytorchs_curve(tmp_path, ranks):
    found = curve(tmp_path, ranks)
    assert agrees("exact", found), (off("exact", found), off("exact", found, EARLY))


def test_balanced_softmax(tmp_path):
    found = curve(tmp_path, 2, loss="balanced_softmax")
    assert agrees("balanced_softmax", found) and off("exact", found) > LIMIT


@pytest.mark.parametrize("mistake, changes", [("local_attention_2", {"batchformer__scope": "local"}),
                                              ("local_batch_norm_2", {"model__norm": "batch"})])
def test_the_comparison_can_fail(tmp_path, mistake, changes):
    found = curve(tmp_path, 2, **changes)
    assert off("exact", found) > LIMIT and off("exact", found, EARLY) > EARLY_LIMIT
    assert agrees(mistake, found), (off(mistake, found), off(mistake, found, EARLY))


def test_every_usual_mistake_is_farther_off():
    mistakes = {n: off("exact", v) for n, v in CURVES.items() if n not in ("exact", "balanced_softmax")}
    assert len(mistakes) == 11 and min(mistakes.values()) > 2 * LIMIT, mistakes


def test_the_page_shows_what_was_measured():
    page = (ROOT / "docs/results.md").read_text()
    for table in referee_tables.tables(json.loads(referee_tables.RESULTS.read_text())):
        assert table in page, f"not in docs/results.md:\n{table}"
