"""The codec: what is packed is read back, and octets that nobody packed are refused."""

from __future__ import annotations

import errno
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunproxy.linux.netlink_messages import (
    NLMSG_DONE,
    NLMSG_ERROR,
    Attributes,
    MalformedMessage,
    Message,
    Value,
    pack_attributes,
    pack_message,
    read_address,
    read_error,
    read_messages,
    unpack,
)

CAPPED, TLVS = 0x100, 0x200
REQUEST = pack_message(16, 5, 1, b"request")
KINDS = st.integers(0, 40)


def report(
    code: int, *, echo: bytes = REQUEST, flags: int = 0, words: str | None = None
) -> Message:
    """An NLMSG_ERROR as the kernel makes it."""
    octets = echo[:16] if flags & CAPPED else echo.ljust(len(echo) + 3 & ~3, b"\0")
    body = struct.pack("=i", code) + octets
    return Message(NLMSG_ERROR, flags, 1, body + pack_attributes({1: words} if words else {}))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 0xFFFF),
            st.integers(0, 0xFFFF),
            st.integers(0, 0xFFFFFFFF),
            st.binary(max_size=40),
        )
    )
)
def test_messages_of_a_datagram_are_read_back(fields: list[tuple[int, int, int, bytes]]) -> None:
    packed = (pack_message(*message) for message in fields)
    datagram = b"".join(message.ljust(len(message) + 3 & ~3, b"\0") for message in packed)
    assert list(read_messages(datagram)) == fields


@given(st.dictionaries(KINDS, st.binary(max_size=20)))
def test_octets_are_read_back(values: dict[int, bytes]) -> None:
    packed = pack_attributes(dict(values))
    assert len(packed) % 4 == 0
    attributes = Attributes(packed)
    for kind in range(41):
        assert attributes.octets(kind) == values.get(kind)
        assert (kind in attributes) == (kind in values)


def test_values_are_read_back() -> None:
    inner: dict[int, Value] = {1: "tun", 2: {3: 7}}
    attributes = Attributes(
        pack_attributes({1: 0xFFFFFFFF, 2: "tun0", 3: bytes((116,)), 4: inner, 5: b"\x0a\0\0\1"})
    )
    assert attributes.number(1) == 0xFFFFFFFF
    assert attributes.text(2) == "tun0"
    assert attributes.octets(2) == b"tun0\0"
    assert attributes.number(3) == 116
    assert attributes.address(5) == ipaddress.ip_address("10.0.0.1")
    nested = attributes.nested(4)
    assert nested is not None
    assert nested.text(1) == "tun"
    deeper = nested.nested(2)
    assert deeper is not None
    assert deeper.number(3) == 7


def test_what_is_not_there_is_none() -> None:
    nothing = Attributes(b"")
    assert nothing.octets(1) is None
    assert nothing.number(1) is None
    assert nothing.text(1) is None
    assert nothing.address(1) is None
    assert nothing.nested(1) is None


@pytest.mark.parametrize(
    ("layout", "number"), [("=B", 0xFE), ("=H", 0xFEDC), ("=I", 0xFEDCBA98), ("=Q", 0xFE << 56)]
)
def test_numbers_have_the_size_of_the_attribute(layout: str, number: int) -> None:
    assert Attributes(pack_attributes({1: struct.pack(layout, number)})).number(1) == number


@pytest.mark.parametrize("name", ["", "tun0", "tün0", "\udcff\udc80"])
def test_names_of_devices_may_be_any_octets(name: str) -> None:
    assert Attributes(pack_attributes({3: name})).text(3) == name


def test_octets_of_a_wrong_length_are_no_value() -> None:
    attributes = Attributes(pack_attributes({1: b"abc", 2: b""}))
    with pytest.raises(MalformedMessage, match="a number of 3 octets") as caught:
        attributes.number(1)
    assert caught.value.errno == errno.EBADMSG
    with pytest.raises(MalformedMessage, match="an address of 0 octets"):
        attributes.address(2)
    with pytest.raises(MalformedMessage, match="an address of 5 octets"):
        read_address(bytes(5))
    with pytest.raises(MalformedMessage, match="3 octets where 4 are a struct"):
        unpack(struct.Struct("=I"), b"1234567", 4)


