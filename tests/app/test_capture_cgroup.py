"""Mode cgroup: the packets of some processes come to the TUN, those of others never do.

The last test runs this file once more where there is only cgroup v1.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers.capture import (
    DNS,
    FAKE,
    STUB_ASKER,
    TCP,
    TUN,
    UDP,
    WILDCARD,
    assert_answered,
    assert_arrives,
    assert_captured,
    begin_tcp,
    bypass_group,
    captured,
    make_plan,
    network,
    rp_filter,
    rp_filters,
    run_group,
    send,
)
from tests.helpers.netns import (
    CLIENT,
    FAR,
    LAN,
    LOOPBACK,
    OTHER,
    ROUTER,
    STUB,
    Network,
    accept,
    families,
    inside,
    received,
    snapshot,
)
from tunproxy.app.capture import Capture
from tunproxy.errors import MachineError
from tunproxy.linux import cgroup, marks

__all__ = ["network", "rp_filter"]

pytestmark = pytest.mark.netns

_NET_CLS = "TUNPROXY_TEST_NET_CLS"
only_v2 = pytest.mark.skipif(_NET_CLS in os.environ, reason="cgroup v1 has nothing of the kind")

_ONLY_NET_CLS = """
set -e
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/net_cls
mount -t cgroup -o net_cls cgroup /sys/fs/cgroup/net_cls
exec "$@"
"""


@families
@rp_filters
def test_cgroup_far_destination_comes_to_the_tun(network: Network, family: int) -> None:
    with (
        captured(network, make_plan(run=True)) as (capture, device),
        inside(run_group(capture)),
    ):
        with send(network, FAR[family]) as sock:
            # The source was chosen by the ordinary routes.
            assert_answered(device, sock, CLIENT[family], FAR[family])
        with begin_tcp(network, FAR[family]):
            assert device.read().destination == FAR[family]


@families
def test_cgroup_others_are_not_captured(network: Network, family: int) -> None:
    with (
        network.inet.bound(FAR[family], 9, UDP) as far,
        network.inet.bound(FAR[family], 53, UDP) as resolver,
        network.client.bound(STUB[family], 53, UDP) as stub,
        captured(network, make_plan(run=True)) as (capture, device),
    ):
        for listener, source in ((far, CLIENT), (resolver, CLIENT), (stub, LOOPBACK)):
            assert_arrives(network, listener, source[family])
        with inside(run_group(capture)):
            assert_captured(network, device, OTHER[family])


def test_cgroup_children_are_captured(network: Network) -> None:
    program = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        f"s.sendto(b'child', ('{FAR[4]}', 9))"
    )
    with captured(network, make_plan(run=True)) as (capture, device):
        with inside(run_group(capture)):
            subprocess.run(["sh", "-c", f'{sys.executable} -c "{program}"; true'], check=True)
        assert device.read().payload == b"child"


@only_v2
def test_cgroup_below_the_captured_one_is_captured(network: Network) -> None:
    with captured(network, make_plan(run=True)) as (capture, device):
        group = run_group(capture)
        below = cgroup.Cgroup(group.hierarchy, f"{group.path}/below")
        with inside(below):
            assert_captured(network, device, FAR[4])


@families
def test_cgroup_lan_is_not_captured_but_queries_are(network: Network, family: int) -> None:
    with (
        network.lan.bound(LAN[family], 9, UDP) as lan,
        captured(network, make_plan(run=True)) as (capture, device),
        inside(run_group(capture)),
    ):
        assert_arrives(network, lan, ROUTER[family])
        with send(network, LAN[family], 53) as sock:
            assert_answered(device, sock, ROUTER[family], LAN[family])


@families
@pytest.mark.parametrize("stub", [STUB, LOOPBACK, ROUTER])
def test_cgroup_queries_to_this_machine_are_diverted(
    network: Network, family: int, stub: dict[int, str]
) -> None:
    with (
        captured(network, make_plan(run=True)) as (capture, device),
        inside(run_group(capture)),
        send(network, stub[family], 53) as sock,
    ):
        source = STUB_ASKER if stub in (STUB, LOOPBACK) else stub
        assert_answered(device, sock, source[family], DNS[family], stub[family])


@families
@pytest.mark.parametrize("default", [False, True])
def test_cgroup_fake_address_is_reached_even_without_a_default_route(
    network: Network, family: int, default: bool
) -> None:
    if not default:
        network.client.ip(f"-{family}", "route", "del", "default")
    with (
        captured(network, make_plan(run=True)) as (capture, device),
        inside(run_group(capture)),
        send(network, FAKE[family]) as sock,
    ):
        packet = device.read()
        assert packet.destination == FAKE[family]
        device.answer(packet, b"answer")
        assert received(sock) == (b"answer", FAKE[family])


@families
def test_cgroup_bypass_takes_a_process_out(network: Network, family: int) -> None:
    with (
        network.inet.bound(FAR[family], 9, UDP) as far,
        captured(network, make_plan(run=True)) as (capture, _),
        inside(run_group(capture)),
        inside(bypass_group(capture)),
    ):
        assert_arrives(network, far, CLIENT[family])


@families
def test_cgroup_server_answers_where_it_was_asked(network: Network, family: int) -> None:
    with (
        captured(network, make_plan(run=True)) as (capture, _),
        inside(run_group(capture)),
        network.client.bound(WILDCARD[family], 80, TCP) as listener,
        network.inet.bound_client(FAR[family], TCP) as outside,
    ):
        outside.connect((CLIENT[family], 80))
        with accept(listener) as accepted:
            accepted.sendall(b"out")
            assert outside.recv(10) == b"out"


@only_v2
@families
def test_cgroup_named_is_captured_but_not_its_older_connections(
    network: Network, family: int
) -> None:
    hierarchy = cgroup.find_hierarchy()
    assert hierarchy is not None
    group = cgroup.Cgroup(hierarchy, f"{marks.CGROUP_DIR}/slice")
    plan = make_plan(mode="cgroup", cgroups=(f"/{group.path}",))
    with network.tun(plan):
        capture = Capture(plan)
        with pytest.raises(MachineError, match="there is no cgroup"):
            capture.apply([])
    with (
        network.inet.bound(FAR[family], 80, TCP) as listener,
        inside(group),
        network.client.open_socket(family, TCP) as tcp,
    ):
        tcp.connect((FAR[family], 80))
        with accept(listener) as accepted, captured(network, plan) as (_, device):
            tcp.sendall(b"up")
            assert accepted.recv(10) == b"up"
            assert_captured(network, device, OTHER[family])
            tcp.sendall(b"more")
            assert accepted.recv(10) == b"more"
    assert group.exists
    assert group.remove() == 0


@families
def test_cgroup_run_inside_system_has_its_own_tun(network: Network, family: int) -> None:
    """``tunproxy run`` while ``tunproxy up`` runs: each has what is its own."""
    with (
        captured(network) as (_, system),
        captured(network, make_plan(slot=1, run=True, tun="tun1")) as (capture, own),
    ):
        with inside(run_group(capture)):
            for target, port in ((FAR[family], 9), (FAR[family], 53), (STUB[family], 53)):
                with send(network, target, port) as sock:
                    packet = own.read()
                    own.answer(packet, b"answer")
                    assert received(sock) == (b"answer", target)
        with send(network, FAR[family]):
            assert system.read().source == TUN[family]
        with network.inet.bound(FAR[family], 9, UDP) as far, inside(bypass_group(capture)):
            assert_arrives(network, far, CLIENT[family])


def test_cgroup_undo_leaves_everything_as_it_was_and_lets_processes_go(network: Network) -> None:
    plan = make_plan(run=True, kill_switch=True)
    before = snapshot()
    with captured(network, plan) as (capture, _):
        program = "import sys; print('here', flush=True); sys.stdin.read()"
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        home = pathlib.Path(f"/proc/{child.pid}/cgroup").read_text()
        group = run_group(capture)
        group.add(child.pid)
        assert pathlib.Path(f"/proc/{child.pid}/cgroup").read_text() != home
    assert snapshot() == before
    assert pathlib.Path(f"/proc/{child.pid}/cgroup").read_text() == home
    child.communicate()


def test_no_cgroups_is_an_error_for_run_only(
    network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "mountinfo").touch()
    monkeypatch.setattr(cgroup, "_MOUNTINFO", tmp_path / "mountinfo")
    with pytest.raises(MachineError, match="mount cgroup2"):
        Capture(make_plan(run=True)).prepare()
    with captured(network) as (capture, device):
        assert capture.bypass_cgroup is None
        assert_captured(network, device, FAR[4])


@only_v2
def test_with_cgroup_v1_only(tmp_path: pathlib.Path) -> None:
    if "net_cls" not in pathlib.Path("/proc/cgroups").read_text():
        pytest.skip("this kernel has no net_cls")
    again = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-q"]
    private = ["unshare", "--mount", "sh", "-c", _ONLY_NET_CLS, "sh"]
    done = subprocess.run(
        [*private, *again, f"--basetemp={tmp_path}", __file__],
        env=os.environ | {_NET_CLS: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
