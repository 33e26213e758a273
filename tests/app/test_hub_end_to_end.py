"""``tunproxy serve --hub`` with clients and a world behind it, in namespaces."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.helpers import aio
from tests.helpers.hubs import (
    BESIDE_WORLD,
    DEVICE,
    PORT,
    WORLD,
    HubLab,
    client,
    echo_server,
    inside,
    lab,
    near,
    ping,
)
from tests.helpers.lab_wait import until
from tests.helpers.ssh_files import fingerprint, public_key
from tests.helpers.tunnels import echo_request

if TYPE_CHECKING:
    import pathlib

    from tests.helpers.hubs import Client

__all__ = ["lab"]

pytestmark = pytest.mark.netns


def test_clients_reach_each_other_and_the_world(lab: HubLab) -> None:
    hub = lab.start()

    async def go() -> None:
        async with client(lab, 0) as one, client(lab, 1) as two, client(lab, 2, big=False) as three:
            assert [c.address(4) for c in (one, two, three)] == [
                "10.74.0.2",
                "10.74.0.3",
                "10.74.0.4",
            ]
            assert one.terms.big
            assert not three.terms.big
            for family in (4, 6):
                assert await one.ping(two.address(family))
                assert await two.ping(three.address(family))
                assert await three.ping(one.address(family))
                assert await three.ping(WORLD[family])
                assert await one.ping(one.terms.peers[family == 6])
                assert await carries(one, WORLD[family], lab) == BESIDE_WORLD[family]
            assert await carries(three, WORLD[4], lab) == BESIDE_WORLD[4]

    aio.run(go())
    assert hub.stop() == 0
    assert hub.stderr == []


async def carries(sender: Client, address: str, lab: HubLab) -> str:
    """Send some megabytes to a server of the world and back; return where it sees them from."""
    data = os.urandom(4 << 20)
    with echo_server(lab.world, address) as callers:
        sock = sender.namespace.open_socket(6 if ":" in address else 4, socket.SOCK_STREAM)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        with sock:
            await loop.sock_connect(sock, (address, 7))
            sending = loop.create_task(loop.sock_sendall(sock, data), name="send")
            back = bytearray()
            while len(back) < len(data):
                piece = await asyncio.wait_for(loop.sock_recv(sock, 1 << 20), 20)
                assert piece
                back += piece
            await sending
        assert back == data
    (caller,) = callers
    return caller


def test_spoofed_sources_are_dropped_and_counted(lab: HubLab) -> None:
    lab.start()

    async def go() -> None:
        async with client(lab, 0) as one, client(lab, 1) as two:
            header = bytes(10)
            for source in (two.address(4), "192.0.2.1", "10.74.0.1"):
                one.tunnel.send(header + echo_request(source, WORLD[4]))
            one.tunnel.send(header + echo_request("2001:db8::5", WORLD[6]))
            assert await one.ping(two.address(4))
            clients = {c["key"]: c for c in lab.status()["hub"]["clients"]}
            told = clients[fingerprint(lab.keys[0])]
            assert told["addresses"] == [one.address(4), one.address(6)]
            assert told["up"]["drops"] == {"spoofed": 4}
            assert clients[fingerprint(lab.keys[1])]["up"]["drops"] == {}

    aio.run(go())


@pytest.mark.parametrize("kind", ["tun", "tap"])
def test_isolated_clients_reach_the_world_alone(lab: HubLab, kind: str) -> None:
    lab.start("--isolate", *(["--tap"] if kind == "tap" else []))

    async def go() -> None:
        async with client(lab, 0, kind=kind) as one, client(lab, 1, kind=kind) as two:  # type: ignore[arg-type]
            for family in (4, 6):
                assert await one.ping(WORLD[family])
                assert await two.ping(one.terms.peers[family == 6])
                assert not await one.ping(two.address(family), "-W", "0.3", count=1)
                # Neither by way of the hub's kernel, which knows both.
                via = one.terms.peers[family == 6]
                if kind == "tap":
                    one.namespace.ip("route", "add", two.address(family), "via", via, "dev", DEVICE)
                    assert not await one.ping(two.address(family), "-W", "0.3", count=1)

    aio.run(go())


def test_one_that_leaves_disturbs_nobody(lab: HubLab) -> None:
    lab.start()

    async def go() -> None:
        async with client(lab, 0) as one:
            async with client(lab, 1) as two:
                assert await one.ping(two.address(4))
                running = asyncio.create_task(one.ping(WORLD[4], count=20), name="ping")
                address = two.address(4)
            assert await running
            await aio.until(lambda: len(lab.status()["hub"]["clients"]) == 1, "it to be gone")
            assert not await one.ping(address, "-W", "0.3", count=1)
            async with client(lab, 1) as again:
                assert again.address(4) == address
                assert await one.ping(address)

    aio.run(go())


def test_a_client_that_comes_again_takes_its_own_place(lab: HubLab) -> None:
    lab.start()

    async def go() -> None:
        async with client(lab, 0) as one, client(lab, 2) as other:
            async with client(lab, 1, key=0) as again:
                assert again.terms.addresses == one.terms.addresses
                await aio.until(lambda: one.pump.detached.is_set(), "the former to be closed")
                assert await other.ping(again.address(4))
            assert len(lab.status()["hub"]["clients"]) == 1

    aio.run(go())


def test_frames(lab: HubLab) -> None:
    lab.start("--tap")

    async def go() -> None:
        async with client(lab, 0, kind="tap") as one, client(lab, 1, kind="tap") as two:
            for family in (4, 6):
                assert await one.ping(two.address(family))
                assert await carries(two, WORLD[family], lab) == BESIDE_WORLD[family]
            # A source that is no client's gets no further than the hub.
            one.namespace.ip("addr", "add", "192.0.2.9/32", "dev", DEVICE)
            assert not await one.ping(WORLD[4], "-I", "192.0.2.9", "-W", "0.3", count=1)
            ruleset = lab.ask("nft list ruleset")
            assert "ip saddr != 10.74.0.0/24 counter packets 1 " in ruleset

    aio.run(go())


def test_ssh_w(lab: HubLab, tmp_path: pathlib.Path) -> None:
    """A plain client asks for no terms; its addresses are those of its key."""
    lab.start()
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"{near(0)[4]} {public_key(lab.host_key)}\n")
    command = [
        *inside(lab.clients[0]), "ssh", "-F", "none", "-N", "-w", "70:any", "-p", str(PORT),
        "-i", str(lab.keys[0]), "-o", f"UserKnownHostsFile={known_hosts}", near(0)[4],
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as ssh:
        try:
            until(lambda: lab.status()["hub"]["clients"], "it to have joined")
            (told,) = lab.status()["hub"]["clients"]
            for address, length in zip(told["addresses"], ("24", "64"), strict=True):
                lab.clients[0].ip("addr", "add", f"{address}/{length}", "dev", "tun70")
            lab.clients[0].ip("link", "set", "tun70", "up")
            lab.clients[0].ip("route", "add", WORLD[4], "dev", "tun70")

            async def go() -> None:
                assert await ping(lab.clients[0], "10.74.0.1")
                assert await ping(lab.clients[0], "fd00:7470:1::1")
                assert await ping(lab.clients[0], WORLD[4])

            aio.run(go())
        finally:
            ssh.terminate()


def test_without_nat_the_world_sees_the_clients(lab: HubLab) -> None:
    hub = lab.start("--no-nat", "--pool", "10.80.0.0/16", "--route", f"{WORLD[4]}/32", "--mtu",
                    "1400")  # fmt: skip
    assert hub.stdout[-1].startswith("ready: tphub0 (10.80.0.1/16, mtu 1400) ")
    lab.world.ip("route", "add", "10.80.0.0/16", "via", BESIDE_WORLD[4])

    async def go() -> None:
        async with client(lab, 0) as one:
            assert one.terms.routes == (f"{WORLD[4]}/32",)
            # The client's device could send more than fits into the hub's.
            one.namespace.ip("link", "set", DEVICE, "mtu", "1500")
            with echo_server(lab.world, WORLD[4]) as callers:
                sock = one.namespace.open_socket(4, socket.SOCK_STREAM)
                sock.setblocking(False)
                with sock:
                    await asyncio.get_running_loop().sock_connect(sock, (WORLD[4], 7))
                    mss = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
                await aio.until(lambda: callers, "it to be accepted")
            assert callers == [one.address(4)]
            assert 1300 < mss <= 1360

    aio.run(go())
