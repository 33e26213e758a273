"""DIRECT pings: by ping sockets, and by raw ones."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import both_loops, turns, until
from tests.helpers.datagram_box import EchoBox
from tests.helpers.direct import GONE, NOWHERE, TARGET, let_ping, place, setup
from tunproxy.upstream import direct_echoes
from tunproxy.upstream.base import DatagramError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.direct import Setup

pytestmark = pytest.mark.netns

VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module", params=["0 2147483647", "1 0"], ids=["ping", "raw"], autouse=True)
def kind(request: pytest.FixtureRequest) -> Iterator[int]:
    """The kind of socket that is made."""
    with place():
        let_ping(request.param)
        yield socket.SOCK_RAW if request.param == "1 0" else socket.SOCK_DGRAM


class Answers(EchoBox):
    """What has become of echo requests that go out here."""

    def __init__(self, made: Setup) -> None:
        super().__init__()
        self.direct = made.direct

    def ask(self, host: str, payload: bytes = b"x", version: int = 0, hop_limit: int = 64) -> None:
        self.direct.echo(self.request(host, payload, version=version, hop_limit=hop_limit))


@VERSIONS
@both_loops
async def test_who_is_there_answers(kind: int, version: int) -> None:
    async with setup() as made:
        answers = Answers(made)
        payloads = [b"", b"odd", bytes(range(256)) * 20]
        for payload in payloads:
            answers.ask(TARGET[version], payload)
        await answers.wait(3)
        assert answers.replies == payloads
        assert [sock.type for sock in made.maker.made] == [kind]
        assert made.direct.counters == {}


@VERSIONS
@both_loops
async def test_names(version: int) -> None:
    async with setup() as made:
        answers = Answers(made)
        made.resolver.names = {"one.example": [TARGET[version]]}
        answers.ask("one.example", version=version)
        answers.ask("one.example", version=10 - version)
        answers.ask("no.example", version=version)
        await answers.wait(3)
        assert answers.replies == [b"x"]
        assert answers.errors == [(DatagramError.HOST_UNREACHABLE, None)] * 2


@VERSIONS
@both_loops
async def test_who_cannot_be_reached(version: int) -> None:
    async with setup() as made:
        answers = Answers(made)
        for address in (GONE[version], NOWHERE[version], TARGET[version]):
            answers.ask(address)
        await answers.wait(3)
        assert answers.replies == [b"x"]
        assert [kind for kind, _ in answers.errors] == [DatagramError.HOST_UNREACHABLE] * 2
        assert made.direct.counters == {"direct_echo_failed": 2}


@VERSIONS
@both_loops
async def test_answers_of_others_are_not_ours(version: int) -> None:
    """Another ping runs; and one that was given up is answered after all."""
    async with setup() as made:
        answers = Answers(made)
        answers.ask(TARGET[version])
        await answers.wait(1)
        ours = made.direct._echoes[version]
        ours._received(b"\x00" if version == 4 else b"\x81", TARGET[version])
        request = 8 if version == 4 else 128
        ours._received(bytes((request, 0)) + bytes(6), TARGET[version])
        await turns(2)
        assert made.direct.counters == {}
        head = bytes((0 if version == 4 else 129, 0, 0, 0)) + ours._ident.to_bytes(2, "big")
        ours._received(head + bytes((0, 1)) + b"late", TARGET[version])
        assert made.direct.counters == {"direct_echo_stray": 1}
        assert answers.replies == [b"x"]


@VERSIONS
@both_loops
async def test_the_hop_limit_is_that_of_the_request(version: int) -> None:
    async with setup() as made:
        answers = Answers(made)
        level = socket.IPPROTO_IP if version == 4 else socket.IPPROTO_IPV6
        option = socket.IP_TTL if version == 4 else socket.IPV6_UNICAST_HOPS
        for count, hop_limit in enumerate((5, 5, 200), 1):
            answers.ask(TARGET[version], hop_limit=hop_limit)
            await answers.wait(count)
            assert made.maker.made[0].getsockopt(level, option) == hop_limit


@both_loops
async def test_while_the_socket_is_made_some_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_echoes, "MAX_WAITING", 2)
    async with setup() as made:
        made.maker.gate.clear()
        answers = Answers(made)
        for payload in (b"1", b"2", b"3"):
            answers.ask(TARGET[4], payload)
        await turns(3)
        made.maker.gate.set()
        await answers.wait(2)
        assert answers.replies == [b"2", b"3"]
        assert made.direct.counters == {"direct_echo_waiting": 1}


@both_loops
async def test_a_socket_that_cannot_be_made() -> None:
    async with setup() as made:
        made.maker.error = OSError("no")
        answers = Answers(made)
        answers.ask(TARGET[4])
        await answers.wait(1)
        assert answers.errors == [(DatagramError.HOST_UNREACHABLE, None)]
        assert made.direct.counters == {"direct_no_ping_socket": 1}
        made.maker.error = None
        answers.ask(TARGET[4])
        await answers.wait(2)
        assert answers.replies == [b"x"]


@both_loops
async def test_those_without_an_answer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_echoes, "MAX_PENDING", 2)
    async with setup() as made:
        answers = Answers(made)
        made.maker.gate.clear()
        for payload in (b"1", b"2", b"3"):
            answers.ask(TARGET[4], payload)
        await turns(3)
        made.maker.gate.set()
        await answers.wait(2)
        await until(lambda: made.direct.counters, "the stray one")
        assert answers.replies == [b"2", b"3"]
        assert made.direct.counters == {"direct_echo_evicted": 1, "direct_echo_stray": 1}


@both_loops
async def test_the_end_while_a_socket_is_made() -> None:
    async with setup() as made:
        made.maker.gate.clear()
        answers = Answers(made)
        answers.ask(TARGET[4])
        await turns(3)
    await turns(3)
    assert made.maker.made == []
    assert (answers.replies, answers.errors) == ([], [])
