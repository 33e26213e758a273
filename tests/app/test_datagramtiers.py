"""What the config makes of the ways for datagrams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dnslib
import pytest

from tests.helpers.aio import both_loops
from tunproxy.app.datagramtiers import FarNames, candidates
from tunproxy.app.tunrelay import TunRelay
from tunproxy.config import Config, Udp, Vpn
from tunproxy.errors import OpenFailed, Refusal, ServerError
from tunproxy.upstream.agent import Agent
from tunproxy.upstream.udpgw import Udpgw

if TYPE_CHECKING:
    from tunproxy.app.remoteshell import Shell
    from tunproxy.config import UdpVia
    from tunproxy.upstream.base import (
        PacketHandler,
        PacketTunnel,
        Pipe,
        PipeHandler,
        Stream,
        StreamHandler,
    )


class FakeSsh:
    """Remembers what it was asked for, and refuses it."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def open(
        self, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> Stream:
        self.asked.append((host, port))
        raise OpenFailed(Refusal.REFUSED, "Connection refused")

    async def pipe(self, command: str, handler: PipeHandler) -> Pipe:
        self.asked.append("pipe")
        raise ServerError("no commands")

    async def open_tunnel(
        self, kind: str, handler: PacketHandler, *, unit: int | None
    ) -> PacketTunnel:
        self.asked.append((kind, unit))
        raise ServerError("no tunnels")

    async def command(self, command: str) -> Shell:
        self.asked.append("command")
        raise ServerError("no commands")


async def _silence(message: bytes) -> None:
    return None


@both_loops
@pytest.mark.parametrize(
    ("via", "kinds"),
    [
        ("auto", {"agent": Agent, "udpgw": Udpgw}),
        ("agent", {"agent": Agent}),
        ("udpgw", {"udpgw": Udpgw}),
        ("tun", {"tun": TunRelay}),
        ("reject", {}),
    ],
)
async def test_order(via: UdpVia, kinds: dict[str, type]) -> None:
    ssh = FakeSsh()
    found = candidates(Config(udp=Udp(via=via)), ssh, FarNames(_silence))
    assert {name: type(way) for name, way in found} == kinds
    assert [name for name, _ in found] == list(kinds)


@both_loops
async def test_what_they_are_told() -> None:
    ssh = FakeSsh()
    names = FarNames(_silence)
    for via, udpgw, wanted in (
        ("udpgw", "127.0.0.1:7300", ("127.0.0.1", 7300)),
        ("udpgw", "[::1]:7301", ("::1", 7301)),
        ("agent", "127.0.0.1:7300", "pipe"),
        ("tun", "127.0.0.1:7300", ("tun", 5)),
    ):
        config = Config(udp=Udp(via=via, udpgw=udpgw), vpn=Vpn(remote_tun=5))  # type: ignore[arg-type]
        ((_, way),) = candidates(config, ssh, names)
        with pytest.raises(ServerError):
            await way.start()
        assert ssh.asked.pop() == wanted
        way.close()


@both_loops
async def test_names_of_the_far_side() -> None:
    async def query(message: bytes) -> bytes | None:
        asked = dnslib.DNSRecord.parse(message)
        name = str(asked.q.qname).rstrip(".")
        if name == "silent.example":
            return None
        answer = asked.reply()
        if name == "one.example":
            zone = {dnslib.QTYPE.A: "A 192.0.2.1", dnslib.QTYPE.AAAA: "AAAA 2001:db8::1"}
            answer.add_answer(*dnslib.RR.fromZone(f"one.example. 60 {zone[asked.q.qtype]}"))
        return bytes(answer.pack())

    names = FarNames(query)
    assert list(await names("ONE.example")) == ["192.0.2.1", "2001:db8::1"]
    assert list(await names("no.example")) == []
    assert list(await names("silent.example")) == []
    await names.close()
