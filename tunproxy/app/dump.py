"""``tunproxy tun dump``: what crosses a device, as lines or as a file for tshark(1) and its like.

A line is for one packet as it crossed, which may be a super-segment; the file looks like one taken
on a wire, as that of :mod:`.pcap`. The privilege is needed to open the packet socket only: what
looks at the packets, and writes the file, has become the caller, without any capability.

It ends with a signal, the last packet asked for, or whoever reads the output.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import select
import signal
import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import dpkt

from ..errors import ConfigError, MachineError, TunproxyError
from ..linux import privileges
from ..linux.packetsocket import PacketSocket
from ..wire import offload, segmentation
from .packetline import describe
from .pcap import TraceFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..linux.packetsocket import Seen

_BATCH: Final = 64
"""Packets between two looks at the signals."""
_CHECK_MS: Final = 500
"""How often we see whether a device that sends nothing is still there."""
_WRITE_LEN: Final = 4096
"""PIPE_BUF: what a pipe that polls as writable takes without making us wait."""
_LINKTYPE_ETHERNET: Final = 1  # draft-ietf-opsawg-pcaplinktype
_LINKTYPE_RAW: Final = 101
_SNAPLEN: Final = 1 << 18  # as tcpdump(1) writes it; no packet is longer
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Summary(NamedTuple):
    """What there was."""

    packets: int
    """Those that crossed and were shown; a super-segment counts once."""
    missed: int
    """Those that crossed while we were too slow."""


class Sink(Protocol):
    """Where lines or records go."""

    def write(self, octets: bytes, /) -> None:
        """Take one line or record, to be written at the next :meth:`flush` or before."""

    def flush(self) -> None:
        """Write what waits."""


class Output:
    """A :class:`Sink` on a descriptor, which gives up waiting for its reader when told to stop."""

    def __init__(self, fd: int, stop: socket.socket) -> None:
        """``stop`` is readable when it is time to stop."""
        self._fd = fd
        self._stop = stop
        self._waiting = bytearray()

    def write(self, octets: bytes) -> None:
        """Take ``octets``, to be written at the next :meth:`flush`."""
        self._waiting += octets

    def flush(self) -> None:
        """Write what waits, which is lost when it is time to stop.

        Raises:
            OSError: the kernel does not take it; BrokenPipeError: nobody reads.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.register(self._stop, select.POLLIN)
        view = memoryview(self._waiting)
        try:
            while view:
                ready = [fd for fd, _ in poll.poll()]
                if self._fd not in ready:
                    return
                view = view[os.write(self._fd, view[:_WRITE_LEN]) :]
        finally:
            view.release()
            self._waiting = bytearray()


def dump(device: str, *, file: str | None, count: int | None, output: int) -> Summary:
    """Show what crosses ``device`` until it is time to stop, and give up all privileges.

    Args:
        device: name of a TUN or TAP device.
        file: where to write packets in the pcap format, ``-`` for ``output``; ``None``: lines.
        count: stop after so many packets.
        output: descriptor of what the user reads.

    Raises:
        MachineError: no such device (any more), or not permitted.
        ConfigError: the file cannot be written.
        TunproxyError: it cannot be written any more.
    """
    with contextlib.ExitStack() as stack:
        packets = stack.enter_context(PacketSocket(device))
        stop = stack.enter_context(_stopping())
        sink: Sink = Output(output, stop)
        who = privileges.caller()
        # The files of a user are written as that user; root without capabilities could not write
        # what belongs to another one.
        if who.uid != 0:
            privileges.drop(who.uid, who.gid, who.groups)
        if file not in (None, "-"):
            sink = stack.enter_context(contextlib.closing(_open_file(str(file))))
        if who.uid == 0:
            privileges.drop(who.uid, who.gid, who.groups)
        show = (_lines if file is None else _records)(sink, packets.ethernet)
        ends = {stop.fileno(): select.POLLIN}
        if isinstance(sink, Output):
            # Without an event to wait for, poll(2) tells of errors: a pipe that nobody reads.
            ends[output] = 0
        try:
            shown = _copy(packets, show, sink, count, ends)
        except OSError as error:
            raise TunproxyError(
                f"{file or 'the output'} cannot be written any more ({error.strerror}); "
                "make room, or choose another file"
            ) from error
        return Summary(shown, packets.missed())


@contextlib.contextmanager
def _stopping() -> Iterator[socket.socket]:
    """Yield a socket that becomes readable with a signal to stop; an ignored one stays ignored."""
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        caught = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in caught:
            signal.signal(number, lambda *_: None)
        try:
            yield reader
        finally:
            for number in caught:
                signal.signal(number, before[number])
            signal.set_wakeup_fd(wakeup)


def _open_file(path: str) -> TraceFile:
    path = os.path.expanduser(path)
    try:
        return TraceFile(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}); choose another file"
        ) from None


def _lines(sink: Sink, ethernet: bool) -> Callable[[Seen], None]:
    def show(seen: Seen) -> None:
        at = datetime.datetime.fromtimestamp(seen.at_ns // 1_000_000_000)
        microseconds = seen.at_ns % 1_000_000_000 // 1000
        way = "out" if seen.outgoing else "in "
        what = describe(seen.crossed[offload.LENGTH :], ethernet=ethernet)
        sink.write(f"{at:%H:%M:%S}.{microseconds:06} {way} {what}\n".encode())

    return show


def _records(sink: Sink, ethernet: bool) -> Callable[[Seen], None]:
    linktype = _LINKTYPE_ETHERNET if ethernet else _LINKTYPE_RAW
    link_len = segmentation.ETHERNET_LEN if ethernet else 0
    writer: Any = dpkt.pcap.Writer(sink, snaplen=_SNAPLEN, linktype=linktype)

    def show(seen: Seen) -> None:
        # Whole microseconds: the writer would round the last half of one to a second of its own.
        at = seen.at_ns // 1000 / 1_000_000
        for packet in segmentation.on_wire(seen.crossed, link_len):
            writer.writepkt(packet, at)

    return show


def _copy(
    packets: PacketSocket,
    show: Callable[[Seen], None],
    sink: Sink,
    count: int | None,
    ends: dict[int, int],
) -> int:
    """Show packets until one of ``ends`` (descriptors with poll events) is ready; return how many.

    Raises:
        MachineError: the device is gone.
        OSError: from the sink, but for a reader that has gone.
    """
    shown = 0
    poll = select.poll()
    for fd, events in {packets.fileno(): select.POLLIN, **ends}.items():
        poll.register(fd, events)
    try:
        sink.flush()
        while True:
            ready = {fd for fd, _ in poll.poll(_CHECK_MS)}
            if ready & ends.keys():
                return shown
            if not ready:
                packets.check()
            for _ in range(_BATCH):
                seen = packets.receive()
                if seen is None:
                    break
                show(seen)
                shown += 1
                if shown == count:
                    sink.flush()
                    return shown
            sink.flush()
    except BrokenPipeError:
        # head(1), or a pager that was quit.
        return shown
    except MachineError:
        with contextlib.suppress(BrokenPipeError):
            sink.flush()
        raise
