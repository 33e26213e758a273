"""Sockets of the kernel in place of our own endpoints: a real engine, a relay with upstreams that a
test controls, and real connections over the loopback.

The translation is left out: a mapping's place is the address that the client's socket has.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import ipaddress
import logging
import socket
import struct
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.helpers.aio import both_loops, turns, until
from tests.helpers.engine_dialogue import (
    REAL4,
    REAL6,
    RESOLVER4,
    RST,
    Dialogue,
    Initiator,
    datagram,
    pinned,
    query,
)
from tests.helpers.fake_upstream import FakeNames, FakeStream, FakeUpstream
from tunproxy.app import kernelstack
from tunproxy.app.kernelstack import BACKLOG_HIGH, BACKLOG_LOW, SEND_HIGH, KernelStack
from tunproxy.app.relay import Relay
from tunproxy.errors import OpenFailed, Refusal
from tunproxy.flow.events import FlowClosed
from tunproxy.flow.nat import Mapping, NatTable, Place
from tunproxy.flow.translator import Translator

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Self

    from tests.helpers.fake_upstream import Opening
    from tunproxy.app.relay import Ways
    from tunproxy.flow.table import Flow

READ_MAX = 256 << 10
"""Octets that an event loop may read at once, after it was told to pause."""
MANY = 200


class ChosenPlaces(NatTable):
    """Places that the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: dict[int, Place] = {}
        """By the port of the initiator."""

    def allocate(self, flow: Flow, now: float) -> Mapping | None:
        place = self.chosen.pop(flow.src_port)
        mapping = self._by_place[place] = Mapping(place, flow, now)
        return mapping


class Listener(socket.socket):
    """A listening socket that can be told to fail."""

    def __init__(self, family: int, address: str) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self.bind((address, 0))
        self.listen(MANY)
        self.setblocking(False)
        self.failures: list[int] = []
        self.accepts = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.accepts += 1
        if self.failures:
            raise OSError(self.failures.pop(), "told to fail")
        return super().accept()

    @property
    def place(self) -> Place:
        host, port = self.getsockname()[:2]
        return Place(ipaddress.ip_address(host).packed, port)


class FakeWays:
    def __init__(self) -> None:
        self.proxy = FakeUpstream()
        self.direct = FakeUpstream()
        self.names = FakeNames()


class Connection:
    """A client's socket, and what the test holds of its target."""

    def __init__(self, client: socket.socket, opening: Opening, flow: int) -> None:
        self.client = client
        self.opening = opening
        self.handler = opening.handler
        self.flow = flow
        self.stream = FakeStream()


