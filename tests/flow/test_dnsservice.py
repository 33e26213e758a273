"""Carrying DNS: framing, numbers, limits. test_engine_dns.py has the same from packet to packet."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from dnslib import EDNS0, QTYPE, RCODE, DNSRecord, EDNSOption
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.dns_client import question
from tests.helpers.engine_dialogue import RULES, answered, framed, no_sets, query, unframed
from tunproxy.flow import dnsservice
from tunproxy.flow.dnspolicy import DnsPolicy, Route
from tunproxy.flow.dnsservice import Asker, DatagramAnswer, DnsService, StreamAnswer
from tunproxy.flow.fakeip import FakePools
from tunproxy.flow.nameserver import BINDING_PATIENCE_S, PROBE_PATIENCE_S, NameServer
from tunproxy.flow.rules import RuleTable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunproxy.flow.dnsservice import Answer
    from tunproxy.flow.events import ForwardQuery

ASKER = Asker(bytes((198, 18, 0, 1)), 40000, bytes((198, 18, 0, 2)), 53)
FAKED = query("www.example.com")
FORWARDED = query("real.example", ident=8)
OTHER = query("other.real.example", ident=9)
FLOW = 5
NOW = 1000.0


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
        self.dns.open_stream(FLOW, NOW)

    def stream(self, octets: bytes, *, end: bool = False) -> tuple[StreamAnswer, list[int]]:
        """Deliver octets that are taken; return the answer and the numbers of what is forwarded."""
        result = self.dns.stream_data(FLOW, [octets] if octets else [], end, NOW)
        assert result is not None
        answer, forwards = result
        return answer, [forward.query for forward in forwards]

    def forward(self, ident: int = 8, name: str = "real.example") -> int:
        """Have one query by UDP forwarded."""
        answer, forward = self.dns.datagram(ASKER, query(name, ident=ident), NOW)
        assert answer is None
        assert forward is not None
        return forward.query


@pytest.fixture
def service() -> Service:
    return Service()


def records(stream: bytes) -> list[DNSRecord]:
    return [DNSRecord.parse(message) for message in unframed(stream)]


# --- datagrams ------------------------------------------------------------------------------------


def test_a_datagram_is_answered_at_once(service: Service) -> None:
    answer, forward = service.dns.datagram(ASKER, memoryview(FAKED), NOW)
    assert answer is not None
    assert forward is None
    assert answer.asker == ASKER
    record = DNSRecord.parse(answer.message)
    assert (record.header.id, len(record.rr)) == (7, 1)
    assert service.dns.queries == 1


def test_a_datagram_is_forwarded_and_answered_later(service: Service) -> None:
    first, second = service.forward(1), service.forward(2, "www.real.example")
    assert first != second
    for number, ident, name in ((second, 2, "www.real.example"), (first, 1, "real.example")):
        response = answered(query(name, ident=ident), "192.0.2.7")
        (answer,) = service.dns.response(number, response, NOW)
        assert isinstance(answer, DatagramAnswer)
        assert DNSRecord.parse(answer.message).header.id == ident
    assert service.dns.remembered_name(bytes((192, 0, 2, 7))) == "real.example"


def test_direct_names_go_to_the_machines_own_resolver(service: Service) -> None:
    _, proxied = service.dns.datagram(ASKER, FORWARDED, NOW)
    _, direct = service.dns.datagram(ASKER, query("www.direct.example"), NOW)
    assert proxied is not None
    assert direct is not None
    assert (proxied.direct, direct.direct) == (False, True)


@pytest.mark.parametrize(("message", "reason"), [(b"", "dns_short"), (FAKED[:11], "dns_short")])
def test_what_is_no_query_is_dropped(service: Service, message: bytes, reason: str) -> None:
    assert service.dns.datagram(ASKER, message, NOW) == (None, None)
    assert service.counters == {reason: 1}
    assert service.dns.queries == 0


def test_a_resolver_that_fails_is_a_servfail(service: Service) -> None:
    (answer,) = service.dns.response(service.forward(), None, NOW)
    assert isinstance(answer, DatagramAnswer)
    assert DNSRecord.parse(answer.message).header.rcode == RCODE.SERVFAIL


def test_there_is_a_bound_for_what_waits(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnsservice, "MAX_PENDING", 2)
    first = service.forward()
    service.forward(name="www.real.example")
    answer, forward = service.dns.datagram(ASKER, OTHER, NOW)
    assert forward is None
    assert answer is not None
    assert DNSRecord.parse(answer.message).header.rcode == RCODE.SERVFAIL
    assert service.counters == {"dns_pending_full": 1}
    service.dns.response(first, None, NOW)
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
    octets = framed(FORWARDED, FAKED, OTHER)
    answer, (first, second) = service.stream(octets)
    assert [record.header.id for record in records(answer.data)] == [7]
    for number, message, ident in ((second, OTHER, 9), (first, FORWARDED, 8)):
        (later,) = service.dns.response(number, answered(message, "192.0.2.7"), NOW)
        assert isinstance(later, StreamAnswer)
        assert (later.flow, later.end) == (FLOW, False)
        assert [record.header.id for record in records(later.data)] == [ident]


def test_a_half_closed_asker_gets_its_answers_first(service: Service) -> None:
    answer, (first, second) = service.stream(framed(FORWARDED, OTHER), end=True)
    assert answer == StreamAnswer(FLOW, b"", end=False)
    (middle,) = service.dns.response(first, None, NOW)
    (last,) = service.dns.response(second, None, NOW)
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
    assert service.dns.response(number, None, NOW) == []
    assert not service.dns._pending


def test_what_is_no_query_is_counted_and_the_stream_goes_on(service: Service) -> None:
    answer, _ = service.stream(framed(b"", FAKED[:11], FAKED))
    assert len(records(answer.data)) == 1
    assert service.counters == {"dns_short": 2}


def test_who_asks_too_much_at_a_time_is_reset(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnsservice, "MAX_PER_STREAM", 3)
    _, numbers = service.stream(framed(OTHER, *[FORWARDED] * 2))
    service.dns.response(numbers[0], None, NOW)
    service.stream(framed(FORWARDED))
    assert service.dns.stream_data(FLOW, [framed(FORWARDED)], False, NOW) is None
    assert service.counters == {"dns_stream_overrun": 1, "dns_joined": 3}


def test_who_asks_too_much_takes_no_room_from_others(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not handed out to be answered does not wait for an answer."""
    monkeypatch.setattr(dnsservice, "MAX_PENDING", 10)
    monkeypatch.setattr(dnsservice, "MAX_PER_STREAM", 3)
    for flow in range(10, 20):
        service.dns.open_stream(flow, NOW)
        assert service.dns.stream_data(flow, [framed(*[FORWARDED] * 9)], False, NOW) is None
        service.dns.close_stream(flow)
    assert not service.dns._pending
    service.forward()


