"""The laboratory is what the other tests take it for."""

from __future__ import annotations

import errno
import pathlib
import tempfile

import pytest

from tests.helpers import origin
from tests.helpers.lab import (
    BESIDE_ORIGIN,
    CLIENT4,
    CLIENT6,
    ORIGIN4,
    ORIGIN6,
    OUTSIDE4,
    SERVER4,
    UNROUTED4,
    UNROUTED6,
    WORLD4,
    WORLD6,
    Lab,
    own_leftovers,
)
from tests.helpers.lab_http import download, upload, whoami
from tests.helpers.lab_ssh import FORWARD4, FORWARD_PORT, forwarding
from tests.helpers.lab_wait import settled, until

pytestmark = pytest.mark.netns

SIZE = 64 << 20


def test_client_reaches_world_directly(lab: Lab) -> None:
    assert whoami(lab.client, WORLD4) == CLIENT4
    assert whoami(lab.client, WORLD6) == CLIENT6


@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
def test_client_has_no_way_to_origin(lab: Lab, address: str) -> None:
    assert lab.client.connect_error(address, origin.HTTP) in (errno.EHOSTUNREACH, errno.EACCES)


@pytest.mark.parametrize("address", [UNROUTED4, UNROUTED6])
def test_server_has_no_route_everywhere(lab: Lab, address: str) -> None:
    assert lab.server.connect_error(address, origin.HTTP) == errno.ENETUNREACH


def test_only_server_knows_names(lab: Lab) -> None:
    assert ORIGIN4 in lab.server.run("getent", "ahostsv4", "origin.test").stdout
    assert lab.client.run("getent", "ahosts", "origin.test", check=False).returncode == 2


@pytest.mark.parametrize("address", [SERVER4, OUTSIDE4])
def test_ssh_forwards_to_origin(lab: Lab, address: str) -> None:
    with forwarding(lab, "origin.test:80", address):
        assert whoami(lab.client, FORWARD4, FORWARD_PORT) in BESIDE_ORIGIN
        assert download(lab.client, FORWARD4, SIZE, FORWARD_PORT) == origin.digest(SIZE)
        sent = upload(lab.client, FORWARD4, SIZE, FORWARD_PORT)
        assert sent == (SIZE, origin.digest(SIZE))


def test_settled_needs_samples_that_are_the_same() -> None:
    growing = iter([1, 2, 2, 3, 3, 3, 3])
    assert settled(lambda: next(growing), "the sample", samples=3) == 3


def test_until_has_a_deadline() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.05 s: the moon"):
        until(lambda: False, "the moon", within_s=0.05)


def test_host_sees_only_its_own_cgroups(lab: Lab) -> None:
    assert "0::/" in lab.client.run("cat", "/proc/self/cgroup").stdout.splitlines()
    assert lab.name not in lab.client.run("ls", lab.client.cgroup_mount).stdout


def test_close_kills_daemons() -> None:
    with tempfile.TemporaryDirectory() as directory, Lab() as laboratory:
        pid_file = pathlib.Path(directory, "pid")
        laboratory.lan.popen(
            "setsid", "--fork", "sh", "-c", f"echo $$ >{pid_file}; sleep 600"
        ).wait()
        until(lambda: pid_file.exists() and pid_file.read_text().strip(), "the daemon to start")
        daemon = pathlib.Path("/proc", pid_file.read_text().strip())
        assert daemon.exists()
    until(lambda: not daemon.exists(), "the daemon to end")
    assert not [path for path in own_leftovers() if f"{laboratory.name}-" in path]
