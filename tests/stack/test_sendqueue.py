"""The send queue against a plain byte string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.stack.sendqueue import SendQueue
from tunproxy.stack.tcp import SEND_QUEUE_HIGH

BIG = 10_000
"""Octets of a chunk that is not joined with others."""


def read(queue: SendQueue, seq: int, length: int) -> bytes:
    return b"".join(bytes(piece) for piece in queue.peek(seq, length))


def test_empty() -> None:
    queue = SendQueue(7)
    assert len(queue) == 0
    assert (queue.start, queue.end) == (7, 7)
    assert queue.peek(7, 0) == []
    queue.release(7)
    queue.append(b"")
    assert (queue.start, queue.end) == (7, 7)


def test_views_across_chunks() -> None:
    queue = SendQueue(100)
    for letter in (b"a", b"b", b"c"):
        queue.append(letter * BIG)
    assert len(queue) == 3 * BIG
    assert read(queue, 100 + BIG - 1, BIG + 2) == b"a" + b"b" * BIG + b"c"
    assert read(queue, 100, 3 * BIG) == b"a" * BIG + b"b" * BIG + b"c" * BIG


def test_large_chunks_are_not_copied() -> None:
    chunk = bytes(BIG)
    queue = SendQueue(0)
    queue.append(chunk)
    (piece,) = queue.peek(1000, 2000)
    assert isinstance(piece, memoryview)
    assert piece.obj is chunk


def test_a_view_survives_the_release_of_its_octets() -> None:
    queue = SendQueue(0)
    queue.append(b"abc")
    (piece,) = queue.peek(0, 3)
    queue.append(b"def")
    queue.release(6)
    assert bytes(piece) == b"abc"


def test_release_within_a_chunk_and_beyond_the_end() -> None:
    queue = SendQueue(0)
    queue.append(b"abcdef")
    queue.release(2)
    assert (queue.start, read(queue, 2, 4)) == (2, b"cdef")
    queue.release(1)
    assert queue.start == 2
    queue.release(99)
    assert (queue.start, queue.end, len(queue)) == (6, 6, 0)


def test_an_octet_at_a_time_costs_no_chunk_each() -> None:
    """One octet in a chunk of its own would cost two hundred; and a packet of 64 KiB made of more
    than 1024 pieces (IOV_MAX) could not be written."""
    queue = SendQueue(0)
    for i in range(SEND_QUEUE_HIGH):
        queue.append(b"%c" % (i & 0x7F))
        if i % 997 == 0:
            read(queue, i, 1)
    assert len(queue._chunks) < 1024
    assert len(queue.peek(0, 0xFFFF)) < 256
    assert read(queue, 500, 3) == bytes((500 & 0x7F, 501 & 0x7F, 502 & 0x7F))


@pytest.mark.parametrize("peeked", [0, 1, 3])
def test_a_small_chunk_may_follow_a_peek(peeked: int) -> None:
    queue = SendQueue(0)
    queue.append(b"abc")
    read(queue, 0, peeked)
    queue.append(b"def")
    assert read(queue, peeked, 6 - peeked) == b"abcdef"[peeked:]


actions = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 40), st.integers(0, 0)),
    st.tuples(st.just("append"), st.integers(1500, 3000), st.integers(0, 0)),
    st.tuples(st.just("release"), st.integers(0, 4000), st.integers(0, 0)),
    st.tuples(st.just("peek"), st.integers(0, 1 << 14), st.integers(0, 1 << 14)),
    st.tuples(st.just("next"), st.integers(0, 4000), st.integers(0, 0)),
)


@deterministic
@given(st.lists(actions, max_size=40), st.integers(-5, 1 << 40))
def test_against_a_model(script: list[tuple[str, int, int]], start: int) -> None:
    queue, model, una, nxt = SendQueue(start), bytearray(), 0, 0
    for verb, a, b in script:
        if verb == "append":
            data = bytes((len(model) + i) * 7 & 0xFF for i in range(a))
            queue.append(data)
            model += data
        elif verb == "release":
            una = min(una + a, len(model))
            nxt = max(nxt, una)
            queue.release(start + una)
        elif verb == "peek":
            seq = una + a % (len(model) - una + 1)
            length = b % (len(model) - seq + 1)
            assert read(queue, start + seq, length) == model[seq : seq + length]
        else:
            length = min(a, len(model) - nxt)
            assert read(queue, start + nxt, length) == model[nxt : nxt + length]
            nxt += length
        assert (queue.start, queue.end) == (start + una, start + len(model))
        assert len(queue) == len(model) - una
