"""Names, looked up by the far half."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers.agent_half import FarHalf, bound, changed, port_of
from tunproxy.upstream import agent_frames as frames

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def far() -> Iterator[FarHalf]:
    with FarHalf() as running:
        yield running


def test_a_name_is_looked_up_and_answers_as_itself(far: FarHalf) -> None:
    with bound() as target:
        far.open(1)
        number = far.target("localhost", port_of(target))
        if socket.getaddrinfo("localhost", None)[0][0] == socket.AF_INET6:
            pytest.skip("localhost is ::1 here")
        for word in (b"one", b"two"):
            far.send(1, number, word)
        sender = target.recvfrom(100)[1]
        assert target.recvfrom(100) == (b"two", sender)
        target.sendto(b"three", sender)
        assert far.received() == (1, number, b"three")


@pytest.mark.parametrize("name", ["no-such-name.invalid", "nul\0", "x" * 300, "ü..example"])
def test_a_name_that_is_none(far: FarHalf, name: str) -> None:
    far.open(1)
    number = far.target(name, 9)
    far.send(1, number, b"x")
    assert far.error() == (1, number, frames.HOST_UNREACHABLE, 0)
    assert far.counters()["no_address"] == 1


def test_what_waits_for_names_is_bounded() -> None:
    """With a resolver that never answers."""
    silent = (
        "infos = socket.getaddrinfo(host, None, 0, socket.SOCK_DGRAM)",
        "threading.Event().wait()",
    )
    with FarHalf(program=changed(silent, MAX_LOOKUPS=2, MAX_WAITING=4000)) as far:
        far.open(1)
        for host in ("a.example", "b.example", "c.example"):
            number = far.target(host, 9)
            for _ in range(2):
                far.send(1, number, bytes(1000))
        assert far.counters() == {"resolver_full": 2, "dropped_waiting": 1}
        far.end_input()
        assert far.ended() == (0, "")
