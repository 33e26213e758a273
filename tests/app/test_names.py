"""Names over a resolver of the test that plays the far one; the name server is the real one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import pathlib
from typing import TYPE_CHECKING, Any

import dnslib
import pytest

from tests.helpers.aio import both_loops, plain_socket, turns, until
from tests.helpers.dns import DnsServer, framed, query, read_message, reply
from tests.helpers.dns_client import no_sets
from tunproxy import config
from tunproxy.app import names as names_module
from tunproxy.app.names import Names
from tunproxy.app.tasks import TaskSet
from tunproxy.errors import TunproxyError
from tunproxy.flow.fakeip import FakePools
from tunproxy.flow.nameserver import NameServer
from tunproxy.flow.rules import RuleTable
from tunproxy.upstream.direct import DirectUpstream
from tunproxy.upstream.resolver_direct import DirectResolver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tunproxy.upstream.base import Opener, Stream, StreamHandler

RULES = """
DOMAIN-SUFFIX,blocked.test,REJECT
DOMAIN-SUFFIX,near.test,DIRECT
MATCH,PROXY
"""
ZONE = {
    ("a.test.", "A"): "a.test. 60 A 192.0.2.1",
    ("a.test.", "MX"): "a.test. 60 MX 10 mail.a.test.",
    ("corp.example.", "A"): "corp.example. 60 A 10.0.0.1",
}


class Everywhere:
    """An upstream that leads to one port of this host, whatever is asked for."""

    def __init__(self, port: int) -> None:
        self.opened: list[tuple[str, int]] = []
        self.hosts_file: bytes | None = None
        self._port = port
        self._direct = DirectUpstream(plain_socket, self)

    async def surveyed(self) -> None:
        pass

    async def addresses(self, name: str) -> list[str]:
        return ["127.0.0.1"]

    async def open(
        self, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> Stream:
        self.opened.append((host, port))
        return await self._direct.open("127.0.0.1", self._port, source, handler)

    def begin(
        self,
        host: str,
        port: int,
        source: tuple[str, int],
        handler: StreamHandler,
        opener: Opener,
    ) -> None:
        """Always in a task."""


class World:
    """A session's names, and the server that is its far resolver."""

    def __init__(self, server: DnsServer, cfg: config.Config) -> None:
        self.server = server
        self.tasks = TaskSet()
        self.ssh = Everywhere(server.port)
        self.pools = FakePools(cfg.dns.fake_ip_range, cfg.dns.fake_ip_range6)
        local = DirectResolver(plain_socket, ["127.0.0.1"], port=server.port, hosts_path="/none")
        self.names = Names(
            cfg,
            self.pools,
            ssh=self.ssh,
            direct=DirectUpstream(plain_socket, local),
            direct_resolver=local,
            make_socket=plain_socket,
            tasks=self.tasks,
        )
        rules = RuleTable.parse([("my.list", RULES)], no_sets)
        self.nameserver = NameServer.from_config(
            cfg.dns, self.pools, rules, mode="fake-ip", server_names={}
        )

    def begin(self) -> None:
        """What the session does when it is logged in."""
        self.names.nameserver = self.nameserver
        self.names.load()

    async def ask(self, name: str, rtype: str = "A") -> Any:
        return await self.names.answer_query({"name": name, "type": rtype})


def answer(message: bytes) -> bytes:
    question: Any = dnslib.DNSRecord.parse(message).q
    record = ZONE.get((str(question.qname).lower(), dnslib.QTYPE[question.qtype]))
    if record is not None:
        return reply(message, record)
    denial: Any = dnslib.DNSRecord.parse(reply(message))
    denial.header.rcode = 0 if any(name == str(question.qname).lower() for name, _ in ZONE) else 3
    denial.add_auth(*dnslib.RR.fromZone("test. 600 SOA ns.test. x.test. 1 2 3 4 120"))
    return bytes(denial.pack())


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(framed(answer(await read_message(reader))))


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(-1)


