"""Truthful mode: the server's side is asked before a fake address is given out."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from dnslib import QTYPE, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.dns_client import SOA, Client, question, response, told
from tunproxy.flow.dnstruth import ASSUMED_S, PAUSE_S
from tunproxy.flow.nameserver import PROBE_PATIENCE_S, Forward, Purpose, Reply
from tunproxy.flow.rules import Action
from tunproxy.wire import dns
from tunproxy.wire.dns import Rcode, Type

FAKE4, FAKE6 = "NOERROR A=198.18.0.4", "NOERROR AAAA=fd00:7470::4"
REAL4 = "a.example. 300 A 192.0.2.1"


@pytest.fixture
def client() -> Client:
    return Client(truthful=True, rules="DOMAIN-SUFFIX,direct.example,DIRECT\nDST-PORT,25,REJECT")


def refreshed(client: Client, name: str) -> tuple[str, Forward]:
    """What is answered at once, and asked for behind the client's back."""
    outcome = client.handle(question(name))
    assert isinstance(outcome, Reply)
    assert outcome.refresh is not None
    return told(outcome.message), outcome.refresh


def given_up(client: Client, forward: Forward) -> str:
    client.now += PROBE_PATIENCE_S
    return told(client.server.give_up(forward, client.now, stream=False))


def test_a_name_that_exists_there(client: Client) -> None:
    forward = client.forwarded("a.example", flags="do", udp_len=900)
    assert forward.message == question("a.example", flags="do", udp_len=900)
    assert (forward.via, forward.server) == (Action.PROXY, None)
    assert (forward.purpose, forward.patience_s) == (Purpose.PROBE, 0.4)
    assert len(client.pools.v4) == 0
    assert client.finish(forward, response(forward.message, REAL4)) == FAKE4
    assert client.server.counters == {"probe": 1, "fake": 1}


def test_both_families(client: Client) -> None:
    assert client.resolve("a.example", Type.A, REAL4) == FAKE4
    real6 = "a.example. 60 AAAA 2001:db8::1"
    assert client.resolve("a.example", Type.AAAA, real6) == FAKE6
    found = [str(ipaddress.ip_address(p)) for p in client.server.real_addresses("a.example", 1e3)]
    assert found == ["2001:db8::1", "192.0.2.1"]
    assert client.server.real_addresses("b.example", client.now) == []


def test_an_alias_there(client: Client) -> None:
    """The answer is a fake address of the name that was asked for."""
    records = ("a.example. 60 CNAME b.example.", "b.example. 60 A 192.0.2.1")
    assert client.resolve("a.example", Type.A, *records) == FAKE4
    assert client.pools.name_of(ipaddress.ip_address("198.18.0.4")) == "a.example"


def test_real_addresses_of_faked_names_decide_nothing(client: Client) -> None:
    """They may be those of a name that is not faked as well."""
    client.resolve("a.example", Type.A, REAL4)
    assert client.server.remembered_name(bytes((192, 0, 2, 1))) is None


def test_no_such_name(client: Client) -> None:
    denied = client.resolve("a.example", Type.A, rcode=3, auth=SOA)
    assert denied == "NXDOMAIN SOA:600"
    client.now += 20
    for qtype in (Type.A, Type.AAAA, Type.HTTPS, QTYPE.MX):
        assert client.ask("a.example", qtype) == "NXDOMAIN SOA:100"
    assert len(client.pools.v4) == 0
    assert client.server.counters == {"probe": 1, "denied": 3, "cached": 4}
    client.now += 100
    client.forwarded("a.example")


def test_no_address_of_a_family(client: Client) -> None:
    client.resolve("a.example", Type.A, REAL4)
    assert client.resolve("a.example", Type.AAAA, auth=SOA) == "NOERROR SOA:600"
    assert client.ask("a.example", Type.AAAA) == "NOERROR SOA:120"
    assert client.ask("a.example") == FAKE4
    assert len(client.pools.v6) == 0


def test_an_alias_without_addresses(client: Client) -> None:
    record = "a.example. 60 CNAME b.example."
    answer = client.resolve("a.example", Type.AAAA, record, auth=SOA)
    assert answer == "NOERROR CNAME=b.example. SOA:600"
    assert client.ask("a.example", Type.AAAA) == "NOERROR CNAME=b.example. SOA:60"


