"""Slurm as a peer of the coordinator's socket, for bench/rpc: the cluster of one host that the tests start, with room for
many jobs, and its two commands that are timed."""
import os
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/e2e"))
import slurmlib  # noqa: E402

PATH = slurmlib.PATH


def missing():
    """Why there can be no Slurm here: a sentence, or None."""
    absent = [p for p in slurmlib.PROGRAMS if not shutil.which(p, path=PATH)]
    if absent:
        return f"{', '.join(absent)} not found: packages slurmctld, slurmd, slurm-client, munge"
    return None if os.getuid() == 0 else "Slurm's daemons want root"


class Slurm(slurmlib.Slurm):
    def __init__(self, directory):
        super().__init__(directory, cpus=1, scheduler="backfill", more="MaxJobCount=200000")

    def submit(self):
        subprocess.run(["sbatch", "-Q", "-o", "/dev/null", "--wrap", "true"], env=self.env, check=True, capture_output=True,
                       cwd=self.dir)

    def queue(self):
        subprocess.run(["squeue"], env=self.env, check=True, capture_output=True)
