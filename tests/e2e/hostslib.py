"""Several hosts on one machine: network namespaces on a bridge, each with a host name of its own, and a launch agent by
which mpirun starts its daemons in them. Needs root, as CI is."""
import os
import socket
import subprocess


def sh(*args):
    subprocess.run(args, check=True, capture_output=True, timeout=60)


class Hosts:
    """Namespaces NAME for each name, with addresses PREFIX.2 and so on; this machine is PREFIX.1."""

    def __init__(self, directory, names):
        self.names, self.pid = names, os.getpid()
        self.prefix = f"10.{100 + self.pid % 100}.{self.pid // 100 % 250}"
        self.bridge = f"bf{self.pid % 100000}"
        self.agent = directory / "agent"
        self.broken = directory / "broken"  # names of hosts that the agent cannot reach
        self.broken.mkdir()
        self.namespaces = {name: f"bf{self.pid}-{name}" for name in names}

    def __enter__(self):
        sh("ip", "link", "add", self.bridge, "type", "bridge")
        sh("ip", "addr", "add", f"{self.prefix}.1/24", "dev", self.bridge)
        sh("ip", "link", "set", self.bridge, "up")
        for i, namespace in enumerate(self.namespaces.values()):
            outer = f"{self.bridge}v{i}"
            sh("ip", "netns", "add", namespace)
            sh("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            sh("ip", "link", "set", outer, "master", self.bridge, "up")
            sh("ip", "-n", namespace, "addr", "add", f"{self.prefix}.{i + 2}/24", "dev", "eth0")
            sh("ip", "-n", namespace, "link", "set", "eth0", "up")
            sh("ip", "-n", namespace, "link", "set", "lo", "up")
        # As ssh: HOST COMMAND…, the command to be taken apart by a shell.
        self.agent.write_text(f"""#!/bin/sh
host=$1
shift
if [ -e {self.broken}/$host ]; then echo "ssh: connect to host $host port 22: No route to host" >&2; exit 255; fi
exec ip netns exec bf{self.pid}-$host unshare --uts sh -c "hostname $host; $*"
""")
        self.agent.chmod(0o755)
        return self

    def __exit__(self, *_):
        for namespace in self.namespaces.values():
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True, timeout=60)
        subprocess.run(["ip", "link", "del", self.bridge], check=False, capture_output=True, timeout=60)

    @property
    def address(self):
        return f"{self.prefix}.1"

    @property
    def env(self):
        """Open MPI's traffic, of its daemons and of ranks, goes over the bridge."""
        net = f"{self.prefix}.0/24"
        return {"OMPI_MCA_oob_tcp_if_include": net, "OMPI_MCA_btl_tcp_if_include": net, "OMPI_MCA_btl": "self,tcp"}

    def free_port(self):
        with socket.create_server((self.address, 0)) as s:
            return s.getsockname()[1]