def test_the_bound_for_all_holds_for_streams_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnsservice, "MAX_PENDING", 1)
    answer, numbers = service.stream(framed(FORWARDED, OTHER), end=True)
    assert len(numbers) == 1
    assert [record.header.rcode for record in records(answer.data)] == [RCODE.SERVFAIL]
    assert not answer.end
    assert service.counters == {"dns_pending_full": 1}
    (last,) = service.dns.response(numbers[0], None, NOW)
    assert isinstance(last, StreamAnswer)
    assert last.end


def test_an_unfinished_message_is_all_that_is_kept(service: Service) -> None:
    service.stream(b"\xff\xff" + bytes(0xFFFE))
    assert len(service.dns._streams[FLOW].buffer) == 0x10000
    answer, _ = service.stream(b"\x00" + framed(FAKED))
    assert len(service.dns._streams[FLOW].buffer) == 0
    # The long one has a header and a body that makes no sense.
    assert [record.header.id for record in records(answer.data)] == [0, 7]


def test_nothing_is_taken_from_a_stream_that_is_over(service: Service) -> None:
    (ended,) = service.dns.handle_timeout(NOW + dnsservice.IDLE_S)
    assert ended == StreamAnswer(FLOW, b"", end=True)
    answer, forwards = service.stream(framed(FAKED))
    assert (answer, forwards) == (StreamAnswer(FLOW, b"", end=False), [])
    assert service.counters == {"dns_stream_over": 1}
    service.stream(b"", end=True)
    assert service.counters == {"dns_stream_over": 1}


