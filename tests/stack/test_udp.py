"""How long an association is remembered."""

from __future__ import annotations

import pytest

from tunproxy.stack.udp import IDLE_BY_PORT, IDLE_S, Association


def test_idle_time_is_what_rfc_4787_asks_for() -> None:
    assert IDLE_S >= 120
    assert Association(4000, 10.0).expires_at == 10.0 + IDLE_S


@pytest.mark.parametrize("port", IDLE_BY_PORT)
def test_a_question_and_its_answer_are_forgotten_sooner(port: int) -> None:
    assert Association(port, 10.0).expires_at == 10.0 + IDLE_BY_PORT[port]
    assert IDLE_BY_PORT[port] < IDLE_S


@pytest.mark.parametrize("port", [53, 4000])
def test_a_datagram_begins_the_time_anew(port: int) -> None:
    association = Association(port, 10.0)
    idle_s = association.expires_at - 10.0
    association.touch(12.5)
    assert association.expires_at == 12.5 + idle_s
