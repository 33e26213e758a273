"""Initial sequence numbers: RFC 6528 3, RFC 7323 5.4."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.stack.isn import IsnGenerator
from tunproxy.wire.seq import MASK

SECRET = bytes(range(16))


def test_isn_advances_by_one_every_four_microseconds() -> None:
    generator = IsnGenerator(SECRET)
    first = generator.isn(b"key", 10.0)
    assert (generator.isn(b"key", 10.0 + 4e-6) - first) & MASK == 1
    assert (generator.isn(b"key", 11.0) - first) & MASK == 250_000


@deterministic
@given(st.floats(0, 1e9), st.floats(0, 8000))
def test_isn_rises_from_incarnation_to_incarnation(now: float, later: float) -> None:
    generator = IsnGenerator(SECRET)
    difference = (generator.isn(b"key", now + later) - generator.isn(b"key", now)) & MASK
    assert difference < 1 << 31


def test_isn_depends_on_secret_and_key() -> None:
    numbers = {
        IsnGenerator(secret).isn(key, 5.0)
        for secret in (SECRET, bytes(16))
        for key in (b"a", b"b", b"")
    }
    assert len(numbers) == 6


def test_timestamp_offset_is_constant_and_no_function_of_the_isn() -> None:
    generator = IsnGenerator(SECRET)
    assert generator.timestamp_offset(b"a") == IsnGenerator(SECRET).timestamp_offset(b"a")
    assert generator.timestamp_offset(b"a") != generator.isn(b"a", 0.0)
    assert generator.timestamp_offset(b"a") != generator.timestamp_offset(b"b")


@given(st.binary(max_size=64), st.floats(0, 1e12))
@deterministic
def test_numbers_fit_the_wire(key: bytes, now: float) -> None:
    generator = IsnGenerator(SECRET)
    assert 0 <= generator.isn(key, now) <= MASK
    assert 0 <= generator.timestamp_offset(key) <= MASK
