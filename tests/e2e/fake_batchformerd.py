#!/usr/bin/python3
"""A batchformerd for the tests of `bfctl run`: takes the same options, runs no process, does what $FAKE_DAEMON says.

Installed as "batchformerd" beside a copy of bfctl. Modes: succeed, fail, hang (runs until cancelled), deaf (does not even cancel), die (exits in
the middle of the job), refuse (ends at once with a message), strict (finds the spec invalid). It notes its
arguments, and the end of its lifeline, in the state directory.
"""
import json
import os
import pathlib
import sys
import threading

sys.path.insert(0, os.environ["FAKE_DAEMON_LIB"])
from clilib import FakeCoordinator, RpcError  # noqa: E402

MODE = os.environ["FAKE_DAEMON"]
args = sys.argv[1:]
state = pathlib.Path(args[args.index("--state-dir") + 1])
listen = args[args.index("--listen") + 1]
run_dir = state / "runs" / "1"


def note(name, text):
    (state / name).write_text(text)


def event(connection, seq, type_, job_state, reason):
    connection.notify("job.event", {"seq": seq, "id": 1, "time": 1700000000000 + seq, "type": type_, "state": job_state,
                                    "reason": reason})


def progress(connection, step):
    connection.notify("job.event", {"seq": 2, "id": 1, "time": 1700000000000, "type": "progress", "phase": "train",
                                    "step": step, "n_steps": 10, "epoch": 0, "n_epochs": 1, "loss": 0.5,
                                    "images_per_s": 1000, "eta_s": 3, "checkpoint_step": -1})


def submit(connection, params):
    note("spec.json", json.dumps(params["spec"]))
    if MODE == "strict":
        raise RpcError(1002, "invalid spec", {"errors": [{"pointer": "/resources/ranks", "message": "no such luck"}]})
    run_dir.mkdir(parents=True)
    return {"id": 1}


def watch(connection, params):
    event(connection, 1, "submitted", "queued", "submitted by tester")
    event(connection, 2, "attached", "running", "running on 2 ranks")
    progress(connection, 5)
    if MODE == "succeed":
        (run_dir / "result.json").write_text(json.dumps({
            "status": "succeeded", "task": "long_tailed", "world_size": 2, "wall_s": 61.2, "images_per_s": 1234.5,
            "batchformer": True, "best": {"epoch": 3, "val_top1": 0.5},
            "eval": {"top1": 0.625, "many": 0.75, "medium": None, "few": 0.25, "per_class": [0.75, 0.25],
                     "groups": {"rule": "counts", "text": "many: more than 100 training images"}}}))
        event(connection, 3, "succeeded", "succeeded", "all epochs done")
    elif MODE == "fail":
        event(connection, 3, "failed", "failed", "rank 1 on here was killed by signal 9")
    elif MODE == "die":
        threading.Timer(0.2, os._exit, (7,)).start()
    return {"seq": 2}


def cancel(connection, params):
    note("cancelled", "yes")
    if MODE == "deaf":
        return {"state": "running"}
    watchers[0].send({"jsonrpc": "2.0", "method": "job.event",
                      "params": {"seq": 4, "id": 1, "time": 1700000000000, "type": "cancelled", "state": "cancelled",
                                 "reason": "cancelled by tester"}})
    return {"state": "running"}


watchers = []


def watch_and_keep(connection, params):
    watchers.append(connection)
    return watch(connection, params)


def main():
    note("args", json.dumps(args))
    if MODE == "refuse":
        print("2026-01-01T00:00:00.000Z ERROR store: the disk is on fire", file=sys.stderr)
        sys.exit(1)
    coordinator = FakeCoordinator("/", {
        "daemon.info": lambda c, p: {"version": "fake"}, "job.submit": submit, "job.watch": watch_and_keep,
        "job.cancel": cancel, "job.get": lambda c, p: {"id": 1, "paths": {"run_dir": str(run_dir)}}})
    coordinator.path = listen.removeprefix("unix:")
    with coordinator:
        sys.stdin.read()
        note("lifeline-ended", "yes")


main()