@contextlib.asynccontextmanager
async def world(serving: Any = serve, **dns: Any) -> AsyncIterator[World]:
    cfg = config.Config(dns=config.Dns(**dns))
    async with DnsServer(answer_udp=lambda message: [answer(message)], serve_tcp=serving) as server:
        made = World(server, cfg)
        try:
            yield made
        finally:
            await made.tasks.cancel()
            await made.names.close()


@pytest.fixture(autouse=True)
def _state(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    # Slow machines are quick here, except where a test says otherwise.
    monkeypatch.setattr(names_module, "QUICK_S", 20.0)


def in_world(**dns: Any) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Any]:
    """Decorate a test: it gets a world that is connected."""

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        async def connected() -> None:
            async with world(**dns) as made:
                made.begin()
                await made.names.connected(["192.0.2.53"])
                await test(made)

        functools.update_wrapper(connected, test)
        del connected.__wrapped__  # type: ignore[attr-defined]
        return both_loops(connected)

    return decorate


# Looking around


@in_world()
async def test_a_quick_resolver_makes_names_our_business(made: World) -> None:
    assert made.nameserver.truthful
    assert made.names.proxy.lookup is not None
    assert made.ssh.opened == [("192.0.2.53", 53)]


@in_world(resolve="server", truthful=False)
async def test_the_config_may_say_no(made: World) -> None:
    assert not made.nameserver.truthful
    assert made.names.proxy.lookup is None


@both_loops
async def test_a_slow_resolver_leaves_names_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "QUICK_S", 0.02)
    async with world(silent) as made:
        made.begin()
        await made.names.connected(["192.0.2.53"])
        assert not made.nameserver.truthful
        assert made.names.proxy.lookup is None


@both_loops
async def test_no_resolver_at_all() -> None:
    async with world() as made:
        made.begin()
        await made.names.connected([])
        assert not made.nameserver.truthful
        assert made.ssh.opened == []


# Opening


@in_world()
async def test_flows_use_what_truthful_mode_has_seen(made: World) -> None:
    await made.ask("a.test")
    asked = made.server.connections
    assert made.names._seen("a.test") == ["192.0.2.1"]
    assert made.names.proxy.known("a.test") == ["192.0.2.1"]
    assert made.server.connections == asked


# The server's hosts file

HOSTS = b"192.0.2.7 box.test box\n127.0.1.1 own.test\n192.0.2.8 b.corp.example\nnonsense\n"


async def with_hosts(made: World, octets: bytes = HOSTS) -> None:
    """What happens when the connection is there again."""
    made.ssh.hosts_file = octets
    await made.names.look_around()


@in_world()
async def test_hosts_of_the_server_exist(made: World) -> None:
    assert (await made.ask("box.test")).rcode == "NXDOMAIN"
    await with_hosts(made)
    opened = len(made.ssh.opened)
    for name in ("Box.Test.", "box", "own.test"):
        found = await made.ask(name)
        assert (found.kind, found.server) == ("fake", "hosts of the server"), name
    assert made.names.proxy.known("box.test") == ["192.0.2.7"]
    assert made.names.proxy.known("own.test") == ["127.0.1.1"]
    assert (await made.ask("box.test", "MX")).rcode == "NOERROR"
    assert (await made.ask("none.test", "MX")).rcode == "NXDOMAIN"
    assert len(made.ssh.opened) == opened
    assert made.names.counters()["far_hosts_ignored"] == 1


@in_world(real=("test",))
async def test_hosts_of_the_server_have_real_addresses(made: World) -> None:
    await with_hosts(made)
    found = await made.ask("box.test")
    assert (found.kind, found.server) == ("forwarded", "hosts of the server")
    assert [record.data for record in found.answers] == ["192.0.2.7"]
    own = await made.ask("own.test")
    assert (own.server, own.rcode, own.answers) == ("the far resolver", "NOERROR", ())
    assert await made.names.query(query("box.test"), None, direct=False) is not None


