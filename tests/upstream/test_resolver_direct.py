from __future__ import annotations

from typing import TYPE_CHECKING

import dnslib
import pytest

from tests.helpers.aio import both_loops, plain_socket
from tests.helpers.dns import DnsServer, answer_all, never, query, reply, zone
from tunproxy.upstream import lookup, resolver_direct
from tunproxy.upstream.resolver_direct import DirectResolver

if TYPE_CHECKING:
    import pathlib


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both families are waited for, however slow this machine is."""
    monkeypatch.setattr(lookup, "RESOLUTION_DELAY_S", 30.0)


def direct(server: DnsServer, tmp_path: pathlib.Path, hosts: str = "") -> DirectResolver:
    (tmp_path / "hosts").write_text(hosts)
    return DirectResolver(
        plain_socket, ["127.0.0.1"], port=server.port, hosts_path=str(tmp_path / "hosts")
    )


@both_loops
async def test_direct_asks_over_udp_with_ids_of_its_own(tmp_path: pathlib.Path) -> None:
    answers = zone("a.test. 60 A 192.0.2.1")
    async with DnsServer(answer_udp=answers, serve_tcp=never) as server:
        resolving = direct(server, tmp_path)
        for _ in range(4):
            answer = await resolving.query(query("a.test", number=1))
            assert answer is not None
            assert answer[:2] == b"\0\1"
        assert len({asked[:2] for asked in server.udp_queries}) > 1


@both_loops
async def test_direct_goes_to_tcp_when_truncated(tmp_path: pathlib.Path) -> None:
    def truncate(message: bytes) -> list[bytes]:
        return [reply(message, truncated=True)]

    async with DnsServer(answer_udp=truncate, serve_tcp=answer_all) as server:
        resolving = direct(server, tmp_path)
        answer = await resolving.query(query("a.test"))
        assert answer is not None
        assert len(dnslib.DNSRecord.parse(answer).rr) == 1
        assert resolving.counters["truncated"] == 1


@both_loops
async def test_direct_ignores_forged_answers(tmp_path: pathlib.Path) -> None:
    def forge(message: bytes) -> list[bytes]:
        good = reply(message, "a.test. 60 A 192.0.2.1")
        wrong_id = bytes([message[0] ^ 1]) + reply(message, "a.test. 60 A 192.0.2.66")[1:]
        wrong_name = reply(message[:2] + query("b.test")[2:], "b.test. 60 A 192.0.2.66")
        return [wrong_id, wrong_name, b"x", message, good]

    async with DnsServer(answer_udp=forge, serve_tcp=never) as server:
        resolving = direct(server, tmp_path)
        answer = await resolving.query(query("a.test"))
        assert answer is not None
        assert str(dnslib.DNSRecord.parse(answer).rr[0].rdata) == "192.0.2.1"
        assert resolving.counters["mismatched_reply"] == 4


@both_loops
async def test_direct_tries_twice(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_direct, "UDP_TIMEOUT_S", 0.3)

    def late(message: bytes) -> list[bytes]:
        return [reply(message, "a.test. 60 A 192.0.2.1")] if len(server.udp_queries) == 2 else []

    async with DnsServer(answer_udp=late, serve_tcp=never) as server:
        resolving = direct(server, tmp_path)
        assert await resolving.query(query("a.test")) is not None
        assert resolving.counters == {"timeout": 1}
        assert await resolving.query(query("a.test")) is None
        assert resolving.counters["no_reply"] == 1


@both_loops
async def test_direct_with_nobody_there(tmp_path: pathlib.Path) -> None:
    async with DnsServer(serve_tcp=never) as server:
        resolving = direct(server, tmp_path)
        assert await resolving.query(query("a.test")) is None
        assert resolving.counters["unreachable"] == 2


@both_loops
async def test_direct_addresses_of_both_families(tmp_path: pathlib.Path) -> None:
    answers = zone("a.test. 60 A 192.0.2.1", "a.test. 60 AAAA 2001:db8::1")
    async with DnsServer(answer_udp=answers, serve_tcp=never) as server:
        resolving = direct(server, tmp_path)
        assert sorted(await resolving.addresses("A.test.")) == ["192.0.2.1", "2001:db8::1"]
        assert len(server.udp_queries) == 2
        await resolving.addresses("a.test")
        assert len(server.udp_queries) == 2, "the second answer comes from the cache"
        assert await resolving.addresses("none.test") == []


@both_loops
async def test_direct_asks_again_when_the_ttl_is_over(tmp_path: pathlib.Path) -> None:
    now = 100.0
    answers = zone("a.test. 60 A 192.0.2.1", "a.test. 60 AAAA 2001:db8::1")
    async with DnsServer(answer_udp=answers, serve_tcp=never) as server:
        resolving = DirectResolver(
            plain_socket,
            ["127.0.0.1"],
            port=server.port,
            hosts_path=str(tmp_path / "none"),
            clock=lambda: now,
        )
        await resolving.addresses("a.test")
        now = 159.0
        await resolving.addresses("a.test")
        assert len(server.udp_queries) == 2
        now = 160.0
        await resolving.addresses("a.test")
        assert len(server.udp_queries) == 4


@both_loops
async def test_direct_knows_without_asking(tmp_path: pathlib.Path) -> None:
    async with DnsServer(answer_udp=zone(), serve_tcp=never) as server:
        resolving = direct(server, tmp_path, "192.0.2.7 box.test\n")
        assert await resolving.addresses("192.0.2.9") == ["192.0.2.9"]
        assert await resolving.addresses("localhost") == ["::1", "127.0.0.1"]
        assert await resolving.addresses("x.localhost.") == ["::1", "127.0.0.1"]
        assert await resolving.addresses("BOX.test.") == ["192.0.2.7"]
        assert server.udp_queries == []


@both_loops
async def test_direct_name_that_is_none(tmp_path: pathlib.Path) -> None:
    async with DnsServer(answer_udp=zone(), serve_tcp=never) as server:
        resolving = direct(server, tmp_path)
        assert await resolving.addresses("a" * 64 + ".test") == []
        assert await resolving.addresses("") == []


@both_loops
async def test_direct_asks_those_of_the_network_that_it_is_in(tmp_path: pathlib.Path) -> None:
    answers = zone("a.test. 60 A 192.0.2.1")
    servers = ["127.0.0.2"]
    async with DnsServer(answer_udp=answers, serve_tcp=never) as server:
        resolving = DirectResolver(
            plain_socket, lambda: servers, port=server.port, hosts_path=str(tmp_path / "hosts")
        )
        assert await resolving.query(query("a.test")) is None
        servers = ["127.0.0.1", "127.0.0.2"]
        assert await resolving.query(query("a.test")) is not None
        servers = ["127.0.0.2"]
        assert await resolving.query(query("a.test")) is None


@both_loops
async def test_direct_asks_first_who_has_answered(tmp_path: pathlib.Path) -> None:
    answers = zone("a.test. 60 A 192.0.2.1")
    async with DnsServer(answer_udp=answers, serve_tcp=never) as server:
        resolving = DirectResolver(
            plain_socket,
            ["127.0.0.2", "127.0.0.1"],
            port=server.port,
            hosts_path=str(tmp_path / "hosts"),
        )
        for _ in range(3):
            assert await resolving.query(query("a.test")) is not None
        assert resolving.counters == {"unreachable": 1}
