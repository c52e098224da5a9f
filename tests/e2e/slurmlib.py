"""A Slurm cluster of one host in a directory: munge with a key of its own, slurmctld and slurmd as plain processes on
free ports, nothing of systemd or of a Slurm that may be configured here."""
import getpass
import os
import pathlib
import shutil
import socket
import subprocess

from workerlib import ENV, wait_for

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "salloc", "scancel", "sinfo", "squeue")

CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={dir}/munge.sock
CredType=cred/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/{scheduler}
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
{more}
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Slurm:
    def __init__(self, directory, cpus=16, scheduler="builtin", more=""):
        missing = [p for p in PROGRAMS if not shutil.which(p, path=PATH)]
        assert not missing, f"{missing} are missing, these tests run on a real Slurm: deploy/install-packages test"
        self.dir = pathlib.Path(directory)
        self.host = socket.gethostname().split(".")[0]
        self.daemons = []
        for name in ("state", "spool"):
            (self.dir / name).mkdir(parents=True)
        key = self.dir / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        (self.dir / "slurm.conf").write_text(CONF.format(host=self.host, dir=self.dir, user=getpass.getuser(),
                                                         ctld_port=free_port(), slurmd_port=free_port(), cpus=cpus,
                                                         scheduler=scheduler, more=more))
        # Whatever started these tests is not part of the jobs, and a rank under srun=none must not look like MPI's.
        foreign = ("SLURM", "PMI", "OMPI_COMM", "PRTE", "SBATCH", "SALLOC")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        self.env |= {**ENV, "PATH": PATH, "SLURM_CONF": str(self.dir / "slurm.conf")}

    def start(self):
        def munge_file(name):
            return str(self.dir / name)
        self.spawn("munged", "--foreground", "--force", "--num-threads=1", "--key-file", munge_file("munge.key"),
                   "--socket", munge_file("munge.sock"), "--log-file", munge_file("munge.log"), "--pid-file",
                   munge_file("munge.pid"), "--seed-file", munge_file("munge.seed"))
        wait_for((self.dir / "munge.sock").exists, "munged listens")
        self.spawn("slurmctld", "-D")
        self.spawn("slurmd", "-D")
        try:
            wait_for(lambda: self.alive() and self.call("sinfo", "-h", "-o", "%T").stdout.strip() == "idle", "an idle node")
        except AssertionError as e:
            raise AssertionError(f"Slurm did not start: {e}\n{self.logs()}") from None
        return self

    def spawn(self, name, *args):
        with open(self.dir / f"{name}.out", "wb") as out:
            self.daemons.append(subprocess.Popen([name, *args], env=self.env, stdin=subprocess.DEVNULL, stdout=out,
                                                 stderr=subprocess.STDOUT, start_new_session=True))

    def alive(self):
        ended = [p.args[0] for p in self.daemons if p.poll() is not None]
        assert not ended, f"{ended} ended\n{self.logs()}"
        return True

    def logs(self):
        files = sorted(self.dir.glob("*.log")) + sorted(self.dir.glob("*.out"))
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in files)

    def call(self, *args, timeout=120, env=None):
        """A command of Slurm, to its end."""
        return subprocess.run(args, env={**self.env, **(env or {})}, capture_output=True, text=True, timeout=timeout)

    def popen(self, *args, env=None):
        return subprocess.Popen(args, env={**self.env, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True)

    def clear(self):
        """No job is left."""
        self.call("scancel", "--signal=KILL", "--user", getpass.getuser())
        self.call("scancel", "--user", getpass.getuser())
        wait_for(lambda: self.call("squeue", "-h").stdout == "", "an empty queue")

    def stop(self):
        for p in reversed(self.daemons):
            p.terminate()
        for p in reversed(self.daemons):
            try:
                p.wait(timeout=30)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
