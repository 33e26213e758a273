"""Each type of record is answered as it should be, and nobody outside learns of it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.helpers.lab import (
    BESIDE_ORIGIN,
    DEAD_RESOLVER,
    ORIGIN4,
    OUTSIDE4,
    OUTSIDE6,
    WORLD4,
    WORLD6,
)
from tests.helpers.lab_names import (
    DEAD_RESOLVER6,
    TEXT,
    TEXTS,
    Answer,
    Uplink,
    dig,
    fake,
    serve_more_names,
)
from tests.helpers.lab_tunproxy import up
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab
    from tests.helpers.lab_host import Host
    from tests.helpers.lab_tunproxy import Tunproxy

pytestmark = pytest.mark.netns

FAKE = {"A": ("198.18.", "198.19."), "AAAA": ("fd00:7470::",)}


@pytest.fixture(scope="module", autouse=True)
def uplink(lab: Lab, stack: str) -> Iterator[Uplink]:
    """What leaves the client, from before the program starts with ``stack``."""
    serve_more_names(lab)
    with Uplink(lab.client) as capture:
        yield capture


@pytest.fixture(scope="module", autouse=True)
def program(lab: Lab, stack: str, uplink: Uplink) -> Iterator[Tunproxy]:
    """The program, which tells the truth about names."""
    config = lab.directory / "names.toml"
    config.write_text("[dns]\ntruthful = true\n")
    with up(lab, "-c", str(config), "--stack", stack) as running:
        until(lambda: running.status()["udp"] == "agent", "the agent")
        yield running


class Asker(NamedTuple):
    """A host that asks a resolver, in one of the ways that there are."""

    host: Host
    server: str
    over: str

    def __call__(self, *words: str) -> Answer:
        """What dig(1) says; ``words`` are a name, a type and options."""
        return dig(self.host, self.over, *words, server=self.server)


@pytest.fixture(params=["UDP", "TCP"])
def ask(lab: Lab, request: pytest.FixtureRequest) -> Asker:
    """The client asks a resolver that does not exist, by each transport."""
    if request.param == "UDP":
        return Asker(lab.client, DEAD_RESOLVER, "+notcp")
    return Asker(lab.client, DEAD_RESOLVER6, "+tcp")


# Faked names


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_address(ask: Asker, kind: str) -> None:
    answer = ask("origin.test", kind)
    (record,) = answer.records
    assert (answer.rcode, record.name, record.type) == ("NOERROR", "origin.test.", kind)
    assert record.data.startswith(FAKE[kind])
    assert {"qr", "rd", "ra"} <= answer.flags
    # Somebody else, asked in another way, says the same.
    assert fake(ask.host, "origin.test", kind) == record.data


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_pointer_of_a_fake_address(ask: Asker, kind: str) -> None:
    address = fake(ask.host, "world.test", kind)
    assert ask("-x", address).data("PTR") == ["world.test."]


def test_pointer_of_an_address_that_nobody_was_given(ask: Asker) -> None:
    answer = ask("-x", "198.19.77.77")
    assert (answer.rcode, answer.records) == ("NXDOMAIN", [])


def test_any_is_a_fake_address(ask: Asker) -> None:
    """RFC 8482 section 4.1: a subset will do."""
    answer = ask("origin.test", "ANY")
    assert answer.data("A") == [record.data for record in answer.records]
    assert answer.data("A") == [fake(ask.host, "origin.test")]


def test_service_binding_comes_without_addresses(ask: Asker) -> None:
    """RFC 9460: the hints are real addresses; the rest makes HTTP/3 and an encrypted hello work."""
    (data,) = ask("origin.test", "HTTPS").data("HTTPS")
    assert data == '1 . alpn="h3,h2" ech=/g0ABGVjaG8='


def test_service_binding_that_does_not_exist(ask: Asker) -> None:
    answer = ask("v4.test", "HTTPS")
    assert (answer.rcode, answer.records) == ("NOERROR", [])


def test_alias_has_an_address_of_its_own(ask: Asker) -> None:
    """The chain is for the server's side to follow; it leads to whom it should."""
    (record,) = ask("alias.test", "A").records
    assert record.name == "alias.test."
    fetched = ask.host.run("curl", "-4", "-sS", "http://alias.test/whoami").stdout.strip()
    assert fetched in BESIDE_ORIGIN
    assert ask("alias.test", "CNAME").data("CNAME") == ["middle.test."]
    assert ask("middle.test", "CNAME").data("CNAME") == ["origin.test."]


# Forwarded


