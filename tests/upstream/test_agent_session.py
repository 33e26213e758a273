"""One run of the agent's program, whose place the test takes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import struct
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import both_loops
from tests.helpers.datagram_box import Box, EchoBox
from tunproxy.errors import ServerError
from tunproxy.upstream import agent_frames as wire
from tunproxy.upstream import agent_session
from tunproxy.upstream.agent import Agent, AgentUnavailable
from tunproxy.upstream.relay_batch import MAX_BACKLOG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tunproxy.upstream.base import Buffer, PipeHandler


class FakePipe:
    """The program's place, taken by the test."""

    def __init__(self) -> None:
        self.backlog = 0
        self.written = b""
        self.writes = 0
        self.closed = False
        self.handler: PipeHandler

    async def start(self, command: str, handler: PipeHandler) -> FakePipe:
        assert command.startswith("exec sh -c '")
        self.handler = handler
        handler.data_received(b"TUNPROXY-AGENT 1 udp4 ping4\n")
        return self

    def write(self, data: Buffer) -> None:
        self.written += data
        self.writes += 1

    def close(self) -> None:
        self.closed = True

    def frames(self) -> list[tuple[int, bytes]]:
        """What was sent since the last time."""
        octets, self.written = self.written, b""
        found = []
        while octets:
            length, kind = struct.unpack_from(">IB", octets)
            found.append((kind, octets[5 : 4 + length]))
            octets = octets[4 + length :]
        return found

    def say(self, *frames: tuple[int, bytes]) -> None:
        octets = b"".join(wire.frame(kind, body) for kind, body in frames)
        self.handler.data_received(octets)


@contextlib.asynccontextmanager
async def faked() -> AsyncIterator[tuple[Agent, FakePipe]]:
    pipe = FakePipe()
    agent = Agent(pipe.start)
    await agent.start()
    pipe.written, pipe.writes = b"", 0
    yield agent, pipe
    agent.close()
    assert pipe.closed


@pytest.fixture
def _few_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_session, "MAX_TARGETS", 2)


@both_loops
async def test_one_write_for_one_turn() -> None:
    async with faked() as (agent, pipe):
        assert agent.features == {"udp4", "ping4"}
        sock = agent.open(Box())
        for number in range(100):
            sock.send("192.0.2.1", 9, b"%d" % number)
        assert pipe.writes == 0
        await asyncio.sleep(0)
        assert pipe.writes == 1
        kinds = [kind for kind, _ in pipe.frames()]
        assert kinds == [wire.OPEN, wire.TARGET] + [wire.DATA] * 100
        sock.send("192.0.2.1", 9, b"x", whole=True)
        await asyncio.sleep(0)
        assert [kind for kind, _ in pipe.frames()] == [wire.DATA_WHOLE]


@both_loops
async def test_what_is_sent_is_copied() -> None:
    async with faked() as (agent, pipe):
        buffer = bytearray(b"first")
        sock = agent.open(Box())
        sock.send("192.0.2.1", 9, memoryview(buffer))
        buffer[:] = b"other"
        await asyncio.sleep(0)
        assert pipe.frames()[-1][1].endswith(b"first")


@both_loops
async def test_backlog_is_bounded() -> None:
    """Nothing is added to a pipe that does not drain, not even new targets."""
    async with faked() as (agent, pipe):
        sock = agent.open(Box())
        for number in range(1000):
            sock.send("192.0.2.1", number, bytes(1200))
        await asyncio.sleep(0)
        assert 500_000 < len(pipe.written) < MAX_BACKLOG + 50_000
        pipe.backlog = len(pipe.written)
        sent = len(pipe.frames())
        for number in range(1000):
            sock.send("192.0.2.2", number, bytes(40_000))
            agent.open(Box()).send("192.0.2.3", number, bytes(40_000))
        await asyncio.sleep(0)
        assert not pipe.frames()
        assert agent.counters["agent_full"] == 3000 - (sent - 1) // 2
        pipe.backlog = 0
        sock.send("192.0.2.1", 1, b"x")
        await asyncio.sleep(0)
        assert len(pipe.frames()) == 1


@pytest.mark.usefixtures("_few_targets")
@both_loops
async def test_targets_are_forgotten() -> None:
    async with faked() as (agent, pipe):
        box = Box()
        sock = agent.open(box)
        for host in ("a.example", "b.example", "a.example", "c.example"):
            sock.send(host, 9, b"x")
        await asyncio.sleep(0)
        frames = pipe.frames()
        defined = {body[6:]: body[:4] for kind, body in frames if kind == wire.TARGET}
        assert [body for kind, body in frames if kind == wire.FORGET] == [defined[b"b.example"]]
        source = frames[0][1]
        pipe.say((wire.RECEIVED, source + defined[b"a.example"] + b"from a"))
        pipe.say((wire.RECEIVED, source + defined[b"b.example"] + b"from b"))
        assert box.received == [("a.example", 9, b"from a")]
        assert agent.counters == {"agent_late": 1}


@both_loops
async def test_frames_in_any_pieces() -> None:
    async with faked() as (agent, pipe):
        box = Box()
        sock = agent.open(box)
        sock.send("192.0.2.1", 9, b"x")
        await asyncio.sleep(0)
        (_, source), (_, target), _ = pipe.frames()
        octets = b"".join(
            wire.frame(wire.RECEIVED, source + target[:4] + bytes(size)) for size in range(50)
        )
        for at in range(len(octets)):
            pipe.handler.data_received(octets[at : at + 1])
        assert box.received == [("192.0.2.1", 9, bytes(size)) for size in range(50)]


