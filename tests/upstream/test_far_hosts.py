"""The server's hosts file: what is read of it, and what is answered with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from dnslib import DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.dns_client import SOA, question, response, told
from tunproxy.upstream import far_hosts
from tunproxy.upstream.far_hosts import FarHosts
from tunproxy.wire.dns import Type

if TYPE_CHECKING:
    from tunproxy.wire.dns import Address

FILE = b"""
127.0.0.1\tlocalhost
127.0.1.1 server.example server
::1 ip6-localhost # the usual
192.0.2.7 Box.Example box box.example. # twice is once

  2001:db8::7 box.example
192.0.2.8 box.example
192.0.2.9 both.example\r
127.0.0.1 both.example
"""


def addresses(hosts: FarHosts) -> dict[str, list[str]]:
    return {name: [str(address) for address in found] for name, found in hosts.names.items()}


def test_names_of_both_families() -> None:
    hosts = FarHosts(FILE)
    assert addresses(hosts) == {
        "localhost": ["127.0.0.1"],
        "server.example": ["127.0.1.1"],
        "server": ["127.0.1.1"],
        "ip6-localhost": ["::1"],
        "box.example": ["192.0.2.7", "2001:db8::7", "192.0.2.8"],
        "box": ["192.0.2.7"],
        "both.example": ["192.0.2.9", "127.0.0.1"],
    }
    assert hosts.ignored == 0


@pytest.mark.parametrize(
    "line",
    [
        "192.0.2.300 a.example",
        "nonsense a.example",
        "192.0.2.1",
        "fe80::1%eth0 a.example",
        "192.0.2.1 a..example",
        "192.0.2.1 .",
        "192.0.2.1 a*.example",
        "192.0.2.1 \xfc.example",
        f"192.0.2.1 {'a' * 64}.example",
        f"192.0.2.1 {'.'.join(['a' * 50] * 6)}",
    ],
)
def test_a_line_that_makes_no_sense_is_passed_over(line: str) -> None:
    hosts = FarHosts(f"192.0.2.2 b.example\n{line}\n192.0.2.3 c.example\n".encode("latin-1"))
    assert addresses(hosts) == {"b.example": ["192.0.2.2"], "c.example": ["192.0.2.3"]}
    assert hosts.ignored == 1


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far_hosts, "MAX_NAMES", 2)
    monkeypatch.setattr(far_hosts, "MAX_ADDRESSES", 2)
    hosts = FarHosts(b"192.0.2.1 a b c\n192.0.2.2 a\n192.0.2.3 a\n192.0.2.2 b")
    assert addresses(hosts) == {"a": ["192.0.2.1", "192.0.2.2"], "b": ["192.0.2.1", "192.0.2.2"]}
    assert hosts.ignored == 2


@given(st.binary(max_size=200))
def test_any_octets(octets: bytes) -> None:
    FarHosts(octets)


@given(st.ip_addresses(), st.lists(st.from_regex(r"[a-z]{1,9}", fullmatch=True), min_size=1))
def test_what_is_written_is_read(address: Address, names: list[str]) -> None:
    hosts = FarHosts(f"{address} {' '.join(names)}".encode())
    assert hosts.names == {name: (address,) for name in names}


@pytest.mark.parametrize(
    ("name", "qtype", "answer"),
    [
        ("Box.Example", Type.A, "NOERROR A=192.0.2.7 A=192.0.2.8"),
        ("box.example", Type.AAAA, "NOERROR AAAA=2001:db8::7"),
        ("box", Type.AAAA, "NOERROR SOA:60"),
        ("both.example", Type.A, "NOERROR A=192.0.2.9"),
        ("server", Type.A, None),
        ("ip6-localhost", Type.AAAA, None),
        ("none.example", Type.A, None),
        ("box.example", Type.HTTPS, None),
    ],
)
def test_answers(name: str, qtype: int, answer: str | None) -> None:
    message = FarHosts(FILE).answer(question(name, qtype, ident=5))
    assert (None if message is None else told(message)) == answer
    if message is not None:
        assert DNSRecord.parse(message).header.id == 5


@pytest.mark.parametrize("message", [b"", bytes(12), b"nonsense" * 3])
def test_what_is_no_query_is_not_answered(message: bytes) -> None:
    hosts = FarHosts(FILE)
    assert hosts.answer(message) is None
    assert hosts.amend(message, message) == message


def test_a_name_that_is_there_exists() -> None:
    hosts = FarHosts(FILE)
    for name, rcode in (("box.example", "NOERROR"), ("none.example", "NXDOMAIN")):
        asked = question(name, Type.HTTPS)
        reply = hosts.amend(asked, response(asked, rcode=3, auth=SOA))
        assert reply is not None
        assert told(reply) == f"{rcode} SOA:600"


def test_other_replies_are_left_alone() -> None:
    hosts = FarHosts(FILE)
    asked = question("box.example", Type.HTTPS)
    refusal = response(asked, rcode=5)
    assert hosts.amend(asked, refusal) is refusal
    assert hosts.amend(asked, None) is None
    assert hosts.amend(asked, b"\0\1") == b"\0\1"


def test_an_empty_file_knows_nothing() -> None:
    hosts = FarHosts()
    assert not hosts.names
    assert hosts.answer(question("localhost", Type.A)) is None