class Setup:
    """Everything but the TUN and the upstreams; :meth:`wake` is the driver's."""

    def __init__(self) -> None:
        self.nat = ChosenPlaces()
        self.listeners = [Listener(socket.AF_INET, "127.0.0.1"), Listener(socket.AF_INET6, "::1")]
        self.places = {len(listener.place.address): listener.place for listener in self.listeners}
        """Of the families that the kernel's stack can have."""
        self.dialogue = Dialogue(translator=Translator(self.nat, self.places))
        self.engine = self.dialogue.engine
        self.ways = FakeWays()
        self.closed: list[FlowClosed] = []
        self._due: asyncio.Handle | None = None
        self._sockets = contextlib.ExitStack()
        self._src_port = 30_000

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sockets.close()

    def start(self) -> None:
        """Begin to accept, on the running loop."""
        self.loop = asyncio.get_running_loop()
        self.stack = KernelStack(self.engine, self.listeners, self.loop)
        self.relay = Relay(self.engine, cast("Ways", self.ways), self.stack)
        self.stack.relay = self.relay
        self.stack.wake = self.relay.wake = self.wake
        self.stack.start()

    @property
    def counters(self) -> dict[str, int]:
        return dict(self.engine.counters)

    def wake(self) -> None:
        if self._due is None:
            self._due = self.loop.call_soon(self.flush)

    def flush(self) -> None:
        self._due = None
        self.dialogue.sent()
        for event in self.dialogue.events():
            if isinstance(event, FlowClosed):
                self.closed.append(event)
            self.stack.handle(event)

    async def ask(self, version: int = 4) -> Connection:
        """A client wants to connect; its SYN is held."""
        listener = self.listeners[version == 6]
        client = self._sockets.enter_context(socket.socket(listener.family, socket.SOCK_STREAM))
        client.setblocking(False)
        client.bind((listener.getsockname()[0], 0))
        host, port = client.getsockname()[:2]
        self._src_port += 1
        self.nat.chosen[self._src_port] = Place(ipaddress.ip_address(host).packed, port)
        initiator = Initiator(
            self.dialogue, REAL4 if version == 4 else REAL6, src_port=self._src_port
        )
        initiator.syn()
        flow = next(reversed(self.engine.table.by_id))
        self.flush()
        await turns(2)
        return Connection(client, self.ways.proxy.streams[-1], flow)

    async def reach(self, version: int = 4) -> Connection:
        """Its target is reached, and the kernel may see the SYN."""
        connection = await self.ask(version)
        connection.opening.result.set_result(connection.stream)
        await turns(5)
        return connection

    async def connect(self, connection: Connection) -> None:
        """What the kernel does then."""
        listener = self.listeners[connection.client.family == socket.AF_INET6]
        await self.loop.sock_connect(connection.client, listener.getsockname()[:2])

    async def establish(self, version: int = 4) -> Connection:
        connection = await self.reach(version)
        await self.connect(connection)
        await until(lambda: self.is_adopted(connection), "the socket to be accepted")
        return connection

    def mapping(self, connection: Connection) -> Mapping | None:
        return self.engine.table.by_id[connection.flow].mapping

    def is_adopted(self, connection: Connection) -> bool:
        side = self.stack._sides.get(connection.flow)
        return side is not None and side._transport is not None

    async def read(self, connection: Connection) -> bytes:
        """All that the client gets, to the end."""
        found = b""
        while data := await self.loop.sock_recv(connection.client, 1 << 20):
            found += data
        return found

    async def ended(self, connection: Connection, *, reset: bool) -> None:
        """Wait for the end of the flow, which is told once."""
        await until(lambda: connection.flow in [each.flow for each in self.closed], "the end")
        assert [each for each in self.closed if each.flow == connection.flow] == [
            FlowClosed(connection.flow, reset=reset)
        ]
        assert connection.flow not in self.stack._sides
        assert connection.flow not in self.relay._flows

    async def close(self) -> None:
        """In the order of the session."""
        await self.relay.close()
        await self.stack.close()
        assert len(self.stack._tasks) == 0
        await until(lambda: not self.stack._sides, "the sockets to be closed")


@pytest.fixture
def setup() -> Iterator[Setup]:
    with Setup() as made:
        yield made
    # Sockets that nobody has closed are warned of when they are collected, which is an error here.
    gc.collect()


