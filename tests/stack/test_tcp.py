"""Arbitrary segments, verbs and times in arbitrary states: what always holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.packets import V4
from tests.helpers.tcp_dialogue import (
    CONGESTED,
    CONGESTED_OFFLOAD,
    OFFLOAD,
    PLAIN,
    STATES,
    Dialogue,
)
from tunproxy.errors import WireError
from tunproxy.stack.assembler import MAX_PIECES
from tunproxy.stack.congestion import Cubic
from tunproxy.stack.receiver import MAX_LIMIT
from tunproxy.stack.scoreboard import _MAX_RANGES
from tunproxy.stack.states import TRANSITIONS, State
from tunproxy.stack.tcp import Endpoint, Signal
from tunproxy.wire import ip, offload, tcp
from tunproxy.wire.tcp import ACK, FIN, RST, SYN, Segment

if TYPE_CHECKING:
    from collections.abc import Callable

thorough = settings(deadline=None, derandomize=True, max_examples=300)


def numbers() -> st.SearchStrategy[int]:
    """Offsets that are near where something happens, or anywhere."""
    return st.one_of(
        st.integers(-3, 6),
        st.sampled_from([1000, 1461, 64000, 65535, 65536, -64000, 1 << 20, 1 << 31, -(1 << 31)]),
        st.integers(-(1 << 32), 1 << 32),
    )


segments = st.tuples(
    st.just("segment"),
    st.fixed_dictionaries(
        {
            "flags": st.one_of(
                st.sampled_from(["A", "PA", "FA", "S", "SA", "R", "RA", "F", "", "UPA", "FPUA"]),
                st.sampled_from(["A", "PA", "FA"]),
            ),
            "seq": numbers(),
            "ack": numbers(),
            "acks": st.booleans(),
            "data": st.one_of(st.just(b""), st.binary(max_size=8), st.just(bytes(3000))),
            "win": st.one_of(st.just(64000), st.sampled_from([0, 1, 200, 5000])),
            "sack": st.lists(st.tuples(numbers(), numbers()), max_size=4),
            "ts": st.one_of(
                st.just((-1, -1)),
                st.none(),
                st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)),
            ),
        }
    ),
)
verbs = st.one_of(
    st.tuples(st.just("accept"), st.none()),
    st.tuples(st.just("send"), st.sampled_from([1, 100, 5000, 70000])),
    st.tuples(st.just("eof"), st.none()),
    st.tuples(st.just("backlog"), st.sampled_from([0, 1, 500, 40000, 65536, 1 << 21])),
    st.tuples(st.just("abort"), st.none()),
    st.tuples(st.just("orphan"), st.none()),
    st.tuples(st.just("path_mtu"), st.sampled_from([0, 68, 576, 1000, 1400, 1500])),
    st.tuples(st.just("wait"), st.floats(0.0001, 3.0)),
    st.tuples(st.just("wake"), st.none()),
    st.tuples(st.just("dispatch"), st.none()),
)
scripts = st.lists(st.one_of(segments, segments, verbs), max_size=25)
dialogues = st.fixed_dictionaries(
    {
        "sack": st.booleans(),
        "timestamps": st.booleans(),
        "wscale": st.sampled_from([None, 0, 7]),
        "mss": st.sampled_from([None, 100, 1460]),
        "path": st.sampled_from([PLAIN, OFFLOAD, CONGESTED, CONGESTED_OFFLOAD]),
        "controller": st.sampled_from([None, Cubic]),
        "keepalive_s": st.sampled_from([None, 2.0]),
        "max_window": st.sampled_from([500, 65536, MAX_LIMIT]),
    }
)


class Watch:
    """The invariants of one endpoint."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._d = dialogue
        self._state = dialogue.state()
        self._edge = dialogue.endpoint.receiver.rcv_adv
        self._rcv_nxt = dialogue.endpoint.receiver.rcv_nxt
        self._una = dialogue.endpoint.sender.snd_una
        endpoint = dialogue.endpoint
        self._delivered = endpoint.receiver.rcv_nxt - endpoint.receiver.irs - 1
        self._delivered -= self._fins()
        self._sent = len(endpoint.sender.queue)

    def _fins(self) -> int:
        receiver = self._d.endpoint.receiver
        return receiver.fin_seq is not None and receiver.rcv_nxt > receiver.fin_seq

    def sent(self, octets: int) -> int:
        """The script offers ``octets`` to the endpoint."""
        self._sent += octets
        return octets

    def check(self) -> None:
        endpoint = self._d.endpoint
        receiver, sender = endpoint.receiver, endpoint.sender
        assert receiver.rcv_adv >= self._edge, "the right edge moved back"
        assert self._rcv_nxt <= receiver.rcv_nxt <= receiver.rcv_adv
        # A FIN needs no room.
        assert receiver.rcv_wnd <= receiver.max_limit
        assert self._una <= sender.snd_una <= sender.snd_nxt <= sender.queue.end + 1
        if receiver.assembler is not None:
            waiting = receiver.assembler.ranges()
            assert len(waiting) <= MAX_PIECES
            assert sum(b - a for a, b in waiting) <= receiver.max_limit
        if sender.scoreboard is not None:
            assert len(sender.scoreboard) <= _MAX_RANGES
            assert sender.scoreboard.sacked <= sender.snd_nxt - sender.snd_una
        delivered = receiver.rcv_nxt - receiver.irs - 1 - self._fins()
        assert len(self._d.received) == delivered - self._delivered
        assert len(sender.queue) <= self._sent
        assert not (endpoint.signals & Signal.RESET and endpoint.signals & Signal.CLOSED)
        if endpoint.state is State.CLOSED:
            assert endpoint.poll_at() is None
        self._edge, self._rcv_nxt, self._una = receiver.rcv_adv, receiver.rcv_nxt, sender.snd_una

    def heard(self, segment: Segment, before: State) -> None:
        """``segment`` was sent: it is one that may be sent."""
        d, endpoint = self._d, self._d.endpoint
        flags = segment.flags
        if flags & SYN:
            assert before is State.SYN_RECEIVED
            assert flags == SYN | ACK
            assert not segment.length
        if flags & RST:
            assert not segment.length
            return
        assert flags & ACK
        assert before not in (State.LISTEN, State.CLOSED)
        assert segment.length <= endpoint.sender.max_payload
        assert segment.length == sum(len(piece) for piece in segment.payload)
        assert not (segment.length and segment.sack)
        assert len(segment.payload) < 1024
        assert 0 <= segment.window <= 0xFFFF
        if flags & FIN:
            assert before is not State.TIME_WAIT
        edge = endpoint.receiver.irs + d.peer_seq(segment.ack) + d.octets(segment)
        assert edge <= endpoint.receiver.rcv_adv, "promised more than is honoured"
        assert edge > endpoint.receiver.rcv_adv - (1 << endpoint.receiver.shift)
        packet = tcp.emit(V4.src, V4.dst, segment, gso_size=endpoint.sender.mss, partial=True)
        assert sum(len(piece) for piece in packet) <= 0xFFFF + len(offload.NONE)