# --- the same question ----------------------------------------------------------------------------

SECOND = Asker(bytes((198, 18, 0, 1)), 40001, bytes((198, 18, 0, 2)), 53)


def joined(service: Service, message: bytes, asker: Asker = SECOND) -> None:
    """Ask what is being asked already."""
    assert service.dns.datagram(asker, message, NOW) == (None, None)


def spelled(name: str, ident: int, **edns: Any) -> bytes:
    return question(name, QTYPE.A, ident=ident, **edns)


def test_a_question_under_way_is_not_asked_again(service: Service) -> None:
    _, first = service.dns.datagram(ASKER, spelled("real.example", 1, udp_len=4096), NOW)
    joined(service, spelled("REAL.example", 2))
    service.stream(framed(spelled("real.EXAMPLE", 3, udp_len=700)))
    assert first is not None
    response = DNSRecord.parse(answered(first.message, "192.0.2.7"))
    response.add_ar(EDNS0(udp_len=4096))
    answers = service.dns.response(first.query, bytes(response.pack()), NOW)
    found = []
    for answer in answers:
        octets = answer.message if isinstance(answer, DatagramAnswer) else answer.data[2:]
        record = DNSRecord.parse(octets)
        found.append((record.header.id, str(record.q.qname), len(record.ar)))
        assert [str(rr.rdata) for rr in record.rr] == ["192.0.2.7"]
    assert found == [(1, "real.example.", 1), (2, "REAL.example.", 0), (3, "real.EXAMPLE.", 1)]
    assert service.counters == {"dns_joined": 2}
    assert (service.dns._joinable, service.dns._waiting) == ({}, 0)
    assert service.dns.datagram(SECOND, spelled("real.example", 4), NOW)[0] is not None, "cached"


@pytest.mark.parametrize(
    "message",
    [
        spelled("www.real.example", 2),
        question("real.example", QTYPE.AAAA),
        spelled("real.example", 2, flags="do"),
        spelled("real.example", 2, opts=[EDNSOption(8, b"\0\1\x18\0\xc0\0\2")]),
    ],
    ids=["name", "type", "DNSSEC", "for the asker alone"],
)
def test_another_question_is_asked(service: Service, message: bytes) -> None:
    service.forward()
    assert service.dns.datagram(SECOND, message, NOW)[1] is not None
    assert service.counters == {}


def test_each_way_and_resolver_is_asked(service: Service) -> None:
    rules = RuleTable.parse([("my.list", RULES)], no_sets)
    routes = [Route(("a.example",), "192.0.2.1", direct=False)]
    service.dns.nameserver.reconfigure(rules, DnsPolicy(routes=routes))
    _, first = service.dns.datagram(ASKER, query("a.example"), NOW)
    service.dns.nameserver.reconfigure(rules, DnsPolicy(real_names=["a.example"]))
    _, second = service.dns.datagram(ASKER, query("a.example"), NOW)
    assert first is not None
    assert second is not None
    assert (first.server, second.server) == ("192.0.2.1", None)


