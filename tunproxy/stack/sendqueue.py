"""Octets on their way to the peer, from SND.UNA to the last one that the target has sent.

What goes out is views of the chunks as they arrived, without a copy; only small ones are joined, as
a chunk costs more than a hundred octets, and a packet may be made of 1024 pieces (IOV_MAX).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..wire.ip import Buffer


_JOINED_LEN = 2048
"""Up to which length neighbours are joined: 64 KiB are at most 64 pieces then."""


class SendQueue:
    """A byte stream with sequence numbers.

    Attributes:
        start: (unwrapped) number of the first octet kept.
        end: number behind the last one.
    """

    __slots__ = ("_chunks", "_cursor", "_cursor_start", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self._chunks: deque[memoryview] = deque()
        # The chunk where the last peek ended, and the number of its first octet: new data is asked
        # for in order, so that the next peek begins there.
        self._cursor = 0
        self._cursor_start = start

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, data: Buffer) -> None:
        """Add ``data``, which must not change afterwards."""
        if not data:
            return
        chunks = self._chunks
        self.end += len(data)
        if not chunks or len(chunks[-1]) + len(data) > _JOINED_LEN:
            chunks.append(memoryview(data))
            return
        if self._cursor == len(chunks):
            # It stands behind what becomes the middle of a chunk.
            self._cursor -= 1
            self._cursor_start -= len(chunks[-1])
        chunks[-1] = memoryview(b"".join((chunks[-1], data)))

    def release(self, upto: int) -> None:
        """Forget the octets before ``upto``: they are acknowledged."""
        upto = min(upto, self.end)
        chunks = self._chunks
        while self.start < upto:
            head = chunks[0]
            size = len(head)
            if self.start + size > upto:
                chunks[0] = head[upto - self.start :]
                if not self._cursor:
                    self._cursor_start = upto
                self.start = upto
                return
            chunks.popleft()
            self.start += size
            if self._cursor:
                self._cursor -= 1
            else:
                self._cursor_start = self.start

    def peek(self, seq: int, length: int) -> list[Buffer]:
        """Views of the ``length`` octets from ``seq`` on, which the queue must hold."""
        chunks = self._chunks
        index, at = self._cursor, self._cursor_start
        if seq < at:
            index, at = 0, self.start
        out: list[Buffer] = []
        while length:
            chunk = chunks[index]
            size = len(chunk)
            skip = seq - at
            if skip < size:
                piece = chunk if not skip and size <= length else chunk[skip : skip + length]
                out.append(piece)
                seq += len(piece)
                length -= len(piece)
                if not length and skip + len(piece) < size:
                    break
            at += size
            index += 1
        self._cursor, self._cursor_start = index, at
        return out