def play(d: Dialogue, script: list[tuple[str, Any]]) -> None:
    watch = Watch(d)
    actions: dict[str, Callable[[Any], object]] = {
        "segment": lambda fields: say(d, **fields),
        "accept": lambda _: d.endpoint.accept(),
        "send": lambda size: d.endpoint.send(bytes(watch.sent(size))),
        "eof": lambda _: d.endpoint.send_eof(),
        "backlog": d.endpoint.set_backlog,
        "abort": lambda _: d.endpoint.abort(),
        "orphan": lambda _: d.endpoint.orphan(d.now),
        "path_mtu": lambda mtu: d.endpoint.path_mtu(mtu, d.now),
        "wait": lambda seconds: d.advance(d.now + seconds),
        "wake": lambda _: d.advance(d.endpoint.poll_at()),
        "dispatch": lambda _: drain(d, watch),
    }
    for verb, argument in script:
        actions[verb](argument)
        watch.check()
    drain(d, watch)


def say(
    d: Dialogue, *, seq: int, ack: int, acks: bool, sack: list[tuple[int, int]], **rest: Any
) -> None:
    """Send a segment whose numbers are relative to what the endpoint expects.

    ``acks``: SEG.ACK counts from SND.NXT, not from SND.UNA.
    """
    sender = d.endpoint.sender
    una, nxt = sender.snd_una - d.iss, sender.snd_nxt - d.iss
    d.send(
        seq=d.endpoint.receiver.rcv_nxt - d.irs + seq,
        ack=(nxt if acks else una) + ack,
        sack=[(una + a, una + b) for a, b in sack],
        **rest,
    )


