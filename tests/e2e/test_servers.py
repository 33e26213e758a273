"""Rules that name one of several servers; datagrams are in test_servers_datagrams.py."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin
from tests.helpers.lab import (
    BESIDE_ORIGIN,
    ORIGIN4,
    OUTSIDE4,
    SERVER4,
    WORLD4,
    WORLD6,
)
from tests.helpers.lab_http import whoami
from tests.helpers.lab_servers import Entry, write_config
from tests.helpers.lab_tunproxy import Tunproxy, up
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def two_servers(lab: Lab) -> Iterator[Tunproxy]:
    """An instance with a second server, which is the same host by another address, and a third
    that lets nobody in."""
    rules = f"IP-CIDR,{WORLD4}/32,second\nIP-CIDR6,{WORLD6}/128,third\nMATCH,exit\n"
    sshd = lab.sshd
    config = write_config(
        lab.directory / "servers",
        rules,
        [
            Entry("exit", OUTSIDE4, sshd, sshd.key),
            Entry("second", SERVER4, sshd, sshd.key),
            Entry("third", SERVER4, sshd, sshd.foreign_key),
        ],
    )
    with up(lab, "-c", config) as program:
        yield program


def test_rule_that_names_a_server(lab: Lab, two_servers: Tunproxy) -> None:
    """It is logged in to when the first flow wants it."""

    def logins() -> int:
        return lab.sshd.log().count("Accepted publickey")

    before = logins()
    assert whoami(lab.client, ORIGIN4) in BESIDE_ORIGIN
    assert logins() == before
    for _ in range(2):
        assert whoami(lab.client, WORLD4) == OUTSIDE4
    assert logins() == before + 1


def test_rule_that_names_a_server_which_refuses_us(lab: Lab, two_servers: Tunproxy) -> None:
    assert lab.client.connect_error(WORLD6, origin.HTTP) == errno.EHOSTUNREACH, two_servers.output()
    until(lambda: "no flow goes through third" in two_servers.output(), "the reason")
    assert whoami(lab.client, ORIGIN4) in BESIDE_ORIGIN
