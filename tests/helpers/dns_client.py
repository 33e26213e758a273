"""A client of the name server behind the TUN, and the far resolver that it asks."""

from __future__ import annotations

import ipaddress
from typing import Any, Literal

from dnslib import EDNS0, QTYPE, RR, DNSHeader, DNSLabel, DNSQuestion, DNSRecord

from tunproxy.errors import ConfigError
from tunproxy.flow.fakeip import FakePools
from tunproxy.flow.nameserver import Forward, NameServer, Reply
from tunproxy.flow.rules import RuleTable
from tunproxy.wire.dns import Rcode

SOA = "example. 600 SOA ns.example. x.example. 1 2 3 4 120"
"""Of a denial that lives for two minutes."""


def no_sets(name: str) -> tuple[str, str]:
    """There are no rule sets."""
    raise ConfigError(name)


def question(name: str, qtype: int = QTYPE.A, *, ident: int = 77, **edns: Any) -> bytes:
    """A query."""
    asked = DNSQuestion(DNSLabel(name.encode()), qtype)
    record = DNSRecord(DNSHeader(id=ident, rd=1), q=asked)
    if edns:
        record.add_ar(EDNS0(**edns))
    return bytes(record.pack())


def response(
    message: bytes, *records: str, rcode: int = 0, auth: str = "", extra: str = ""
) -> bytes:
    """What a resolver answers, with records in zone file notation."""
    reply: Any = DNSRecord.parse(message).reply(aa=0)
    reply.header.rcode = rcode
    for text in records:
        reply.add_answer(*RR.fromZone(text))
    if auth:
        reply.add_auth(*RR.fromZone(auth))
    if extra:
        reply.add_ar(*RR.fromZone(extra))
    return bytes(reply.pack())


def told(message: bytes) -> str:
    """The rcode and the records of an answer, as one line."""
    read = DNSRecord.parse(message)
    found = [f"{QTYPE.get(r.rtype)}={r.rdata}" for r in read.rr]
    denied = [f"{QTYPE.get(r.rtype)}:{r.ttl}" for r in read.auth]
    return " ".join([Rcode(read.header.rcode).name, *found, *denied])


class Client:
    """Asks a name server. ``now`` is its clock, in seconds."""

    def __init__(
        self,
        *,
        rules: str = "",
        mode: Literal["fake-ip", "remote"] = "fake-ip",
        room: int = 24,
        **settings: Any,
    ) -> None:
        self.now = 1000.0
        self.pools = FakePools(
            ipaddress.IPv4Network(f"198.18.0.0/{room}"), ipaddress.IPv6Network("fd00:7470::/64")
        )
        table = RuleTable.parse([("my.list", rules)], no_sets)
        self.server = NameServer(self.pools, table, mode=mode, **settings)

    def handle(self, message: bytes, *, stream: bool = False) -> Reply | Forward:
        return self.server.handle_query(message, self.now, stream=stream)

    def ask(self, name: str, qtype: int = QTYPE.A, **edns: Any) -> str:
        """What is answered at once."""
        outcome = self.handle(question(name, qtype, **edns))
        assert isinstance(outcome, Reply)
        assert outcome.refresh is None
        return told(outcome.message)

    def forwarded(self, name: str, qtype: int = QTYPE.A, **edns: Any) -> Forward:
        """What is not."""
        outcome = self.handle(question(name, qtype, **edns))
        assert isinstance(outcome, Forward)
        return outcome

    def resolve(self, name: str, qtype: int, *records: str, **rest: Any) -> str:
        """What is answered when the resolver answers with ``records``."""
        forward = self.forwarded(name, qtype)
        return self.finish(forward, response(forward.message, *records, **rest))

    def finish(self, forward: Forward, message: bytes | None) -> str:
        """What is answered when the resolver says ``message``."""
        return told(self.server.finish(forward, message, self.now, stream=False))