def test_denials_bring_no_addresses_along(client: Client) -> None:
    forward = client.forwarded("a.example")
    message = response(forward.message, auth=SOA, extra="ns.example. 60 A 192.0.2.53")
    answer = client.server.finish(forward, message, client.now, stream=False)
    assert DNSRecord.parse(answer).ar == []


def test_a_name_seen_before_is_answered_at_once(client: Client) -> None:
    client.resolve("a.example", Type.A, REAL4)
    client.now += 299
    assert client.ask("A.Example") == FAKE4
    client.now += 1
    answer, forward = refreshed(client, "a.example")
    assert answer == FAKE4
    assert client.ask("a.example") == FAKE4
    client.server.learn(forward, response(forward.message, REAL4), client.now)
    client.now += 299
    assert client.ask("a.example") == FAKE4
    assert client.server.counters["refresh"] == 1


def test_a_name_that_is_gone_is_denied_the_next_time(client: Client) -> None:
    client.resolve("a.example", Type.A, REAL4)
    client.now += 300
    _, forward = refreshed(client, "a.example")
    client.server.learn(forward, response(forward.message, rcode=3, auth=SOA), client.now)
    assert client.ask("a.example") == "NXDOMAIN SOA:120"


@pytest.mark.parametrize(
    "message",
    [
        lambda asked: None,
        lambda asked: response(asked, rcode=Rcode.SERVFAIL),
        lambda asked: response(asked, rcode=Rcode.REFUSED),
        lambda asked: dns.with_id(response(asked, REAL4), 1),
        lambda asked: response(asked, REAL4)[:-1],
    ],
)
def test_failure_proves_nothing(client: Client, message: Any) -> None:
    forward = client.forwarded("a.example")
    assert client.finish(forward, message(forward.message)) == FAKE4
    assert client.ask("a.example") == FAKE4
    client.now += ASSUMED_S
    assert refreshed(client, "a.example")[0] == FAKE4


def test_who_waits_too_long_gets_the_fake(client: Client) -> None:
    forward = client.forwarded("a.example")
    assert given_up(client, forward) == FAKE4
    assert client.ask("a.example") == FAKE4
    assert client.server.counters == {"probe": 1, "probe_timeout": 1, "fake": 2}


def test_a_late_denial_holds(client: Client) -> None:
    forward = client.forwarded("a.example")
    given_up(client, forward)
    client.server.learn(forward, response(forward.message, rcode=3, auth=SOA), client.now)
    assert client.ask("a.example") == "NXDOMAIN SOA:120"


def test_nobody_answers(client: Client) -> None:
    for name in ("a.example", "b.example", "c.example"):
        given_up(client, client.forwarded(name))
    assert client.ask("d.example") == "NOERROR A=198.18.0.7"
    assert client.server.counters["probe_skipped"] == 1
    client.now += PAUSE_S
    assert client.resolve("e.example", Type.A, "e.example. 9 A 192.0.2.1").startswith("NOERROR A=")
    client.forwarded("f.example")


def test_too_many_at_once(client: Client) -> None:
    forward = client.forwarded("a.example")
    assert told(client.server.overloaded(forward, stream=False)) == FAKE4


def test_a_fake_address_there_is_an_address(client: Client) -> None:
    """The server may be behind a program like ours."""
    assert client.resolve("a.example", Type.A, "a.example. 60 A 198.18.0.9") == FAKE4


@pytest.mark.parametrize(
    ("records", "rest", "answer"),
    [
        ((REAL4,), {}, FAKE4),
        ((), {"rcode": 3, "auth": SOA}, "NXDOMAIN SOA:600"),
        ((), {"auth": SOA}, "NOERROR HINFO="),
    ],
)
def test_any(client: Client, records: tuple[str, ...], rest: dict[str, Any], answer: str) -> None:
    forward = client.forwarded("a.example", Type.ANY)
    assert DNSRecord.parse(forward.message).q.qtype == Type.A
    message = response(forward.message, *records, **rest)
    finished = client.server.finish(forward, message, client.now, stream=False)
    assert told(finished).startswith(answer)
    assert DNSRecord.parse(finished).q.qtype == Type.ANY
    assert (
        client.ask("a.example", Type.ANY).split("=")[0].split(":")[0]
        == (answer.split("=")[0].split(":")[0])
    )


@pytest.mark.parametrize("name", ["www.direct.example", "nas", "localhost", "x.local"])
def test_names_that_are_not_faked_are_not_probed(client: Client, name: str) -> None:
    outcome = client.handle(question(name))
    assert isinstance(outcome, Reply) or outcome.purpose is Purpose.RELAY


