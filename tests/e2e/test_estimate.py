"""What bfctl estimate says of a job, beside the worker that runs it: parameters exactly, activations within a few percent;
the command's own behaviour; spec.estimate over the socket. No times: bench/estimate_check compares those."""
import json
import re

import pytest

import workerlib
from clilib import ROOT, bfctl
from daemonlib import RpcError

SMOKE = ROOT / "deploy/examples/smoke.json"

# The estimate leaves out the convolution library's own scratch, and knows no rounding to cache lines.
WITHIN = 1.05

JOBS = [
    ("resnet8", 0.25, 12, 24, {}),
    ("resnet8", 0.25, 12, 24, {"batchformer__layers": 3, "batchformer__ffn": 40, "batchformer__dropout": 0}),
    ("resnet8", 1, 8, 64, {"batchformer__gather": "features"}),
    ("resnet8", 0.5, 8, 16, {"batchformer__scope": "local", "model__norm": "batch"}),
    ("resnet20", 0.5, 16, 16, {"batchformer__gather": "kv"}),
    ("resnet20", 0.5, 16, 16, {"batchformer__enabled": False}),
    ("resnet32", 0.5, 16, 16, {}),
    ("resnet32", 0.5, 16, 16, {"batchformer__enabled": False}),
    ("resnet18", 0.25, 32, 8, {}),
    ("resnet18", 0.25, 32, 8, {"batchformer__enabled": False}),
    ("cifar-resnet18", 0.25, 16, 8, {}),
    ("resnet50", 0.125, 32, 8, {}),
    ("resnet50", 0.125, 32, 8, {"batchformer__enabled": False}),
]


def estimates(*args):
    run = bfctl("--json", "estimate", *args)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)["estimates"]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("arch,width,pixels,batch,changes", JOBS)
def test_the_worker_has_these_parameters_and_activations(tmp_path, arch, width, pixels, batch, changes, ranks):
    spec = workerlib.make_spec(model={"arch": arch, "width": width}, train__batch_size=batch,
                               data__synthetic__height=pixels, data__synthetic__width=pixels, **changes)
    run_dir, _ = workerlib.run(tmp_path, spec, "--max-steps", 1, ranks=ranks)
    said = re.search(r"(\d+) parameters.* activations take ([\d.]+) MiB.* ([\d.]+) of them scratch", workerlib.log(run_dir))
    est, = estimates(tmp_path / "job.json", "--ranks", ranks, "--machine", "cpu-core")
    assert est["parameters"] == workerlib.result(run_dir)["parameters"] == int(said[1])
    arena, printed, scratch = est["memory_per_rank_bytes"]["activations"] / 2**20, float(said[2]), float(said[3])
    assert (printed - scratch - 0.1) / WITHIN <= arena <= (printed + 0.05) * WITHIN  # not all scratch is estimated


def test_table_and_document():
    run = bfctl("estimate", SMOKE)
    rows = [line.split() for line in run.stdout.splitlines() if line.strip()]
    assert rows[2][:2] == ["RANKS", "BATCH"] and [r[:2] for r in rows[3:5]] == [["1", "24"], ["8", "24"]]
    run = bfctl("estimate", SMOKE, "--ranks", "1,4096", "--rows-per-rank", 64, "--machine", "h100-400g")
    assert "published figures" in run.stdout and "262144" in run.stdout
    one, many = estimates(SMOKE, "--ranks", "1,4096", "--rows-per-rank", 64, "--machine", "h100-400g")
    assert one["rows_per_rank"] == many["rows_per_rank"] == 64 and many["batch_size"] == 262144
    assert one["gather"] is None and many["gather"]["cheaper"] in ("kv", "features")
    assert one["machine"]["figures"] == "published" and one["notes"]
    assert estimates(SMOKE, "--set", "train.batch_size=48", "--ranks", 2)[0]["rows_per_rank"] == 24


@pytest.mark.parametrize("args,words", [
    (["--ranks", "25"], "at most train.batch_size = 24"),
    (["--ranks", "1,0"], "--ranks: '1,0' found"),
    (["--machine", "abacus"], "cpu-core, h100-nvlink, h100-400g"),
    (["--set", "train.batch_size=0"], "/train/batch_size"),
])
def test_refusals(args, words):
    run = bfctl("estimate", SMOKE, *args)
    assert run.returncode == 2 and words in run.stderr and run.stdout == ""


def test_over_the_socket(daemon):
    spec = json.loads(SMOKE.read_text())
    with daemon.rpc() as rpc:
        assert rpc.call("spec.estimate", spec=spec) == estimates(SMOKE, "--ranks", 2)[0]
        assert rpc.call("spec.estimate", spec=spec, ranks=8, machine="h100-nvlink")["ranks"] == 8
        for params, code in [({"spec": {}}, 1002), ({}, -32602), ({"spec": spec, "ranks": 100}, -32602),
                             ({"spec": spec, "machine": "abacus"}, -32602)]:
            with pytest.raises(RpcError) as caught:
                rpc.call("spec.estimate", **params)
            assert caught.value.code == code
