"""DIRECT datagrams: one unconnected socket for each source and family."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import both_loops, turns, until
from tests.helpers.direct import (
    GONE,
    MTU,
    NOWHERE,
    STRANGER,
    TARGET,
    Box,
    far,
    payloads,
    place,
    receive,
    setup,
)
from tunproxy.upstream import direct_datagrams
from tunproxy.upstream.base import DatagramError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

VERSIONS = pytest.mark.parametrize("version", [4, 6])
NAME = "www.example.com"


@pytest.fixture(scope="module", autouse=True)
def _place() -> Iterator[None]:
    with place():
        yield


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


@VERSIONS
@both_loops
async def test_datagrams_go_both_ways(version: int) -> None:
    async with setup() as made:
        with far(version) as there:
            near = made.direct.open(made.box, version=version)
            for payload in (b"", b"x", bytes(1400), bytes(60_000)):
                buffer = bytearray(payload)
                near.send(TARGET[version], port_of(there), memoryview(buffer))
                buffer[:] = b"?" * len(buffer)
                data, sender = await receive(there)
                assert data == payload
                there.sendto(payload, sender)
                await until(lambda: made.box.received, "the answer")
                expected = (TARGET[version], port_of(there), payload)
                assert made.box.received.pop() == expected
            assert len(made.maker.made) == 1
            near.close()
            near.close()
            assert made.maker.made[0].fileno() == -1
            assert made.direct.counters == {}


@VERSIONS
@both_loops
async def test_one_port_for_all_and_everybody_is_heard(version: int) -> None:
    """RFC 4787 REQ-1 and REQ-8; a name is what it was sent to as."""
    async with setup() as made:
        made.resolver.names[NAME] = [TARGET[version]]
        near = made.direct.open(made.box, version=version)
        with far(version) as one, far(version) as two, far(version, STRANGER[version]) as third:
            near.send(NAME, port_of(one), b"x")
            near.send(TARGET[version], port_of(two), b"x")
            (_, mapped), (_, again) = await receive(one), await receive(two)
            assert mapped == again
            for sock in (one, two, third):
                sock.sendto(b"hello", mapped)
            await made.box.wait(3)
            assert set(made.box.received) == {
                (NAME, port_of(one), b"hello"),
                (TARGET[version], port_of(two), b"hello"),
                (STRANGER[version], port_of(third), b"hello"),
            }
            near.close()


@both_loops
async def test_names_in_the_family_that_was_asked_for() -> None:
    """If there is any; each family has a socket, and a name is asked for once."""
    async with setup() as made:
        made.resolver.names = {"both": [TARGET[6], TARGET[4]], "six": [TARGET[6]]}
        near = made.direct.open(made.box, version=4)
        with far(4) as four, far(6) as six:
            for _ in range(2):
                near.send("both", port_of(four), b"4")
                near.send("six", port_of(six), b"6")
            assert await payloads(four, 2) == [b"4", b"4"]
            assert await payloads(six, 2) == [b"6", b"6"]
            assert len(made.maker.made) == 2
            assert sorted(made.resolver.asked) == ["both", "six"]
            near.close()


@both_loops
async def test_a_machine_without_ipv6_takes_the_other_address() -> None:
    async with setup() as made:
        made.resolver.names = {"both": [NOWHERE[6], TARGET[4]], "six": [NOWHERE[6]]}
        near = made.direct.open(made.box, version=6)
        with far(4) as four:
            near.send("both", port_of(four), b"4")
            near.send("six", 9, b"6")
            await made.box.wait(1)
            assert await payloads(four, 1) == [b"4"]
            assert made.box.errors == [("six", 9, DatagramError.HOST_UNREACHABLE, None)]
            near.send("both", port_of(four), b"again")
            assert await payloads(four, 1) == [b"again"]
            near.close()


@both_loops
async def test_what_no_name_is_cannot_be_reached() -> None:
    async with setup() as made:
        near = made.direct.open(made.box, version=4)
        near.send("no.example", 9, b"x")
        await made.box.wait(1)
        assert made.box.errors == [("no.example", 9, DatagramError.HOST_UNREACHABLE, None)]
        assert made.direct.counters == {"direct_no_address": 1}
        near.close()


@VERSIONS
@both_loops
async def test_errors_are_told_of_their_target(version: int) -> None:
    """And of no other; they end nothing."""
    async with setup() as made:
        made.resolver.names[NAME] = [TARGET[version]]
        near = made.direct.open(made.box, version=version)
        with far(version) as there:
            closed = port_of(there) % 0xFFFF + 1
            for count in (1, 2):
                near.send(NAME, closed, b"x")
                await made.box.wait(count)
            near.send(GONE[version], 9, b"x")
            await made.box.wait(3)
            near.send(NOWHERE[version], 9, b"x")
            await made.box.wait(4)
            assert made.box.errors == [
                (NAME, closed, DatagramError.PORT_UNREACHABLE, None),
                (NAME, closed, DatagramError.PORT_UNREACHABLE, None),
                (GONE[version], 9, DatagramError.HOST_UNREACHABLE, None),
                (NOWHERE[version], 9, DatagramError.HOST_UNREACHABLE, None),
            ]
            near.send(NAME, port_of(there), b"still here")
            assert await payloads(there, 1) == [b"still here"]
            near.close()


@VERSIONS
@both_loops
async def test_an_error_does_not_take_a_later_datagram_with_it(version: int) -> None:
    """The kernel reports it in place of sending."""
    async with setup() as made:
        near = made.direct.open(made.box, version=version)
        with far(version) as there:
            near.send(TARGET[version], port_of(there), b"first")
            assert await payloads(there, 1) == [b"first"]
            closed = port_of(there) % 0xFFFF + 1
            for _ in range(5):
                near.send(TARGET[version], closed, b"x")
                near.send(TARGET[version], port_of(there), b"y")
            await made.box.wait(5)
            assert await payloads(there, 5) == [b"y"] * 5
            kinds = {(port, kind) for _, port, kind, _ in made.box.errors}
            assert kinds == {(closed, DatagramError.PORT_UNREACHABLE)}
            near.close()


@VERSIONS
@both_loops
async def test_what_must_not_be_fragmented(version: int) -> None:
    async with setup() as made:
        near = made.direct.open(made.box, version=version)
        with far(version) as there:
            port = port_of(there)
            near.send(TARGET[version], port, bytes(3000), whole=True)
            await made.box.wait(1)
            assert made.box.errors == [(TARGET[version], port, DatagramError.TOO_BIG, MTU)]
            near.send(TARGET[version], port, bytes(3000))
            near.send(TARGET[version], port, bytes(1000), whole=True)
            assert [len(payload) for payload in await payloads(there, 2)] == [3000, 1000]
            near.close()


@both_loops
async def test_while_a_socket_is_made_some_datagrams_wait() -> None:
    async with setup() as made:
        made.maker.gate.clear()
        near = made.direct.open(made.box, version=4)
        with far(4) as there:
            for number in range(direct_datagrams.MAX_WAITING + 2):
                near.send(TARGET[4], port_of(there), b"%d" % number)
            await turns(3)
            made.maker.gate.set()
            expected = [b"%d" % number for number in range(2, direct_datagrams.MAX_WAITING + 2)]
            assert await payloads(there, len(expected)) == expected
            assert made.direct.counters == {"direct_waiting": 2}
            near.close()


@both_loops
async def test_long_datagrams_do_not_wait_in_numbers() -> None:
    async with setup() as made:
        made.maker.gate.clear()
        near = made.direct.open(made.box, version=4)
        for _ in range(3):
            near.send(TARGET[4], 9, bytes(40_000))
        assert made.direct.counters == {"direct_waiting": 2}
        near.close()


@both_loops
async def test_so_many_sockets_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_datagrams, "MAX_MAKING", 1)
    async with setup() as made:
        made.maker.gate.clear()
        first, second = (made.direct.open(made.box, version=4) for _ in range(2))
        with far(4) as there:
            for payload in (b"a", b"b"):
                first.send(TARGET[4], port_of(there), payload)
                second.send(TARGET[4], port_of(there), b"dropped")
            assert made.direct.counters == {"direct_waiting": 2}
            made.maker.gate.set()
            assert await payloads(there, 2) == [b"a", b"b"]
            await turns(3)
            second.send(TARGET[4], port_of(there), b"c")
            assert await payloads(there, 1) == [b"c"]
        first.close()
        second.close()


@both_loops
async def test_a_socket_that_cannot_be_made() -> None:
    """Each datagram that has waited is an error, and the next one tries again."""
    async with setup() as made:
        made.maker.error = OSError(errno.EAFNOSUPPORT, "no")
        near = made.direct.open(made.box, version=4)
        for _ in range(2):
            near.send(TARGET[4], 9, b"x")
        await made.box.wait(2)
        error = (TARGET[4], 9, DatagramError.HOST_UNREACHABLE, None)
        assert made.box.errors == [error, error]
        assert made.direct.counters == {"direct_no_socket": 1, "direct_failed": 2}
        made.maker.error = None
        with far(4) as there:
            near.send(TARGET[4], port_of(there), b"x")
            assert await payloads(there, 1) == [b"x"]
        near.close()


@both_loops
async def test_who_is_closed_meanwhile_is_told_nothing() -> None:
    async with setup() as made:
        made.maker.gate.clear()
        made.resolver.names[NAME] = [TARGET[4]]
        boxes = [Box() for _ in range(3)]
        sockets = [made.direct.open(box, version=4) for box in boxes]
        sockets[0].send(TARGET[4], 9, b"its socket is being made")
        sockets[1].send(NAME, 9, b"its name is looked up")
        sockets[2].send("no.example", 9, b"there is no such name")
        await turns(1)
        for sock in sockets:
            sock.close()
            sock.send(TARGET[4], 9, b"never")
        made.maker.gate.set()
        await until(lambda: len(made.maker.made) == 2, "the late sockets")
        await turns(5)
        assert [sock.fileno() for sock in made.maker.made] == [-1, -1]
        assert [(box.received, box.errors) for box in boxes] == [([], [])] * 3


@both_loops
async def test_there_is_a_bound_for_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was forgotten is a stranger; nothing is lost but the name."""
    monkeypatch.setattr(direct_datagrams, "MAX_TARGETS", 1)
    async with setup() as made:
        made.resolver.names[NAME] = [TARGET[4]]
        near = made.direct.open(made.box, version=4)
        with far(4) as one, far(4) as two:
            near.send(NAME, port_of(one), b"x")
            near.send(NAME, port_of(two), b"x")
            for sock in (one, two):
                sock.sendto(b"hello", (await receive(sock))[1])
            await made.box.wait(2)
            assert set(made.box.received) == {
                (TARGET[4], port_of(one), b"hello"),
                (NAME, port_of(two), b"hello"),
            }
            near.send(NAME, port_of(one), b"again")
            assert await payloads(one, 1) == [b"again"]
            near.close()


@both_loops
async def test_what_the_kernel_has_no_room_for_is_counted() -> None:
    async with setup() as made:
        near = made.direct.open(made.box, version=4)
        with far(4) as there:
            near.send(TARGET[4], port_of(there), b"x")
            _, mapped = await receive(there)
            for _ in range(100):
                there.sendto(bytes(60_000), mapped)
            near.close()
            assert made.direct.counters["direct_dropped_kernel"] > 0
