"""Names in QUIC: the ClientHello in the client's Initial packets (RFC 9000, RFC 9001, RFC 9369).

The keys of Initial packets follow from the connection id that the client has made up, so whoever
sees the first packet can read it. Clients spread a ClientHello over CRYPTO frames in any order,
and over several packets and datagrams.

Nothing that comes in raises. At most :data:`MAX_DATAGRAMS` datagrams are looked at, and
:data:`.MAX_OCTETS` of the ClientHello.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from .sniff import MAX_OCTETS, NEED_MORE, NOTHING, Parser, client_hello

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..wire.ip import Buffer
    from .sniff import Verdict

MAX_DATAGRAMS = 8
"""Beyond them no client is still in its first flight (three are the most that are common)."""
MAX_PACKETS = 8
"""In one datagram."""
MAX_GAPS = 64
"""CRYPTO frames that wait for those before them."""

_MAX_CONNECTION_ID = 20
_TAG = 16
_SAMPLE = 16

_PADDING, _PING, _ACK, _ACK_ECN, _CRYPTO = 0x00, 0x01, 0x02, 0x03, 0x06
"""The frames that a client's Initial has, but for CONNECTION_CLOSE (RFC 9000 section 12.4)."""


class QuicSniffer:
    """Looks for a name in what the initiator of one UDP flow sends."""

    def __init__(self) -> None:
        self._verdict: Verdict = NEED_MORE
        self._datagrams = 0
        self._has_begun = False
        self._crypto = _CryptoStream()

    def feed(self, datagram: Buffer) -> Verdict:
        """Take the next datagram, and say what is known by now; the last word is repeated."""
        if self._verdict is not NEED_MORE:
            return self._verdict
        self._datagrams += 1
        for payload in _initial_payloads(bytes(datagram)):
            self._has_begun = True
            for offset, data in _crypto_frames(payload):
                self._verdict = self._crypto.add(offset, data)
                if self._verdict is not NEED_MORE:
                    return self._verdict
        if not self._has_begun or self._datagrams == MAX_DATAGRAMS:
            self._verdict = NOTHING
        return self._verdict


class _CryptoStream:
    """Puts CRYPTO frames into order."""

    def __init__(self) -> None:
        self._parser = Parser(client_hello, "quic")
        self._end = 0
        self._waiting: dict[int, bytes] = {}

    def add(self, offset: int, data: bytes) -> Verdict:
        """Take a frame, and say what is known by now."""
        if offset + len(data) > MAX_OCTETS or len(self._waiting) == MAX_GAPS:
            return NOTHING
        if len(data) > len(self._waiting.get(offset, b"")):
            self._waiting[offset] = data
        verdict: Verdict = NEED_MORE
        while verdict is NEED_MORE and (data := self._next()):
            self._end += len(data)
            verdict = self._parser.feed(data)
        return verdict

    def _next(self) -> bytes:
        """Return what follows on what is there, empty if that has not come."""
        for offset in sorted(self._waiting):
            if offset > self._end:
                break
            data = self._waiting.pop(offset)[self._end - offset :]
            if data:
                return data
        return b""


@dataclass(frozen=True, slots=True)
class _Version:
    """What differs between versions (RFC 9001 section 5.2, RFC 9369 section 3)."""

    salt: bytes
    label: str
    initial: int
    """The type of long header packets that are Initial."""
    retry: int
    """Those that are Retry, which have no length."""


_VERSIONS = {
    0x00000001: _Version(bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), "quic", 0, 3),
    0x6B3343CF: _Version(bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), "quicv2", 1, 0),
}


class _Malformed(Exception):
    """No sane packet or frame begins here."""


