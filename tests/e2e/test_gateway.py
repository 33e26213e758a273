"""``tunproxy up --gateway``: the LAN goes through us."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import (
    BESIDE_ORIGIN,
    DEAD_RESOLVER,
    GATEWAY4,
    GATEWAY6,
    LAN4,
    OUTSIDE4,
    OUTSIDE6,
    WORLD4,
    WORLD6,
)
from tests.helpers.lab_http import whoami
from tests.helpers.lab_pair import connected
from tests.helpers.lab_tunproxy import up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

FAKE4 = ipaddress.ip_network("198.18.0.0/15")


@pytest.fixture(scope="module", autouse=True)
def _gateway(lab: Lab, stack: str) -> Iterator[None]:
    with up(lab, "--gateway", "--stack", stack):
        yield


@pytest.mark.parametrize(("address", "seen"), [(WORLD4, OUTSIDE4), (WORLD6, OUTSIDE6)])
def test_lan_is_proxied(lab: Lab, address: str, seen: str) -> None:
    assert whoami(lab.lan, address) == seen


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_lan_has_names(lab: Lab, family: str) -> None:
    command = ["curl", "-sS", family, "--max-time", "20", "http://origin.test/whoami"]
    assert lab.lan.run(*command).stdout.strip() in BESIDE_ORIGIN


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize("resolver", [DEAD_RESOLVER, GATEWAY4, GATEWAY6])
def test_lan_may_ask_any_resolver(lab: Lab, resolver: str, transport: str) -> None:
    command = ["dig", "+short", "+tries=1", "+timeout=5", transport, f"@{resolver}"]
    answer = lab.lan.run(*command, "origin.test", "A").stdout.strip()
    assert ipaddress.ip_address(answer) in FAKE4


def test_gateway_and_its_lan_reach_each_other(lab: Lab) -> None:
    with connected(lab.lan, lab.client, GATEWAY4) as pair:
        pair.exchange()
    with connected(lab.client, lab.lan, LAN4) as pair:
        pair.exchange()


def test_client_itself_is_proxied(lab: Lab) -> None:
    assert whoami(lab.client, WORLD4) == OUTSIDE4