@both_loops
async def test_far_half_closes_a_source() -> None:
    """The next datagram opens it anew."""
    async with faked() as (agent, pipe):
        sock = agent.open(Box())
        sock.send("192.0.2.1", 9, b"x")
        await asyncio.sleep(0)
        first = pipe.frames()[0][1]
        pipe.say((wire.CLOSED, first), (wire.CLOSED, first))
        sock.send("192.0.2.1", 9, b"x")
        sock.close()
        await asyncio.sleep(0)
        frames = pipe.frames()
        assert [kind for kind, _ in frames] == [
            wire.OPEN,
            wire.DATA,
            wire.CLOSE,
        ]
        assert frames[0][1] == frames[2][1] != first


@both_loops
async def test_handler_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """It is a defect, and costs the others nothing."""

    class Broken(Box):
        def datagram_received(self, host: str, port: int, payload: bytes) -> None:
            raise RuntimeError("secret")

    async with faked() as (agent, pipe):
        box = Box()
        for handler in (Broken(), box):
            agent.open(handler).send("192.0.2.1", 9, b"x")
        await asyncio.sleep(0)
        frames = pipe.frames()
        sources = [body for kind, body in frames if kind == wire.OPEN]
        (target,) = [body[:4] for kind, body in frames if kind == wire.TARGET]
        pipe.say(*((wire.RECEIVED, source + target + b"y") for source in sources))
        assert box.received == [("192.0.2.1", 9, b"y")]
        assert agent.counters == {"agent_handler": 1}
        assert [record.levelno for record in caplog.records] == [logging.ERROR]


@both_loops
async def test_frames_that_make_no_sense() -> None:
    async with faked() as (agent, pipe):
        late = struct.pack(">II", 5, 6)
        pipe.say((99, b"from the future"), (wire.RECEIVED, late))
        pipe.say((wire.ECHO_REPLY, b"\0\0\0\1"))
        pipe.say((wire.RECEIVED_FROM, struct.pack(">IH16s", 5, 6, bytes(16))))
        pipe.say((wire.ERROR, struct.pack(">IIBIH16s", 5, 6, 1, 0, 0, bytes(16))))
        assert agent.counters == {"agent_unknown_frame": 1, "agent_late": 3}


@both_loops
async def test_echoes_that_nobody_answers_are_bounded() -> None:
    async with faked() as (agent, pipe):
        box = EchoBox()
        for _ in range(agent_session.MAX_ECHOES + 1):
            agent.echo(box.request("192.0.2.1"))
        await asyncio.sleep(0)
        echoes = [body for kind, body in pipe.frames() if kind == wire.ECHO]
        assert agent.counters == {"agent_echo_unanswered": 1}
        pipe.say((wire.ECHO_REPLY, echoes[0][:4] + b"old"))
        pipe.say((wire.ECHO_REPLY, echoes[1][:4] + b"new"))
        pipe.say((wire.ECHO_REPLY, echoes[1][:4] + b"twice"))
        assert box.replies == [b"new"]


@both_loops
async def test_report_of_a_program_that_ends() -> None:
    async with faked() as (agent, pipe):
        asking = asyncio.create_task(agent.report(), name="asking")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pipe.frames() == [(wire.REPORT, b"")]
        pipe.say((wire.COUNTERS, b'{"dropped_queue": 7}'))
        assert await asking == {"dropped_queue": 7}
        asking = asyncio.create_task(agent.report(), name="asking")
        await asyncio.sleep(0)
        pipe.handler.pipe_lost(None, "")
        assert await asking == {"dropped_queue": 7}
        await agent.start()


@both_loops
async def test_frame_that_is_too_long(caplog: pytest.LogCaptureFixture) -> None:
    """It is not waited for."""
    async with faked() as (agent, pipe):
        pipe.handler.data_received(struct.pack(">IB", wire.MAX_FRAME + 1, wire.RECEIVED))
        assert pipe.closed
        assert not agent.is_up
        assert "broken frame" in caplog.text
        agent.open(Box()).send("192.0.2.1", 9, b"x")
        assert agent.counters == {"agent_down": 1}
        pipe.handler.data_received(b"more")


@both_loops
async def test_pipe_that_ends_before_the_greeting() -> None:
    class Ending(FakePipe):
        async def start(self, command: str, handler: PipeHandler) -> FakePipe:
            handler.data_received(b"TUNPROXY-AG")
            handler.pipe_lost(1, "one\ntwo\n")
            return self

    with pytest.raises(AgentUnavailable, match="its Python ended with status 1: two"):
        await Agent(Ending().start).start()


@both_loops
async def test_pipe_that_ends_while_it_is_started() -> None:
    """The reason that is told is the one of who started it; the other leaves nothing behind."""

    class Failing(FakePipe):
        async def start(self, command: str, handler: PipeHandler) -> FakePipe:
            handler.pipe_lost(None, "")
            raise ServerError("no commands here")

    with pytest.raises(AgentUnavailable, match="no commands here"):
        await Agent(Failing().start).start()
    gc.collect()