def test_those_who_join_have_a_bound(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnsservice, "MAX_PENDING", 3)
    number = service.forward()
    joined(service, FORWARDED)
    joined(service, FORWARDED)
    answer, forward = service.dns.datagram(ASKER, FORWARDED, NOW)
    assert answer is not None
    assert forward is None
    assert DNSRecord.parse(answer.message).header.rcode == RCODE.SERVFAIL
    assert service.counters == {"dns_joined": 2, "dns_pending_full": 1}
    failed = service.dns.response(number, None, NOW)
    assert len(failed) == 3
    service.forward()


def test_what_is_too_long_for_one_is_truncated_for_him_alone(service: Service) -> None:
    _, first = service.dns.datagram(ASKER, spelled("real.example", 1, udp_len=1232), NOW)
    joined(service, spelled("real.example", 2))
    assert first is not None
    addresses = [f"192.0.2.{number}" for number in range(60)]
    answers = service.dns.response(first.query, answered(first.message, *addresses), NOW)
    found = [DNSRecord.parse(each.message) for each in answers if isinstance(each, DatagramAnswer)]
    assert [(record.header.tc, len(record.rr)) for record in found] == [(0, 60), (1, 0)]


NAMES = ("real.example", "a.real.example", "www.example.com")


@given(
    st.lists(
        st.tuples(st.sampled_from(("ask", "answer", "fail", "wait")), st.integers(0, 2)),
        max_size=30,
    )
)
def test_each_asker_gets_one_answer(steps: list[tuple[str, int]]) -> None:
    """His own, in whatever order questions, responses and deadlines come."""
    service = Service()
    service.dns.nameserver.truthful = True
    service.dns.close_stream(FLOW)
    open_queries: list[ForwardQuery] = []
    unanswered: dict[int, str] = {}
    now = NOW

    def take(answers: Iterable[Answer]) -> None:
        for answer in answers:
            assert isinstance(answer, DatagramAnswer)
            record = DNSRecord.parse(answer.message)
            assert record.header.id == answer.asker.src_port
            assert str(record.q.qname) == f"{unanswered.pop(answer.asker.src_port)}."

    for number, (step, which) in enumerate(steps, 1):
        if step == "ask":
            unanswered[number] = NAMES[which]
            asker = ASKER._replace(src_port=number)
            message = query(NAMES[which], ident=number)
            answer, forward = service.dns.datagram(asker, message, now)
            take([] if answer is None else [answer])
            open_queries += [] if forward is None else [forward]
        elif step == "wait":
            now += 0.3
            take(service.dns.handle_timeout(now))
        elif open_queries:
            asked = open_queries.pop(which % len(open_queries))
            response = answered(asked.message, "192.0.2.1") if step == "answer" else None
            take(service.dns.response(asked.query, response, now))
        assert service.dns._waiting == len(unanswered)
    for asked in open_queries:
        take(service.dns.response(asked.query, None, now))
    assert not unanswered
    assert not service.dns._pending
    assert not service.dns._joinable


# --- time -----------------------------------------------------------------------------------------

PROBED = query("www.example.com", ident=9)


@pytest.fixture
def truthful(service: Service) -> Service:
    service.dns.nameserver.truthful = True
    service.dns.close_stream(FLOW)
    return service


def probe(service: Service) -> int:
    answer, forward = service.dns.datagram(ASKER, PROBED, NOW)
    assert answer is None
    assert forward is not None
    assert (forward.direct, forward.server) == (False, None)
    return forward.query


def test_there_is_nothing_to_wait_for(service: Service) -> None:
    service.dns.close_stream(FLOW)
    service.forward()
    assert service.dns.poll_at() is None
    assert list(service.dns.handle_timeout(NOW + 1e6)) == []


def test_an_asker_waits_only_so_long_for_the_truth(truthful: Service) -> None:
    number = probe(truthful)
    assert truthful.dns.poll_at() == NOW + PROBE_PATIENCE_S
    assert list(truthful.dns.handle_timeout(NOW + 0.39)) == []
    (answer,) = truthful.dns.handle_timeout(NOW + 0.4)
    assert isinstance(answer, DatagramAnswer)
    assert len(DNSRecord.parse(answer.message).rr) == 1
    assert truthful.dns.poll_at() is None
    assert truthful.dns.response(number, answered(PROBED, "192.0.2.1"), NOW + 1) == []
    assert not truthful.dns._pending
    assert truthful.dns.nameserver.real_addresses("www.example.com", NOW + 1) != []