@pytest.mark.parametrize("length", [0, 1, 3, 9, 0xFFFF])
def test_attribute_of_an_impossible_length(length: int) -> None:
    with pytest.raises(MalformedMessage, match=f"an attribute of {length} in the last 8 octets"):
        Attributes(struct.pack("=HHI", length, 1, 0))


@pytest.mark.parametrize("length", [0, 15, 21, 0xFFFFFFFF])
def test_message_of_an_impossible_length(length: int) -> None:
    with pytest.raises(MalformedMessage, match=f"a length of {length} in the last 20 octets"):
        list(read_messages(struct.pack("=IHHIII", length, 1, 0, 0, 0, 0)))


def test_the_last_of_two_attributes_counts() -> None:
    assert Attributes(pack_attributes({1: 5}) + pack_attributes({1: 6})).number(1) == 6


def test_zero_is_no_error() -> None:
    assert read_error(report(0)) is None
    assert read_error(report(0, flags=CAPPED | TLVS, words="a warning")) is None
    assert read_error(Message(NLMSG_DONE, 0, 1, struct.pack("=i", 40))) is None


@pytest.mark.parametrize("flags", [TLVS, TLVS | CAPPED])
@pytest.mark.parametrize("words", ["", "no such thing"])
def test_error_has_the_words_of_the_kernel(flags: int, words: str) -> None:
    error = read_error(report(-errno.EINVAL, flags=flags, words=words))
    assert error is not None
    assert error.errno == errno.EINVAL
    assert error.strerror == "Invalid argument" + (f": {words}" if words else "")


def test_error_of_a_request_that_looks_like_attributes() -> None:
    echo = REQUEST + pack_attributes({1: "not what the kernel says"})
    error = read_error(report(-errno.EPERM, echo=echo))
    assert isinstance(error, PermissionError)
    assert error.strerror == "Operation not permitted"


def test_error_at_the_end_of_a_dump() -> None:
    words = pack_attributes({1: "table does not exist"})
    body = struct.pack("=i", -errno.ENOENT) + words
    error = read_error(Message(NLMSG_DONE, TLVS, 1, body))
    assert isinstance(error, FileNotFoundError)
    assert error.strerror == "No such file or directory: table does not exist"


@pytest.mark.parametrize("code", [-4096, -(1 << 31)])
def test_error_number_that_is_none(code: int) -> None:
    with pytest.raises(MalformedMessage, match=f"the error number {-code}"):
        read_error(report(code))


@given(st.binary(max_size=120))
def test_any_octets_are_messages_or_malformed(octets: bytes) -> None:
    try:
        messages = list(read_messages(octets))
    except MalformedMessage:
        return
    assert sum(16 + len(message.body) for message in messages) <= len(octets)


@given(st.binary(max_size=120), KINDS)
def test_any_octets_are_attributes_or_malformed(octets: bytes, kind: int) -> None:
    try:
        attributes = Attributes(octets)
        found = attributes.octets(kind)
        assert found is None or found in octets
        attributes.text(kind)
        attributes.number(kind)
        attributes.address(kind)
        attributes.nested(kind)
    except MalformedMessage:
        return


@given(
    st.sampled_from([NLMSG_ERROR, NLMSG_DONE]),
    st.integers(0, 0xFFFF),
    st.integers(-5000, 1),
    st.binary(max_size=80),
)
def test_any_report_is_an_error_or_malformed(
    kind: int, flags: int, code: int, octets: bytes
) -> None:
    message = Message(kind, flags, 1, struct.pack("=i", code) + octets)
    try:
        error = read_error(message)
    except MalformedMessage:
        return
    assert (None if error is None else error.errno) == (-code if code < 0 else None)
