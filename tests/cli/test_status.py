"""``tunproxy status``: what it prints, and what it says when there is nothing to print."""

from __future__ import annotations

import json

import msgspec
import pytest

from tests.helpers.command import failure, sentence, tunproxy
from tests.helpers.instance import STATUS, FakeInstance, instance
from tunproxy.app.controlanswers import (
    ClientStatus,
    Direction,
    HubStatus,
    LinkStatus,
    ServerDatagrams,
    status_of,
)
from tunproxy.cli.status import describe, duration, octets

__all__ = ["instance"]


@pytest.mark.netns
def test_nothing_runs() -> None:
    expected = "nothing runs here; start it with tunproxy up, run or vpn"
    assert failure("status", status=1, within=["unshare", "--net"]) == expected
    done = tunproxy("status", "--json", within=["unshare", "--net"])
    assert (done.returncode, done.stdout, done.stderr) == (1, "[]\n", "")


@pytest.mark.netns
def test_status_of_an_instance(instance: FakeInstance) -> None:
    done = tunproxy("status", within=instance.enter)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "\n".join(describe(STATUS)) + "\n"


@pytest.mark.netns
def test_status_as_json(instance: FakeInstance) -> None:
    done = tunproxy("status", "--json", within=instance.enter)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [msgspec.to_builtins(STATUS)]


@pytest.mark.netns
def test_instance_that_does_not_answer_is_named() -> None:
    with FakeInstance("tp1", answers=False) as mute, FakeInstance("tp0", beside=mute):
        done = tunproxy("status", "--json", within=mute.enter)
        assert done.returncode == 1
        assert len(json.loads(done.stdout)) == 1
        said = sentence(done.stderr)
        assert said.startswith(f"tp1 (process {mute.pid}): ")
        assert said.endswith("tunproxy is not running")


@pytest.mark.netns
def test_dead_instance_is_not_shown() -> None:
    with FakeInstance("tp0") as running:
        running.kill()
        done = tunproxy("status", "--json", within=running.enter)
        assert (done.returncode, done.stdout, done.stderr) == (1, "[]\n", "")


def test_text_of_several_connections() -> None:
    first = next(iter(describe(msgspec.structs.replace(STATUS, connections=4))))
    assert "aes128-gcm@openssh.com, 4 connections, reconnected" in first


def test_text_of_split_names() -> None:
    lines = list(describe(msgspec.structs.replace(STATUS, dns_split=["corp.example", "lan"])))
    assert (
        "  dns      9 queries, names of corp.example, lan; the machine's own resolvers answer the"
        " others"
    ) in lines


def test_text() -> None:
    assert list(describe(STATUS)) == [
        "tp0: user@host, link up, running for 1 min 5 s, aes128-gcm@openssh.com,"
        " reconnected 2 times",
        "  engine   pid 77, 40.0 MiB of memory",
        "  capture  system, user stack with offload",
        "  flows    3 open, 120 in all",
        "  traffic  1.5 KiB up, 2.0 GiB down",
        "  dns      9 queries",
        "  udp      agent",
        "  refused  prohibited 1, refused 4",
        "  counters tcp_checksum 2",
    ]


LINK = LinkStatus(
    local=("10.74.0.2/24", "fd74::2/64"),
    mtu=1400,
    big=True,
    up=Direction(packets=1234, octets=1536, drops={"queue_codel": 3, "no_tunnel": 12}),
    down=Direction(packets=7, octets=2 << 30, drops={"device": 0}),
)
VPN = msgspec.structs.replace(STATUS, mode="vpn", refused={}, counters={}, link=LINK)


def test_text_of_a_vpn() -> None:
    first, *lines = describe(VPN)
    assert first.startswith("tp0: user@host, link up")
    assert lines == [
        "  engine   pid 77, 40.0 MiB of memory",
        "  capture  vpn with offload",
        "  link     10.74.0.2/24, fd74::2/64, mtu 1400, super-segments",
        "  up       1234 packets, 1.5 KiB, dropped: no_tunnel 12, queue_codel 3",
        "  down        7 packets, 2.0 GiB",
    ]


def test_text_of_a_vpn_before_there_is_a_link() -> None:
    lines = list(describe(msgspec.structs.replace(VPN, link=None)))
    assert lines[-1] == "  capture  vpn with offload"
    bare = msgspec.structs.replace(LINK, local=(), big=False)
    lines = list(describe(msgspec.structs.replace(VPN, link=bare)))
    assert lines[3] == "  link     no address, mtu 1400"


def test_status_of_a_vpn_crosses_the_socket() -> None:
    assert status_of(msgspec.to_builtins(VPN)) == VPN


def test_text_while_there_is_no_connection() -> None:
    status = msgspec.structs.replace(
        STATUS,
        state="connecting",
        cipher=None,
        reconnects=0,
        offload=False,
        refused={},
        counters={},
    )
    first, *_, last = describe(status)
    assert first == "tp0: user@host, link connecting, running for 1 min 5 s"
    assert last == "  udp      agent"
    other = ServerDatagrams(name="home", udp="unknown", reason="nothing was sent there yet")
    *_, last = describe(msgspec.structs.replace(status, udp_servers=[other]))
    assert last == "  udp      through home: unknown (nothing was sent there yet)"
    without = msgspec.structs.replace(status, udp="reject", udp_reason="agent: no python3")
    *_, last = describe(without)
    assert last == "  udp      reject (agent: no python3)"


def test_text_of_a_hub() -> None:
    nothing = Direction(packets=0, octets=0, drops={})
    clients = (
        ClientStatus(
            key="SHA256:one",
            addresses=("10.74.0.2", "fd00::2"),
            up=Direction(packets=12, octets=2048, drops={"spoofed": 1}),
            down=Direction(packets=3, octets=100, drops={"queue_full": 2}),
        ),
        ClientStatus(key="SHA256:two", addresses=("10.74.0.3",), up=nothing, down=nothing),
    )
    hub = HubStatus(
        kind="tun",
        local=("10.74.0.1/24", "fd00::1/64"),
        mtu=1500,
        isolate=True,
        up=Direction(packets=5, octets=500, drops={"device_write": 1}),
        down=nothing,
        clients=clients,
    )
    status = msgspec.structs.replace(
        STATUS, mode="hub", server="0.0.0.0 port 22", cipher=None, reconnects=0, refused={}, hub=hub
    )
    assert list(describe(status)) == [
        "tp0: hub on 0.0.0.0 port 22, running for 1 min 5 s",
        "  engine   pid 77, 40.0 MiB of memory",
        "  hub      tun with offload, 10.74.0.1/24, fd00::1/64, mtu 1500, clients kept apart",
        "  up       5 packets, 500 B, dropped: device_write 1",
        "  down     0 packets, 0 B",
        "  client   10.74.0.2, fd00::2: SHA256:one",
        "    up       12 packets, 2.0 KiB, dropped: spoofed 1",
        "    down      3 packets, 100 B, dropped: queue_full 2",
        "  client   10.74.0.3: SHA256:two",
        "    up       0 packets, 0 B",
        "    down     0 packets, 0 B",
        "  clients  2",
        "  counters tcp_checksum 2",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "0 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90061, "1 d 1 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_octets(count: int, text: str) -> None:
    assert octets(count) == text