@in_world(rule=(config.DnsRule(suffix=("corp.example",), server="10.0.0.53"),))
async def test_a_resolver_of_their_own_goes_before_hosts(made: World) -> None:
    await with_hosts(made)
    found = await made.ask("b.corp.example")
    assert (found.server, found.rcode) == ("10.0.0.53", "NXDOMAIN")


@in_world()
async def test_hosts_that_have_changed(made: World) -> None:
    await with_hosts(made)
    lookup = made.names.proxy.lookup
    assert lookup is not None
    assert await lookup.addresses("box.test") == ("192.0.2.7",)
    await with_hosts(made, b"192.0.2.9 box.test\n")
    assert await lookup.addresses("box.test") == ("192.0.2.9",)
    assert (await made.ask("own.test")).rcode == "NXDOMAIN"
    made.ssh.hosts_file = None
    await made.names.look_around()
    assert (await made.ask("box.test")).kind == "fake", "what could not be read is as it was"


# Queries of the control socket


@in_world()
async def test_a_fake_answer(made: World) -> None:
    first = await made.ask("A.Test")
    assert (first.kind, first.rcode, first.server) == ("fake", "NOERROR", "the far resolver")
    (record,) = first.answers
    assert ipaddress.ip_address(record.data) in made.pools.v4.network
    assert first.why == "rule MATCH,PROXY (my.list:4)"
    second = await made.ask("a.test")
    assert (second.kind, second.server, second.answers[0].data) == ("fake", None, record.data)


@in_world()
async def test_the_truth_about_what_is_missing(made: World) -> None:
    found = await made.ask("none.test")
    assert (found.kind, found.rcode, found.answers) == ("forwarded", "NXDOMAIN", ())
    again = await made.ask("none.test")
    assert (again.kind, again.server) == ("cached", None)
    found = await made.ask("a.test", "aaaa")
    assert (found.rcode, found.answers) == ("NOERROR", ())


@in_world()
async def test_other_types_are_forwarded_then_kept(made: World) -> None:
    found = await made.ask("a.test", "MX")
    assert (found.kind, found.server) == ("forwarded", "the far resolver")
    assert [(record.type, record.data) for record in found.answers] == [("MX", "10 mail.a.test.")]
    assert (await made.ask("a.test", "MX")).kind == "cached"


@in_world()
async def test_rules_that_decide(made: World) -> None:
    blocked = await made.ask("x.blocked.test")
    assert (blocked.kind, blocked.rcode) == ("local", "NXDOMAIN")
    assert blocked.why == "rule DOMAIN-SUFFIX,blocked.test,REJECT (my.list:2)"
    near = await made.ask("near.test")
    assert near.server == "the machine's resolver"
    assert near.why == "rule DOMAIN-SUFFIX,near.test,DIRECT (my.list:3)"


@in_world(
    rule=(config.DnsRule(suffix=("corp.example",), server="10.0.0.53"),),
    hosts={"nas.lan": ("192.0.2.9",)},
    real=("real.test",),
)
async def test_the_config_decides(made: World) -> None:
    corp = await made.ask("corp.example")
    assert (corp.kind, corp.server, corp.answers[0].data) == ("forwarded", "10.0.0.53", "10.0.0.1")
    assert corp.why == "dns.rule sends it to 10.0.0.53"
    assert ("10.0.0.53", 53) in made.ssh.opened
    assert (await made.ask("nas.lan")).why == "its addresses are known here"
    assert (await made.ask("real.test")).why == "it is in dns.real"
    assert (await made.ask("printer.local")).why == "there is no such name by definition"


@in_world()
async def test_what_cannot_be_asked(made: World) -> None:
    with pytest.raises(TunproxyError, match="there is no record type NONSENSE"):
        await made.ask("a.test", "nonsense")
    with pytest.raises(TunproxyError, match="cannot be a name"):
        await made.ask("a..test")
    assert (await made.ask("a.test", "TYPE65280")).type == "TYPE65280"


