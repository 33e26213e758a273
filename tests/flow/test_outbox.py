"""Who gets packets whole, and who in fragments."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pytest

from tests.helpers.engine_dialogue import CLIENT4, REAL4
from tests.helpers.packets import VnetHeader
from tunproxy.flow.outbox import Outbox
from tunproxy.flow.settings import Settings
from tunproxy.wire import udp

if TYPE_CHECKING:
    from tunproxy.wire.ip import Buffer


@pytest.mark.parametrize("local", [None, frozenset({REAL4})])
def test_the_kernel_sums_what_it_keeps(local: frozenset[bytes] | None) -> None:
    """What leaves in fragments has to be complete before it is cut."""
    out: deque[list[Buffer]] = deque()
    settings = Settings(
        mtu=1500, offload=True, capture_dns=True, secret=bytes(16), local_sources=local
    )
    outbox = Outbox(out, settings)
    for size in (100, 3000):
        outbox.datagram(REAL4, 1, CLIENT4, 2, bytes(size))
    partial = [VnetHeader.of(bytes(packet[0])).flags for packet in out]
    assert partial == ([1, 1] if local is None else [0] * 4)


@pytest.mark.parametrize(
    ("local", "size", "packets"),
    [
        (None, 9000, 1),
        (frozenset({CLIENT4}), 9000, 1),
        (frozenset({REAL4}), 1000, 1),
        (frozenset({REAL4}), 9000, 7),
    ],
)
def test_only_other_hosts_need_fragments(
    local: frozenset[bytes] | None, size: int, packets: int
) -> None:
    out: deque[list[Buffer]] = deque()
    settings = Settings(
        mtu=1500, offload=True, capture_dns=True, secret=bytes(16), local_sources=local
    )
    Outbox(out, settings).put(udp.emit(REAL4, 1, CLIENT4, 2, bytes(size)), CLIENT4)
    assert len(out) == packets
