"""One run of the agent's program on the server, from this side.

``agent_program``, with its parts, is sent over an exec channel of the SSH connection and run by the
server's Python; it ends with the channel. Both halves exchange frames: four octets of length, one
of type, a body. All numbers are big-endian, and all of them are ours to choose:

- a *source* is the double of one local socket. OPEN makes one (and may say which version of IP a
  name's address should be of, an octet), CLOSE ends it; CLOSED says that the
  far half has done so, since it was silent or there were too many. It is then opened anew for its
  next datagram, as all are when the program had to be started again.
- a *target* is a host and a port that something is sent to. TARGET defines one, FORGET ends it. The
  far half looks names up, and says target for the address it has found: so an answer comes from
  the name that was sent to.

DATA and RECEIVED are a source, a target and a payload; RECEIVED_FROM has an address in place of
the target. What one turn of the loop sends leaves in one write. Nothing is sent before the program
has greeted: shells may print before that.

Limits. Datagrams are dropped while much has not left this process (``relay_batch``). The far half
bounds what waits on its side (see there); its counters are in :attr:`Agent.remote_counters`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import json
import logging
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING

from ..errors import ServerError
from . import agent_frames as frames
from .agent_bundle import BUNDLE, COMMAND, NO_PYTHON, OLD_PYTHON
from .base import DatagramError
from .relay_batch import Batch

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from .agent import AgentSocket
    from .base import Buffer, EchoRequest, Pipe, PipeHandler

    StartPipe: TypeAlias = Callable[[str, PipeHandler], Awaitable[Pipe]]

GREETING = b"TUNPROXY-AGENT 1 "
MAX_NOISE = 64 * 1024
"""What a login shell may print before."""

START_TIMEOUT_S = 20.0

MAX_TARGETS = 4096
MAX_ECHOES = 1024

KINDS = {
    frames.PORT_UNREACHABLE: DatagramError.PORT_UNREACHABLE,
    frames.HOST_UNREACHABLE: DatagramError.HOST_UNREACHABLE,
    frames.PROHIBITED: DatagramError.PROHIBITED,
    frames.TOO_BIG: DatagramError.TOO_BIG,
    frames.HOP_LIMIT: DatagramError.HOP_LIMIT,
}
_NUMBER = struct.Struct(">I")
_TARGET = struct.Struct(">IBIH")  # frame, target, port; the host follows
_ECHO = struct.Struct(">IBIIBB")  # frame, echo, target, hop limit, version; the payload follows
_ECHO_ERROR = struct.Struct(">IBI16s")  # echo, kind, MTU, who says so
_STRANGER = struct.Struct(">IH16s")  # source, port, address; the payload follows
_TROUBLE = struct.Struct(">IIBIH16s")  # source, target, kind, MTU, port, address

log = logging.getLogger(__name__)


class AgentUnavailable(ServerError):
    """The agent cannot run on this server, or not now; the text says why."""


class Session:
    """One run of the program on the server, and the handler of its pipe."""

    def __init__(self, counters: Counter[str], on_lost: Callable[[str], None]) -> None:
        """``on_lost`` is called with the reason when it ends by itself after it has started."""
        self.features: frozenset[str] = frozenset()
        self.remote_counters: dict[str, int] = {}
        self.batch: Batch
        """What is sent; from the start on."""
        self._counters = counters
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._reports: list[asyncio.Future[None]] = []
        self._pipe: Pipe | None = None
        self._rest = b""
        self._last_number = 0
        self._sources: dict[int, AgentSocket] = {}
        self._targets: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._by_number: dict[int, tuple[str, int]] = {}
        self._echoes: OrderedDict[int, EchoRequest] = OrderedDict()
        """Without their payloads."""

    async def start(self, start_pipe: StartPipe) -> None:
        """Run the program and wait for its greeting.

        Raises:
            AgentUnavailable: it does not greet; why.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                pipe = self._pipe = await start_pipe(COMMAND, self)
                self.batch = Batch(pipe, self._counters, "agent")
                pipe.write(BUNDLE)
                await self._greeted
        except TimeoutError:
            raise AgentUnavailable(
                f"the agent did not start on the server within {START_TIMEOUT_S:.0f} s: look at "
                f"its load, or choose another way for datagrams"
            ) from None
        except AgentUnavailable:
            raise
        except ServerError as error:
            raise AgentUnavailable(str(error)) from error

    def close(self) -> None:
        """End it; nobody is told."""
        if self._pipe is not None:
            self._pipe.close()
        self._forget()
        if self._greeted.done() and not self._greeted.cancelled():
            self._greeted.exception()  # so that asyncio knows that somebody has seen it

    # Sending

    def open(self, user: AgentSocket) -> int:
        """Open a source for ``user``; return its number."""
        number = self._new_number()
        self._sources[number] = user
        version = bytes([user.version]) if user.version else b""
        self.batch.add(frames.frame(frames.OPEN, _NUMBER.pack(number) + version))
        return number

    def close_source(self, number: int) -> None:
        if self._sources.pop(number, None) is not None:
            self.batch.add(frames.frame(frames.CLOSE, _NUMBER.pack(number)))

    def send(self, number: int, host: str, port: int, payload: Buffer, whole: bool) -> None:
        """Send a datagram from the source ``number``; ``batch.takes`` has said yes."""
        target = self._target(host, port)
        kind = frames.DATA_WHOLE if whole else frames.DATA
        self.batch.add(frames.DATAGRAM.pack(len(payload) + 9, kind, number, target), payload)

    def echo(self, request: EchoRequest) -> None:
        payload = request.payload
        if not self.batch.takes(len(payload)):
            return
        target = self._target(request.host, 0)
        if len(self._echoes) >= MAX_ECHOES:
            self._echoes.popitem(last=False)
            self._counters["agent_echo_unanswered"] += 1
        number = self._new_number()
        self._echoes[number] = dataclasses.replace(request, payload=b"")
        length = _ECHO.size - 4 + len(payload)
        hop_limit, version = request.hop_limit, request.version
        head = _ECHO.pack(length, frames.ECHO, number, target, hop_limit, version)
        self.batch.add(head, payload)

    async def report(self) -> None:
        """Wait for the far half's counters."""
        answer: asyncio.Future[None] = self._loop.create_future()
        self._reports.append(answer)
        self.batch.add(frames.frame(frames.REPORT, b""))
        await answer

    def _target(self, host: str, port: int) -> int:
        key = (host, port)
        number = self._targets.get(key)
        if number is not None:
            self._targets.move_to_end(key)
            return number
        if len(self._targets) >= MAX_TARGETS:
            _, old = self._targets.popitem(last=False)
            del self._by_number[old]
            self.batch.add(frames.frame(frames.FORGET, _NUMBER.pack(old)))
        number = self._new_number()
        self._targets[key] = number
        self._by_number[number] = key
        name = host.encode("utf-8", "replace")
        length = _TARGET.size - 4 + len(name)
        self.batch.add(_TARGET.pack(length, frames.TARGET, number, port), name)
        return number

    def _new_number(self) -> int:
        self._last_number = self._last_number % 0xFFFFFFFF + 1
        return self._last_number

    # PipeHandler

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        if not self._greeted.done():
            data = self._read_greeting(data)
        at, end, head = 0, len(data), frames.FRAME
        while end - at >= head.size:
            length, kind = head.unpack_from(data, at)
            if length > frames.MAX_FRAME:
                self._give_up("it has sent a broken frame")
                return
            behind = at + 4 + length
            if behind > end:
                break
            try:
                self._received(kind, data, at + head.size, behind)
            except Exception:
                log.exception("what the agent has said cannot be handled")
                self._counters["agent_handler"] += 1
            at = behind
        self._rest = data[at:] if at else data

    def pipe_lost(self, status: int | None, errors: str) -> None:
        self._end(_why(status, errors))

    def _give_up(self, reason: str) -> None:
        """The far half is not what it should be."""
        if self._pipe is not None:
            self._pipe.close()
            self._end(reason)

    def _end(self, reason: str) -> None:
        self._forget()
        if not self._greeted.done():
            self._greeted.set_exception(AgentUnavailable(reason))
        elif not self._greeted.cancelled():
            self._on_lost(reason)

    def _read_greeting(self, data: bytes) -> bytes:
        """Look for the greeting in ``data``; return what is behind it, or all if it is not there.

        Until it has come, what looks like frames is a shell's noise."""
        at = data.find(GREETING)
        end = data.find(b"\n", at) if at >= 0 else -1
        if end >= 0:
            self.features = frozenset(data[at + len(GREETING) : end].decode("ascii").split())
            self._greeted.set_result(None)
            return data[end + 1 :]
        self._rest = data[-MAX_NOISE:]
        return b""

    def _received(self, kind: int, data: bytes, at: int, end: int) -> None:
        """Handle the frame of type ``kind`` whose body is ``data[at:end]``."""
        if kind == frames.RECEIVED:
            number, target = frames.NUMBERS.unpack_from(data, at)
            source, place = self._sources.get(number), self._by_number.get(target)
            if source is None or source.handler is None or place is None:
                self._counters["agent_late"] += 1
            else:
                source.handler.datagram_received(*place, data[at + 8 : end])
        elif kind == frames.RECEIVED_FROM:
            number, port, packed = _STRANGER.unpack_from(data, at)
            source = self._sources.get(number)
            if source is None or source.handler is None:
                self._counters["agent_late"] += 1
            else:
                payload = data[at + _STRANGER.size : end]
                source.handler.datagram_received(literal(packed), port, payload)
        else:
            self._received_rarely(kind, data[at:end])

    def _received_rarely(self, kind: int, body: bytes) -> None:
        if kind == frames.ERROR:
            self._error(*_TROUBLE.unpack(body))
        elif kind == frames.CLOSED:
            source = self._sources.pop(_NUMBER.unpack(body)[0], None)
            if source is not None:
                source.closed()
        elif kind == frames.ECHO_REPLY:
            echo = self._echoes.pop(_NUMBER.unpack_from(body)[0], None)
            if echo is not None:
                echo.on_reply(body[_NUMBER.size :])
        elif kind == frames.ECHO_ERROR:
            number, error, _, packed = _ECHO_ERROR.unpack(body)
            echo = self._echoes.pop(number, None)
            if echo is not None:
                echo.on_error(KINDS[error], literal(packed) if any(packed) else None)
        elif kind == frames.COUNTERS:
            self.remote_counters.update(json.loads(body))
            self._end_reports()
        else:
            self._counters["agent_unknown_frame"] += 1

    def _error(
        self, number: int, target: int, kind: int, mtu: int, port: int, packed: bytes
    ) -> None:
        source = self._sources.get(number)
        if source is None or source.handler is None:
            self._counters["agent_late"] += 1
            return
        host, port = self._by_number.get(target) or (literal(packed), port)
        source.handler.error_received(host, port, KINDS[kind], mtu or None)

    def _forget(self) -> None:
        if self._pipe is not None:
            self.batch.close()
            self._pipe = None
        self._sources.clear()
        self._echoes.clear()
        self._end_reports()

    def _end_reports(self) -> None:
        reports, self._reports = self._reports, []
        for waiting in reports:
            if not waiting.done():
                waiting.set_result(None)


def literal(packed: bytes) -> str:
    """An address in 16 octets as text; IPv4 is in them as RFC 4291 2.5.5.2 has it."""
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)


def _why(status: int | None, errors: str) -> str:
    """What to tell the user when the program has ended."""
    if status == NO_PYTHON:
        return "the server has no python3: install it, or choose another way for datagrams"
    if status == OLD_PYTHON:
        return (
            "the server's Python is older than 3.6: install a newer python3, or choose another way "
            "for datagrams"
        )
    lines = errors.strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    how = "with the connection" if status is None else f"with status {status}"
    return f"its Python ended {how}{said}"
