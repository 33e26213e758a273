"""Who is let in when: a real listener, and a loop whose clock the test sets."""

from __future__ import annotations

import logging
import socket
from collections import Counter
from typing import TYPE_CHECKING, cast

import pytest

from tunproxy.app import door as door_module
from tunproxy.app.door import FRESH_S, SLOW_S, Door
from tunproxy.flow.table import MAX_UNANSWERED

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator


class Timer:
    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """A clock with timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(at, callback))
        return self.timers[-1]

    @property
    def armed(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        end = self.now + seconds
        while due := [timer for timer in self.armed if timer.at <= end]:
            first = min(due, key=lambda timer: timer.at)
            self.timers.remove(first)
            self.now = max(self.now, first.at)
            first.callback()
        self.now = end


class Setup:
    """A door in front of a queue for ``length`` connections."""

    def __init__(self, length: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=length)
        self.loop = FakeLoop()
        self.counters: Counter[str] = Counter()
        self.let_in: list[int] = []
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        self.door = Door(self.listener, self.let_in.append, loop, self.counters)


@pytest.fixture
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    made = Setup(getattr(request, "param", 8))
    yield made
    made.door.close()


def places(setup: Setup) -> int:
    """How many get in at once."""
    for flow in range(2 * MAX_UNANSWERED):
        setup.door.enter(flow)
    return len(setup.let_in)


@pytest.mark.parametrize(
    ("setup", "expected"), [(1, 1), (8, 4), (100, 50), (100_000, 256)], indirect=["setup"]
)
def test_half_of_the_queue_is_used(setup: Setup, expected: int) -> None:
    with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
        somaxconn = int(file.read())
    assert places(setup) == min(expected, max(1, somaxconn // 2))
    assert len(setup.door) == 2 * MAX_UNANSWERED


def test_a_socket_makes_room_for_the_newest(setup: Setup) -> None:
    for flow in range(7):
        setup.door.enter(flow)
    assert setup.let_in == [0, 1, 2, 3]
    setup.door.accepted(1)
    assert setup.let_in[4:] == [6]
    setup.door.accepted(6)
    setup.door.accepted(0)
    assert setup.let_in[5:] == [5, 4]
    assert len(setup.door) == 4


def test_one_that_is_gone_makes_room_once(setup: Setup) -> None:
    for flow in range(7):
        setup.door.enter(flow)
    setup.door.leave(2)
    setup.door.leave(2)
    assert setup.let_in[4:] == [6]


def test_one_that_is_gone_is_never_let_in(setup: Setup) -> None:
    for flow in range(6):
        setup.door.enter(flow)
    setup.door.leave(5)
    setup.door.accepted(0)
    assert setup.let_in == [0, 1, 2, 3, 4]


def test_who_takes_long_holds_nobody_up(setup: Setup) -> None:
    for flow in range(4):
        setup.door.enter(flow)
    setup.loop.advance(FRESH_S / 2)
    setup.door.enter(4)
    assert len(setup.let_in) == 4
    setup.loop.advance(FRESH_S / 2)
    assert setup.let_in[4:] == [4]
    # It may still come.
    setup.door.accepted(0)
    assert len(setup.door) == 4
    assert not setup.counters


def test_timer_of_the_slow_does_not_delay_the_next(setup: Setup) -> None:
    setup.door.enter(0)
    setup.loop.advance(FRESH_S)
    for flow in range(1, 6):
        setup.door.enter(flow)
    assert len(setup.let_in) == 5
    setup.loop.advance(FRESH_S)
    assert len(setup.let_in) == 6
    assert len(setup.loop.armed) == 1


def test_nothing_to_wait_for_is_no_timer(setup: Setup) -> None:
    setup.door.enter(0)
    setup.door.accepted(0)
    setup.loop.advance(FRESH_S)
    assert not setup.loop.armed


def test_what_never_comes_is_counted_and_told_once(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.door.enter(0)
    setup.door.enter(1)
    setup.loop.advance(SLOW_S - 0.01)
    assert not setup.counters
    assert not caplog.records
    setup.loop.advance(0.01)
    assert setup.counters == {"nat_handshake_slow": 2}
    assert len(setup.door) == 0
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert line.name == door_module.__name__
    assert "firewall" in line.getMessage()
    assert "--stack user" in line.getMessage()
    setup.door.enter(2)
    setup.loop.advance(SLOW_S)
    assert setup.counters == {"nat_handshake_slow": 3}
    assert len(caplog.records) == 1
    assert not setup.loop.armed


def test_an_initiator_that_vanishes_among_others_is_no_warning(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.door.enter(0)
    setup.loop.advance(1)
    setup.door.enter(1)
    setup.door.accepted(1)
    setup.loop.advance(SLOW_S)
    assert setup.counters == {"nat_handshake_slow": 1}
    assert not caplog.records


def test_closed_means_closed(setup: Setup) -> None:
    for flow in range(6):
        setup.door.enter(flow)
    setup.door.close()
    setup.door.close()
    assert not setup.loop.armed
    assert setup.listener.fileno() == -1
    setup.door.leave(0)
    assert setup.let_in == [0, 1, 2, 3]
