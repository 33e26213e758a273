"""What a decision is."""

from __future__ import annotations

import pytest

from tunproxy.flow.decision import Action


@pytest.mark.parametrize(
    ("action", "refuses"),
    [
        (Action.PROXY, False),
        (Action.DIRECT, False),
        (Action.REJECT, True),
        (Action.REJECT_DROP, True),
    ],
)
def test_refusals(action: Action, refuses: bool) -> None:
    assert action.is_refusal is refuses


def test_targets_are_the_names_of_actions() -> None:
    assert [action.value for action in Action] == ["PROXY", "DIRECT", "REJECT", "REJECT-DROP"]