def drain(d: Dialogue, watch: Watch) -> None:
    """Dispatch until silence, which must come, and leave no timer that is due."""
    for _ in range(2000):
        before = d.state()
        segment = d.endpoint.dispatch(d.now)
        watch.check()
        if segment is None:
            break
        watch.heard(segment, before)
    else:
        pytest.fail("never silent")
    at = d.endpoint.poll_at()
    assert at is None or at > d.now, "busy loop"


@thorough
@given(st.sampled_from(list(STATES)), dialogues, scripts)
def test_anything_in_any_state(
    state: State, options: dict[str, Any], script: list[tuple[str, Any]]
) -> None:
    play(STATES[state](**options), script)


@thorough
@given(
    st.sampled_from(list(STATES)),
    dialogues,
    st.lists(st.binary(min_size=20, max_size=64), max_size=8),
)
def test_arbitrary_octets_are_refused_or_survived(
    state: State, options: dict[str, Any], packets: list[bytes]
) -> None:
    """What wire.tcp lets through is sane enough for any state."""
    d = STATES[state](**options)
    watch = Watch(d)
    for octets in packets:
        packet = ip.Packet(4, V4.src, V4.dst, ip.TCP, 64, memoryview(octets), memoryview(octets))
        try:
            segment = tcp.parse(packet, trusted=True)
        except WireError:
            continue
        d.give(segment)
        watch.check()
        drain(d, watch)


@thorough
@given(dialogues, st.lists(st.integers(0, 30), min_size=1, max_size=30), st.integers(0, 3))
def test_a_stream_cut_in_any_way_and_order(
    options: dict[str, Any], cuts: list[int], every: int
) -> None:
    """Each octet of the stream comes at some time, in pieces that overlap, in no order."""
    stream = bytes(range(65, 65 + 40))
    d = STATES[State.ESTABLISHED](**options)
    watch = Watch(d)
    pieces = [(cut, stream[cut : cut + 1 + (7 * cut) % 13]) for cut in cuts]
    pieces += [(at, stream[at : at + 5]) for at in reversed(range(0, 40, 5))]
    for number, (at, data) in enumerate(pieces):
        d.send("A", 1 + at, 1, data)
        watch.check()
        if every and number % every == 0:
            drain(d, watch)
    assert d.received == stream
    d.send("FA", 41, 1)
    assert d.signals() & Signal.EOF


def test_every_legal_transition_is_one_that_rfc_9293_draws() -> None:
    drawn = {
        (State.LISTEN, State.SYN_RECEIVED),
        (State.SYN_RECEIVED, State.ESTABLISHED),
        (State.ESTABLISHED, State.FIN_WAIT_1),
        (State.ESTABLISHED, State.CLOSE_WAIT),
        (State.FIN_WAIT_1, State.FIN_WAIT_2),
        (State.FIN_WAIT_1, State.CLOSING),
        (State.FIN_WAIT_1, State.TIME_WAIT),
        (State.FIN_WAIT_2, State.TIME_WAIT),
        (State.CLOSE_WAIT, State.LAST_ACK),
        (State.CLOSING, State.TIME_WAIT),
    }
    legal = {(a, b) for a, to in TRANSITIONS.items() for b in to if b is not State.CLOSED}
    assert legal <= drawn


def test_signals_are_flags_of_a_plain_integer() -> None:
    endpoint: Endpoint = STATES[State.ESTABLISHED]().endpoint
    assert endpoint.signals == 0
    signals = [bit for name, bit in vars(Signal).items() if name.isupper()]
    assert sorted(signals) == [1 << at for at in range(5)]
