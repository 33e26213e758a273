"""What is left in TIME-WAIT: as small as it says, and the same as seen by the peer."""

from __future__ import annotations

import gc
import sys
from collections import Counter

import pytest

from tests.helpers.tcp_dialogue import START, Dialogue, established, time_wait
from tunproxy.stack.limiter import Limiter
from tunproxy.stack.states import State
from tunproxy.stack.timewait import TIME_WAIT_S, TimeWait, next_iss
from tunproxy.wire.seq import wrap


def left(d: Dialogue) -> TimeWait:
    """What may take the place of the endpoint."""
    made = d.endpoint.time_wait
    assert made is not None
    return made


def test_there_is_none_before() -> None:
    assert established().endpoint.time_wait is None


@pytest.mark.parametrize("timestamps", [False, True])
def test_it_is_small(timestamps: bool) -> None:
    """Everything that only it refers to; states and small integers are shared."""
    tw = left(time_wait(timestamps=timestamps))
    octets = sys.getsizeof(tw)
    for value in gc.get_referents(tw):
        if not isinstance(value, (type, State, Limiter)):
            octets += sys.getsizeof(value)
    assert octets < 300


def test_it_answers_as_the_endpoint_does() -> None:
    d = time_wait(timestamps=True)
    tw = left(d)
    fin = d.segment("FA", 1, 2)
    tw.process(fin, START + 1)
    ack = tw.dispatch(START + 1)
    assert ack is not None
    assert (d.our_seq(ack.seq), d.peer_seq(ack.ack)) == (2, 2)
    assert ack.timestamps is not None
    assert ack.timestamps[1] == d.peer_tsval(START)
    assert tw.dispatch(START + 1) is None
    assert tw.poll_at() == START + 1 + TIME_WAIT_S


def test_the_last_acknowledgment_may_be_its() -> None:
    """It takes the endpoint's place before that was sent."""
    d = time_wait()
    d.send("FA", 1, 2)
    ack = left(d).dispatch(d.now)
    assert ack is not None
    assert d.peer_seq(ack.ack) == 2


def test_challenges_that_it_holds_back_are_counted() -> None:
    """RFC 5961 7."""
    counters: Counter[str] = Counter()
    d = time_wait(challenges=Limiter(1000.0, 1000.0, counters, "suppressed"))
    tw = left(d)
    for _ in range(3):
        tw.process(d.segment("S", 1, None), START + 1)
        tw.dispatch(START + 1)
    assert counters == {"suppressed": 2}


def test_it_ends() -> None:
    tw = left(time_wait())
    tw.handle_timeout(START + TIME_WAIT_S - 0.001)
    assert tw.poll_at() == START + TIME_WAIT_S
    tw.handle_timeout(START + TIME_WAIT_S)
    assert tw.state is State.CLOSED
    assert tw.poll_at() is None


def test_noise_is_limited() -> None:
    d = time_wait()
    tw = left(d)
    answers = 0
    for _ in range(100):
        tw.process(d.segment("R", 9, None), d.now)
        answers += tw.dispatch(d.now) is not None
    assert answers == 1


def test_the_upstreams_verbs_do_nothing() -> None:
    tw = left(time_wait())
    tw.accept()
    assert tw.send(b"x")
    tw.send_eof()
    tw.set_backlog(5)
    tw.orphan(START)
    assert not tw.path_mtu(1000, START)
    assert not tw.is_outstanding(5)
    assert tw.dispatch(START) is None
    assert tw.poll_at() == START + TIME_WAIT_S
    tw.abort()
    assert tw.state is State.CLOSED
    assert tw.process(time_wait().segment("FA", 1, 2), START) == []
    assert tw.dispatch(START) is None


@pytest.mark.parametrize(
    ("generated", "expected"),
    [(5, 5), (1, 1), (0, 0x10001), (-1, 0x10001), (1 << 30, 1 << 30), (-(1 << 30), 0x10001)],
)
def test_initial_number_is_above_all_that_were_used(generated: int, expected: int) -> None:
    """RFC 6191 2, RFC 9293 3.4.3; near the wrap, too."""
    for snd_nxt in (0, 1000, (1 << 32) - 1):
        assert next_iss(snd_nxt, wrap(snd_nxt + generated)) == wrap(snd_nxt + expected)


def test_initial_number_of_a_reincarnation() -> None:
    d = time_wait()
    for place in (d.endpoint, left(d)):
        number = place.reincarnation_iss(wrap(d.iss - 9))
        assert d.our_seq(number) > 2
        assert place.reincarnation_iss(wrap(d.iss + 77)) == wrap(d.iss + 77)
