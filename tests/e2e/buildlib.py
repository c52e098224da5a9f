"""Where the programs under test are."""
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def bin_dir():
    """$BF_BIN_DIR, $BF_BUILD/bin, else the build directory whose bfctl is newest."""
    if os.environ.get("BF_BIN_DIR"):
        return pathlib.Path(os.environ["BF_BIN_DIR"])
    if os.environ.get("BF_BUILD"):
        return pathlib.Path(os.environ["BF_BUILD"]) / "bin"
    found = list(ROOT.glob("build*/**/bin/bfctl"))
    if not found:
        raise RuntimeError("no bfctl found: build first, or set BF_BUILD to the build directory")
    return max(found, key=lambda p: p.stat().st_mtime).parent