def stacked(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Decorate a test: it runs on both event loops, and all is closed in the end."""

    @functools.wraps(test)
    async def closing(setup: Setup, **kwargs: Any) -> None:
        setup.start()
        try:
            await test(setup, **kwargs)
        finally:
            await setup.close()

    return both_loops(closing)


def reset_by_close(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def assert_reset(setup: Setup, connection: Connection) -> None:
    with pytest.raises(ConnectionResetError):
        await setup.loop.sock_recv(connection.client, 1)


# --- open -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
@stacked
async def test_data_goes_both_ways(setup: Setup, version: int) -> None:
    connection = await setup.establish(version)
    await setup.loop.sock_sendall(connection.client, b"request")
    await until(lambda: connection.stream.written == b"request", "the request")
    connection.handler.data_received(b"response")
    assert await setup.loop.sock_recv(connection.client, 100) == b"response"
    (flow,) = setup.engine.flows()
    assert (flow.bytes_up, flow.bytes_down) == (7, 8)
    assert setup.counters == {}


@stacked
async def test_a_refusal_needs_no_socket(setup: Setup) -> None:
    connection = await setup.ask()
    connection.opening.result.set_exception(OpenFailed(Refusal.REFUSED, "no"))
    await setup.ended(connection, reset=True)
    assert not setup.stack._sides


@stacked
async def test_the_target_may_speak_first(setup: Setup) -> None:
    """Its words wait for the socket, and no more of them are asked for."""
    connection = await setup.reach()
    connection.handler.data_received(b"220 ")
    connection.handler.data_received(b"hello")
    assert connection.stream.pauses == 2
    assert connection.stream.resumes == 0
    await setup.connect(connection)
    assert await setup.loop.sock_recv(connection.client, 4) == b"220 "
    assert await setup.loop.sock_recv(connection.client, 100) == b"hello"
    assert connection.stream.resumes == 1


@stacked
async def test_the_target_may_have_said_all_before(setup: Setup) -> None:
    connection = await setup.reach()
    connection.handler.data_received(b"go away")
    connection.handler.eof_received()
    await setup.connect(connection)
    assert await setup.read(connection) == b"go away"
    await setup.loop.sock_sendall(connection.client, b"why?")
    connection.client.shutdown(socket.SHUT_WR)
    await setup.ended(connection, reset=False)
    assert connection.stream.written == b"why?"
    assert connection.stream.eof_written


@stacked
async def test_much_that_was_said_before_is_paused_until_it_is_taken(setup: Setup) -> None:
    connection = await setup.reach()
    connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    said = bytes(24 << 20)
    connection.handler.data_received(said)
    await setup.connect(connection)
    await until(lambda: setup.is_adopted(connection), "the socket to be accepted")
    await turns(20)
    assert connection.stream.resumes == 0
    connection.handler.eof_received()
    assert await setup.read(connection) == said
    assert connection.stream.resumes == 1


@stacked
async def test_a_stranger_is_reset(setup: Setup) -> None:
    with socket.socket() as stranger:
        stranger.setblocking(False)
        with contextlib.suppress(ConnectionResetError):
            await setup.loop.sock_connect(stranger, setup.listeners[0].getsockname())
            assert await setup.loop.sock_recv(stranger, 1) == b"a reset"
    assert setup.counters == {"accept_unknown": 1}


@stacked
async def test_the_target_is_lost_before_the_socket_is_there(setup: Setup) -> None:
    """The flow ends at once, and who completes the handshake is reset."""
    connection = await setup.reach()
    connection.handler.data_received(b"never seen")
    connection.handler.connection_lost(reset=True)
    await setup.ended(connection, reset=True)
    with contextlib.suppress(ConnectionResetError):
        await setup.connect(connection)
        assert await setup.loop.sock_recv(connection.client, 1) == b"a reset"
    assert setup.counters == {"accept_unknown": 1}
    assert setup.engine.bytes_down == len(b"never seen")


@stacked
async def test_the_target_is_lost_while_the_socket_is_adopted(setup: Setup) -> None:
    connection = await setup.reach()
    await setup.connect(connection)
    for listener in setup.listeners:
        setup.loop.remove_reader(listener.fileno())
    setup.stack._accept_some(setup.listeners[0])
    assert not setup.is_adopted(connection)
    connection.handler.connection_lost(reset=True)
    connection.handler.data_received(b"ignored")
    await setup.ended(connection, reset=True)
    await assert_reset(setup, connection)
    assert setup.counters == {}


@stacked
async def test_the_initiator_is_gone_before_the_socket_is_there(setup: Setup) -> None:
    connection = await setup.reach()
    initiator = Initiator(setup.dialogue, REAL4, src_port=30_001)
    initiator.send(RST, seq=initiator.snd_nxt + 1)
    setup.flush()
    await setup.ended(connection, reset=True)
    assert connection.stream.aborted


@stacked
async def test_many_at_once(setup: Setup) -> None:
    connections = [await setup.reach(6 if n % 2 else 4) for n in range(MANY)]
    await asyncio.gather(*(setup.connect(connection) for connection in connections))
    for number, connection in enumerate(connections):
        connection.handler.data_received(b"%d down" % number)
        connection.handler.eof_received()

    async def talk(number: int, connection: Connection) -> None:
        await setup.loop.sock_sendall(connection.client, b"%d up" % number)
        connection.client.shutdown(socket.SHUT_WR)
        assert await setup.read(connection) == b"%d down" % number
        await setup.ended(connection, reset=False)
        assert connection.stream.written == b"%d up" % number

    await asyncio.gather(*(talk(*pair) for pair in enumerate(connections)))
    assert not setup.stack._sides
    assert setup.counters == {}
    assert pinned(setup.dialogue.pools) == 0


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOBUFS])
@stacked
async def test_there_are_no_descriptors(
    setup: Setup, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those who wait are accepted later, and somebody is told; meanwhile nothing spins."""
    monkeypatch.setattr(kernelstack, "ACCEPT_PAUSE_S", 0.05)
    connection = await setup.reach()
    listener = setup.listeners[0]
    listener.failures = [number]
    await setup.connect(connection)
    await until(lambda: setup.counters, "the failure")
    assert setup.counters == {"accept_failed": 1}
    await turns(20)
    assert listener.accepts == 1
    listener.failures = [number]
    await until(lambda: setup.is_adopted(connection), "the socket to be accepted")
    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "limit of open files" in line.getMessage()


@stacked
async def test_no_descriptors_at_the_end(setup: Setup) -> None:
    connection = await setup.reach()
    setup.listeners[0].failures = [errno.EMFILE]
    await setup.connect(connection)
    await until(lambda: setup.counters, "the failure")
    await setup.stack.close()
    assert all(pause.cancelled() for pause in setup.stack._pauses.values())


@stacked
async def test_one_that_is_aborted_in_the_queue_does_not_stop_the_others(setup: Setup) -> None:
    connection = await setup.reach()
    setup.listeners[0].failures = [errno.ECONNABORTED]
    await setup.connect(connection)
    await until(lambda: setup.is_adopted(connection), "the socket to be accepted")
    assert setup.counters == {"accept_failed": 1}


# --- waiting at the door --------------------------------------------------------------------------


async def crowd(setup: Setup) -> list[Connection]:
    """One more connection than may be let in."""
    connections = [await setup.reach() for _ in range(MANY // 2 + 1)]
    mappings = [setup.mapping(connection) for connection in connections]
    assert None not in mappings[:-1]
    assert mappings[-1] is None
    return connections


@stacked
async def test_no_more_are_let_in_than_the_kernel_can_remember(setup: Setup) -> None:
    *first, last = await crowd(setup)
    await setup.connect(first[0])
    await until(lambda: setup.mapping(last) is not None, "the last to be let in")
    await asyncio.gather(*(setup.connect(connection) for connection in [*first[1:], last]))
    await until(lambda: setup.is_adopted(last), "the socket to be accepted")
    assert setup.counters == {}


@stacked
async def test_a_refused_one_makes_room(setup: Setup) -> None:
    *first, last = await crowd(setup)
    first[0].handler.connection_lost(reset=True)
    await setup.ended(first[0], reset=True)
    assert setup.mapping(last) is not None


@stacked
async def test_what_is_said_at_the_door_is_kept(setup: Setup) -> None:
    *first, last = await crowd(setup)
    last.handler.data_received(b"220 hello")
    last.handler.eof_received()
    assert last.stream.pauses == 1
    await setup.connect(first[0])
    await until(lambda: setup.mapping(last) is not None, "the last to be let in")
    await setup.connect(last)
    assert await setup.read(last) == b"220 hello"


@stacked
async def test_the_target_is_lost_at_the_door(setup: Setup) -> None:
    *first, last = await crowd(setup)
    last.handler.connection_lost(reset=True)
    await setup.ended(last, reset=True)
    assert last.flow not in setup.engine.table.by_id
    await setup.connect(first[0])
    await until(lambda: setup.is_adopted(first[0]), "the socket to be accepted")


@stacked
async def test_the_initiator_gives_up_at_the_door(setup: Setup) -> None:
    *_, last = await crowd(setup)
    setup.engine.refuse(last.flow, Refusal.UNREACHABLE, setup.dialogue.now)
    setup.flush()
    await setup.ended(last, reset=True)
    assert last.stream.aborted


# --- ends -----------------------------------------------------------------------------------------


@stacked
async def test_the_client_closes_its_half_first(setup: Setup) -> None:
    connection = await setup.establish()
    await setup.loop.sock_sendall(connection.client, b"the end")
    connection.client.shutdown(socket.SHUT_WR)
    await until(lambda: connection.stream.eof_written, "the end")
    assert connection.stream.written == b"the end"
    assert not setup.closed
    connection.handler.data_received(b"and an answer")
    connection.handler.eof_received()
    assert await setup.read(connection) == b"and an answer"
    await setup.ended(connection, reset=False)
    assert not connection.stream.aborted


@stacked
async def test_the_target_closes_its_half_first(setup: Setup) -> None:
    connection = await setup.establish()
    connection.handler.data_received(b"the end")
    connection.handler.eof_received()
    assert await setup.read(connection) == b"the end"
    assert not setup.closed
    await setup.loop.sock_sendall(connection.client, b"and an answer")
    connection.client.shutdown(socket.SHUT_WR)
    await setup.ended(connection, reset=False)
    assert connection.stream.written == b"and an answer"
    assert connection.stream.eof_written
    assert not connection.stream.aborted


@stacked
async def test_what_is_still_to_be_sent_goes_before_the_end(setup: Setup) -> None:
    connection = await setup.establish()
    said = bytes(range(256)) * (96 << 10)
    connection.client.shutdown(socket.SHUT_WR)
    await until(lambda: connection.stream.eof_written, "the end")
    connection.handler.data_received(said)
    connection.handler.eof_received()
    connection.handler.connection_lost(reset=False)
    await turns(5)
    assert not setup.closed
    assert await setup.read(connection) == said
    await setup.ended(connection, reset=False)


@stacked
async def test_a_client_that_resets(setup: Setup) -> None:
    connection = await setup.establish()
    reset_by_close(connection.client)
    await setup.ended(connection, reset=True)
    assert connection.stream.aborted


@stacked
async def test_a_client_that_is_gone_resets_what_it_is_sent(setup: Setup) -> None:
    connection = await setup.establish()
    connection.client.close()
    await until(lambda: connection.stream.eof_written, "the end of its half")

    def speak() -> bool:
        connection.handler.data_received(b"anybody there?")
        return bool(setup.closed)

    await until(speak, "the reset")
    await setup.ended(connection, reset=True)
    assert connection.stream.aborted


@stacked
async def test_a_target_that_resets(setup: Setup) -> None:
    connection = await setup.establish()
    connection.handler.connection_lost(reset=True)
    await assert_reset(setup, connection)
    await setup.ended(connection, reset=True)


@stacked
async def test_a_flow_that_the_engine_forgets(setup: Setup) -> None:
    connection = await setup.establish()
    setup.engine.refuse(connection.flow, Refusal.UNREACHABLE, setup.dialogue.now)
    setup.flush()
    await assert_reset(setup, connection)
    await setup.ended(connection, reset=True)
    assert connection.stream.aborted


@stacked
async def test_close_resets_all(setup: Setup) -> None:
    early, late = await setup.establish(), await setup.reach()
    address = setup.listeners[0].getsockname()
    await setup.stack.close()
    await setup.stack.close()
    await assert_reset(setup, early)
    with pytest.raises(ConnectionRefusedError):
        await setup.loop.sock_connect(late.client, address)


# --- back-pressure --------------------------------------------------------------------------------


@stacked
async def test_a_client_that_does_not_read_pauses_its_target(setup: Setup) -> None:
    connection = await setup.establish()
    connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    block, sent = bytes(64 << 10), 0
    while not connection.stream.pauses:
        connection.handler.data_received(block)
        sent += len(block)
        await turns(2)
        assert sent < 64 << 20
    side = setup.stack._sides[connection.flow]
    assert side._transport is not None
    assert side._transport.get_write_buffer_size() <= SEND_HIGH + len(block)
    assert connection.stream.resumes == 0
    connection.handler.eof_received()
    assert len(await setup.read(connection)) == sent
    assert connection.stream.resumes == 1


@stacked
async def test_a_target_that_does_not_read_fills_the_socket(setup: Setup) -> None:
    connection = await setup.establish()
    stream = connection.stream
    stream.keep = True
    sending = setup.loop.create_task(
        setup.loop.sock_sendall(connection.client, bytes(32 << 20)), name="send"
    )
    await until(lambda: stream.backlog >= BACKLOG_HIGH, "the backlog")
    taken = stream.backlog
    assert taken < BACKLOG_HIGH + READ_MAX
    await turns(50)
    assert stream.backlog <= taken + READ_MAX
    stream.backlog = BACKLOG_LOW + 1
    connection.handler.backlog_changed()
    await turns(50)
    assert stream.backlog == BACKLOG_LOW + 1
    stream.keep, stream.backlog = False, BACKLOG_LOW
    connection.handler.backlog_changed()
    await until(lambda: len(stream.written) == 32 << 20, "the rest")
    await sending


# --- what is not ours -----------------------------------------------------------------------------


@stacked
async def test_datagrams_and_names_are_the_engines(setup: Setup) -> None:
    setup.dialogue.feed(datagram(RESOLVER4, query("www.example.com", "MX"), port=53))
    setup.flush()
    await turns(3)
    ((message, answer),) = setup.ways.names.remote.asked
    assert message[12:] == query("www.example.com", "MX")[12:]
    answer.set_result(None)
    await turns(5)
    assert not setup.stack._sides


@stacked
async def test_a_flow_without_a_mapping_is_the_engines(setup: Setup) -> None:
    setup.places.clear()
    initiator = Initiator(setup.dialogue, REAL4)
    initiator.syn()
    setup.flush()
    await turns(2)
    opening = setup.ways.proxy.streams[-1]
    opening.result.set_result(FakeStream())
    await turns(3)
    assert setup.stack._sides == {}
    assert setup.stack.send(1, b"data")
    setup.stack.set_backlog(1, 0)
    setup.stack.send_eof(1)
    (flow,) = setup.engine.flows()
    assert flow.bytes_down == 4
    setup.stack.abort(1)
    setup.flush()
    assert [each.reset for each in setup.closed] == [True]
