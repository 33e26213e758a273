"""Datagrams and pings that rules send DIRECT, by a bad path to a world that answers.

::

    client ==== server ---- world        the server is a router here, beside all that is proxied
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import WORLD4, WORLD6
from tests.helpers.lab_host import ip
from tests.helpers.lab_link import PATH4, PATH6, Cable, bad_path
from tests.helpers.lab_tunproxy import up
from tests.helpers.link import Way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab
    from tests.helpers.lab_tunproxy import Tunproxy

pytestmark = pytest.mark.netns

WORLDS = pytest.mark.parametrize("address", [WORLD4, WORLD6], ids=["v4", "v6"])
NOBODY = {WORLD4: "198.51.100.99", WORLD6: "2001:db8:9::99"}
"""Addresses that no host has."""
STRANGER = {WORLD4: "198.51.100.77", WORLD6: "2001:db8:9::77"}
"""Other addresses of the world."""
PORT = 4000
RULES = """
IP-CIDR,198.51.100.0/24,DIRECT
IP-CIDR6,2001:db8:9::/64,DIRECT
AND,((DOMAIN-SUFFIX,test),(DST-PORT,4000)),DIRECT
AND,((DOMAIN-SUFFIX,test),(NOT,((NETWORK,tcp)))),DIRECT
"""
"""Of names they say no more than that it depends: so those have fake addresses."""
RECORDS = f"""
no-resolv
no-hosts
bind-interfaces
local=/test/
host-record=v4.test,{WORLD4}
host-record=v6.test,{WORLD6}
"""
"""On the server's side the same names are the origin's."""


@pytest.fixture(scope="module")
def path(lab: Lab) -> Iterator[Cable]:
    """The client's way to everywhere."""
    for address in STRANGER.values():
        length = 64 if ":" in address else 24
        ip("-n", lab.world.name, "addr", "add", f"{address}/{length}", "dev", "uplink", "nodad")
    for device in ("iifname", "oifname"):
        lab.server.run("nft", "insert", "rule", "inet", "lab", "forward", device, "bad0", "accept")
    lab.serve_names(lab.world, [WORLD4], RECORDS)
    lab.set_resolver(lab.client, WORLD4)
    with bad_path(lab) as made:
        ip("-n", lab.client.name, "-4", "route", "replace", "default", "via", PATH4[0])
        ip("-n", lab.client.name, "-6", "route", "replace", "default", "via", PATH6[0])
        yield made


@pytest.fixture(scope="module", params=["ping", "raw"])
def program(lab: Lab, path: Cable, request: pytest.FixtureRequest) -> Iterator[Tunproxy]:
    """The program where everybody may have ping sockets (icmp(7)), and where nobody may."""
    groups = "0 2147483647" if request.param == "ping" else "1 0"
    lab.client.run("sysctl", "-qw", f"net.ipv4.ping_group_range={groups}")
    rules = lab.directory / "direct.list"
    rules.write_text(RULES)
    with up(lab, "--rules", str(rules), "--udp", "reject") as running:
        yield running


def ping(lab: Lab, address: str, *options: str) -> tuple[int, list[float], str]:
    """Ping from the client; return how many answers there were, their delays in ms, and all."""
    words = ("ping", "-n", "-i", "0.2", *options, address)
    output = lab.client.run(*words, check=False).stdout
    found = re.search(r"(\d+) received", output)
    assert found is not None, output
    return int(found[1]), [float(ms) for ms in re.findall(r"time=([\d.]+) ms", output)], output


@WORLDS
@pytest.mark.parametrize("delay_s", [0.0, 0.15])
def test_ping_has_the_delay_of_the_path(
    lab: Lab, path: Cable, program: Tunproxy, address: str, delay_s: float
) -> None:
    path.impair(Way(delay_s=delay_s))
    received, delays_ms, output = ping(lab, address, "-c3")
    path.impair(Way())
    assert received == 3, output
    assert min(delays_ms) >= 2000 * delay_s
    # What is due to load cannot look like it three times.
    assert min(delays_ms) < 2000 * delay_s + 250


@WORLDS
def test_ping_sockets_are_raw_only_where_they_must_be(
    lab: Lab, program: Tunproxy, address: str, request: pytest.FixtureRequest
) -> None:
    assert ping(lab, address, "-c1")[0] == 1
    (kind,) = [kind for kind in ("ping", "raw") if kind in request.node.callspec.params.values()]
    suffix = "6" if ":" in address else ""
    tables = {"ping": f"icmp{suffix}", "raw": f"raw{suffix}"}
    for table in tables.values():
        entries = lab.client.run("cat", f"/proc/net/{table}").stdout.splitlines()[1:]
        assert bool(entries) is (table == tables[kind])


@WORLDS
def test_payload_comes_back_as_it_was(lab: Lab, program: Tunproxy, address: str) -> None:
    for size in ("0", "1400", "8000"):
        received, _, output = ping(lab, address, "-c1", "-s", size, "-p", "a55a3c")
        assert received == 1, output
        assert "wrong data" not in output


@WORLDS
def test_who_is_not_there_does_not_answer(
    lab: Lab, path: Cable, program: Tunproxy, address: str
) -> None:
    """The router says so in time, as it would without us."""
    received, _, output = ping(lab, NOBODY[address], "-c1", "-W8")
    assert received == 0, output
    assert "nreachable" in output
    path.impair(Way(loss=1.0))
    received, _, output = ping(lab, address, "-c1", "-W1")
    path.impair(Way())
    assert received == 0, output
    assert "nreachable" not in output


