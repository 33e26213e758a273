from __future__ import annotations

import dnslib
import hypothesis
import hypothesis.strategies as st
import pytest

from tunproxy.errors import WireError
from tunproxy.wire.dns import Type, parse_query
from tunproxy.wire.dnsquery import make_query


@pytest.mark.parametrize("name", ["a.example", "a.example.", "", ".", "_x._tcp.example", "x"])
def test_is_what_dnslib_reads(name: str) -> None:
    read = dnslib.DNSRecord.parse(make_query(name, Type.AAAA, 77))
    assert str(read.q.qname).rstrip(".") == name.rstrip(".")
    assert (read.q.qtype, read.q.qclass, read.header.id) == (28, 1, 77)
    assert read.header.rd
    assert not read.header.qr


@hypothesis.given(st.lists(st.binary(min_size=1, max_size=20), max_size=8))
def test_any_octets_survive(labels: list[bytes]) -> None:
    text = ".".join("".join(f"\\{octet:03d}" for octet in label) for label in labels)
    query = parse_query(make_query(text, Type.A))
    at = 0
    for label in labels:
        assert query.question[at] == len(label)
        assert query.question[at + 1 : at + 1 + len(label)] == label
        at += 1 + len(label)


@pytest.mark.parametrize(
    "name", ["a..example", ".example", "a" * 64, "x." * 128, "\N{SNOWMAN}.example", "\\256.example"]
)
def test_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(WireError, match="dns_name"):
        make_query(name, Type.A)
