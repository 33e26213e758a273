"""The checksum by big integers against the one by words, and against dpkt's."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import dpkt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.helpers.packets import V4, V6, deterministic, pseudo_header, reference_checksum
from tunproxy.wire import checksum

if TYPE_CHECKING:
    from tests.helpers.packets import Ends


def test_the_example_of_rfc_1071() -> None:
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert checksum.fold(checksum.add(data)) == 0xDDF2
    assert checksum.finish(checksum.add(data)) == ~0xDDF2 & 0xFFFF


@deterministic
@given(st.binary(max_size=200))
def test_finish_is_that_of_words_and_of_dpkt(data: bytes) -> None:
    field = checksum.finish(checksum.add(data))
    assert field == reference_checksum(data)
    assert field == dpkt.dpkt.in_cksum(data)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", 0xFFFF),
        (bytes(1), 0xFFFF),
        (bytes(20), 0xFFFF),
        (b"\xff\xff", 0),
        (b"\xff\xff" * 32767, 0),
        (b"\xff\xfe\x00\x01", 0),
        (b"\xff", 0x00FF),
        (b"\x00\x01", 0xFFFE),
    ],
)
def test_finish_tells_the_two_zeros_apart(data: bytes, field: int) -> None:
    assert reference_checksum(data) == field
    assert checksum.finish(checksum.add(data)) == field


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 65534, 65535])
def test_add_takes_any_buffer_of_any_length(
    kind: type[bytes] | type[bytearray] | type[memoryview], length: int
) -> None:
    data = bytes(range(1, 256)) * 258
    assert checksum.finish(checksum.add(kind(data[:length]))) == reference_checksum(data[:length])


def test_add_sums_may_be_added_at_even_boundaries() -> None:
    data = bytes(range(64))
    total = checksum.add(data[:20]) + checksum.add(data[20:22]) + checksum.add(data[22:])
    assert checksum.finish(total) == reference_checksum(data)


@deterministic
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_add_all_is_blind_to_boundaries(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(data)]
    chunks = [data[start:end] for start, end in pairwise(edges)]
    assert checksum.add_all(chunks) == checksum.add(data)


def test_add_all_of_odd_chunks_is_not_the_sum_of_their_sums() -> None:
    chunks = [b"\x01", b"\x02"]
    assert checksum.finish(checksum.add_all(chunks)) == reference_checksum(b"\x01\x02")
    assert checksum.finish(sum(map(checksum.add, chunks))) != reference_checksum(b"\x01\x02")


@pytest.mark.parametrize(
    ("ends", "length"),
    [(V4, 0), (V4, 1460), (V4, 0xFFFF), (V6, 0), (V6, 1460), (V6, 0xFFFF), (V6, 0x12345)],
)
def test_pseudo_header_is_that_of_its_octets(ends: Ends, length: int) -> None:
    total = checksum.pseudo_header(ends.src, ends.dst, 17, length)
    octets = pseudo_header(ends.src, ends.dst, 17, length)
    assert checksum.finish(total) == reference_checksum(octets)


@deterministic
@given(st.binary(max_size=60), st.integers(0, 479))
def test_is_valid_accepts_its_own_field_and_no_single_flipped_bit(data: bytes, bit: int) -> None:
    message = checksum.finish(checksum.add(data)).to_bytes(2, "big") + data
    assert checksum.is_valid(checksum.add(message))
    bit %= len(message) * 8
    flipped = bytearray(message)
    flipped[bit // 8] ^= 1 << bit % 8
    assert not checksum.is_valid(checksum.add(flipped))


def test_is_valid_refuses_nothing_but_zeros_as_a_kernel_does() -> None:
    assert not checksum.is_valid(checksum.add(bytes(8)))
    assert checksum.is_valid(checksum.add(b"\0\0\xff\xff" + bytes(4)))


@deterministic
@given(st.integers(0, 1 << 400))
def test_fold_is_the_complement_of_finish(total: int) -> None:
    """In the arithmetic of one's complement, where 0 and 0xFFFF are equal."""
    assert 0 <= checksum.fold(total) <= 0xFFFF
    assert (checksum.fold(total) + checksum.finish(total)) % 0xFFFF == 0


@deterministic
@given(data=st.binary(max_size=64) | st.binary(min_size=64, max_size=4000).map(lambda d: d * 3))
@example(data=bytes(3000))
@example(data=b"\xff" * 1448)
@example(data=b"\xff" * 1449)
def test_long_sums_are_those_of_the_rfc(data: bytes) -> None:
    assert checksum.finish(checksum.add(data)) == reference_checksum(data)


def test_the_sum_of_a_segment_is_a_short_number() -> None:
    assert checksum.add(b"\xff" * 1460).bit_length() < 2000
