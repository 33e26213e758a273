"""Sealing and opening against asyncssh's own cipher object, and the receive buffer."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest
from asyncssh import MACError, ProtocolError
from asyncssh.crypto import GCMCipher
from asyncssh.encryption import GCMEncryption

from tunproxy.upstream.ssh_packets import (
    READ_LEN,
    Inbox,
    Opener,
    Padding,
    Seal,
    packet_length,
)

KEY = bytes(range(32))
LAST_NONCE = b"name" + b"\xff" * 8


def stock(iv: bytes = LAST_NONCE) -> GCMEncryption:
    return GCMEncryption(GCMCipher("aes256-gcm", KEY, iv))


@pytest.mark.parametrize("first", [0, 1, 5])
def test_seal_goes_on_where_asyncssh_stands(first: int) -> None:
    """Octet for octet the same, also where the count of the nonce begins anew."""
    ours, theirs = stock(), stock()
    packets = [bytes([number]) * (16 * number + 16) for number in range(8)]
    for packet in packets[:first]:
        header = len(packet).to_bytes(4, "big")
        assert ours.encrypt_packet(0, header, packet) == theirs.encrypt_packet(0, header, packet)
    seal = Seal(ours)
    for packet in packets[first:]:
        header = len(packet).to_bytes(4, "big")
        expected = b"".join(theirs.encrypt_packet(0, header, packet))
        assert b"".join(seal.seal(packet)) == expected


def test_what_asyncssh_sends_by_a_seal_is_counted() -> None:
    seal, theirs = Seal(stock()), stock()
    for packet in (bytes(32), bytes(16), bytes(48)):
        header = len(packet).to_bytes(4, "big")
        expected = b"".join(theirs.encrypt_packet(7, header, packet))
        assert b"".join(seal.encrypt_packet(7, header, packet)) == expected


def test_opener_opens_what_was_sealed() -> None:
    seal, opener = Seal(stock()), Opener(stock())
    for number in range(4):
        octets = bytes([number]) * 64
        packet = b"before" + b"".join(seal.seal(octets)) + b"behind"
        assert opener.open(memoryview(packet), 6, len(packet) - 6) == octets


@pytest.mark.parametrize("at", [0, 3, 4, 40, 68, 83])
def test_opener_detects_a_changed_octet(at: int) -> None:
    sealed = bytearray(b"".join(Seal(stock()).seal(bytes(64))))
    sealed[at] ^= 1
    with pytest.raises(MACError):
        Opener(stock()).open(memoryview(sealed), 0, len(sealed))


def test_opened_packet_is_handed_over_once() -> None:
    opener = Opener(stock())
    opener.hand_over(b"octets")
    assert opener.decrypt_packet(0, b"", b"", 4, b"") == b"octets"
    assert opener.decrypt_packet(0, b"", b"", 4, b"") is None


def test_cipher_that_is_not_what_it_seems() -> None:
    with pytest.raises(ValueError, match="16 octets"):
        Seal(stock(bytes(16)))
    broken = stock()
    del broken._cipher._key
    with pytest.raises(AttributeError):
        Opener(broken)


def test_padding() -> None:
    """RFC 4253 section 6: at least four octets, up to a multiple of the block, random."""
    padding = Padding()
    taken = [(size, padding.take(size)) for size in range(2000)]
    for size, octets in taken:
        assert 4 <= len(octets) < 20
        assert (1 + size + len(octets)) % 16 == 0
    assert len({octets for _, octets in taken if len(octets) >= 12}) > 900


@pytest.mark.parametrize("length", [0, 5, 15, 17, 40, 262160, 0xFFFFFFFF])
def test_impossible_lengths(length: int) -> None:
    with pytest.raises(ProtocolError):
        packet_length(memoryview(length.to_bytes(4, "big")), 0, 262144)


def test_possible_lengths() -> None:
    view = memoryview(bytes.fromhex("ffff 00000010 00040000"))
    assert packet_length(view, 2, 262144) == 16
    assert packet_length(view, 6, 262144) == 262144


step = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 3 * READ_LEN)),
    st.tuples(st.just("read"), st.integers(0, READ_LEN)),
    st.tuples(st.just("use"), st.integers(0, 2 * READ_LEN)),
    st.tuples(st.just("put back"), st.integers(0, 1000)),
    st.tuples(st.just("take"), st.integers(0, 2 * READ_LEN)),
)


@hypothesis.given(st.lists(step, max_size=12))
@hypothesis.settings(deadline=None, max_examples=50)
def test_inbox_is_a_queue(steps: list[tuple[str, int]]) -> None:
    inbox, model = Inbox(), b""
    for number, (what, size) in enumerate(steps):
        data = bytes([number + 1]) * size
        if what == "add":
            inbox.add(data)
            model += data
        elif what == "read":
            space = inbox.space()
            assert len(space) >= READ_LEN // 2
            data = data[: len(space)]
            space[: len(data)] = data
            inbox.filled(len(data))
            model += data
        elif what == "use":
            inbox.start += min(size, len(inbox))
            model = model[size:]
        elif what == "put back":
            inbox.put_back(data)
            model = data + model
        else:
            assert inbox.take(size) == model[:size]
            model = model[size:]
        assert bytes(inbox.view[inbox.start : inbox.end]) == model
        assert len(inbox) == len(model)


def test_inbox_does_not_grow_by_being_used() -> None:
    """Packets that begin and end anywhere in what was read."""
    inbox = Inbox()
    for _ in range(1000):
        size = min(100_003, len(inbox.space()))
        inbox.filled(size)
        inbox.start += len(inbox) // 32784 * 32784
    assert len(inbox.view) == READ_LEN
