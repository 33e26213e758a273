"""The transition table against the diagram of RFC 9293 3.3.2."""

from __future__ import annotations

import pytest

from tests.helpers.tcp_dialogue import STATES, established
from tunproxy.stack.states import FIN_SENT, MAY_RECEIVE, MAY_SEND, TRANSITIONS, State


def test_states_print_as_the_rfc_spells_them() -> None:
    assert str(State.FIN_WAIT_1) == "FIN-WAIT-1"
    assert f"{State.SYN_RECEIVED}" == "SYN-RECEIVED"


def test_every_state_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(State)


def test_closed_is_final_and_within_one_step_of_all_others() -> None:
    assert not TRANSITIONS[State.CLOSED]
    assert all(State.CLOSED in to for state, to in TRANSITIONS.items() if state is not State.CLOSED)


def test_every_state_is_reached_from_listen() -> None:
    seen, edge = {State.LISTEN}, {State.LISTEN}
    while edge:
        edge = set().union(*(TRANSITIONS[state] for state in edge)) - seen
        seen |= edge
    assert seen == set(State)


@pytest.mark.parametrize("state", STATES, ids=str)
def test_predicates_follow_from_the_fins(state: State) -> None:
    theirs = {State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK, State.TIME_WAIT}
    ours = {State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSING, State.LAST_ACK, State.TIME_WAIT}
    assert (state in MAY_RECEIVE) == (state not in theirs | {State.LISTEN, State.SYN_RECEIVED})
    assert (state in MAY_SEND) == (state not in ours | {State.LISTEN})
    assert (state in FIN_SENT) == (state in ours - {State.FIN_WAIT_2, State.TIME_WAIT})


def test_an_illegal_transition_is_a_defect_of_ours() -> None:
    endpoint = established().endpoint
    with pytest.raises(AssertionError, match="ESTABLISHED to TIME-WAIT"):
        endpoint._set_state(State.TIME_WAIT)
