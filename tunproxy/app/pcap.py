"""A trace of the packets that cross the TUN, as a file for tshark(1) and its like.

The file looks like one taken on a wire: super-segments are cut, checksums complete. It is made for
looking at a flow, so it holds whole packets, and nobody else may read it. What keeps it cheap is
the filter; without one, every octet that passes is summed up and written, which costs about half of
the throughput.

It shows what applications send and get. With the kernel's stack a packet crosses the TUN twice, and
the crossing between mapping and listener is left out: see :class:`Inside`.

Nothing that happens to the file reaches the traffic: where it cannot be written any more, or has
grown to :data:`MAX_LEN`, one warning says so and the trace ends, with whole packets in it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import stat
import time
from typing import TYPE_CHECKING, Any, Final

import dpkt

from ..config_values import split_filter
from ..errors import ConfigError
from ..wire import ip, offload, segmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Self

    from ..wire.ip import Buffer

_log = logging.getLogger(__name__)

MAX_LEN: Final = 1 << 30
"""Octets of the file: more than anybody looks at, and less than what fills a disk."""

_LINKTYPE_RAW: Final = 101  # draft-ietf-opsawg-pcaplinktype: packets begin with the IP header
_SNAPLEN: Final = 1 << 18  # as tcpdump(1) writes it; no packet is longer
_BUFFER_LEN: Final = 1 << 20
"""Octets that wait at most for the end of the turn."""
_FRAGMENT_OFFSET: Final = 0x1FFF
_OPEN: Final = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK


class PacketTrace:
    """Writes packets to a file; ``packets`` counts them."""

    def __init__(
        self, file: TraceFile, chosen: PacketFilter | None, clock: Callable[[], int] = time.time_ns
    ) -> None:
        """``clock`` gives nanoseconds since 1970."""
        self.packets = 0
        self.inside: Inside | None = None
        """What is left out."""
        self._file: TraceFile | None = file
        self._filter = chosen
        self._clock = clock
        self._writer: Any = dpkt.pcap.Writer(file, snaplen=_SNAPLEN, linktype=_LINKTYPE_RAW)

    @classmethod
    def open(cls, path: str, only: str | None, name_of: Callable[[bytes], str | None]) -> Self:
        """Begin the file ``path``; what it held is lost.

        Args:
            path: may begin with ``~``; the file becomes readable for its owner only.
            only: the filter, in the words of ``tun.pcap_filter``; ``None`` for all packets.
            name_of: the name that holds a fake address, given as on the wire.

        Raises:
            ConfigError: it cannot be written, or is no ordinary file.
        """
        path = os.path.expanduser(path)
        try:
            file = TraceFile(path)
            try:
                trace = cls(file, PacketFilter(only, name_of) if only is not None else None)
                file.flush()
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise ConfigError(
                f"tun.pcap: {path} cannot be written ({error.strerror}): choose another file"
            ) from None
        _log.info("packets are written to %s", path)
        return trace

    def add(self, crossed: Buffer) -> None:
        """Note a packet behind its virtio_net_hdr; ``crossed`` is not kept."""
        if self._file is None:
            return
        packet = memoryview(crossed)[offload.LENGTH :]
        if self.inside is not None and self.inside.matches(packet):
            return
        if self._filter is not None and not self._filter.matches(packet):
            return
        # Whole microseconds: the writer would round the last half of one to a second of its own.
        now = self._clock() // 1000 / 1_000_000
        try:
            for each in segmentation.on_wire(crossed):
                self._writer.writepkt(each, now)
                self.packets += 1
        except OSError as error:
            self._stop(self._file, error)

    def flush(self) -> None:
        """Write what waits: the end of a turn of the event loop."""
        if self._file is None:
            return
        try:
            self._file.flush()
        except OSError as error:
            self._stop(self._file, error)

    def close(self) -> None:
        """End the trace; twice does no harm."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _stop(self, file: TraceFile, error: OSError) -> None:
        self._file = None
        file.close()
        _log.warning("the trace in %s ends here (%s); traffic goes on", file.path, error.strerror)


