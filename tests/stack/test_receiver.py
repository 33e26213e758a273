"""Windows of the receiver by themselves: RFC 9293 3.8.6.2.2, RFC 7323 2.4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.stack.receiver import INITIAL_LIMIT, MAX_LIMIT, WINDOW_SHIFT, Receiver

IRS = (1 << 40) + 5
FIRST = IRS + 1


def receiver(**options: int) -> Receiver:
    made = Receiver(IRS, shift=options.pop("shift", WINDOW_SHIFT), **options)
    made.advertise()
    return made


def test_nothing_is_acceptable_before_a_window_was_advertised() -> None:
    fresh = Receiver(IRS, shift=0)
    assert fresh.rcv_wnd == 0
    assert not fresh.acceptable(FIRST - 1, 1)
    assert not fresh.acceptable(FIRST + 1, 0)


@pytest.mark.parametrize(
    ("seq", "seg_len", "acceptable"),
    [
        (-1, 0, False),
        (0, 0, True),
        (INITIAL_LIMIT, 0, True),
        (INITIAL_LIMIT + 1, 0, False),
        (-5, 5, False),
        (-5, 6, True),
        (INITIAL_LIMIT - 1, 9, True),
        (INITIAL_LIMIT, 1, False),
        (-5, INITIAL_LIMIT + 9, True),
    ],
)
def test_acceptable_with_an_open_window(seq: int, seg_len: int, acceptable: bool) -> None:
    """RFC 9293 3.10.7.4, first, table 6."""
    assert receiver().acceptable(FIRST + seq, seg_len) is acceptable


@pytest.mark.parametrize(("seq", "acceptable"), [(-1, False), (0, True), (1, False)])
@pytest.mark.parametrize("seg_len", [0, 1, 1000])
def test_acceptable_with_a_closed_window(seq: int, seg_len: int, acceptable: bool) -> None:
    """RFC 9293 3.10.7.4, first: valid ACKs and RSTs."""
    closed = receiver(max_limit=1024)
    closed.backlog = 1024
    assert closed.receive(FIRST, bytes(1024), False)
    closed.advertise()
    # An old octet with something behind it cannot be told from an old octet alone.
    assert closed.acceptable(FIRST + 1024 + seq, seg_len) is acceptable


def test_syn_window_is_not_scaled() -> None:
    """RFC 7323 2.2."""
    fresh = Receiver(IRS, shift=WINDOW_SHIFT)
    assert fresh.advertise(scaled=False) == 0xFFFF
    assert fresh.rcv_adv == FIRST + 0xFFFF


def test_limit_is_what_the_field_can_say() -> None:
    assert Receiver(IRS, shift=0).max_limit == 0xFFFF
    assert Receiver(IRS, shift=WINDOW_SHIFT).max_limit == MAX_LIMIT
    assert Receiver(IRS, shift=1).max_limit == 2 * 0xFFFF


def test_limit_doubles_as_often_as_it_is_filled() -> None:
    growing = receiver()
    seen = []
    for at in range(0, 8 * MAX_LIMIT, 1 << 14):
        growing.receive(FIRST + at, bytes(1 << 14), False)
        growing.advertise()
        seen.append(growing.limit)
    assert sorted(set(seen)) == [INITIAL_LIMIT << i for i in range(5)]
    assert seen == sorted(seen)
    assert seen[3] == 2 * INITIAL_LIMIT, "after the first 64 KiB"


def test_limit_does_not_grow_for_an_upstream_that_takes_nothing() -> None:
    """What was consumed is what waits there."""
    stalled = receiver()
    while stalled.rcv_wnd:
        size = min(1 << 14, stalled.rcv_wnd)
        stalled.receive(stalled.rcv_nxt, bytes(size), False)
        stalled.backlog += size
        stalled.advertise()
    assert stalled.backlog <= 2 * INITIAL_LIMIT


def test_limit_grows_with_what_the_upstream_has_sent_on() -> None:
    slow = receiver()
    for _ in range(100):
        size = min(1 << 14, slow.rcv_wnd)
        slow.receive(slow.rcv_nxt, bytes(size), False)
        slow.backlog = max(0, slow.backlog + size - (1 << 13))
        slow.advertise()
    assert slow.limit > INITIAL_LIMIT


def test_update_is_due_at_a_segment_or_a_quarter() -> None:
    """RFC 9293 3.8.6.2.2."""
    waiting = receiver(max_limit=1 << 15)
    waiting.backlog = 1 << 15
    waiting.receive(FIRST, bytes(1 << 15), False)
    waiting.advertise()
    for backlog, due in ((1 << 15, False), (24577, False), (24576, True), (0, True)):
        waiting.backlog = backlog
        assert waiting.window_is_worth_an_update(1460) is due


def test_dsack_is_reported_once() -> None:
    """RFC 2883 4: only in the acknowledgment of the duplicate."""
    told = receiver()
    told.receive(FIRST, b"abcd", False)
    told.receive(FIRST + 1, b"bcde", False)
    assert (told.wants_sack, told.sack_blocks()) == (True, [(FIRST + 1, FIRST + 4)])
    assert (told.wants_sack, told.sack_blocks()) == (False, [])


steps = st.lists(
    st.tuples(
        st.integers(0, 3000),  # octets that arrive, at most
        st.integers(0, 4000),  # octets that the upstream sends on
        st.booleans(),  # whether a segment is sent
    ),
    max_size=60,
)


@deterministic
@given(steps, st.sampled_from([0, 7]), st.sampled_from([500, 5000, MAX_LIMIT]))
def test_window_is_a_promise_that_is_kept_and_bounded(
    script: list[tuple[int, int, bool]], shift: int, max_limit: int
) -> None:
    """Whatever arrives within the window is taken, and never more is held than the limit."""
    r = receiver(shift=shift, max_limit=max_limit)
    edge = r.rcv_adv
    for arriving, leaving, sent in script:
        size = min(arriving, r.rcv_wnd)
        taken = r.receive(r.rcv_nxt, bytes(size), False)
        assert sum(len(piece) for piece in taken) == size
        r.backlog += size
        assert r.backlog <= r.limit
        r.backlog = max(0, r.backlog - leaving)
        if sent:
            field = r.advertise()
            assert 0 <= field <= 0xFFFF
            assert r.rcv_nxt + (field << shift) <= r.rcv_adv
            assert r.rcv_adv - r.rcv_nxt - (field << shift) < 1 << shift
        assert r.rcv_adv >= edge
        assert r.rcv_wnd + r.backlog <= r.limit
        edge = r.rcv_adv
