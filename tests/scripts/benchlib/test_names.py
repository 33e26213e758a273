"""The resolver of the benchmark, with dnslib as the oracle."""

from __future__ import annotations

import struct

import dnslib
import pytest

from scripts.benchlib import names


def ask(name: str, qtype: str) -> dnslib.DNSRecord:
    return dnslib.DNSRecord.parse(names.reply(dnslib.DNSRecord.question(name, qtype).pack()))


def test_every_name_has_an_address() -> None:
    query = dnslib.DNSRecord.question("n1.bench.test", "A")
    found = dnslib.DNSRecord.parse(names.reply(query.pack()))
    assert found.header.id == query.header.id
    assert found.header.qr == 1
    assert found.q == query.q
    (record,) = found.rr
    assert (str(record.rname), str(record.rdata)) == ("n1.bench.test.", "203.0.113.2")


def test_other_types_have_no_records() -> None:
    found = ask("n1.bench.test", "AAAA")
    assert found.header.rcode == dnslib.RCODE.NOERROR
    assert found.rr == []


def test_a_text_is_the_number_of_queries_so_far() -> None:
    before = int(str(ask("count.test", "TXT").rr[0].rdata).strip('"'))
    ask("n1.bench.test", "A")
    assert str(ask("count.test", "TXT").rr[0].rdata) == f'"{before + 2}"'


@pytest.mark.parametrize("message", [b"", b"\0\1", bytes(12), bytes(12) + b"\x3fabc"])
def test_what_is_no_query_is_refused(message: bytes) -> None:
    with pytest.raises((struct.error, IndexError)):
        names.reply(message)