def test_in_mode_remote_there_is_nothing_to_probe() -> None:
    forward = Client(mode="remote", truthful=True).forwarded("a.example")
    assert forward.purpose is Purpose.RELAY


def test_it_may_be_switched(client: Client) -> None:
    client.server.truthful = False
    assert client.ask("a.example") == FAKE4
    client.server.truthful = True
    client.forwarded("a.example")


@given(st.binary(max_size=80), st.tuples(*[st.integers(0, 2)] * 3), st.integers(0, 15))
@pytest.mark.parametrize("qtype", [Type.A, Type.AAAA, Type.ANY, Type.HTTPS, QTYPE.MX])
def test_arbitrary_responses(
    qtype: int, tail: bytes, counts: tuple[int, int, int], rcode: int
) -> None:
    """Whatever a resolver says, the client gets an answer to its question."""
    client = Client(truthful=True)
    forward = client.forwarded("a.example", qtype)
    header = forward.message[:2] + bytes((0x81, 0x80 | rcode, 0, 1))
    sections = b"".join(count.to_bytes(2, "big") for count in counts)
    message = header + sections + forward.query.question + tail
    answer = client.server.finish(forward, message, client.now, stream=False)
    asked = question("a.example", qtype)
    assert answer[:2] == asked[:2]
    assert answer[12:].startswith(asked[12:])
    outcome = client.handle(asked)
    if isinstance(outcome, Reply):
        assert outcome.message[12:].startswith(asked[12:])


def test_flush(client: Client) -> None:
    client.resolve("a.example", Type.A, REAL4)
    client.resolve("b.example", Type.A, rcode=3, auth=SOA)
    assert client.server.flush() == 2
    client.forwarded("a.example")
    client.forwarded("b.example")
    assert len(client.pools.v4) == 1


# --- names that the server's hosts file has -------------------------------------------------------

LISTED = {
    "box.example": (ipaddress.IPv6Address("2001:db8::7"), ipaddress.IPv4Address("192.0.2.7")),
    "four.example": (ipaddress.IPv4Address("192.0.2.4"),),
    "six.example": (ipaddress.IPv6Address("2001:db8::6"),),
    "box": (ipaddress.IPv4Address("192.0.2.7"),),
    "box.local": (ipaddress.IPv4Address("192.0.2.7"),),
    "box.onion": (ipaddress.IPv4Address("192.0.2.7"),),
    "x.direct.example": (ipaddress.IPv4Address("192.0.2.7"),),
}


@pytest.mark.parametrize("truthful", [False, True])
def test_listed_names_exist(truthful: bool) -> None:
    client = Client(truthful=truthful)
    client.server.set_listed(LISTED)
    assert client.ask("Box.Example") == FAKE4
    assert client.ask("box.example", Type.AAAA) == FAKE6
    assert client.ask("four.example").startswith("NOERROR A=198.18.")
    assert client.ask("four.example", Type.AAAA) == "NOERROR SOA:1"
    assert client.ask("six.example") == "NOERROR SOA:1"
    assert client.ask("six.example", Type.ANY).startswith("NOERROR HINFO")
    assert client.ask("box").startswith("NOERROR A=198.18.")
    assert client.ask("box.local").startswith("NOERROR A=198.18.")
    assert client.server.counters["probe"] == 0
    found = client.server.real_addresses("box.example", client.now)
    assert found == [address.packed for address in LISTED["box.example"]]


def test_what_goes_before_listed_names(client: Client) -> None:
    client.server.set_listed(LISTED)
    assert client.ask("box.onion").startswith("NXDOMAIN")
    assert client.server.why("box.onion") == "there is no such name by definition"
    assert client.server.why("box.local") != "there is no such name by definition"
    assert client.forwarded("x.direct.example").via is Action.DIRECT
    assert client.forwarded("box.example", Type.HTTPS).purpose is Purpose.BINDING


def test_listed_names_that_are_not_faked_are_forwarded() -> None:
    client = Client(mode="remote")
    client.server.set_listed(LISTED)
    for name in ("box.example", "box", "box.local"):
        assert client.forwarded(name).purpose is Purpose.RELAY


def test_what_was_denied_may_be_listed_later(client: Client) -> None:
    client.resolve("box.example", Type.A, rcode=3, auth=SOA)
    client.server.set_listed(LISTED)
    assert client.ask("box.example") == FAKE4
    client.server.set_listed({})
    client.forwarded("box.example")
