"""A direct-tcpip channel that takes and gives its data past asyncssh's code (see ``ssh_fast``).

Read RFC 4254 section 5 and asyncssh's ``channel.py`` before editing. The states of a channel, its
requests, EOF and CLOSE are asyncssh's; here are CHANNEL_DATA and WINDOW_ADJUST.

What the server's window, a key exchange or a full transport does not let through waits in
asyncssh's send buffer, where ``get_write_buffer_size`` counts it. The server's window is opened by
what was delivered, and never beyond what is held for a session that does not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.constants import (
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_OPEN_CONFIRMATION,
    MSG_CHANNEL_WINDOW_ADJUST,
)
from asyncssh.packet import PacketDecodeError, SSHPacket, UInt32

from .turns import SHARED_S, SPARSE_BYTES

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence

    from .base import Buffer
    from .turns import Turns

ADJUST_BYTES = 256 * 1024
"""After how many octets a channel's window is opened again; half the window, if that is less. At
half of 2 MiB, a server at some distance would stand still half of the time."""

BURST_BYTES = 256 * 1024
"""How much one channel seals before it hands the packets to the transport."""

_ADJUST_LEN = 4
_OPEN_STATES = ("open", "eof_pending", "eof")
"""Those of asyncssh in which the other end may open its window."""

_JOINED_LEN = 2048
"""Up to which length held data are joined: an object costs more than a hundred octets."""


class DataSender:
    """What a connection on the fast path offers to its channels; its ``send_packet``, too, takes
    views of what may change after it has returned."""

    @property
    def seals(self) -> bool:
        """Whether what is sent takes the fast path, now or after the key exchange."""
        raise NotImplementedError

    turns: Turns
    """Who waits because the transport is full."""

    def send_data(self, number: int, pieces: Iterable[Buffer], most: int) -> bool:
        """Send ``pieces`` to the server's channel ``number``, in packets of up to ``most`` octets;
        return whether that was done: nothing is sent during a key exchange."""
        raise NotImplementedError

    def send_packet_of_data(self, number: int, data: Buffer) -> bool:
        """The same for ``data`` that fit into one packet."""
        raise NotImplementedError


class DataTaker(SSHChannel[bytes]):
    """A channel that is given its packets by a connection on the fast path."""

    def take(self, data: bytes) -> None:
        """CHANNEL_DATA has come.

        Raises:
            ProtocolError: the other end must not send it.
        """
        raise NotImplementedError

    def take_control(self, kind: int, fields: bytes) -> None:
        """Another packet for this channel has come; ``fields`` begin behind its number.

        Raises:
            ProtocolError: the other end must not send it.
        """
        try:
            if kind == MSG_CHANNEL_OPEN_CONFIRMATION:
                packet = SSHPacket(fields)
                number, window, most = (packet.get_uint32() for _ in range(3))
                self.process_open_confirmation(number, window, most, packet)
            else:
                self.process_packet(kind, 0, SSHPacket(fields))
        except PacketDecodeError as error:
            raise asyncssh.ProtocolError(str(error)) from None


class FastChannel(DataTaker, asyncssh.SSHTCPChannel[bytes]):
    """A direct-tcpip channel; on a connection that is no DataSender it is as asyncssh made it."""

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection | asyncssh.SSHServerConnection,
        loop: asyncio.AbstractEventLoop,
        encoding: None,
        errors: str,
        window: int,
        max_pktsize: int,
    ) -> None:
        self._fast = connection if isinstance(connection, DataSender) else None
        self._adjust_bytes = min(ADJUST_BYTES, window // 2)
        self._held = 0
        """Octets in the buffer of what is not delivered."""
        self._first_window = 0
        self._most_ahead: int | None = 0
        """See :meth:`most_ahead`; zero: nobody has asked."""
        self._reserve = 0
        """Octets of the server's window that are left unused while others send."""
        self._next_look: asyncio.TimerHandle | None = None
        """Whether they still do."""
        self._awaits_turn = False
        self._owes_eof = False
        """The channel is closed before its EOF was sent."""
        self._period = 0
        self._sparse = SPARSE_BYTES
        """What may still be sent past others in this period of a full transport."""
        super().__init__(connection, loop, encoding, errors, window, max_pktsize)

    def data_sent(self, size: int) -> None:
        """``size`` octets of data were handed to the transport, which may not have passed them on;
        a little is not worth to be told while it is not full."""

    def delivered(self, octets: int) -> None:
        """``octets`` were delivered since the window was opened last."""

    def most_ahead(self) -> int | None:
        """Octets that may be on the way to the server while others send as well; ``None``: all that
        its window allows. Asked for once, when the server opens its window for the first time."""
        return None

    def set_window(self, window: int, adjust_bytes: int = ADJUST_BYTES) -> None:
        """Let the server send up to ``window`` octets ahead of what was delivered, and tell it
        after every ``adjust_bytes``. A smaller window takes effect as data come in."""
        self._init_recv_window = window
        self._adjust_bytes = min(adjust_bytes, window // 2)
        self._open_window()

    def take_control(self, kind: int, fields: bytes) -> None:
        """See :class:`DataTaker`."""
        if kind != MSG_CHANNEL_WINDOW_ADJUST or len(fields) != _ADJUST_LEN or self._fast is None:
            super().take_control(kind, fields)
            return
        if self._recv_state not in _OPEN_STATES:
            raise asyncssh.ProtocolError("Channel not open")
        octets = int.from_bytes(fields, "big")
        if not self._reserve:
            self._keep_reserve(octets)
        self._send_window += octets
        if self._send_buf:
            self._flush_send_buf()

    def process_open_confirmation(
        self, send_chan: int, send_window: int, send_pktsize: int, packet: SSHPacket
    ) -> None:
        self._first_window = send_window
        super().process_open_confirmation(send_chan, send_window, send_pktsize, packet)

    def _keep_reserve(self, opened: int) -> None:
        """The server has opened its window by ``opened`` octets.

        One that does so later than we let it have octets would never do it again.
        """
        if self._most_ahead == 0:
            self._most_ahead = self.most_ahead()
        if self._most_ahead is not None and 2 * opened <= self._most_ahead:
            self._reserve = max(0, self._first_window - self._most_ahead)

    def take(self, data: bytes) -> None:
        """See :class:`DataTaker`."""
        size = len(data)
        if self._recv_state != "open":
            raise asyncssh.ProtocolError("Channel not open for sending")
        if size > self._recv_window:
            raise asyncssh.ProtocolError("Window exceeded")
        if not size or self._send_state in ("close_pending", "closed"):
            return
        self._recv_window -= size
        session = self._session
        if not self._recv_paused and self._fast is not None and session is not None:
            octets = self._init_recv_window - self._recv_window
            if octets >= self._adjust_bytes:
                self.delivered(octets)
                self._open_window()
            session.data_received(data, None)
            return
        if not self._recv_paused:
            self._deliver_data(data, None)
            return
        held = self._recv_buf
        self._held += size
        if held and len(held[-1][0]) + size <= _JOINED_LEN:
            data = held.pop()[0] + data
        held.append((data, None))

    def write_pieces(self, pieces: Sequence[Buffer]) -> None:
        """As :meth:`write`, for pieces that follow each other; none shares a packet with another,
        which would cost a copy (asyncssh's ``writelines`` joins them)."""
        if not self._send_at_once(pieces):
            for piece in pieces:
                self.write(piece)

    def _send_at_once(self, pieces: Sequence[Buffer]) -> bool:
        """Send ``pieces`` if nothing is in the way of any octet; return whether it was done."""
        fast = self._fast
        if fast is None or self._send_state != "open":
            return False
        size = sum(map(len, pieces))
        fast.turns.sends(self, self._loop.time())
        if self._send_buf or fast.turns.is_full or size > self._usable():
            return False
        return self._send_pieces(fast, pieces, size)

    def write(self, data: Buffer, datatype: int | None = None) -> None:
        """See asyncssh; ``data`` may change after this has returned."""
        fast = self._fast
        if fast is None or datatype is not None or self._send_state != "open":
            super().write(cast("bytes", data), datatype)
            return
        size = len(data)
        fast.turns.sends(self, self._loop.time())
        if (
            size <= self._send_pktsize
            and size <= (self._usable() if self._reserve else self._send_window)
            and not self._send_buf
            and not fast.turns.is_full
            and fast.send_packet_of_data(cast("int", self._send_chan), data)
        ):
            self._send_window -= size
            if size > SPARSE_BYTES:
                # Less leaves with this turn of the loop, or is a part of what the transport holds.
                self.data_sent(size)
            return
        if not fast.seals:
            super().write(cast("bytes", data), datatype)
            return
        rest = memoryview(data)
        if not self._send_buf and self._may_send(fast.turns, len(rest)):
            rest = self._send_now(fast, rest)
        if rest:
            self._send_buf.append((cast("bytearray", bytes(rest)), None))
            self._send_buf_len += len(rest)
            self._await_turn(fast.turns)
            self._await_quiet()
            self._pause_resume_writing()

    def close(self) -> None:
        """See asyncssh, which forgets an EOF that waits behind data when it is told to close."""
        if self._send_state == "eof_pending":
            self._owes_eof = True
        super().close()

    def _close_send(self) -> None:
        if self._owes_eof and not self._send_buf:
            self._owes_eof = False
            self.send_packet(MSG_CHANNEL_EOF)
        super()._close_send()

    def flush(self) -> None:
        """Send what was waiting: keys have been exchanged, or others have ceased to send."""
        if self._send_buf:
            self._flush_send_buf()

    def _flush_send_buf(self) -> None:
        fast = self._fast
        if fast is None or not fast.seals:
            super()._flush_send_buf()
            return
        if self._send_buf and fast.turns.is_full:
            self._await_turn(fast.turns)
            return
        while self._send_buf and self._send_held(fast, BURST_BYTES):
            pass
        if self._send_buf and self._send_window:
            self._await_quiet()
            self._pause_resume_writing()  # the rest waits for the keys, or others
        else:
            super()._flush_send_buf()

    def take_turn(self, most: int) -> bool:
        """See :class:`tunproxy.upstream.turns.Sender`."""
        self._awaits_turn = False
        fast = self._fast
        if fast is None or not fast.seals or not self._send_buf:
            return False
        while most and self._send_buf and (sent := self._send_held(fast, most)):
            most -= sent
        if self._send_buf:
            self._pause_resume_writing()
            self._awaits_turn = not most and self._usable() > 0
            self._await_quiet()
            return self._awaits_turn
        super()._flush_send_buf()  # an EOF may be next
        return False

    def _may_send(self, turns: Turns, size: int) -> bool:
        """Whether ``size`` octets need not wait for others."""
        if not turns.is_full:
            return True
        if self._period != turns.period:
            self._period = turns.period
            self._sparse = SPARSE_BYTES
        self._sparse -= size
        return self._sparse >= 0

    def _usable(self) -> int:
        """Octets of the server's window that may be used now."""
        window, fast = self._send_window, self._fast
        if self._reserve and fast is not None and fast.turns.is_shared(self._loop.time()):
            return max(0, window - self._reserve)
        return window

    def _await_quiet(self) -> None:
        """What waits because others send is to be sent when they have ceased."""
        if self._reserve and self._send_window and self._next_look is None:
            self._next_look = self._loop.call_later(SHARED_S, self._look)

    def _look(self) -> None:
        self._next_look = None
        self.flush()

    def _await_turn(self, turns: Turns) -> None:
        if turns.is_full and not self._awaits_turn:
            self._awaits_turn = True
            turns.wait(self)

    def _send_now(self, fast: DataSender, data: memoryview) -> memoryview:
        """Send of ``data`` what the window allows; returns the rest."""
        while data and (usable := self._usable()):
            piece = data[: min(usable, BURST_BYTES)]
            if not self._send_pieces(fast, (piece,), len(piece)):
                break
            data = data[len(piece) :]
        return data

    def _send_held(self, fast: DataSender, most: int) -> int:
        """Send up to ``most`` octets of what waits, as the window allows; return how many."""
        held = self._send_buf
        most = min(most, self._usable())
        pieces: list[Buffer] = []
        size = 0
        for data, _ in held:
            if size == most:
                break
            pieces.append(memoryview(data)[: most - size])
            size += len(pieces[-1])
        if not size or not self._send_pieces(fast, pieces, size):
            return 0
        del held[: len(pieces) - 1]
        rest = memoryview(held[0][0])[len(pieces[-1]) :]
        held[:1] = [(cast("bytearray", rest), None)] if rest else []
        self._send_buf_len -= size
        return size

    def _send_pieces(self, fast: DataSender, pieces: Sequence[Buffer], size: int) -> bool:
        """Send ``pieces``, whose ``size`` octets the window allows; return whether it was done."""
        number = self._send_chan
        if number is None or not fast.send_data(number, pieces, self._send_pktsize):
            return False
        self._send_window -= size
        self.data_sent(size)
        return True

    def _deliver_data(self, data: bytes, datatype: int | None) -> None:
        if self._fast is None:
            super()._deliver_data(data, datatype)
            return
        if self._held:
            self._held -= len(data)  # delivered at once is only what finds nothing held
        self._open_window()
        if self._session is not None:
            self._session.data_received(data, datatype)

    def _open_window(self) -> None:
        adjust = self._init_recv_window - self._recv_window - self._held
        if adjust >= self._adjust_bytes and self._send_chan is not None:
            self._recv_window += adjust
            self.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(adjust))

    async def _open_forward(
        self,
        session_factory: Callable[[], Any],
        chantype: bytes,
        *args: bytes,
    ) -> Any:
        if self._fast is None:
            return await super()._open_forward(session_factory, chantype, *args)
        packet = await self._open(chantype, *args)
        packet.check_end()
        session = self._session = session_factory()
        session.connection_made(self)
        session.session_started()
        # Not from within this call: asyncssh makes a task for it.
        self._loop.call_soon(self.begin_reading)
        return session

    def begin_reading(self) -> None:
        """Deliver what comes, if nobody has said anything else."""
        if self._recv_paused == "starting":
            self.resume_reading()
