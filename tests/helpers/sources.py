"""Sources of datagrams and pings in dialogues with the engine."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from tests.helpers.engine_dialogue import RULES, SECOND, Dialogue, datagram
from tunproxy.flow.events import DatagramReceived, FlowOpened
from tunproxy.flow.settings import PING as PING_FEATURES
from tunproxy.flow.settings import UDP as UDP_FEATURES

if TYPE_CHECKING:
    from collections.abc import Collection

UDP, PING = frozenset(UDP_FEATURES), frozenset(PING_FEATURES)


@pytest.fixture
def dialogue() -> Dialogue:
    """The fixture of every test that imports it: the first server has a way for everything."""
    return Dialogue(features=UDP | PING)


def two_servers(
    rules: str = RULES + SECOND, servers: Collection[str] = ("second",), first: str | None = None
) -> Dialogue:
    """With rules that name ``servers``; only that of ``first`` has a way for datagrams."""
    return Dialogue(rules=rules, servers=servers, first=first, features=UDP | PING)


def families(v4: bytes, v6: bytes) -> pytest.MarkDecorator:
    """Decorate a test: ``dst`` is an address of either family."""
    return pytest.mark.parametrize("dst", [v4, v6], ids=["v4", "v6"])


def text(packed: bytes) -> str:
    """An address for people."""
    return str(ipaddress.ip_address(packed))


def open_source(
    dialogue: Dialogue, dst: bytes, *, port: int = 4000, src_port: int = 40000
) -> FlowOpened:
    """The first datagram of a source."""
    dialogue.feed(datagram(dst, b"first", port=port, src_port=src_port))
    opened, received = dialogue.events()
    assert isinstance(opened, FlowOpened)
    assert isinstance(received, DatagramReceived)
    assert (received.flow, bytes(received.payload)) == (opened.flow, b"first")
    return opened


def received(dialogue: Dialogue) -> tuple[int, str, int, bytes]:
    """The one datagram that is to be sent, but for how: flow, host, port and payload."""
    event = dialogue.event(DatagramReceived)
    return event.flow, event.host, event.port, bytes(event.payload)


def send(dialogue: Dialogue, flow: int, host: str, payload: bytes, port: int = 4000) -> None:
    """Somebody sends a datagram to a source."""
    dialogue.engine.send_datagram(flow, host, port, payload, dialogue.now)
