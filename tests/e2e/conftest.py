"""Fixtures that all end-to-end tests may use."""
import pytest

from daemonlib import Daemon


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
