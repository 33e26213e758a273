"""The driver: on a loop of the test's own where turns count, on real ones where they meet."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.aio import both_loops, until
from tests.helpers.engine_dialogue import (
    RESOLVER4,
    Dialogue,
    Initiator,
    datagram,
    query,
    read_datagram,
)
from tests.helpers.memory_tun import MemoryTun
from tunproxy.app import driver as driver_module
from tunproxy.app.driver import BATCH, GROUP, Driver
from tunproxy.errors import MachineError
from tunproxy.flow.events import FlowClosed, FlowOpened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tunproxy.flow.engine import Engine
    from tunproxy.flow.events import Event

QUERY = datagram(RESOLVER4, query("www.example.com"), port=53)


class Handle:
    """What a loop gives back for a callback."""

    def __init__(self, callback: Callable[[], None], delay: float = 0.0) -> None:
        self.callback = callback
        self.delay = delay
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """An event loop whose turns the test makes."""

    def __init__(self) -> None:
        self.reader: Callable[[], None] | None = None
        self.soon: list[Handle] = []
        self.timers: list[Handle] = []

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self.reader = callback

    def remove_reader(self, fd: int) -> bool:
        self.reader = None
        return True

    def call_soon(self, callback: Callable[[], None]) -> Handle:
        self.soon.append(Handle(callback))
        return self.soon[-1]

    def call_later(self, delay: float, callback: Callable[[], None]) -> Handle:
        self.timers.append(Handle(callback, delay))
        return self.timers[-1]

    def turn(self) -> int:
        """Run what was due at the beginning of the turn; return how much that was."""
        due, self.soon = [handle for handle in self.soon if not handle.cancelled], []
        for handle in due:
            handle.callback()
        return len(due)

    @property
    def armed(self) -> list[Handle]:
        """The timers that would still expire."""
        return [handle for handle in self.timers if not handle.cancelled]

    def expire(self) -> None:
        """Let the one timer there is expire."""
        (timer,) = self.armed
        self.timers.clear()
        timer.callback()


class FakeEngine:
    """An engine that notes what it is asked, and says what it was told to say."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.log: list[str] = []
        self.packets: list[tuple[bytes, bool]] = []
        self.views: list[memoryview] = []
        self.event_for_each: Event | None = None
        self.events: deque[Event] = deque()
        self.out: deque[list[bytes]] = deque()
        self.at: float | None = None
        self.transmits = 0

    def handle_packet(
        self, view: memoryview, now: float, *, trusted: bool, lead: memoryview
    ) -> None:
        self.log.append("packet")
        self.packets.append((bytes(view), trusted))
        self.views.append(view)
        if self.event_for_each is not None:
            self.events.append(self.event_for_each)

    def handle_timeout(self, now: float) -> None:
        self.log.append("timeout")

    def next_event(self) -> Event | None:
        return self.events.popleft() if self.events else None

    def poll_transmit(self, now: float) -> list[bytes] | None:
        if self.out:
            return self.out.popleft()
        self.transmits += 1
        return None

    def poll_at(self) -> float | None:
        return self.at


