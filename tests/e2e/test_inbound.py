"""Connections that are none of our business: those from outside, and those older than we are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import CLIENT4, CLIENT6, WORLD4, WORLD6
from tests.helpers.lab_pair import connected
from tests.helpers.lab_tunproxy import up

if TYPE_CHECKING:
    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("options", [(), ("--gateway",)])
@pytest.mark.parametrize(("ours", "theirs"), [(CLIENT4, WORLD4), (CLIENT6, WORLD6)])
def test_they_live_on(lab: Lab, options: tuple[str, ...], ours: str, theirs: str) -> None:
    """Who is logged in to this machine stays logged in, and may log in again."""
    with contextlib.ExitStack() as stack:
        inbound = stack.enter_context(connected(lab.world, lab.client, ours))
        outbound = stack.enter_context(connected(lab.client, lab.world, theirs))
        for pair in (inbound, outbound):
            pair.exchange()
        with up(lab, *options) as program:
            later = stack.enter_context(connected(lab.world, lab.client, ours))
            for pair in (inbound, outbound, later):
                pair.exchange()
            assert later.server.getpeername()[0] == theirs
            assert program.stop() == 0, program.output()
        for pair in (inbound, outbound, later):
            pair.exchange()
