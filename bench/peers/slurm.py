"""A Slurm of one node in a directory, for bench/rpc: munged, slurmctld and slurmd as plain processes on ports of their own."""
import os
import pathlib
import shutil
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
CONF = """ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
CredType=cred/munge
StateSaveLocation={dir}/saved
SlurmdSpoolDir={dir}/spool
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
MailProg=/bin/true
ReturnToService=2
MaxJobCount=200000
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 RealMemory=1 State=UNKNOWN
PartitionName=bench Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Why there can be no Slurm here: a sentence, or None."""
    absent = [p for p in PROGRAMS if not shutil.which(p, path=PATH)]
    if absent:
        return f"{', '.join(absent)} not found: packages slurmctld, slurmd, slurm-client, munge"
    return None if os.getuid() == 0 else "Slurm's daemons want root"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Slurm:
    def __init__(self, directory):
        self.dir, self.daemons = pathlib.Path(directory), []
        for name in ("saved", "spool", "out"):
            (self.dir / name).mkdir(parents=True)
        key = self.dir / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        host = socket.gethostname().split(".")[0]
        (self.dir / "slurm.conf").write_text(CONF.format(host=host, dir=self.dir, ctld=free_port(), slurmd=free_port()))
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        self.env |= {"PATH": PATH, "SLURM_CONF": str(self.dir / "slurm.conf")}

    def spawn(self, *argv):
        log = open(self.dir / "out" / argv[0], "ab")
        self.daemons.append(subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def start(self):
        at = [f"--{what}={self.dir}/munge.{end}" for what, end in
              (("key-file", "key"), ("socket", "socket"), ("log-file", "log"), ("pid-file", "pid"), ("seed-file", "seed"))]
        self.spawn("munged", "--foreground", "--force", *at)
        self.until(lambda: (self.dir / "munge.socket").exists(), "munged listens")
        self.spawn("slurmctld", "-D")
        self.spawn("slurmd", "-D")
        self.until(lambda: "idle" in self.output("sinfo", "-h", "-o", "%T"), "the node is idle")
        return self

    def output(self, *argv):
        return subprocess.run(argv, env=self.env, capture_output=True, text=True).stdout

    def until(self, condition, what):
        for _ in range(300):
            if condition():
                return
            time.sleep(0.1)
        raise RuntimeError(f"not within 30 s: {what}; see {self.dir}")

    def submit(self):
        subprocess.run(["sbatch", "-Q", "-o", "/dev/null", "--wrap", "true"], env=self.env, check=True, capture_output=True,
                       cwd=self.dir)

    def queue(self):
        subprocess.run(["squeue"], env=self.env, check=True, capture_output=True)

    def stop(self):
        for process in reversed(self.daemons):
            process.terminate()
            process.wait()