class Collector:
    """A handler that keeps the events, and does what the test says about each."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.act: Callable[[Event], None] = lambda event: None

    def handle(self, event: Event) -> None:
        self.events.append(event)
        self.act(event)


class Note:
    """A trace that remembers what it was shown, and the ends of the turns as ``None``."""

    def __init__(self) -> None:
        self.shown: list[bytes | None] = []

    def add(self, crossed: bytes | memoryview) -> None:
        self.shown.append(bytes(crossed))

    def flush(self) -> None:
        self.shown.append(None)


class Rig:
    """A driver between fakes; its clock is ``now``."""

    def __init__(self, tun: MemoryTun, trace: Note | None = None) -> None:
        self.tun = tun
        self.loop = FakeLoop()
        self.engine = FakeEngine()
        self.handler = Collector()
        self.now = 1000.0
        self.driver = Driver(
            tun,
            cast("Engine", self.engine),
            self.handler,
            cast("asyncio.AbstractEventLoop", self.loop),
            trace,
        )
        self.driver.start()

    def readable(self) -> None:
        """The loop says that the device is readable."""
        assert self.loop.reader is not None
        self.loop.reader()


@pytest.fixture
def tun() -> Iterator[MemoryTun]:
    with MemoryTun() as tun:
        yield tun


@pytest.fixture
def rig(tun: MemoryTun, monkeypatch: pytest.MonkeyPatch) -> Rig:
    rig = Rig(tun)

    class Clock:
        monotonic = staticmethod(lambda: rig.now)

    monkeypatch.setattr(driver_module, "time", Clock)
    return rig


# --- packets in -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "trusted"), [(0, False), (1, True), (2, True)])
def test_a_packet_reaches_the_engine_without_its_header(
    rig: Rig, first: int, trusted: bool
) -> None:
    rig.tun.inject(b"packet", vnet=bytes([first]) + bytes(9))
    rig.readable()
    assert rig.engine.packets == [(b"packet", trusted)]
    assert rig.driver.packets_in == 1


def test_a_batch_is_bounded_and_followed_by_one_flush(rig: Rig) -> None:
    for _ in range(2 * BATCH + 1):
        rig.tun.inject(b"packet")
    for handled in (BATCH, 2 * BATCH, 2 * BATCH + 1):
        rig.readable()
        assert len(rig.engine.packets) == handled
    assert rig.engine.transmits == 3
    assert rig.tun.waiting == 0


def test_packets_stay_until_their_events_are_handled(rig: Rig) -> None:
    packets = [b"packet %d" % number for number in range(2 * GROUP + 1)]
    for packet in packets:
        rig.tun.inject(packet)
    seen: list[list[bytes]] = []

    def look(event: Event) -> None:
        seen.append([bytes(view) for view in rig.engine.views])
        rig.engine.views.clear()

    rig.handler.act = look
    rig.engine.event_for_each = FlowClosed(1, reset=True)
    rig.readable()
    assert [views for views in seen if views] == [
        packets[:GROUP],
        packets[GROUP : 2 * GROUP],
        packets[2 * GROUP :],
    ]


def test_what_came_before_the_device_was_deleted_counts(rig: Rig) -> None:
    rig.tun.inject(b"packet")
    rig.tun.deleted = MachineError("the device tun0 is gone")
    rig.engine.event_for_each = FlowClosed(1, reset=True)
    rig.readable()
    assert rig.driver.lost.is_set()
    assert rig.handler.events == [FlowClosed(1, reset=True)]


def test_nothing_to_read_is_nothing_wrong(rig: Rig) -> None:
    rig.readable()
    assert rig.tun.reads == 1
    assert not rig.engine.packets


def test_a_deleted_device_is_read_once_and_said_to_be_lost(rig: Rig) -> None:
    rig.tun.deleted = MachineError("the device tun0 is gone")
    assert not rig.driver.lost.is_set()
    rig.readable()
    assert rig.loop.reader is None
    assert rig.driver.lost.is_set()
    assert rig.driver.loss is rig.tun.deleted
    rig.driver.wake()
    assert not rig.loop.soon


# --- packets out ----------------------------------------------------------------------------------


def test_many_wakes_are_one_flush(rig: Rig) -> None:
    rig.engine.out += [[bytes(10), b"a"], [bytes(10), b"b"]]
    for _ in range(5):
        rig.driver.wake()
    assert not rig.tun.written
    assert rig.loop.turn() == 1
    assert rig.tun.written == [bytes(10) + b"a", bytes(10) + b"b"]
    assert rig.driver.packets_out == 2
    assert rig.loop.turn() == 0
    rig.driver.wake()
    assert rig.loop.turn() == 1


def test_a_batch_flushes_for_the_wakes_before_it(rig: Rig) -> None:
    rig.driver.wake()
    rig.tun.inject(b"packet")
    rig.readable()
    assert rig.engine.transmits == 1
    assert rig.loop.turn() == 0


def test_a_wake_during_the_flush_is_not_lost(rig: Rig) -> None:
    rig.engine.events.append(FlowClosed(1, reset=True))
    rig.handler.act = lambda event: rig.driver.wake()
    rig.driver.wake()
    rig.loop.turn()
    assert len(rig.handler.events) == 1
    assert rig.loop.turn() == 1
    assert rig.engine.transmits == 2


def test_what_the_kernel_does_not_take_is_counted(rig: Rig) -> None:
    rig.tun.full = True
    rig.engine.out += [[bytes(10), b"a"], [bytes(10), b"b"]]
    rig.driver.wake()
    rig.loop.turn()
    assert rig.engine.counters == {"tun_write": 2}
    assert not rig.tun.written


# --- the clock ------------------------------------------------------------------------------------


def test_no_deadline_is_no_timer(rig: Rig) -> None:
    rig.driver.wake()
    rig.loop.turn()
    assert not rig.loop.timers


def test_the_timer_is_for_the_first_deadline(rig: Rig) -> None:
    rig.engine.at = 1005.0
    rig.driver.wake()
    rig.loop.turn()
    assert [timer.delay for timer in rig.loop.armed] == [5.0]
    # An earlier one takes its place; for a later one it may stay.
    rig.engine.at = 1002.0
    rig.driver.wake()
    rig.loop.turn()
    assert [timer.delay for timer in rig.loop.armed] == [2.0]
    rig.engine.at = 1050.0
    rig.driver.wake()
    rig.loop.turn()
    assert [timer.delay for timer in rig.loop.armed] == [2.0]


def test_the_timer_is_set_anew_when_it_has_expired(rig: Rig) -> None:
    rig.engine.at = 1002.0
    rig.driver.wake()
    rig.loop.turn()
    rig.now = 1002.0
    rig.engine.at = 1050.0
    rig.engine.out.append([bytes(10), b"retransmission"])
    rig.loop.expire()
    assert rig.engine.log == ["timeout"]
    assert rig.tun.written == [bytes(10) + b"retransmission"]
    assert [timer.delay for timer in rig.loop.armed] == [48.0]
    rig.engine.at = None
    rig.now = 1050.0
    rig.loop.expire()
    assert not rig.loop.armed


def test_a_deadline_in_the_past_is_due_at_once(rig: Rig) -> None:
    rig.engine.at = 990.0
    rig.driver.wake()
    rig.loop.turn()
    assert [timer.delay for timer in rig.loop.armed] == [0.0]


def test_the_events_of_a_deadline_are_handled(rig: Rig) -> None:
    rig.engine.at = 1002.0
    rig.driver.wake()
    rig.loop.turn()
    rig.engine.events.append(FlowClosed(1, reset=False))
    rig.engine.at = None
    rig.loop.expire()
    assert rig.handler.events == [FlowClosed(1, reset=False)]


# --- the trace ------------------------------------------------------------------------------------


def test_trace_is_shown_both_directions_turn_by_turn(tun: MemoryTun) -> None:
    note = Note()
    rig = Rig(tun, note)
    lead = bytes([2]) + bytes(9)
    tun.inject(b"first", vnet=lead)
    tun.inject(b"second")
    rig.engine.out += [[bytes(10) + b"header", b"payload"], [bytes(10) + b"more"]]
    rig.readable()
    assert note.shown == [
        lead + b"first",
        bytes(10) + b"second",
        bytes(10) + b"headerpayload",
        bytes(10) + b"more",
        None,
    ]
    rig.driver.wake()
    rig.loop.turn()
    assert note.shown[5:] == [None]


def test_trace_sees_the_packet_before_the_engine_changes_it(tun: MemoryTun) -> None:
    note = Note()
    rig = Rig(tun, note)

    def overwrite(view: memoryview, now: float, *, trusted: bool, lead: memoryview) -> None:
        view[:] = bytes(len(view))
        lead[:] = bytes(len(lead))

    rig.engine.handle_packet = overwrite  # type: ignore[method-assign]
    tun.inject(b"packet", vnet=b"\x01" * 10)
    rig.readable()
    assert note.shown == [b"\x01" * 10 + b"packet", None]


def test_what_the_kernel_does_not_take_is_not_in_the_trace(tun: MemoryTun) -> None:
    note = Note()
    rig = Rig(tun, note)
    tun.full = True
    rig.engine.out.append([bytes(10), b"lost"])
    rig.driver.wake()
    rig.loop.turn()
    assert note.shown == [None]


# --- the end --------------------------------------------------------------------------------------


def test_a_stopped_driver_neither_reads_nor_writes(rig: Rig) -> None:
    rig.engine.at = 1002.0
    rig.driver.wake()
    rig.loop.turn()
    rig.engine.out.append([bytes(10), b"too late"])
    rig.driver.wake()
    rig.driver.stop()
    assert rig.loop.reader is None
    assert not rig.loop.armed
    assert rig.loop.turn() == 0


def test_a_stopped_driver_is_not_woken(rig: Rig) -> None:
    """Streams that end because of the stop still say so."""
    rig.driver.stop()
    rig.driver.stop()
    rig.engine.out.append([bytes(10), b"too late"])
    rig.engine.at = 1002.0
    rig.driver.wake()
    assert rig.loop.turn() == 0
    assert not rig.loop.armed
    assert not rig.tun.written


# --- on real loops, with a real engine ------------------------------------------------------------


@both_loops
async def test_a_query_is_answered(tun: MemoryTun) -> None:
    dialogue = Dialogue()
    driver = Driver(tun, dialogue.engine, Collector(), asyncio.get_running_loop())
    driver.start()
    tun.inject(QUERY)
    await until(lambda: tun.written, "the answer")
    driver.stop()
    (answer,) = tun.received()
    source, *_ = read_datagram(answer)
    assert source == RESOLVER4
    assert (driver.packets_in, driver.packets_out) == (1, 1)


@both_loops
async def test_a_device_that_is_always_readable_starves_nobody(tun: MemoryTun) -> None:
    dialogue = Dialogue()
    driver = Driver(tun, dialogue.engine, Collector(), asyncio.get_running_loop())
    driver.start()
    for _ in range(10 * BATCH):
        tun.inject(QUERY)
    seen = []
    while tun.waiting:
        seen.append(driver.packets_in)
        await asyncio.sleep(0)
    driver.stop()
    assert driver.packets_in == 10 * BATCH
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert max(steps) <= BATCH
    assert len(steps) >= 9


@both_loops
async def test_deadlines_are_met(tun: MemoryTun) -> None:
    """The SYN,ACK that nobody acknowledges is sent again after a second."""
    dialogue = Dialogue()
    handler = Collector()
    driver = Driver(tun, dialogue.engine, handler, asyncio.get_running_loop())

    def accept(event: Event) -> None:
        assert isinstance(event, FlowOpened)
        dialogue.engine.accept(event.flow, dialogue.now)

    handler.act = accept
    driver.start()
    initiator = Initiator(dialogue, bytes((198, 51, 100, 7)))
    tun.inject(initiator.packet(0x02))
    began = time.monotonic()
    await until(lambda: len(tun.written) == 2, "the retransmission")
    driver.stop()
    assert time.monotonic() - began >= 1.0
    first, again = (initiator.read(packet) for packet in tun.received())
    assert (first.kind, again) == ("S.", first)
