"""Fixtures that all end-to-end tests may use."""
import pathlib
import shutil
import tempfile

import pytest

from daemonlib import Daemon
from tlslib import Certificates, TlsDaemon


@pytest.fixture
def make_daemon(tmp_path):
    """make_daemon(**options of Daemon) -> a running Daemon; all are stopped at the end, and must stop in order."""
    made = []

    def make(start=True, directory=tmp_path, **kwargs):
        daemon = Daemon(directory, **kwargs)
        made.append(daemon)
        return daemon.start() if start else daemon

    yield make
    for daemon in made:
        daemon.stop()


@pytest.fixture
def daemon(make_daemon):
    """A daemon with the fake launcher and two slots."""
    return make_daemon()


@pytest.fixture
def open_path():
    """As tmp_path, but other users can pass through it: pytest closes the directory above its own at each start."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="bf-test-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates") / "c")


@pytest.fixture
def make_tls_daemon(open_path, certificates):
    """As make_daemon, with a daemon that listens on TCP, too, in a directory that other users can pass through."""
    made = []

    def make(**kwargs):
        daemon = TlsDaemon(open_path, certificates, **kwargs)
        made.append(daemon)
        return daemon.start()
    yield make
    for daemon in made:
        daemon.stop()
