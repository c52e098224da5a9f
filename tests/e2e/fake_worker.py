#!/usr/bin/python3
"""A worker that trains nothing: it speaks worker.attach, progress and done as batchformer-worker does, so that the
coordinator's handling of real processes can be tested in seconds.

The job's name is its behaviour, a list "key=value+…":
  steps=N ms=N      N steps of so many milliseconds (default 5 and 20)
  every=N           a checkpoint every N steps (default 0: none); --resume goes on from the newest one
  fail=1            ends with a stated failure after its last step
  status=N          rank 0 ends with this status after its last step, without a word
  die=R             rank R kills itself half-way, in the first attempt only
  deaf=1            ignores commands and SIGTERM
  silent=1          never attaches
Rank 0 holds a lock while it works and notes every start in starts.log: two at once would show as "double".
"""
import argparse
import fcntl
import json
import os
import pathlib
import signal
import socket
import sys
import time

RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])
RANKS = int(os.environ["OMPI_COMM_WORLD_SIZE"])


class Link:
    """The connection to the coordinator; it comes back by itself."""

    def __init__(self, enabled):
        self.path = os.environ["BATCHFORMER_LINK"][len("unix:"):]
        self.enabled, self.sock, self.rest, self.commands = enabled, None, b"", []

    def message(self, method, params, **more):
        return json.dumps({"jsonrpc": "2.0", "method": method, "params": params, **more}).encode() + b"\n"

    def connect(self):
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(10)
            self.sock.connect(self.path)
            self.sock.sendall(self.message("worker.attach", {
                "job": int(os.environ["BATCHFORMER_JOB"]), "attempt": int(os.environ["BATCHFORMER_ATTEMPT"]),
                "token": os.environ["BATCHFORMER_TOKEN"], "pid": os.getpid(), "host": socket.gethostname(),
                "ranks": RANKS}, id=1))
            self.sock.setblocking(False)
        except OSError:
            self.drop()

    def drop(self):
        if self.sock:
            self.sock.close()
        self.sock, self.rest = None, b""

    def poll(self):
        if not self.enabled:
            return
        if not self.sock:
            self.connect()
        try:
            while self.sock:
                data = self.sock.recv(65536)
                if not data:
                    self.drop()
                    break
                self.rest += data
        except BlockingIOError:
            pass
        except OSError:
            self.drop()
        *lines, self.rest = self.rest.split(b"\n")
        for line in lines:
            doc = json.loads(line)
            if doc.get("method") == "worker.command":
                self.commands.append(doc["params"]["command"])

    def tell(self, method, params):
        """Says whether it went out."""
        self.poll()
        if not self.sock:
            return False
        try:
            self.sock.sendall(self.message(method, params))
            return True
        except OSError:
            self.drop()
            return False


def newest_checkpoint(run_dir):
    steps = [int(p.name[5:]) for p in (run_dir / "checkpoints").glob("step-*")]
    return max(steps, default=-1)


def write_checkpoint(run_dir, step):
    (run_dir / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)


def finish(run_dir, link, status, reason, exit_status):
    result = {"status": status, "reason": reason}
    (run_dir / "result.json.tmp").write_text(json.dumps(result))
    (run_dir / "result.json.tmp").rename(run_dir / "result.json")
    link.tell("worker.done", {"status": status, "reason": reason, "result": result})
    (run_dir / "fake-end").write_text(os.environ["BATCHFORMER_ATTEMPT"])
    sys.exit(exit_status)


def rank_zero(run_dir, how, resume):
    lock = open(run_dir / "lock", "w")
    with open(run_dir / "starts.log", "a") as starts:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            starts.write("double\n")
        starts.write(f"attempt {os.environ['BATCHFORMER_ATTEMPT']} pid {os.getpid()} resume {resume}\n")
    link = Link(not how["silent"])
    saved, asked = newest_checkpoint(run_dir) if resume else -1, False
    for step in range(max(saved, 0) + 1, how["steps"] + 1):
        time.sleep(how["ms"] / 1000)
        print(f"step {step}", flush=True)
        if how["every"] and step % how["every"] == 0 or asked:
            write_checkpoint(run_dir, step)
            saved = step
        link.tell("worker.progress", {
            "phase": "train", "step": step, "n_steps": how["steps"], "epoch": 0, "n_epochs": 1, "loss": 1 / step,
            "images_per_s": 100.0, "eta_s": None, "checkpoint_step": saved})
        if "stop" in link.commands and not how["deaf"]:
            finish(run_dir, link, "stopped", "stopped on request", 130)
        asked = "checkpoint" in link.commands
        link.commands.clear()
    if how["status"]:
        print(f"about to end with status {how['status']}", flush=True)
        (run_dir / "fake-end").write_text(os.environ["BATCHFORMER_ATTEMPT"])
        sys.exit(how["status"])
    if how["fail"]:
        finish(run_dir, link, "failed", "the data are bad", 1)
    finish(run_dir, link, "succeeded", "", 0)


def other_rank(run_dir, how):
    attempt = os.environ["BATCHFORMER_ATTEMPT"]
    while True:
        end = run_dir / "fake-end"
        if end.exists() and end.read_text() == attempt:
            sys.exit(0)
        time.sleep(0.01)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    parser.add_argument("--run-dir", required=True, type=pathlib.Path)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    how = {"steps": 5, "ms": 20, "every": 0, "fail": 0, "status": 0, "die": -1, "deaf": 0, "silent": 0}
    name = json.loads(pathlib.Path(args.job).read_text())["name"]
    how.update((k, int(v)) for k, v in (item.split("=") for item in name.split("+") if "=" in item))
    if how["deaf"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how["die"] == RANK and os.environ["BATCHFORMER_ATTEMPT"] == "1":
        time.sleep(how["steps"] * how["ms"] / 2000)
        os.kill(os.getpid(), signal.SIGKILL)
    if RANK == 0:
        rank_zero(args.run_dir, how, args.resume)
    other_rank(args.run_dir, how)


main()