@pytest.mark.parametrize(
    ("name", "kind", "data"),
    [
        ("origin.test", "MX", "10 mail.test."),
        ("origin.test", "TXT", '"from the far side"'),
        ("origin.test", "NS", "ns.test."),
        ("_sip._udp.origin.test", "SRV", "1 2 5060 origin.test."),
        ("origin.test", "TYPE65280", r"\# 3 0A0B0C"),
    ],
)
def test_other_types_are_the_far_resolvers(ask: Asker, name: str, kind: str, data: str) -> None:
    answer = ask(name, kind)
    assert (answer.rcode, answer.data(kind)) == ("NOERROR", [data])


def test_real_address_has_a_real_pointer(ask: Asker) -> None:
    assert "origin.test." in ask("-x", ORIGIN4).data("PTR")


def test_answer_that_needs_edns(lab: Lab) -> None:
    whole = dig(lab.client, "medium.test", "TXT", "+bufsize=1400", "+ignore")
    assert "tc" not in whole.flags
    assert len(whole.records) == TEXTS["medium.test"]
    short = dig(lab.client, "medium.test", "TXT", "+noedns", "+ignore")
    assert "tc" in short.flags


def test_answer_that_needs_tcp(lab: Lab) -> None:
    assert "tc" in dig(lab.client, "long.test", "TXT", "+ignore").flags
    again = dig(lab.client, "long.test", "TXT")
    assert "tc" not in again.flags
    expected = sorted(f'"{number}-{TEXT}"' for number in range(TEXTS["long.test"]))
    assert again.data("TXT") == expected


# Truth


@pytest.mark.parametrize("kind", ["A", "AAAA", "MX", "HTTPS", "ANY"])
def test_name_that_does_not_exist(ask: Asker, kind: str) -> None:
    answer = ask("nobody.test", kind)
    assert (answer.rcode, answer.records) == ("NXDOMAIN", [])


@pytest.mark.parametrize(("name", "kind"), [("v4.test", "AAAA"), ("v6.test", "A")])
def test_name_without_such_an_address(ask: Asker, name: str, kind: str) -> None:
    answer = ask(name, kind)
    assert (answer.rcode, answer.records) == ("NOERROR", [])


@pytest.mark.parametrize(
    ("words", "rcode"),
    [
        (("+header-only",), "FORMERR"),
        (("+opcode=notify", "origin.test"), "NOTIMP"),
        (("+opcode=update", "origin.test"), "NOTIMP"),
        (("-c", "CH", "version.bind", "TXT"), "REFUSED"),
        (("origin.test", "AXFR"), "REFUSED"),
        (("+edns=1", "+noednsneg", "origin.test"), "BADVERS"),
    ],
)
def test_what_no_resolver_has_to_answer(ask: Asker, words: tuple[str, ...], rcode: str) -> None:
    answer = ask(*words)
    assert (answer.rcode, answer.records) == (rcode, [])


# Nothing leaves


@pytest.mark.parametrize("resolver", [WORLD4, WORLD6])
def test_query_to_a_host_that_can_be_reached(ask: Asker, resolver: str) -> None:
    """Whoever is asked, we answer; nobody else does at this address."""
    address = fake(ask.host, "origin.test")
    assert ask._replace(server=resolver)("origin.test").data("A") == [address]


@pytest.mark.parametrize(
    ("family", "kind", "target", "seen"),
    [("4", "A", WORLD4, OUTSIDE4), ("6", "AAAA", WORLD6, OUTSIDE6)],
    ids=["v4", "v6"],
)
def test_faked_name_is_reached_by_every_protocol(
    lab: Lab, family: str, kind: str, target: str, seen: str
) -> None:
    """A host that has a route around us; datagrams arrive by the family that they were sent by."""
    client = lab.client
    fetched = client.run("curl", f"-{family}", "-sS", "http://world.test/whoami").stdout.strip()
    assert fetched in (OUTSIDE4, OUTSIDE6)
    done = client.run("ping", f"-{family}", "-c1", "-W5", "world.test", check=False)
    assert "1 received" in done.stdout
    address = fake(client, "world.test", kind)
    with (
        lab.world.open_socket(target, socket.SOCK_DGRAM) as far,
        client.open_socket(address, socket.SOCK_DGRAM) as near,
    ):
        far.bind((target, 4000))
        near.sendto(b"question", (address, 4000))
        question, sender = far.recvfrom(100)
        assert sender[0] == seen
        far.sendto(question, sender)
        data, where = near.recvfrom(100)
        assert (data, where[:2]) == (b"question", (address, 4000))


def test_nothing_has_left_outside_the_tunnel(uplink: Uplink) -> None:
    """All that the tests above have asked and sent; it has to be the last one."""
    assert uplink.strays(OUTSIDE4) == []
