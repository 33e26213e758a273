"""Carrying DNS: framing, numbers, limits. test_engine_dns.py has the same from packet to packet."""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest
from dnslib import RCODE, DNSRecord

from tests.helpers.engine_dialogue import RULES, answered, framed, no_sets, query, unframed
from tunproxy.flow import dnsservice
from tunproxy.flow.dnsservice import Asker, DatagramAnswer, DnsService, StreamAnswer
from tunproxy.flow.events import ForwardQuery
from tunproxy.flow.fakeip import FakePools
from tunproxy.flow.nameserver import NameServer
from tunproxy.flow.rules import RuleTable

ASKER = Asker(bytes((198, 18, 0, 1)), 40000, bytes((198, 18, 0, 2)), 53)
FAKED = query("www.example.com")
FORWARDED = query("real.example", ident=8)
FLOW = 5


class Service:
    """The service, with one TCP connection to it."""

    def __init__(self) -> None:
        pools = FakePools(
            ipaddress.IPv4Network("198.18.0.0/24"), ipaddress.IPv6Network("fd00:7470::/64")
        )
        table = RuleTable.parse([("my.list", RULES)], no_sets)
        nameserver = NameServer(
            pools, table, mode="fake-ip", real_names=["real.example"], server_names={}
        )
        self.counters: Counter[str] = Counter()
        self.dns = DnsService(nameserver, self.counters)
        self.dns.open_stream(FLOW)

    def stream(self, octets: bytes, *, end: bool = False) -> tuple[StreamAnswer, list[int]]:
        """Deliver octets that are taken; return the answer and the numbers of what is forwarded."""
        result = self.dns.stream_data(FLOW, [octets] if octets else [], end)
        assert result is not None
        answer, forwards = result
        return answer, [forward.query for forward in forwards]

    def forward(self, ident: int = 8) -> int:
        """Have one query by UDP forwarded."""
        result = self.dns.datagram(ASKER, query("real.example", ident=ident))
        assert isinstance(result, ForwardQuery)
        return result.query


@pytest.fixture
def service() -> Service:
    return Service()


def records(stream: bytes) -> list[DNSRecord]:
    return [DNSRecord.parse(message) for message in unframed(stream)]


# --- datagrams ------------------------------------------------------------------------------------


def test_a_datagram_is_answered_at_once(service: Service) -> None:
    answer = service.dns.datagram(ASKER, memoryview(FAKED))
    assert isinstance(answer, DatagramAnswer)
    assert answer.asker == ASKER
    record = DNSRecord.parse(answer.message)
    assert (record.header.id, len(record.rr)) == (7, 1)
    assert service.dns.queries == 1


def test_a_datagram_is_forwarded_and_answered_later(service: Service) -> None:
    first, second = service.forward(1), service.forward(2)
    assert first != second
    for number, ident in ((second, 2), (first, 1)):
        response = answered(query("real.example", ident=ident), "192.0.2.7")
        answer = service.dns.response(number, response)
        assert isinstance(answer, DatagramAnswer)
        assert DNSRecord.parse(answer.message).header.id == ident
    assert service.dns.remembered_name(bytes((192, 0, 2, 7))) == "real.example"


def test_direct_names_go_to_the_machines_own_resolver(service: Service) -> None:
    proxied = service.dns.datagram(ASKER, FORWARDED)
    direct = service.dns.datagram(ASKER, query("www.direct.example"))
    assert isinstance(proxied, ForwardQuery)
    assert isinstance(direct, ForwardQuery)
    assert (proxied.direct, direct.direct) == (False, True)


@pytest.mark.parametrize(("message", "reason"), [(b"", "dns_short"), (FAKED[:11], "dns_short")])
def test_what_is_no_query_is_dropped(service: Service, message: bytes, reason: str) -> None:
    assert service.dns.datagram(ASKER, message) is None
    assert service.counters == {reason: 1}
    assert service.dns.queries == 0


def test_a_resolver_that_fails_is_a_servfail(service: Service) -> None:
    answer = service.dns.response(service.forward(), None)
    assert isinstance(answer, DatagramAnswer)
    assert DNSRecord.parse(answer.message).header.rcode == RCODE.SERVFAIL