class TraceFile:
    """A file that ends with a whole record, whatever happens while it is written.

    ``write`` is handed one record at a time.

    Raises:
        OSError: it cannot be opened, is not ours or is no ordinary file.
    """

    def __init__(self, path: str, max_len: int = MAX_LEN) -> None:
        self.path = path
        self._max_len = max_len
        self._length = 0
        self._waiting = bytearray()
        self._fd = os.open(path, _OPEN, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise OSError(errno.EINVAL, "it is no ordinary file")
            os.fchmod(self._fd, 0o600)
            os.ftruncate(self._fd, 0)
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, record: bytes) -> None:
        """Take ``record``, to be written at the next :meth:`flush` or before.

        Raises:
            OSError: as :meth:`flush`, or the file has reached its greatest length.
        """
        if self._length + len(self._waiting) + len(record) > self._max_len:
            self.flush()
            raise OSError(errno.EFBIG, f"it has grown to {self._max_len >> 20} MiB")
        self._waiting += record
        if len(self._waiting) >= _BUFFER_LEN:
            self.flush()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: the kernel does not take it, as when the disk is full.
        """
        written = 0
        try:
            while written < len(self._waiting):
                written += os.write(self._fd, memoryview(self._waiting)[written:])
        except OSError:
            # A record that is cut in two would make the whole file suspect.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._length)
            raise
        self._length += written
        self._waiting.clear()

    def close(self) -> None:
        """Close the file; what waits is lost."""
        os.close(self._fd)


class Inside:
    """Recognizes the packets between the kernel's stack and our translation (see ``flow.nat``)."""

    def __init__(
        self, listeners: Collection[tuple[bytes, int]], is_mapped: Callable[[bytes], bool]
    ) -> None:
        """``listeners``: address as on the wire, and port; ``is_mapped``: whether mappings are made
        of such an address."""
        self._ports = dict(listeners)
        self._is_mapped = is_mapped

    def matches(self, packet: memoryview) -> bool:
        """Whether ``packet``, an IP packet, is no application's; an ICMP error is judged by the
        packet it is about."""
        ends = _Ends(packet)
        if ends.quoted is not None:
            ends = _Ends(ends.quoted)
        return self._is_between(ends.src, ends.src_port, ends.dst) or self._is_between(
            ends.dst, ends.dst_port, ends.src
        )

    def _is_between(self, address: bytes, port: int | None, other: bytes) -> bool:
        return port is not None and self._ports.get(address) == port and self._is_mapped(other)


class PacketFilter:
    """Chooses the packets of which one end is a host, a port, or a port of a host.

    An ICMP error is chosen with the packet it is about. As with tcpdump(1), the ports of a fragment
    other than the first, and those behind IPv6 extension headers, are not known.
    """

    def __init__(self, text: str, name_of: Callable[[bytes], str | None]) -> None:
        """``text`` and ``name_of`` are those of :meth:`PacketTrace.open`.

        Raises:
            ValueError: ``text`` is no filter.
        """
        self._host, self._port = split_filter(text)
        self._name_of = name_of
        self._address: bytes | None = None
        with contextlib.suppress(ValueError):
            self._address = ipaddress.ip_address(self._host).packed

    def matches(self, packet: memoryview) -> bool:
        """Whether ``packet``, an IP packet, is to be noted."""
        ends = _Ends(packet)
        return self._is_between(ends) or (
            ends.quoted is not None and self._is_between(_Ends(ends.quoted))
        )

    def _is_between(self, ends: _Ends) -> bool:
        return self._is_end(ends.dst, ends.dst_port) or self._is_end(ends.src, ends.src_port)

    def _is_end(self, address: bytes, port: int | None) -> bool:
        if self._port is not None and port != self._port:
            return False
        if self._address is not None:
            return address == self._address
        return not self._host or self._name_of(address) == self._host


class _Ends:
    """From where to where a packet goes, as far as it can be told; it may be cut off anywhere.

    Attributes:
        src, dst: addresses as on the wire, empty where there is none.
        src_port, dst_port: ``None`` where there is none.
        quoted: the packet that an ICMP error is about.
    """

    __slots__ = ("dst", "dst_port", "quoted", "src", "src_port")

    def __init__(self, packet: memoryview) -> None:
        self.src = self.dst = b""
        self.src_port: int | None = None
        self.dst_port: int | None = None
        self.quoted: memoryview | None = None
        version = packet[0] >> 4 if packet else 0
        if version == 4 and len(packet) >= ip.HEADER4_LEN:
            self.src, self.dst = bytes(packet[12:16]), bytes(packet[16:20])
            if not int.from_bytes(packet[6:8], "big") & _FRAGMENT_OFFSET:
                self._read_payload(packet[9], packet[(packet[0] & 0xF) << 2 :])
        elif version == 6 and len(packet) >= ip.HEADER6_LEN:
            self.src, self.dst = bytes(packet[8:24]), bytes(packet[24:40])
            self._read_payload(packet[6], packet[ip.HEADER6_LEN :])

    def _read_payload(self, protocol: int, payload: memoryview) -> None:
        if protocol in (ip.TCP, ip.UDP):
            if len(payload) >= 4:
                self.src_port = int.from_bytes(payload[:2], "big")
                self.dst_port = int.from_bytes(payload[2:4], "big")
        elif protocol in (ip.ICMP, ip.ICMPV6) and payload:
            # Destination unreachable, time exceeded, parameter problem; RFC 4443 2.1: below 128.
            is_error = payload[0] in (3, 11, 12) if protocol == ip.ICMP else payload[0] < 128
            if is_error:
                self.quoted = payload[8:]
