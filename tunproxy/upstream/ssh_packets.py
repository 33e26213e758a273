"""SSH packets under AES-GCM, sealed and opened with few copies (RFC 4253 section 6, RFC 5647).

On the wire a packet is its length (4 octets, not encrypted, authenticated), the encrypted octets
(length of the padding, payload, padding) and a tag of 16 octets. OpenSSH's aes128-gcm@openssh.com
and aes256-gcm@openssh.com are this, and count the nonce's last 8 octets up by one per packet.

:class:`Seal` and :class:`Opener` take over an asyncssh cipher object with the nonce where it
stands, and take its place in the connection: what asyncssh sends by itself is counted as well.
"""

from __future__ import annotations

import os
import struct

from asyncssh import MACError, ProtocolError
from asyncssh.encryption import Encryption, GCMEncryption
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LENGTH_LEN = 4
TAG_LEN = 16
BLOCK_LEN = 16
NONCE_LEN = 12
MIN_PADDING = 4

READ_LEN = 256 * 1024
"""How much one read takes at most: what it leaves in the processor's cache is opened from there."""

_LENGTH = struct.Struct(">I")
_COUNT = struct.Struct(">Q")
_COUNT_AT = NONCE_LEN - _COUNT.size
_COUNT_MASK = (1 << 64) - 1

_RANDOM_LEN = 4096


class Padding:
    """Random padding, as RFC 4253 section 6 wants it, at one system call for some hundred packets.

    With AES-GCM nothing depends on it; zeros would save nothing more.
    """

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def take(self, payload_len: int) -> bytes:
        """The padding for a payload of so many octets: 4 to 19 octets."""
        size = -(1 + payload_len) % BLOCK_LEN
        if size < MIN_PADDING:
            size += BLOCK_LEN
        at = self._at
        if at + size > len(self._pool):
            self._pool = os.urandom(_RANDOM_LEN)
            at = 0
        self._at = at + size
        return self._pool[at : at + size]


class _Key(Encryption):
    """One direction's key and its nonce."""

    def __init__(self, stock: GCMEncryption) -> None:
        """Raises AttributeError or ValueError if ``stock`` is not built as expected."""
        cipher = stock._cipher
        nonce = bytearray(cipher._iv)
        if len(nonce) != NONCE_LEN:
            raise ValueError(f"a nonce of {len(nonce)} octets")
        self._aead = AESGCM(cipher._key)
        self._nonce = nonce
        self._count = _COUNT.unpack_from(nonce, _COUNT_AT)[0]

    def _next_nonce(self) -> None:
        count = self._count = (self._count + 1) & _COUNT_MASK
        _COUNT.pack_into(self._nonce, _COUNT_AT, count)


class Seal(_Key):
    """Encrypts what we send."""

    def seal(self, octets: bytes) -> tuple[bytes, bytes]:
        """The two parts of a packet: its length; and ``octets`` (length of the padding, payload,
        padding) encrypted, with their tag."""
        length = _LENGTH.pack(len(octets))
        sealed = self._aead.encrypt(self._nonce, octets, length)
        self._next_nonce()
        return length, sealed

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        """What asyncssh calls: returns what to send, in two parts."""
        return self.seal(packet)


class Opener(_Key):
    """Decrypts what we receive."""

    def __init__(self, stock: GCMEncryption) -> None:
        super().__init__(stock)
        self._opened: bytes | None = None

    def open(self, view: memoryview, at: int, end: int) -> bytes:
        """The octets (length of the padding, payload, padding) of the packet ``at`` .. ``end``.

        Raises:
            MACError: it is not what the server has sent.
        """
        start = at + LENGTH_LEN
        try:
            octets = self._aead.decrypt(self._nonce, view[start:end], view[at:start])
        except InvalidTag:
            raise MACError("MAC verification failed") from None
        self._next_nonce()
        return octets

    def hand_over(self, octets: bytes) -> None:
        """``octets`` were opened here, and are asyncssh's to process."""
        self._opened = octets

    def decrypt_packet(
        self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes
    ) -> bytes | None:
        """What asyncssh calls: the packet handed over."""
        octets, self._opened = self._opened, None
        return octets


class Inbox:
    """The octets received and not yet used, in one buffer that is used again and again."""

    def __init__(self) -> None:
        self._buffer = bytearray(READ_LEN)
        self.view = memoryview(self._buffer)
        """All of it."""
        self.start = 0
        self.end = 0
        """Where what is unused begins and ends in :attr:`view`."""

    def __len__(self) -> int:
        return self.end - self.start

    def space(self) -> memoryview:
        """Where the next read may put something; :meth:`filled` is told how much it was."""
        self._make_room(READ_LEN // 2)
        return self.view[self.end : self.end + READ_LEN]

    def filled(self, size: int) -> None:
        """``size`` octets have been put where :meth:`space` said."""
        self.end += size

    def add(self, data: bytes | memoryview) -> None:
        """Append ``data``."""
        self._make_room(len(data))
        self.view[self.end : self.end + len(data)] = data
        self.end += len(data)

    def put_back(self, data: bytes) -> None:
        """Insert ``data`` before everything else."""
        rest = bytes(self.view[self.start : self.end])
        self.clear()
        self.add(data)
        self.add(rest)

    def take(self, most: int) -> bytes:
        """Remove and return up to ``most`` octets."""
        start = self.start
        self.start = min(self.end, start + most)
        return bytes(self.view[start : self.start])

    def clear(self) -> None:
        """Forget everything."""
        self.start = self.end = 0

    def _make_room(self, size: int) -> None:
        """Make ``size`` octets free after the end. What is moved for that is a part of a packet."""
        used = self.end - self.start
        if self.start:
            self.view[:used] = self.view[self.start : self.end]
            self.start, self.end = 0, used
        if used + size > len(self._buffer):
            self._buffer = bytearray(used + size + READ_LEN)
            self._buffer[:used] = self.view[:used]
            self.view = memoryview(self._buffer)


def packet_length(view: memoryview, at: int, most: int) -> int:
    """The length that the packet at ``at`` says it has, without the length itself and the tag.

    Raises:
        ProtocolError: no packet can have it, or it is more than ``most``.
    """
    length: int = _LENGTH.unpack_from(view, at)[0]
    if length > most:
        raise ProtocolError("Max packet size exceeded")
    if length < BLOCK_LEN or length % BLOCK_LEN:
        raise ProtocolError("Invalid packet length")
    return length