def test_there_is_a_bound_for_what_waits(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnsservice, "MAX_PENDING", 2)
    first = service.forward()
    service.forward()
    assert service.dns.datagram(ASKER, FORWARDED) is None
    assert service.counters == {"dns_pending_full": 1}
    service.dns.response(first, None)
    service.forward()


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(len(framed(FAKED, FAKED)) + 1))
def test_framing_may_be_split_anywhere(service: Service, at: int) -> None:
    octets = framed(FAKED, FAKED)
    first, _ = service.stream(octets[:at])
    second, _ = service.stream(octets[at:])
    assert len(records(first.data + second.data)) == 2
    assert (first.flow, first.end, second.end) == (FLOW, False, False)


def test_one_octet_at_a_time(service: Service) -> None:
    data = b"".join(service.stream(bytes([octet]))[0].data for octet in framed(FAKED, FAKED))
    assert len(records(data)) == 2


def test_pipelined_queries_are_answered_in_any_order(service: Service) -> None:
    octets = framed(FORWARDED, FAKED, query("real.example", ident=9))
    answer, (first, second) = service.stream(octets)
    assert [record.header.id for record in records(answer.data)] == [7]
    for number, ident in ((second, 9), (first, 8)):
        response = answered(query("real.example", ident=ident), "192.0.2.7")
        later = service.dns.response(number, response)
        assert isinstance(later, StreamAnswer)
        assert (later.flow, later.end) == (FLOW, False)
        assert [record.header.id for record in records(later.data)] == [ident]


def test_a_half_closed_asker_gets_its_answers_first(service: Service) -> None:
    answer, (first, second) = service.stream(framed(FORWARDED, FORWARDED), end=True)
    assert answer == StreamAnswer(FLOW, b"", end=False)
    middle = service.dns.response(first, None)
    last = service.dns.response(second, None)
    assert isinstance(middle, StreamAnswer)
    assert isinstance(last, StreamAnswer)
    assert (middle.end, last.end) == (False, True)


@pytest.mark.parametrize("octets", [b"", framed(FAKED), framed(FAKED)[:-1]])
def test_an_asker_that_waits_for_nothing_is_ended_at_once(service: Service, octets: bytes) -> None:
    answer, forwards = service.stream(octets, end=True)
    assert answer.end
    assert forwards == []


def test_an_answer_for_a_vanished_asker_finds_nobody(service: Service) -> None:
    _, (number,) = service.stream(framed(FORWARDED))
    service.dns.close_stream(FLOW)
    service.dns.close_stream(FLOW)
    assert service.dns.response(number, None) is None
    assert not service.dns._pending


def test_what_is_no_query_is_counted_and_the_stream_goes_on(service: Service) -> None:
    answer, _ = service.stream(framed(b"", FAKED[:11], FAKED))
    assert len(records(answer.data)) == 1
    assert service.counters == {"dns_short": 2}


def test_who_asks_too_much_at_a_time_is_reset(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnsservice, "MAX_PER_STREAM", 3)
    _, numbers = service.stream(framed(*[FORWARDED] * 3))
    service.dns.response(numbers[0], None)
    service.stream(framed(FORWARDED))
    assert service.dns.stream_data(FLOW, [framed(FORWARDED)], False) is None
    assert service.counters == {"dns_stream_overrun": 1}


def test_who_asks_too_much_takes_no_room_from_others(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not handed out to be answered does not wait for an answer."""
    monkeypatch.setattr(dnsservice, "MAX_PENDING", 10)
    monkeypatch.setattr(dnsservice, "MAX_PER_STREAM", 3)
    for flow in range(10, 20):
        service.dns.open_stream(flow)
        assert service.dns.stream_data(flow, [framed(*[FORWARDED] * 9)], False) is None
        service.dns.close_stream(flow)
    assert not service.dns._pending
    service.forward()


def test_the_bound_for_all_holds_for_streams_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnsservice, "MAX_PENDING", 1)
    answer, numbers = service.stream(framed(FORWARDED, FORWARDED), end=True)
    assert len(numbers) == 1
    assert not answer.end
    assert service.counters == {"dns_pending_full": 1}
    last = service.dns.response(numbers[0], None)
    assert isinstance(last, StreamAnswer)
    assert last.end


def test_an_unfinished_message_is_all_that_is_kept(service: Service) -> None:
    service.stream(b"\xff\xff" + bytes(0xFFFE))
    assert len(service.dns._streams[FLOW].buffer) == 0x10000
    answer, _ = service.stream(b"\x00" + framed(FAKED))
    assert len(service.dns._streams[FLOW].buffer) == 0
    # The long one has a header and a body that makes no sense.
    assert [record.header.id for record in records(answer.data)] == [0, 7]