@both_loops
async def test_nothing_is_answered_before_the_login() -> None:
    async with world() as made:
        with pytest.raises(TunproxyError, match="not answered yet"):
            await made.ask("a.test")
        with pytest.raises(TunproxyError, match="not answered yet"):
            made.names.answer_list({})


@in_world()
async def test_list_and_flush(made: World) -> None:
    await made.ask("a.test")
    await made.ask("a.test", "MX")
    listed = made.names.answer_list({})
    assert {(each.name, each.type, each.kind) for each in listed} == {
        ("a.test", "A", "fake"),
        ("a.test", "MX", "cached"),
    }
    assert made.names.answer_list({"suffix": "test."}) == listed
    assert made.names.answer_list({"suffix": "est"}) == []
    assert made.names.answer_flush({}) >= 2
    (fake,) = made.names.answer_list({})
    assert fake.kind == "fake", "applications hold them"


# Forwarding


@in_world()
async def test_each_way_has_its_resolver(made: World) -> None:
    far = await made.names.query(query("a.test"), None, direct=False)
    near = await made.names.query(query("a.test"), None, direct=True)
    assert far is not None
    assert near is not None
    assert len(made.server.udp_queries) == 1
    assert made.names.counters()["dns_fake"] == 0


# Other settings


@in_world()
async def test_other_settings(made: World) -> None:
    names, server = made.names, made.nameserver
    await made.ask("a.test", "MX")
    assert len(server._learned.cache) == 1
    lookup = names.proxy.lookup
    named = names._named.get("10.0.0.53", direct=False)
    names.reconfigure(config.Dns())
    assert (names.proxy.lookup, len(server._learned.cache)) == (lookup, 1), "nothing has changed"
    assert names._named.get("10.0.0.53", direct=False) is named
    names.reconfigure(config.Dns(resolve="server", truthful=False, cache_size=0))
    assert (names.proxy.lookup, server.truthful, len(server._learned.cache)) == (None, False, 0)
    assert names._named.get("10.0.0.53", direct=False) is not named
    await made.ask("a.test", "MX")
    assert len(server._learned.cache) == 0
    names.reconfigure(config.Dns())
    await until(lambda: server.truthful and names.proxy.lookup is not None, "the look around")
    await until(lambda: len(made.tasks) == 0, "the tasks to end")


@both_loops
async def test_the_truth_needs_a_resolver() -> None:
    async with world(truthful=True) as made:
        made.begin()
        await made.names.connected([])
        assert made.nameserver.truthful
        made.names.reconfigure(config.Dns())
        await until(lambda: not made.nameserver.truthful, "the look around")
        made.names.reconfigure(config.Dns(truthful=True))
        assert made.nameserver.truthful


# From one run to the next


@both_loops
async def test_addresses_survive() -> None:
    async with world() as made:
        made.begin()
        await made.names.connected(["192.0.2.53"])
        first = (await made.ask("a.test")).answers[0].data
    async with world() as made:
        made.begin()
        listed = {each.name: each.value for each in made.names.answer_list({})}
    assert listed == {"a.test": first}


@both_loops
async def test_without_a_home_names_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(pathlib.Path, "home", _homeless)
    async with world() as made:
        made.begin()
        made.pools.assign("a.test", 4)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "there is no home directory" in caplog.text


def _homeless() -> pathlib.Path:
    raise RuntimeError("Could not determine home directory.")


@in_world()
async def test_a_stale_name_is_asked_for_again(made: World) -> None:
    await made.ask("a.test")
    (entry,) = made.nameserver._learned.sightings._entries.values()
    entry.fresh_until = 0.001
    entry.fresh_until = asyncio.get_running_loop().time() - 1.0
    found = await made.ask("a.test")
    assert (found.kind, found.server) == ("fake", None)
    await until(lambda: len(made.tasks) == 0, "the refresh to end")
    await turns(1)
    assert entry.fresh_until > asyncio.get_running_loop().time()