def test_those_who_join_wait_as_long_as_the_first(truthful: Service) -> None:
    number = probe(truthful)
    assert truthful.dns.datagram(SECOND, PROBED, NOW + 0.3) == (None, None)
    both = list(truthful.dns.handle_timeout(NOW + PROBE_PATIENCE_S))
    assert [answer.asker for answer in both if isinstance(answer, DatagramAnswer)] == [
        ASKER,
        SECOND,
    ]
    # One silence is one failure, whoever waited: three in a row mean something.
    assert truthful.dns.nameserver.counters["probe_timeout"] == 1
    assert not truthful.dns.nameserver._learned.sightings.is_paused(NOW + 1)
    assert truthful.dns.response(number, answered(PROBED, "192.0.2.1"), NOW + 1) == []


def test_nobody_joins_what_nobody_waits_for(truthful: Service) -> None:
    https = query("www.example.com", "HTTPS")
    _, first = truthful.dns.datagram(ASKER, https, NOW)
    assert len(list(truthful.dns.handle_timeout(NOW + BINDING_PATIENCE_S))) == 1
    _, second = truthful.dns.datagram(ASKER, https, NOW + BINDING_PATIENCE_S)
    assert first is not None
    assert second is not None
    truthful.dns.response(first.query, None, NOW + 3)
    assert truthful.dns.datagram(SECOND, https, NOW + 3) == (None, None)
    assert len(truthful.dns.response(second.query, None, NOW + 3)) == 2


def test_any_may_join_the_probe_for_an_address(truthful: Service) -> None:
    number = probe(truthful)
    assert truthful.dns.datagram(SECOND, query("www.example.com", "ANY"), NOW) == (None, None)
    one, other = truthful.dns.response(number, answered(PROBED, "192.0.2.1"), NOW)
    assert isinstance(one, DatagramAnswer)
    assert isinstance(other, DatagramAnswer)
    assert DNSRecord.parse(one.message).rr[0].rdata == DNSRecord.parse(other.message).rr[0].rdata


def test_an_answer_in_time_leaves_nothing_to_wait_for(truthful: Service) -> None:
    number = probe(truthful)
    (answer,) = truthful.dns.response(number, answered(PROBED, "192.0.2.1"), NOW)
    assert isinstance(answer, DatagramAnswer)
    assert truthful.dns.poll_at() is None


def test_deadlines_of_several_lengths(truthful: Service) -> None:
    https = query("www.example.com", "HTTPS")
    truthful.dns.datagram(ASKER, https, NOW)
    probe(truthful)
    assert truthful.dns.poll_at() == NOW + PROBE_PATIENCE_S
    assert len(list(truthful.dns.handle_timeout(NOW + PROBE_PATIENCE_S))) == 1
    assert truthful.dns.poll_at() == NOW + BINDING_PATIENCE_S
    assert len(list(truthful.dns.handle_timeout(NOW + BINDING_PATIENCE_S))) == 1


def test_a_stale_name_is_answered_and_asked_for(truthful: Service) -> None:
    truthful.dns.response(probe(truthful), answered(PROBED, "192.0.2.1"), NOW)
    later = NOW + 4000
    answer, forward = truthful.dns.datagram(ASKER, PROBED, later)
    assert answer is not None
    assert forward is not None
    assert truthful.dns.poll_at() is None
    assert truthful.dns.response(forward.query, None, later) == []
    assert not truthful.dns._pending


