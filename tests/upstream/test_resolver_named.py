from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import dnslib
import pytest

from tests.helpers.aio import Origin, both_loops, plain_socket, until
from tests.helpers.certificates import Authority
from tests.helpers.dns import DnsServer, answer_all, query, reply, zone
from tests.helpers.doh import DohServer
from tests.helpers.fake_upstream import FakeUpstream
from tunproxy.errors import OpenFailed, Refusal
from tunproxy.upstream.direct import DirectUpstream
from tunproxy.upstream.resolver_https import MEDIA_TYPE
from tunproxy.upstream.resolver_named import NamedResolvers, Server, parse_server

if TYPE_CHECKING:
    import pathlib


class Literals:
    """Names lead to this host."""

    async def addresses(self, name: str) -> list[str]:
        return ["127.0.0.1"]


def named(authority: Authority | None = None) -> tuple[NamedResolvers, FakeUpstream]:
    """Resolvers whose way through the tunnel is a fake."""
    proxy = FakeUpstream()
    direct = DirectUpstream(plain_socket, Literals())
    if authority is None:
        return NamedResolvers(proxy=proxy, direct=direct, make_socket=plain_socket), proxy
    resolvers = NamedResolvers(
        proxy=proxy, direct=direct, make_socket=plain_socket, make_context=authority.client
    )
    return resolvers, proxy


def address_of(answer: bytes | None) -> str:
    assert answer is not None
    return str(dnslib.DNSRecord.parse(answer).rr[0].rdata)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.53", ("", "10.0.0.53", 53, "10.0.0.53", "")),
        ("10.0.0.53:5353", ("", "10.0.0.53", 5353, "10.0.0.53", "")),
        ("2001:db8::1", ("", "2001:db8::1", 53, "2001:db8::1", "")),
        ("[2001:db8::1]:5353", ("", "2001:db8::1", 5353, "2001:db8::1", "")),
        ("tls://dns.test", ("tls", "dns.test", 853, "dns.test", "")),
        ("tls://192.0.2.1:8853#dns.test", ("tls", "192.0.2.1", 8853, "dns.test", "")),
        ("tls://[2001:db8::1]", ("tls", "2001:db8::1", 853, "2001:db8::1", "")),
        ("https://dns.test/dns-query", ("https", "dns.test", 443, "dns.test", "/dns-query")),
        ("https://dns.test:8443/q{?dns}", ("https", "dns.test", 8443, "dns.test", "/q")),
        ("https://dns.test/q?a=b", ("https", "dns.test", 443, "dns.test", "/q?a=b")),
    ],
)
def test_parse_server(text: str, expected: tuple[str, str, int, str, str]) -> None:
    assert parse_server(text) == Server(*expected)


@pytest.mark.parametrize("text", ["ftp://x", "tls://", "tls://x:99999"])
def test_parse_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text) if "99999" not in text else "Port"):
        parse_server(text)


@both_loops
async def test_plain_direct_is_udp() -> None:
    answers = zone("a.test. 60 A 192.0.2.1")
    async with DnsServer(answer_udp=answers, serve_tcp=answer_all) as server:
        resolvers, _ = named()
        resolver = resolvers.get(f"127.0.0.1:{server.port}", direct=True)
        assert address_of(await resolver.query(query("a.test"))) == "192.0.2.1"
        assert (len(server.udp_queries), server.connections) == (1, 0)
        resolvers.forget()


@both_loops
async def test_plain_through_the_tunnel_is_tcp() -> None:
    resolvers, proxy = named()
    resolver = resolvers.get("10.0.0.53", direct=False)
    asking = asyncio.create_task(resolver.query(query("a.test")), name="ask")
    for number in (1, 2):
        await until(lambda number=number: len(proxy.streams) == number, "a try")  # type: ignore[misc]
        opening = proxy.streams[-1]
        assert (opening.host, opening.port) == ("10.0.0.53", 53)
        opening.result.set_exception(OpenFailed(Refusal.REFUSED, "no"))
    assert await asking is None
    assert resolvers.counters()["connection_failed"] == 2


@both_loops
async def test_each_is_made_once_for_a_way() -> None:
    resolvers, _ = named()
    one = resolvers.get("10.0.0.53", direct=False)
    assert resolvers.get("10.0.0.53", direct=False) is one
    assert resolvers.get("10.0.0.53", direct=True) is not one
    resolvers.forget()
    assert resolvers.get("10.0.0.53", direct=False) is not one


@pytest.mark.parametrize("form", ["tls://dns.test:{}", "tls://127.0.0.1:{}#dns.test"])
@both_loops
async def test_dns_over_tls(tmp_path: pathlib.Path, form: str) -> None:
    authority = Authority(tmp_path, "dns.test")
    async with Origin(answer_all, ssl_context=authority.server()) as origin:
        resolvers, _ = named(authority)
        resolver = resolvers.get(form.format(origin.port), direct=True)
        answers = await asyncio.gather(*(resolver.query(query("a.test")) for _ in range(20)))
        assert {address_of(answer) for answer in answers} == {"192.0.2.1"}
        resolvers.forget()


@both_loops
async def test_dns_over_tls_of_somebody_else(tmp_path: pathlib.Path) -> None:
    authority = Authority(tmp_path, "dns.test")
    async with Origin(answer_all, ssl_context=authority.server()) as origin:
        resolvers, _ = named(authority)
        resolver = resolvers.get(f"tls://127.0.0.1:{origin.port}", direct=True)
        assert await resolver.query(query("a.test")) is None
        assert resolver.counters["connection_failed"] == 2


@both_loops
async def test_dns_over_https(tmp_path: pathlib.Path) -> None:
    def answer(message: bytes) -> tuple[int, str, bytes]:
        return 200, MEDIA_TYPE, reply(message, "a.test. 60 A 192.0.2.7")

    authority = Authority(tmp_path, "dns.test")
    async with DohServer(authority.server(["h2"]), answer) as server:
        resolvers, _ = named(authority)
        resolver = resolvers.get(f"https://dns.test:{server.port}/dns-query", direct=True)
        assert address_of(await resolver.query(query("a.test"))) == "192.0.2.7"
        assert server.requests[0][":authority"] == f"dns.test:{server.port}"
        assert server.requests[0][":path"] == "/dns-query"
        resolvers.forget()
