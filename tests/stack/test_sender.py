"""The sender by itself, against a peer who takes or loses what he likes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.stack.sender import MAX_RETRANSMITS, Sender, Span

ISS = 1 << 33
FIRST = ISS + 1
MSS = 100


def sender(window: int = 10_000, *, max_payload: int = MSS, sack: bool = True) -> Sender:
    """One whose SYN,ACK has been acknowledged at time 0 after no time."""
    made = Sender(ISS, mss=MSS, max_payload=max_payload, shift=0, sack=sack)
    made.syn_sent(0.0)
    made.update_window(1, FIRST, window)
    made.acknowledge(FIRST, 0.0, None)
    return made


def spans(s: Sender, now: float = 0.0) -> list[tuple[int, int, bool]]:
    """All that it sends at ``now``, relative to the first octet."""
    out = []
    while (span := s.next(now)) is not None:
        out.append((span.seq - FIRST, span.length, span.fin))
    return out


def test_nothing_to_send_arms_no_timer() -> None:
    s = sender()
    assert spans(s) == []
    assert s.timer_at is None


def test_spans_follow_the_queue_and_end_with_the_fin() -> None:
    s = sender()
    s.queue.append(bytes(250))
    s.fin_queued = True
    assert spans(s) == [(0, 100, False), (100, 100, False), (200, 50, True)]
    assert s.fin_seq == FIRST + 250
    assert s.snd_nxt == FIRST + 251
    assert s.timer_at == 0.2


def test_span_says_where_it_is() -> None:
    s = sender()
    s.queue.append(b"abc")
    assert s.next(0.0) == Span(FIRST, 3, False)


def test_persist_and_retransmission_timer_exclude_each_other() -> None:
    s = sender(0)
    s.queue.append(bytes(50))
    assert (spans(s), s.probing) == ([], True)
    s.on_timeout(0.2)
    assert (spans(s, 0.2), s.probing) == ([(0, 1, False)], True)
    s.update_window(1, FIRST, 1000)
    assert spans(s, 0.3) == [(0, 1, False), (1, 49, False)]
    assert (s.probing, s.timer_at) == (False, 0.3 + 0.2)


def test_failed_only_after_all_retransmissions() -> None:
    s = sender()
    s.queue.append(b"abc")
    spans(s)
    for _ in range(MAX_RETRANSMITS):
        assert s.timer_at is not None
        s.on_timeout(s.timer_at)
        assert not s.failed
        assert spans(s, 1000.0) == [(0, 3, False)]
    s.on_timeout(5000.0)
    assert s.failed


def test_no_sample_while_recovering() -> None:
    """RFC 6298 3: neither of what was repeated, nor of what was sent before it was."""
    s = sender(sack=False)
    s.queue.append(bytes(500))
    spans(s)
    for _ in range(3):
        s.duplicate(0.0)
    assert spans(s) == [(0, 100, False)]
    s.queue.append(bytes(100))
    assert spans(s) == [(500, 100, False)]
    s.acknowledge(FIRST + 600, 7.0, None)
    assert s.rtt.srtt == 0.0


actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 700)),
        st.tuples(st.just("ack"), st.integers(0, 900)),
        st.tuples(st.just("duplicate"), st.just(0)),
        st.tuples(st.just("sack"), st.integers(0, 900)),
        st.tuples(st.just("window"), st.integers(0, 1200)),
        st.tuples(st.just("timeout"), st.just(0)),
        st.tuples(st.just("fin"), st.just(0)),
    ),
    max_size=40,
)


@deterministic
@given(actions, st.booleans(), st.sampled_from([MSS, 5 * MSS]))
def test_what_is_sent_lies_in_the_window_and_in_the_queue(
    script: list[tuple[str, int]], sack: bool, max_payload: int
) -> None:
    s = sender(1000, sack=sack, max_payload=max_payload)
    seq, now = 1, 0.0
    for verb, n in script:
        now += 0.01
        probe = False
        outstanding = s.snd_nxt - s.snd_una
        if verb == "append" and not s.fin_queued:
            s.queue.append(bytes(n))
        elif verb == "fin":
            s.fin_queued = True
        elif verb == "ack" and min(n, outstanding):
            s.acknowledge(s.snd_una + min(n, outstanding), now, None)
        elif verb == "duplicate" and outstanding:
            s.duplicate(0.0)
        elif verb == "sack" and sack and outstanding:
            left = s.snd_una + 1 + n % outstanding
            s.take_sack([(left, left + 50)], now)
        elif verb == "window":
            seq += 1
            s.update_window(seq, s.snd_una, n)
        elif verb == "timeout" and s.timer_at is not None:
            now = max(now, s.timer_at)
            s.on_timeout(now)
            s.heard()
            s.retransmits = 0
            probe = True
        check_spans(s, now, probe)


def check_spans(s: Sender, now: float, probe: bool) -> None:
    for _ in range(1000):
        nxt = s.snd_nxt
        span = s.next(now)
        if span is None:
            break
        end = span.seq + span.length + span.fin
        assert s.snd_una <= span.seq <= nxt
        assert span.length or span.fin
        assert span.length <= s.max_payload
        assert span.seq + span.length <= s.queue.end
        assert s.snd_nxt == max(nxt, end)
        assert span.fin == (span.fin and span.seq + span.length == s.fin_seq)
        allowed = s.snd_wnd or int(probe)
        assert end <= s.snd_una + allowed, "overruns the window"
        # The octets are there to be sent.
        assert sum(len(piece) for piece in s.queue.peek(span.seq, span.length)) == span.length
    else:
        raise AssertionError("never silent")
    waiting = s.queue.end + (s.fin_queued and s.fin_seq is None) - s.snd_nxt
    if s.snd_nxt > s.snd_una or waiting > 0:
        assert s.timer_at is not None, "would hang for ever"
        assert s.timer_at > now