def test_a_stale_name_on_a_stream_is_not_waited_for(truthful: Service) -> None:
    truthful.dns.response(probe(truthful), answered(PROBED, "192.0.2.1"), NOW)
    truthful.dns.open_stream(FLOW, NOW + 4000)
    result = truthful.dns.stream_data(FLOW, [framed(PROBED)], True, NOW + 4000)
    assert result is not None
    answer, forwards = result
    assert len(records(answer.data)) == len(forwards) == 1
    assert answer.end


def test_without_room_the_truth_is_not_asked_for(
    truthful: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = probe(truthful)
    monkeypatch.setattr(dnsservice, "MAX_PENDING", 1)
    answer, forward = truthful.dns.datagram(ASKER, query("b.example.com"), NOW)
    assert forward is None
    assert answer is not None
    assert len(DNSRecord.parse(answer.message).rr) == 1
    truthful.dns.response(number, answered(PROBED, "192.0.2.1"), NOW)
    probe_again = truthful.dns.datagram(ASKER, query("c.example.com"), NOW)[1]
    answer, forward = truthful.dns.datagram(ASKER, PROBED, NOW + 4000)
    assert (answer is None, forward, probe_again is None) == (False, None, False)


def test_a_stream_waits_only_so_long_for_the_truth(truthful: Service) -> None:
    truthful.dns.open_stream(FLOW, NOW)
    assert truthful.dns.stream_data(FLOW, [framed(PROBED)], True, NOW) is not None
    (answer,) = truthful.dns.handle_timeout(NOW + PROBE_PATIENCE_S)
    assert isinstance(answer, StreamAnswer)
    assert len(records(answer.data)[0].rr) == 1
    assert answer.end


def test_a_stream_that_vanishes_is_not_answered(truthful: Service) -> None:
    truthful.dns.open_stream(FLOW, NOW)
    truthful.dns.stream_data(FLOW, [framed(PROBED)], False, NOW)
    truthful.dns.close_stream(FLOW)
    assert list(truthful.dns.handle_timeout(NOW + PROBE_PATIENCE_S)) == []


def test_what_is_taken_back_has_no_deadline(
    truthful: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnsservice, "MAX_PER_STREAM", 1)
    truthful.dns.open_stream(FLOW, NOW)
    two = framed(PROBED, query("b.example.com"))
    assert truthful.dns.stream_data(FLOW, [two], False, NOW) is None
    truthful.dns.close_stream(FLOW)
    assert truthful.dns.poll_at() is None


def test_an_idle_stream_is_ended_and_then_reset(service: Service) -> None:
    at = service.dns.poll_at()
    assert at == NOW + dnsservice.IDLE_S
    assert list(service.dns.handle_timeout(at)) == [StreamAnswer(FLOW, b"", end=True)]
    at = service.dns.poll_at()
    assert at == NOW + 2 * dnsservice.IDLE_S
    (reset,) = service.dns.handle_timeout(at)
    assert reset == StreamAnswer(FLOW, b"", end=False, reset=True)
    assert service.counters == {"dns_stream_idle": 1}
    assert service.dns.poll_at() is None
    service.dns.close_stream(FLOW)


def test_a_stream_is_idle_since_its_last_query_or_answer(service: Service) -> None:
    service.dns.stream_data(FLOW, [framed(FAKED)], False, NOW + 10)
    assert service.dns.poll_at() == NOW + 10 + dnsservice.IDLE_S
    _, forwards = service.dns.stream_data(FLOW, [framed(FORWARDED)], False, NOW + 20) or (0, [])
    assert service.dns.poll_at() is None
    service.dns.response(forwards[0].query, None, NOW + 25)
    assert service.dns.poll_at() == NOW + 25 + dnsservice.IDLE_S


def test_a_message_that_never_ends_keeps_no_stream_open(service: Service) -> None:
    for second in range(29):
        service.dns.stream_data(FLOW, [b"\x01"], False, NOW + second)
    assert service.dns.poll_at() == NOW + dnsservice.IDLE_S