class _Cursor:
    """Reads octets of a packet."""

    def __init__(self, octets: bytes, position: int = 0) -> None:
        self.octets = octets
        self.position = position

    def take(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        if self.position > len(self.octets):
            raise _Malformed
        return self.octets[start : self.position]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def varint(self) -> int:
        """A variable-length integer, RFC 9000 section 16."""
        first = self.number(1)
        more = (1 << (first >> 6)) - 1
        return (first & 0x3F) << 8 * more | self.number(more)


def _initial_payloads(datagram: bytes) -> Iterator[bytes]:
    """Yield the frames of each Initial packet that a client may have sent."""
    cursor = _Cursor(datagram)
    try:
        for _ in range(MAX_PACKETS):
            if cursor.position < len(datagram):
                payload = _read_packet(cursor)
                if payload is not None:
                    yield payload
    except _Malformed:
        # Another protocol, a short header, or padding behind the packets.
        return


def _read_packet(cursor: _Cursor) -> bytes | None:
    """Pass over a packet with a long header (RFC 9000 section 17.2); return what it protects.

    Returns:
        ``None``: it is no Initial, or not for the keys of a client's first flight.
    """
    start = cursor.position
    first = cursor.number(1)
    version = _VERSIONS.get(cursor.number(4))
    if first < 0x80 or version is None:
        raise _Malformed
    connection_ids = []
    for _ in range(2):
        length = cursor.number(1)
        if length > _MAX_CONNECTION_ID:
            raise _Malformed
        connection_ids.append(cursor.take(length))
    packet_type = first >> 4 & 3
    if packet_type == version.retry:
        raise _Malformed
    if packet_type == version.initial:
        cursor.take(cursor.varint())  # token
    length = cursor.varint()
    number_at = cursor.position
    cursor.take(length)
    if packet_type != version.initial:
        return None
    keys = _Keys.of_client(version, connection_ids[0])
    return keys.open(cursor.octets[start : cursor.position], number_at - start)


@dataclass(frozen=True, slots=True)
class _Keys:
    """What protects Initial packets of one direction."""

    key: bytes
    iv: bytes
    hp: bytes

    @classmethod
    def of_client(cls, version: _Version, connection_id: bytes) -> _Keys:
        """Derive them from the destination connection id of the client's first packet."""
        initial = hmac.digest(version.salt, connection_id, hashlib.sha256)
        secret = _expand(initial, "client in", 32)
        return cls(
            _expand(secret, f"{version.label} key", 16),
            _expand(secret, f"{version.label} iv", 12),
            _expand(secret, f"{version.label} hp", 16),
        )

    def open(self, packet: bytes, number_at: int) -> bytes | None:
        """Return the payload of ``packet``, whose packet number begins at ``number_at``.

        Returns:
            ``None``: it was not protected with these keys.
        """
        sample = packet[number_at + 4 : number_at + 4 + _SAMPLE]
        if len(sample) < _SAMPLE:
            return None
        # RFC 9001 section 5.4.3. ECB of a single block is how header protection is defined.
        encryptor = Cipher(algorithms.AES(self.hp), modes.ECB()).encryptor()
        mask = encryptor.update(sample)
        first = packet[0] ^ mask[0] & 0x0F
        end = number_at + (first & 3) + 1
        number = bytes(a ^ b for a, b in zip(packet[number_at:end], mask[1:], strict=False))
        header = bytes([first]) + packet[1:number_at] + number
        # The first packets of a client have low numbers: what is sent is all there is of them.
        nonce = int.from_bytes(self.iv, "big") ^ int.from_bytes(number, "big")
        try:
            return AESGCM(self.key).decrypt(nonce.to_bytes(12, "big"), packet[end:], header)
        except InvalidTag:
            return None


def _expand(secret: bytes, label: str, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context, RFC 8446 section 7.1."""
    full = b"tls13 " + label.encode()
    info = struct.pack(f"!HB{len(full)}sB", length, len(full), full, 0)
    return HKDFExpand(SHA256(), length, info).derive(secret)


def _crypto_frames(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield offset and data of the CRYPTO frames, as far as ``payload`` makes sense."""
    cursor = _Cursor(payload)
    try:
        while cursor.position < len(payload):
            frame = cursor.varint()
            if frame == _CRYPTO:
                offset = cursor.varint()
                yield offset, cursor.take(cursor.varint())
            elif frame in (_ACK, _ACK_ECN):
                _skip_ack(cursor, counts=3 if frame == _ACK_ECN else 0)
            elif frame not in (_PADDING, _PING):
                return
    except _Malformed:
        return


def _skip_ack(cursor: _Cursor, counts: int) -> None:
    """Pass over an ACK frame (RFC 9000 section 19.3)."""
    cursor.varint()  # Largest Acknowledged
    cursor.varint()  # ACK Delay
    ranges = cursor.varint()
    cursor.varint()  # First ACK Range
    for _ in range(min(2 * ranges, len(cursor.octets)) + counts):
        cursor.varint()
