"""House rules that a machine can hold: sizes, direction of dependencies, formatting, headers that say what a file is."""

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 80

# Who may include whom: folder → folders (longest matching prefix decides). worker/main.c may name everything below
# worker; report.c and heartbeat.c are the only files of the trainer that talk to the daemon.
MAY_INCLUDE = {
    "common": {"common"},
    "proto": {"proto", "common"},
    "daemon": {"daemon", "proto", "common"},
    "cli": {"cli", "proto", "common"},
    "worker/engine": {"worker/engine", "worker/comm/comm.h", "common"},
    "worker/comm": {"worker/comm", "worker/engine/tensor.h", "common"},
    "worker/comm/comm_nccl.c": {"worker/comm", "worker/backend/cuda/cuda_util.h", "worker/engine/tensor.h", "common"},
    "worker/backend/cpu": {"worker/backend/cpu", "worker/engine", "common"},
    "worker/backend/cuda": {"worker/backend/cuda", "worker/engine", "common"},
    "worker/backend/cuda/kernel.cuh": {"tests/sim/cuemu.h"},
    "worker/nn": {"worker/nn", "worker/engine", "common"},
    "worker/data": {"worker/data", "common"},
    "worker/train": {"worker/train", "worker/data", "worker/engine", "worker/comm/comm.h", "worker/comm/comm_watch.h",
                     "proto/jobspec.h", "common"},
    "worker/train/report.c": {"worker/train", "proto", "common"},
    "worker/train/heartbeat.c": {"worker/train", "proto", "common"},
    "worker/tasks": {"worker/tasks", "worker/train", "worker/nn", "worker/data", "worker/engine", "worker/comm/comm.h",
                     "proto/jobspec.h", "common"},
    "worker": {"worker", "proto", "common"},
}

# A vendor's header → the only files that may know it.
VENDOR_FILES = {
    "cublas": {"worker/backend/cuda/cuda_blas.c"},
    "cuda": {"worker/backend/cuda/", "worker/comm/comm_nccl.c"},
    "cudnn": {"worker/backend/cuda/cuda_dnn_plan.h"},
    "dnnl": {"worker/backend/cpu/dn.c"},
    "nccl.h": {"worker/comm/comm_nccl.c"},
    "openssl": {"proto/tls.c", "worker/comm/tcp_proof.c"},
    "mpi.h": {"worker/comm/comm_mpi.c", "worker/main.c"},
    "netinet/": {"proto/client.c", "worker/comm/tcp_"},
    "sqlite3.h": {"daemon/store"},
    "uv.h": {"daemon/"},
    "xxhash.h": {"common/hash.c"},
    "zlib.h": {"worker/data/source.c"},
}

# Beside main: a fault point that plays a crash, and a forked child that could not become another program.
MAY_EXIT = {"common/fault.c", "daemon/spawn.c"}


def sources(*suffixes):
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split("\n")
    return sorted(n for n in names if n.endswith(suffixes) and (ROOT / n).exists())


C_FILES = sources(".c", ".h", ".cu", ".cuh")
PRODUCT = [f for f in C_FILES if not f.startswith(("tests/", "bench/"))]


def test_there_is_something_to_check():
    assert len(PRODUCT) > 50


@pytest.mark.parametrize("name", sources(".c", ".h", ".cu", ".cuh", ".py", ".sh"))
def test_file_length(name):
    n = len((ROOT / name).read_text().split("\n"))
    assert n <= MAX_FILE_LINES, f"{n} lines, at most {MAX_FILE_LINES}: split it by family"


def functions(text):
    """(name, lines) of every function body: from the line with the name to the closing brace in column 0."""
    lines = text.split("\n")
    start = None
    for i, line in enumerate(lines):
        if line == "{" and i > 0:
            start = i - 1
            while start > 0 and not re.match(r"^[A-Za-z_].*\(", lines[start]):
                start -= 1
        elif line == "}" and start is not None:
            yield lines[start], i - start + 1
            start = None


@pytest.mark.parametrize("name", [f for f in C_FILES if f.endswith((".c", ".cu"))])
def test_function_length(name):
    long = [f"{n} lines: {head}" for head, n in functions((ROOT / name).read_text()) if n > MAX_FUNCTION_LINES]
    assert not long


def folder_rule(name):
    best = max((k for k in MAY_INCLUDE if name == k or name.startswith(k + "/")), key=len)
    return MAY_INCLUDE[best]


@pytest.mark.parametrize("name", PRODUCT)
def test_include_direction(name):
    allowed = folder_rule(name)
    for inc in re.findall(r'^#include "([^"]+)"', (ROOT / name).read_text(), re.M):
        assert any(inc == a or inc.startswith(a + "/") for a in allowed), f"{name} must not know {inc}"


@pytest.mark.parametrize("name", PRODUCT)
def test_vendor_headers(name):
    for inc in re.findall(r"^#include <([^>]+)>", (ROOT / name).read_text(), re.M):
        for vendor, files in VENDOR_FILES.items():
            if vendor in inc:
                assert any(name.startswith(f) for f in files), f"<{inc}> belongs into {sorted(files)}"


@pytest.mark.parametrize("name", C_FILES)
def test_file_header(name):
    assert re.match(r"/\* [\w-]+ - ", (ROOT / name).read_text()), "the first line says what the file is: /* name - …"


@pytest.mark.parametrize("name", PRODUCT)
def test_no_unfinished_work_and_no_exit(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"\b(TO[D]O|FIX[M]E|X[X]X)\b", text)  # so written, this line is no mark itself
    if name.endswith((".c", ".cu")) and Path(name).name != "main.c" and name not in MAY_EXIT:
        assert not re.search(r"(?<![\w.>])_?exit\(", text), "only main exits"


def test_formatting():
    files = [str(ROOT / f) for f in C_FILES]
    r = subprocess.run(["clang-format", "--dry-run", "-Werror", *files], capture_output=True, text=True)
    bad = sorted({line.split(":")[0] for line in r.stderr.split("\n") if "error:" in line})
    assert r.returncode == 0, f"run clang-format -i on: {bad}"


def test_json_is_json():
    for name in sources(".json"):
        if "/bad/" not in name:
            json.loads((ROOT / name).read_text())
