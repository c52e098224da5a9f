"""The job spec: `bfctl validate` and the JSON Schema give the same verdict on the same documents.

Documents come from three places: files under specs/good and specs/bad, the examples, and a table of changes to a base
spec. CROSS holds what a schema cannot express: there, and only there, the schema accepts what bfctl refuses.
"""
import copy
import json
import pathlib

import jsonschema
import pytest

from clilib import ROOT, bfctl

HERE = pathlib.Path(__file__).resolve().parent
SCHEMA = json.loads((ROOT / "proto/schema/jobspec.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

SYNTHETIC = {"height": 8, "width": 8, "channels": 1, "classes": 4, "train_per_class": 40, "test_per_class": 5}
STEP = {"kind": "step", "milestones": [1, 2.5]}
DELETE = object()

BASE = {
    "version": 1, "name": "base", "task": "long_tailed",
    "data": {"format": "idx", "path": "/data"},
    "model": {"arch": "resnet8"},
    "train": {"epochs": 4, "batch_size": 16},
}

# Each row: changes to BASE, {dotted path: value or DELETE}.
GOOD = [
    {},
    {"name": DELETE},
    {"name": "A.b_c+d=e-9"},
    {"name": "x" * 127},
    {"seed": 10**15},
    {"version": 1.0},
    {"train.epochs": 4.0},
    {"data": {"format": "synthetic", "synthetic": SYNTHETIC}},
    {"data": {"format": "synthetic", "synthetic": SYNTHETIC, "path": None}},
    {"data.synthetic": None},
    {"data.long_tail": None},
    {"data.long_tail": {"kind": "exp", "factor": 100}},
    {"data.long_tail": {"kind": "step", "factor": 1, "max_per_class": 500}},
    {"data.long_tail": {"kind": "step", "factor": 1.5, "max_per_class": None}},
    {"data.augment": None},
    {"data.augment": {}},
    {"data.augment": {"flip": True}},
    {"data.holdout_per_class": 0},
    {"data.normalize": False},
    {"data.path": "relative/dir"},
    {"data.path": "/données"},
    {"model.width": 0.25, "model.norm": "batch"},
    {"model.arch": "resnet50", "model.width": 16},
    {"batchformer": {}},
    {"batchformer": {"enabled": False, "heads": 7}},
    {"batchformer": {"heads": 64, "ffn": 1, "dropout": 0, "gather": "kv", "scope": "local", "weight_decay": 0}},
    {"batchformer.shared_classifier": True},
    {"loss.kind": "balanced_softmax"},
    {"optim": {"lr": 1e-3, "momentum": 0, "weight_decay": 0}},
    {"optim": {"nesterov": True}},
    {"optim": {"nesterov": False, "momentum": 0}},
    {"optim": {"kind": "adam", "beta1": 0, "beta2": 0.99, "eps": 1e-12}},
    {"optim": {"kind": "adamw", "lr": 1e-3, "momentum": None, "nesterov": None, "ema": 0.999}},
    {"optim": {"kind": "lars", "momentum": 0, "trust_coefficient": 1000, "eps": 1, "weight_decay": 1e-4}},
    {"optim": {"kind": "lars", "nesterov": True, "beta1": None}},
    {"optim.ema": None},
    {"optim.schedule": {"kind": "constant"}},
    {"optim.schedule": {"kind": "constant", "min_lr": None, "milestones": None}},
    {"optim.schedule": STEP},
    {"optim.schedule": {**STEP, "gamma": 1, "warmup_epochs": 0.5}},
    {"optim.schedule": {"min_lr": 0.1}},
    {"optim.schedule": {"kind": "cosine", "warmup_epochs": 3.999, "min_lr": 0}},
    {"train.max_grad_norm": 0.5, "train.log_every_steps": 1},
    {"eval": {"every_epochs": 0, "batch_size": 1, "many_above": 0, "few_below": 1}},
    {"checkpoint": {"every_steps": 0, "keep": 1}},
    {"init.weights": "/w.safetensors"},
    {"resources": {"ranks": 16, "threads_per_rank": 2, "nodes": None, "gpus_per_rank": 0}},
    {"resources": {"ranks": 2, "min_ranks": 2, "max_ranks": 16}},
    {"scheduling": {"priority": -1000, "max_restarts": 0, "time_limit_s": 0.5, "after": []}},
    {"resources": {"gpus_per_rank": 1}},
    {"resources": {"gpus_per_rank": 1}, "train.autotune": False},
    {"resources": {"gpus_per_rank": 1}, "train.autotune": True, "train.precision": "bf16"},
    {"train.precision": "bf16", "train.determinism": "bitwise"},
    {"train.autotune": False},
    {"train.winograd": False},
    {"resources": {"gpus_per_rank": 1}, "train.winograd": False},
    {"sweep": None},
    {"sweep": {"seed": [0], "batchformer.enabled": [False]}},
    {"scheduling": {"after": [3, 1]}},
]

# Each row: changes, the pointer of the finding, a part of its message.
BAD = [
    ({"version": DELETE}, "/version", "nothing found, 1 is accepted"),
    ({"version": 2}, "/version", "2 found"),
    ({"version": "1"}, "/version", '"1" found'),
    ({"version": True}, "/version", "true found"),
    ({"name": ""}, "/name", '"" found'),
    ({"name": "a b"}, "/name", '"a b" found'),
    ({"name": "-a"}, "/name", '"-a" found'),
    ({"name": "a\n"}, "/name", "found"),
    ({"name": "x" * 128}, "/name", "found"),
    ({"name": "é"}, "/name", "found"),
    ({"name": None}, "/name", "null found"),
    ({"task": DELETE}, "/task", "nothing found"),
    ({"task": "long_tail"}, "/task", '"long_tailed" is accepted'),
    ({"task": "contrastive"}, "/task", "not available in this version"),
    ({"task": "linear_probe"}, "/task", "not available in this version"),
    ({"seed": -1}, "/seed", "-1 found"),
    ({"seed": 0.5}, "/seed", "0.5 found"),
    ({"seed": 10**15 + 1}, "/seed", "found"),
    ({"seed": "0"}, "/seed", '"0" found'),
    ({"data": DELETE}, "/data", "nothing found, an object is accepted"),
    ({"data": []}, "/data", "[] found"),
    ({"data.format": DELETE}, "/data/format", "nothing found"),
    ({"data.format": "csv"}, "/data/format", '"csv" found'),
    ({"data": {"format": "cifar10", "path": "/d"}}, "/data/format", "not available in this version"),
    ({"data": {"format": "shards", "path": "/d"}}, "/data/format", "not available in this version"),
    ({"data.path": DELETE}, "/data/path", "nothing found"),
    ({"data.path": None}, "/data/path", "null found"),
    ({"data.path": ""}, "/data/path", '"" found'),
    ({"data.path": "a\u0001b"}, "/data/path", "without control characters"),
    ({"data.path": "x" * 4096}, "/data/path", "found"),
    ({"data.synthetic": SYNTHETIC}, "/data/synthetic", "only exists where format"),
    ({"data": {"format": "synthetic"}}, "/data/synthetic", "nothing found"),
    ({"data": {"format": "synthetic", "synthetic": None}}, "/data/synthetic", "null found"),
    ({"data": {"format": "synthetic", "synthetic": SYNTHETIC, "path": "/d"}}, "/data/path", "only exists where"),
    ({"data": {"format": "synthetic", "synthetic": {**SYNTHETIC, "classes": 1}}}, "/data/synthetic/classes", "1 found"),
    ({"data": {"format": "synthetic", "synthetic": {**SYNTHETIC, "channels": 5}}}, "/data/synthetic/channels", "5"),
    ({"data": {"format": "synthetic", "synthetic": {**SYNTHETIC, "depth": 1}}}, "/data/synthetic/depth", "unknown"),
    ({"data.long_tail": {"kind": "exp"}}, "/data/long_tail/factor", "nothing found"),
    ({"data.long_tail": {"factor": 10}}, "/data/long_tail/kind", "nothing found"),
    ({"data.long_tail": {"kind": "exp", "factor": 0.99}}, "/data/long_tail/factor", "0.99 found"),
    ({"data.long_tail": {"kind": "pareto", "factor": 9}}, "/data/long_tail/kind", '"pareto" found'),
    ({"data.long_tail": {"kind": "exp", "factor": 9, "max_per_class": 0}}, "/data/long_tail/max_per_class", "0 found"),
    ({"data.long_tail": False}, "/data/long_tail", "null or an object"),
    ({"data.holdout_per_class": None}, "/data/holdout_per_class", "null found"),
    ({"data.augment.crop_padding": 1.5}, "/data/augment/crop_padding", "1.5 found"),
    ({"data.augment.flip": 1}, "/data/augment/flip", "true or false"),
    ({"data.augment.crop": 4}, "/data/augment/crop", "unknown key"),
    ({"data.normalize": 0}, "/data/normalize", "0 found"),
    ({"model.arch": "resnet56"}, "/model/arch", '"resnet56" found'),
    ({"model.width": 0}, "/model/width", "0 found"),
    ({"model.width": 16.5}, "/model/width", "16.5 found"),
    ({"model.norm": "layer"}, "/model/norm", '"layer" found'),
    ({"model.depth": 20}, "/model/depth", "unknown key"),
    ({"batchformer": None}, "/batchformer", "null found"),
    ({"batchformer.enabled": "yes"}, "/batchformer/enabled", '"yes" found'),
    ({"batchformer.scope": "node"}, "/batchformer/scope", '"node" found'),
    ({"batchformer.layers": 0}, "/batchformer/layers", "0 found"),
    ({"batchformer.heads": 0}, "/batchformer/heads", "0 found"),
    ({"batchformer.ffn": 0}, "/batchformer/ffn", "0 found"),
    ({"batchformer.dropout": 1}, "/batchformer/dropout", "1 found"),
    ({"batchformer.dropout": -0.1}, "/batchformer/dropout", "-0.1 found"),
    ({"batchformer.shared_classifier": False}, "/batchformer/shared_classifier", "not available in this version"),
    ({"batchformer.weight_decay": -1}, "/batchformer/weight_decay", "-1 found"),
    ({"batchformer.gather": "all"}, "/batchformer/gather", '"all" found'),
    ({"loss.kind": "focal"}, "/loss/kind", '"focal" found'),
    ({"optim.kind": "adagrad"}, "/optim/kind", 'one of "sgd", "adam", "adamw", "lars" is accepted'),
    ({"optim.beta1": 0.9}, "/optim/beta1", 'only exists where kind is "adam" or "adamw"'),
    ({"optim.eps": 1e-8}, "/optim/eps", 'only exists where kind is "adam", "adamw" or "lars"'),
    ({"optim.trust_coefficient": 1e-3}, "/optim/trust_coefficient", 'only exists where kind is "lars"'),
    ({"optim": {"kind": "adamw", "momentum": 0.9}}, "/optim/momentum", 'only exists where kind is "sgd" or "lars"'),
    ({"optim": {"kind": "adam", "nesterov": False}}, "/optim/nesterov", "only exists where kind"),
    ({"optim": {"kind": "lars", "beta2": 0.999}}, "/optim/beta2", "only exists where kind"),
    ({"optim": {"kind": "lars", "nesterov": True, "momentum": 0}}, "/optim/nesterov", "while optim.momentum is 0"),
    ({"optim": {"kind": "adamw", "beta2": 1}}, "/optim/beta2", "1 found"),
    ({"optim": {"kind": "adamw", "eps": 0}}, "/optim/eps", "0 found, a number from 1e-12 to 1"),
    ({"optim": {"kind": "lars", "trust_coefficient": 0}}, "/optim/trust_coefficient", "0 found"),
    ({"optim": {"kind": "sgd", "momentum": None}}, "/optim/momentum", "null found"),
    ({"optim.ema": 0}, "/optim/ema", "0 found, null or a number above 0 and below 1"),
    ({"optim.ema": 1}, "/optim/ema", "1 found"),
    ({"optim.betas": [0.9, 0.999]}, "/optim/betas", "unknown key"),
    ({"optim.lr": 0}, "/optim/lr", "0 found"),
    ({"optim.lr": "0.1"}, "/optim/lr", '"0.1" found'),
    ({"optim.momentum": 1}, "/optim/momentum", "1 found"),
    ({"optim": {"nesterov": True, "momentum": 0}}, "/optim/nesterov", "while optim.momentum is 0"),
    ({"optim.schedule": {"kind": "step"}}, "/optim/schedule/milestones", "nothing found"),
    ({"optim.schedule": {"kind": "step", "milestones": []}}, "/optim/schedule/milestones", "[] found"),
    ({"optim.schedule": {"kind": "step", "milestones": [0]}}, "/optim/schedule/milestones", "[0] found"),
    ({"optim.schedule": {"kind": "step", "milestones": list(range(1, 18))}}, "/optim/schedule/milestones", "1 to 16"),
    ({"optim.schedule": {"kind": "step", "milestones": None}}, "/optim/schedule/milestones", "null found"),
    ({"optim.schedule": {**STEP, "gamma": 1.1}}, "/optim/schedule/gamma", "1.1 found"),
    ({"optim.schedule": {**STEP, "min_lr": 0}}, "/optim/schedule/min_lr", "only exists where kind"),
    ({"optim.schedule": {"milestones": [1]}}, "/optim/schedule/milestones", "only exists where kind"),
    ({"optim.schedule": {"kind": "constant", "gamma": 0.1}}, "/optim/schedule/gamma", "only exists where kind"),
    ({"optim.schedule.warmup_epochs": -1}, "/optim/schedule/warmup_epochs", "-1 found"),
    ({"train": DELETE}, "/train", "nothing found"),
    ({"train.epochs": 0}, "/train/epochs", "0 found"),
    ({"train.batch_size": 0}, "/train/batch_size", "0 found"),
    ({"train.batch_size": 2.5}, "/train/batch_size", "2.5 found"),
    ({"train.batchsize": 4}, "/train/batchsize", '"batch_size"'),
    ({"train.precision": "fp16"}, "/train/precision", "not available in this version"),
    ({"train.determinism": "exact"}, "/train/determinism", '"exact" found'),
    ({"train.micro_shards": 4}, "/train/micro_shards", 'only exists where determinism is "bitwise"'),
    ({"train.determinism": "bitwise", "train.micro_shards": 0}, "/train/micro_shards", "0 found"),
    ({"train.max_grad_norm": 0}, "/train/max_grad_norm", "0 found"),
    ({"train.autotune": None}, "/train/autotune", "null found, true or false is accepted"),
    ({"eval.batch_size": 0}, "/eval/batch_size", "0 found"),
    ({"checkpoint.keep": 0}, "/checkpoint/keep", "0 found"),
    ({"init.weights": ""}, "/init/weights", '"" found'),
    ({"resources.ranks": 0}, "/resources/ranks", "0 found"),
    ({"resources.gpus_per_rank": 2}, "/resources/gpus_per_rank", "2 found"),
    ({"resources.threads_per_rank": 0}, "/resources/threads_per_rank", "0 found"),
    ({"resources.nodes": 0}, "/resources/nodes", "0 found"),
    ({"scheduling.after": [1, 1]}, "/scheduling/after", "an array of at most 16 different job ids"),
    ({"scheduling.priority": 1001}, "/scheduling/priority", "1001 found"),
    ({"scheduling.time_limit_s": 0}, "/scheduling/time_limit_s", "0 found"),
    ({"sweep": {"seed": 3}}, "/sweep/seed", "3 found, an array of at least one value is accepted"),
    ({"sweep": {}}, "/sweep", "no key found"),
    ({"sweep": [1]}, "/sweep", "[1] found"),
    ({"epochs": 3}, "/epochs", "did you mean /train/epochs?"),
    ({"Train": {}}, "/Train", '"train"'),
    ({"a~b": 1}, "/a~0b", "unknown key"),
]

# Refused by bfctl alone. docs/jobs.md lists the same rules.
CROSS = [
    ({"resources": {"ranks": 17}}, "/resources/ranks", "more ranks than rows in a batch"),
    ({"resources": {"max_ranks": 17}}, "/resources/max_ranks", "more ranks than rows in a batch"),
    ({"resources": {"ranks": 8}, "eval.batch_size": 7}, "/eval/batch_size", "fewer rows in a batch than ranks"),
    ({"resources": {"ranks": 2, "min_ranks": 3}}, "/resources/min_ranks", "at most resources.ranks = 2"),
    ({"resources": {"ranks": 3, "max_ranks": 2}}, "/resources/max_ranks", "at least resources.ranks = 3"),
    ({"batchformer.heads": 3}, "/batchformer/heads", "a divisor of the feature width 64"),
    ({"optim.schedule.warmup_epochs": 4}, "/optim/schedule/warmup_epochs", "less than train.epochs = 4"),
    ({"optim.schedule": {"kind": "step", "milestones": [2, 2]}}, "/optim/schedule/milestones", "rising"),
    ({"optim.schedule.min_lr": 0.2}, "/optim/schedule/min_lr", "at most optim.lr = 0.1"),
    ({"optim": {"kind": "adamw", "schedule": {"min_lr": 0.01}}}, "/optim/schedule/min_lr", "at most optim.lr = 0.001"),
    ({"train.determinism": "bitwise", "train.micro_shards": 17}, "/train/micro_shards", "at most train.batch_size = 16"),
    ({"train.determinism": "bitwise", "train.micro_shards": 4, "resources": {"ranks": 5}}, "/train/micro_shards",
     "at least resources.max_ranks = 5"),
    ({"train.determinism": "bitwise", "model.norm": "batch"}, "/model/norm", '"sync_batch" is accepted'),
    ({"train.determinism": "bitwise", "batchformer": {"enabled": True, "scope": "local"}}, "/batchformer/scope",
     '"global" is accepted'),
    ({"train.determinism": "bitwise", "batchformer": {"enabled": True, "gather": "features"}}, "/batchformer/gather",
     '"auto" or "kv" is accepted'),
    ({"train.determinism": "bitwise", "resources": {"threads_per_rank": 2}}, "/resources/threads_per_rank",
     "ask for more ranks"),
    ({"train.precision": "tf32"}, "/train/precision", '"fp32" or "bf16" is accepted while resources.gpus_per_rank is 0'),
    ({"train.determinism": "bitwise", "resources": {"gpus_per_rank": 1}}, "/train/determinism",
     '"default" is accepted while resources.gpus_per_rank is not 0'),
    ({"train.autotune": True}, "/train/autotune", "false is accepted while resources.gpus_per_rank is 0"),
    ({"train.winograd": True, "resources": {"gpus_per_rank": 1}}, "/train/winograd",
     "false is accepted while resources.gpus_per_rank is not 0"),
    ({"eval.few_below": 200}, "/eval/few_below", "at most eval.many_above + 1 = 101"),
    ({"data": {"format": "synthetic", "synthetic": {**SYNTHETIC, "test_per_class": 10**9}}}, "/data/synthetic", "in all"),
    ({"data": {"format": "synthetic", "synthetic": SYNTHETIC, "holdout_per_class": 40}}, "/data/holdout_per_class",
     "less than"),
    ({"data": {"format": "synthetic", "synthetic": SYNTHETIC,
               "long_tail": {"kind": "exp", "factor": 2, "max_per_class": 41}}}, "/data/long_tail/max_per_class", "40"),
    ({"data": {"format": "synthetic", "synthetic": SYNTHETIC}, "train.batch_size": 161}, "/train/batch_size", "160"),
    ({"data.path": "é" * 2048}, "/data/path", "bytes"),
]


def changed(changes):
    doc = copy.deepcopy(BASE)
    for path, value in changes.items():
        at, *rest = doc, *path.split(".")
        for key in rest[:-1]:
            at = at.setdefault(key, {})
        if value is DELETE:
            del at[rest[-1]]
        else:
            at[rest[-1]] = copy.deepcopy(value)
    return doc


def verdict(tmp_path, doc):
    """Exit status and output of bfctl, findings of the schema."""
    path = tmp_path / "spec.json"
    path.write_text(doc if isinstance(doc, str) else json.dumps(doc))
    run = bfctl("validate", path, "--json")
    out = json.loads(run.stdout)
    assert run.stdout.count("\n") == 1, "one document on one line"
    assert (run.returncode, out["valid"]) in ((0, True), (2, False)), run
    assert out["valid"] == (out["errors"] == [])
    return out


def label(row):
    return json.dumps({k: "(deleted)" if v is DELETE else v for k, v in (row[0] if isinstance(row, tuple) else row).items()
                       })[:60] or "base"


def files(kind):
    return sorted((HERE / "specs" / kind).glob("*.json"))


def test_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("changes", GOOD, ids=label)
def test_good(tmp_path, changes):
    doc = changed(changes)
    assert [e.message for e in VALIDATOR.iter_errors(doc)] == []
    out = verdict(tmp_path, doc)
    assert out["errors"] == []
    # What it resolves to is a spec again, for both, and holds every key of the table that applies.
    assert [e.message for e in VALIDATOR.iter_errors(out["spec"])] == []
    assert verdict(tmp_path, out["spec"])["spec"] == out["spec"]


@pytest.mark.parametrize("row", BAD, ids=label)
def test_bad(tmp_path, row):
    changes, pointer, part = row
    doc = changed(changes)
    assert not VALIDATOR.is_valid(doc), "the schema accepts it"
    errors = verdict(tmp_path, doc)["errors"]
    assert [e["pointer"] for e in errors] == [pointer]
    assert part in errors[0]["message"]


@pytest.mark.parametrize("row", CROSS, ids=label)
def test_only_these_rules_are_beyond_the_schema(tmp_path, row):
    changes, pointer, part = row
    doc = changed(changes)
    assert VALIDATOR.is_valid(doc), "a schema can express it: move the row to BAD"
    errors = verdict(tmp_path, doc)["errors"]
    assert [e["pointer"] for e in errors] == [pointer]
    assert part in errors[0]["message"]
    rules = (ROOT / "docs/jobs.md").read_text().split("## Rules over several keys")[1]
    assert f"`{pointer}`" in rules, "docs/jobs.md does not list it"


@pytest.mark.parametrize("path", files("good") + sorted((ROOT / "deploy/examples").glob("*.json")), ids=lambda p: p.name)
def test_good_files(path):
    assert VALIDATOR.is_valid(json.loads(path.read_text()))
    run = bfctl("validate", path)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr


@pytest.mark.parametrize("path", files("bad"), ids=lambda p: p.name)
def test_bad_files(path):
    """Either not JSON at all (the name says so), or refused by both."""
    run = bfctl("validate", path, "--json")
    errors = json.loads(run.stdout)["errors"]
    assert run.returncode == 2
    if path.name.startswith("not-json"):
        assert [e["pointer"] for e in errors] == [""]
    else:
        assert errors and not VALIDATOR.is_valid(json.loads(path.read_text()))


def test_all_findings_at_once(tmp_path):
    doc = changed({"task": "x", "train.epochs": 0, "optim.lr": -1, "model.arch": 5, "extra": 1, "sweep": 0})
    pointers = {e["pointer"] for e in verdict(tmp_path, doc)["errors"]}
    assert pointers == {"/task", "/train/epochs", "/optim/lr", "/model/arch", "/extra", "/sweep"}


@pytest.mark.parametrize("text", ["", "[]", "null", "1", '"x"', "{}", "{", "[" * 1000, '{"version": 1} x'])
def test_other_documents(tmp_path, text):
    errors = verdict(tmp_path, text)["errors"]
    assert errors
    if text == "{}":
        assert {e["pointer"] for e in errors} == {"/version", "/task", "/data", "/model", "/train"}
    else:
        assert [e["pointer"] for e in errors] == [""]


def test_defaults_of_the_schema_are_the_programs(tmp_path):
    """Writing every default of the schema out changes nothing."""
    resolved = verdict(tmp_path, changed({}))["spec"]

    def check(schema, value, at):
        for key, sub in schema.get("properties", {}).items():
            if key not in value:
                continue
            if "default" in sub and sub["default"] != {} and f"{at}/{key}" != "/name":
                assert value[key] == sub["default"], f"{at}/{key}"
            if isinstance(value[key], dict):
                check(sub, value[key], f"{at}/{key}")

    check(SCHEMA, resolved, "")