@WORLDS
def test_traceroute_sees_the_routers(lab: Lab, program: Tunproxy, address: str) -> None:
    router = PATH4[0] if address == WORLD4 else PATH6[0]
    received, _, output = ping(lab, address, "-c1", "-t1", "-W5")
    assert received == 0, output
    assert router in output
    assert "exceeded" in output


NAMES = pytest.mark.parametrize(
    ("name", "kind", "address"), [("v4.test", "A", WORLD4), ("v6.test", "AAAA", WORLD6)]
)


def fake_address(lab: Lab, name: str, kind: str) -> str:
    """What the client is told that ``name`` is."""
    fake = lab.client.run("dig", "+short", name, kind).stdout.strip()
    assert fake.startswith(("198.18.", "fd00:7470:"))
    return fake


@NAMES
def test_ping_by_name(lab: Lab, program: Tunproxy, name: str, kind: str, address: str) -> None:
    """The origin can be pinged through the server only, where that is refused here."""
    received, _, output = ping(lab, fake_address(lab, name, kind), "-c1")
    assert received == 1, output


@WORLDS
@pytest.mark.parametrize("size", [0, 1200, 9000])
def test_datagrams_go_both_ways(lab: Lab, program: Tunproxy, address: str, size: int) -> None:
    payload = bytes(n & 0xFF for n in range(size))
    with (
        lab.world.open_socket(address, socket.SOCK_DGRAM) as far,
        lab.client.open_socket(address, socket.SOCK_DGRAM) as near,
    ):
        far.bind((address, PORT))
        near.sendto(payload, (address, PORT))
        data, sender = far.recvfrom(1 << 16)
        assert data == payload
        assert sender[0] in (*PATH4, *PATH6)
        far.sendto(payload[::-1], sender)
        data, sender = near.recvfrom(1 << 16)
        assert (data, sender[:2]) == (payload[::-1], (address, PORT))


@WORLDS
def test_a_third_party_gets_through(lab: Lab, program: Tunproxy, address: str) -> None:
    """Full cone: one port for all targets, and open for everybody."""
    with (
        lab.world.open_socket(address, socket.SOCK_DGRAM) as far,
        lab.world.open_socket(address, socket.SOCK_DGRAM) as other,
        lab.world.open_socket(address, socket.SOCK_DGRAM) as third,
        lab.client.open_socket(address, socket.SOCK_DGRAM) as near,
    ):
        far.bind((address, PORT))
        other.bind((address, PORT + 1))
        third.bind((STRANGER[address], PORT + 2))
        near.sendto(b"who am I?", (address, PORT))
        near.sendto(b"and here?", (address, PORT + 1))
        _, mapped = far.recvfrom(2048)
        assert other.recvfrom(2048)[1] == mapped
        third.sendto(b"hello", mapped)
        data, sender = near.recvfrom(2048)
        assert (data, sender[:2]) == (b"hello", (STRANGER[address], PORT + 2))


@NAMES
def test_names_are_resolved_outside(
    lab: Lab, program: Tunproxy, name: str, kind: str, address: str
) -> None:
    """By the machine's own resolver, who has another opinion than the server's."""
    fake = fake_address(lab, name, kind)
    with (
        lab.world.open_socket(address, socket.SOCK_DGRAM) as far,
        lab.client.open_socket(fake, socket.SOCK_DGRAM) as near,
    ):
        far.bind((address, PORT))
        near.connect((fake, PORT))
        near.send(b"question")
        far.sendto(*far.recvfrom(2048))
        assert near.recv(2048) == b"question"


@WORLDS
def test_a_closed_port_is_refused(lab: Lab, program: Tunproxy, address: str) -> None:
    """Again and again, and the others hear nothing of it."""
    with (
        lab.world.open_socket(address, socket.SOCK_DGRAM) as far,
        lab.client.open_socket(address, socket.SOCK_DGRAM) as near,
    ):
        far.bind((address, PORT))
        near.connect((address, 4999))
        for _ in range(3):
            near.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                near.recv(2048)
        near.connect((address, PORT))
        near.send(b"question")
        far.sendto(*far.recvfrom(2048))
        assert near.recv(2048) == b"question"


def test_the_mtu_of_the_path_is_learned(lab: Lab, program: Tunproxy) -> None:
    """A datagram that must not be fragmented, and is longer than a link behind the router takes."""
    ip("-n", lab.server.name, "link", "set", "world", "mtu", "1300")
    try:
        with lab.client.open_socket(WORLD4, socket.SOCK_DGRAM) as near:
            near.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
            near.connect((WORLD4, PORT))
            near.send(bytes(1400))
            with pytest.raises(OSError, match="Message too long"):
                near.recv(2048)
            assert near.getsockopt(socket.IPPROTO_IP, 14) == 1300  # IP_MTU
    finally:
        ip("-n", lab.server.name, "link", "set", "world", "mtu", "1500")


def test_nothing_of_it_is_dropped(lab: Lab, program: Tunproxy) -> None:
    """But for what was to be told, and what nobody has answered."""
    dropped = {name for name in program.status()["counters"] if name.startswith("direct_")}
    assert dropped <= {"direct_failed", "direct_error_late"}
