"""A firewall of the user's that drops what comes in: one stack does not mind, the other says so."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin
from tests.helpers.lab import ORIGIN4, OUTSIDE4, WORLD4
from tests.helpers.lab_http import whoami
from tests.helpers.lab_tunproxy import up
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

FIREWALL = """
table inet firewall {
  chain input {
    type filter hook input priority 0; policy drop;
    iifname { "lo", "lan" } accept
    ct state established,related accept
  }
}
"""
"""As a desktop has it."""
EXCEPTION = ("nft", "insert", "rule", "inet", "firewall", "input", "iifname", "tun7", "accept")


@pytest.fixture
def _firewall(lab: Lab) -> Iterator[None]:
    lab.client.run("nft", "-f", "-", stdin=FIREWALL)
    yield
    lab.client.run("nft", "delete", "table", "inet", "firewall")


@pytest.mark.usefixtures("_firewall")
def test_user_stack_does_not_mind(lab: Lab) -> None:
    with up(lab) as program:
        assert whoami(lab.client, WORLD4) == OUTSIDE4
        assert program.stderr == []


@pytest.mark.usefixtures("_firewall")
def test_system_stack_says_what_is_wrong(lab: Lab) -> None:
    """And goes on when that is put right, even with the connection that has waited."""
    with up(lab, "--stack", "system", "--tun", "tun7") as program:
        with lab.client.open_socket(ORIGIN4, socket.SOCK_STREAM) as waiting:
            waiting.setblocking(False)
            with pytest.raises(BlockingIOError):
                waiting.connect((ORIGIN4, origin.ECHO))
            until(lambda: program.stderr, "the warning")
            assert program.status()["counters"]["nat_handshake_slow"] == 1
            lab.client.run(*EXCEPTION)
            assert select.select([], [waiting], [], 20)[1]
            assert waiting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert whoami(lab.client, WORLD4) == OUTSIDE4
        (warning,) = program.stderr
    assert "WARNING" in warning
    assert "tun7" in warning
    assert "firewall" in warning
    assert "--stack user" in warning
