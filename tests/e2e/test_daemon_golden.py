"""Protocol 1 is frozen: requests with the answers that clients rely on, in tests/golden/protocol/*.ndjson, against a real
daemon. An answer may have more fields than stand there (additions are compatible); one that is missing, or of another type or
value, fails. tests/golden/protocol/README.md says how a file is read."""
import json
import pathlib
import re
import sqlite3

import pytest

from daemonlib import Daemon, Rpc, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tests/golden/protocol").glob("*.ndjson"))
TYPES = {"int": lambda v: isinstance(v, int) and not isinstance(v, bool),
         "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
         "string": lambda v: isinstance(v, str), "bool": lambda v: isinstance(v, bool), "null": lambda v: v is None,
         "object": lambda v: isinstance(v, dict), "array": lambda v: isinstance(v, list)}


def mismatch(want, got, at=""):
    """What of `want` is not in `got`: a sentence, or None when all of it is."""
    if isinstance(want, str) and re.fullmatch(r"<[a-z|]+>", want):
        types = want[1:-1].split("|")
        return None if any(TYPES[t](got) for t in types) else f"{at}: {got!r} is no {' or '.join(types)}"
    if isinstance(want, dict):
        if not isinstance(got, dict):
            return f"{at}: {got!r} is no object"
        for key, value in want.items():
            if key not in got:
                return f"{at}/{key}: missing; there are {sorted(got)}"
            found = mismatch(value, got[key], f"{at}/{key}")
            if found:
                return found
        return None
    if isinstance(want, list):
        if not isinstance(got, list):
            return f"{at}: {got!r} is no array"
        if want and want[0] == "<each>":
            want = [want[1]] * max(len(got), 1)
        if len(want) != len(got):
            return f"{at}: {len(got)} elements, {len(want)} expected"
        return next((m for i, (w, g) in enumerate(zip(want, got)) if (m := mismatch(w, g, f"{at}/{i}"))), None)
    same_type = isinstance(want, bool) == isinstance(got, bool)
    return None if same_type and want == got else f"{at}: {got!r}, expected {want!r}"


@pytest.mark.parametrize("want,got,fits", [
    ({"a": 1}, {"a": 1, "b": 2}, True), ({"a": 1}, {"b": 2}, False), ({"a": 1}, {"a": True}, False),
    ({"a": "<int>"}, {"a": 1.5}, False), ("<int|null>", None, True), ("<number>", True, False), ([1], [1, 2], False),
    (["<each>", {"a": "<int>"}], [{"a": 1}, {"a": "x"}], False), (["<each>", "<int>"], [], False), ({"a": {}}, {"a": 3}, False),
], ids=range(10))
def test_matcher(want, got, fits):
    assert (mismatch(want, got) is None) == fits


class Exchange:
    """One file, played line by line."""

    def __init__(self, daemon, head):
        self.daemon, self.values, self.conns = daemon, dict(head.get("let", {})), {}

    def conn(self, line):
        name = line.get("conn", "a")
        if name not in self.conns:
            self.conns[name] = Rpc(self.daemon.socket)
        return self.conns[name]

    def fill(self, doc):
        """`doc` with every string "$name" replaced by what was saved under it."""
        if isinstance(doc, dict):
            return {k: self.fill(v) for k, v in doc.items()}
        if isinstance(doc, list):
            return [self.fill(v) for v in doc]
        return self.values[doc[1:]] if isinstance(doc, str) and doc[:1] == "$" and doc[1:] in self.values else doc

    def next(self, rpc, want):
        """The next message; notifications wait while an answer is expected, progress counts only where it is."""
        note = isinstance(want, dict) and "method" in want
        while True:
            doc = rpc.next_note() if note else rpc.read()
            assert doc is not None, f"the daemon hung up instead of {want}"
            if not note and isinstance(doc, dict) and "method" in doc:
                rpc.notes.append(doc)
            elif not (note and doc["params"].get("type") == "progress" != want["params"].get("type")):
                return doc

    def play(self, line):
        rpc = self.conn(line)
        if "wait" in line:
            with self.daemon.rpc() as other:
                other.wait_state(self.fill(line["wait"]), *line["state"])
        if "file" in line:
            path = self.daemon.state / line["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["text"] is None:
                path.mkdir()
            else:
                with open(path, "a") as f:
                    f.write(line["text"])
        if "token_of" in line:
            self.values["token"] = worker_token(self.daemon, line["token_of"])
        if "send" in line:
            rpc.send(self.fill(line["send"]))
        if "raw" in line:
            rpc.send_raw(line["raw"].encode() + b"\n")
        if "expect" in line:
            want = self.fill(line["expect"])
            got = self.next(rpc, want)
            assert mismatch(want, got) is None, f"{mismatch(want, got)}\n in {json.dumps(got)}"
            for name, keys in line.get("save", {}).items():
                value = got
                for key in keys.split("."):
                    value = value[int(key) if key.isdigit() else key]
                self.values[name] = value
        if "closed" in line:
            assert rpc.read() is None
        if "ended" in line:
            assert self.daemon.process.wait(60) == line["ended"]


def worker_token(daemon, job):
    """The secret of a job's attempt, which only its worker and the journal know."""
    def look():
        db = sqlite3.connect(f"file:{daemon.state}/state.db?mode=ro", uri=True)
        try:
            return [t for (data,) in db.execute("SELECT data FROM events WHERE job = ? ORDER BY seq", (job,))
                    if (t := json.loads(data).get("token"))]
        finally:
            db.close()
    return wait_until(look, f"job {job} has an attempt")[-1]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_exchange(path, tmp_path):
    head, *lines = read(path)
    daemon = Daemon(tmp_path, behaviour=head["fake"], slots=head.get("slots", 2), options=head.get("options", ()))
    daemon.start()
    exchange = Exchange(daemon, head)
    try:
        for n, line in enumerate(lines, 2):
            try:
                exchange.play(line)
            except AssertionError as e:
                raise AssertionError(f"{path.name}:{n}: {e}") from None
    finally:
        for rpc in exchange.conns.values():
            rpc.close()
        daemon.stop()


# --- nothing is left out ---

def everything():
    """Every object within the files' lines."""
    todo = [line for path in FILES for line in read(path)]
    while todo:
        doc = todo.pop()
        if isinstance(doc, dict):
            yield doc
        todo += doc.values() if isinstance(doc, dict) else doc if isinstance(doc, list) else []


def documented_methods():
    """The names in the first column of the tables under "## Methods"."""
    text = (ROOT / "docs/protocol.md").read_text().split("\n## Methods\n")[1].split("\n### ")[0]
    return {name for row in re.findall(r"^\| (\[?`.*?) \|", text, re.M) for name in re.findall(r"`([a-z.]+)`", row)}


def documented_codes():
    text = (ROOT / "docs/protocol.md").read_text().split("\n### Errors\n")[1].split("\n## ")[0]
    return {int(code) for code in re.findall(r"^\| (-?\d+) \|", text, re.M)}


def test_every_method_is_documented_and_exercised(daemon):
    with daemon.rpc() as rpc:
        served = set(rpc.call("hello")["capabilities"])
    played = {doc["method"] for doc in everything() if doc.get("jsonrpc") == "2.0" and "method" in doc}
    assert served == documented_methods()
    assert served <= played, f"in no file: {sorted(served - played)}"


def test_every_error_code_appears():
    codes = documented_codes()
    assert len(codes) >= 11
    seen = {doc["error"]["code"] for doc in everything() if isinstance(doc.get("error"), dict)}
    assert codes <= seen, f"in no file: {sorted(codes - seen)}"
