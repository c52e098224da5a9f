"""What the tests of TCP and tokens share: certificates that openssl makes, a daemon that listens on TCP, and a JSON-RPC
client over TLS."""
import re
import shutil
import socket
import ssl
import subprocess

from daemonlib import Daemon, Rpc, bin_dir, wait_until


def openssl(*args, cwd):
    subprocess.run(["openssl", *args], cwd=cwd, check=True, capture_output=True, timeout=60)


class Certificates:
    """A CA of our own, and certificates from it; other.pem is a CA that nobody knows."""

    def __init__(self, directory):
        self.dir = directory
        directory.mkdir()
        for ca in ("ca", "other"):
            openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
                    f"{ca}.key", "-out", f"{ca}.pem", "-days", "2", "-subj", f"/CN={ca}", cwd=directory)
        self.cert, self.key = self.leaf("server", "DNS:localhost,IP:127.0.0.1")
        self.ca, self.other = directory / "ca.pem", directory / "other.pem"

    def leaf(self, name, names, days=2):
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key",
                "-out", f"{name}.csr", "-subj", f"/CN={name}", cwd=self.dir)
        (self.dir / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out",
                f"{name}.pem", "-days", str(days), "-extfile", f"{name}.ext", cwd=self.dir)
        (self.dir / f"{name}.key").chmod(0o600)
        return self.dir / f"{name}.pem", self.dir / f"{name}.key"


class TlsDaemon(Daemon):
    """A daemon that listens on a port of its own choice, too."""

    def __init__(self, directory, certificates, options=(), **kwargs):
        super().__init__(directory, options=["--listen", "tcp:127.0.0.1:0", "--tls-cert", certificates.cert, "--tls-key",
                                             certificates.key, *options], **kwargs)
        self.certificates = certificates

    @property
    def port(self):
        return int(re.findall(r"listening on tcp:127\.0\.0\.1:(\d+)", self.log_text())[-1])

    @property
    def address(self):
        return f"tcp:127.0.0.1:{self.port}"

    def token(self, **params):
        """A new token: its id and its secret."""
        with self.rpc() as rpc:
            made = rpc.call("token.create", **params)
        return made["id"], made["token"]

    def tls(self, token=None, timeout=60):
        rpc = TlsRpc(self.port, self.certificates.ca, timeout)
        if token:
            rpc.login = rpc.call("auth.login", token=token)
        return rpc


class TlsRpc(Rpc):
    """One connection over TLS, with the certificate checked."""

    def __init__(self, port, ca, timeout=60):
        context = ssl.create_default_context(cafile=str(ca))
        self.sock = context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout),
                                        server_hostname="localhost")
        self.rest, self.notes, self.last_id = b"", [], 0

    def read(self):
        try:
            return super().read()
        except (ssl.SSLError, OSError):
            return None


def copy_of(program, directory):
    """A copy that other users can run, wherever the build is."""
    path = directory / program
    shutil.copy(bin_dir() / program, path)
    path.chmod(0o755)
    return path


def wait_for_log(daemon, text):
    wait_until(lambda: text in daemon.log_text(), lambda: f"{text!r} in the log: {daemon.log_text()[-2000:]}")
