"""Echoes of the far half, on a road with a router."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from tests.helpers.agent_half import Road
from tunproxy.upstream import agent_frames as frames

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def road() -> Iterator[Road]:
    with Road() as network:
        yield network


@pytest.mark.netns
@pytest.mark.parametrize(("who", "groups"), [("nobody", "0 2147483647"), ("root", "1 0")])
@pytest.mark.parametrize(("version", "host"), [(4, "10.2.0.2"), (6, "fd02::2")])
def test_ping(road: Road, who: str, groups: str, version: int, host: str) -> None:
    """By ping sockets, and by raw ones."""
    road.let_ping(groups)
    with road.program(who=who) as far:
        assert far.features == {"udp4", "udp6", "ping4", "ping6"}
        target = far.target(host, 0)
        for number, payload in enumerate((b"", b"odd", os.urandom(1000)), 1):
            far.echo(number, target, payload, v=version)
            assert far.next(frames.ECHO_REPLY)[1] == struct.pack(">I", number) + payload
        far.echo(4, target, b"x", v=10 - version)
        assert far.echo_error() == (4, frames.HOST_UNREACHABLE, 0, "::")


@pytest.mark.netns
def test_who_may_not_ping_says_so(road: Road) -> None:
    road.let_ping("1 0")
    with road.program(who="nobody") as far:
        assert far.features == {"udp4", "udp6"}


@pytest.mark.netns
@pytest.mark.parametrize(("who", "groups"), [("nobody", "0 2147483647"), ("root", "1 0")])
@pytest.mark.parametrize(
    ("host", "router", "nobody"),
    [("10.2.0.2", "10.1.0.1", "10.2.0.77"), ("fd02::2", "fd01::1", "fd02::77")],
)
def test_echo_that_fails(
    road: Road, who: str, groups: str, host: str, router: str, nobody: str
) -> None:
    """Who is not there does not answer; routers on the way can be found, as traceroute does."""
    road.let_ping(groups)
    with road.program(who=who) as far:
        far.echo(1, far.target(nobody, 0), b"x")
        target = far.target(host, 0)
        far.echo(2, target, b"x", hops=1)
        assert far.echo_error() == (2, frames.HOP_LIMIT, 0, router)
        far.echo(3, target, b"x", hops=2)
        assert far.next(frames.ECHO_REPLY)[1] == struct.pack(">I", 3) + b"x"
        number, kind, _, by = far.echo_error()
        assert (number, kind, by) == (1, frames.HOST_UNREACHABLE, router)
