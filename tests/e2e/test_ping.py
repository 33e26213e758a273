"""Pings are answered by who was asked, when he has answered, and by nobody else.

::

    client ---- server ==== far        a bad link, and the proxy is the only way
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.helpers.lab_link import FAR4, FAR6, Link, bad_link
from tests.helpers.lab_tunproxy import up
from tests.helpers.lab_wait import until
from tests.helpers.link import Way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab
    from tests.helpers.lab_tunproxy import Tunproxy

pytestmark = pytest.mark.netns

FARS = pytest.mark.parametrize("address", [FAR4, FAR6], ids=["v4", "v6"])
NOBODY = {FAR4: "192.168.78.99", FAR6: "fd77:4::99"}
"""Addresses on the far link that no host has."""


@pytest.fixture(scope="module")
def link(lab: Lab) -> Iterator[Link]:
    """The link behind the server."""
    with bad_link(lab, lab.server) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def program(lab: Lab, link: Link) -> Iterator[Tunproxy]:
    """The program, with the agent on the server."""
    with up(lab) as running:
        until(lambda: running.status()["udp"] == "agent", "the agent")
        yield running


class Pings(NamedTuple):
    """What ping(8) says."""

    received: int
    delays_ms: list[float]
    output: str


def ping(lab: Lab, address: str, *options: str) -> Pings:
    """Ping from the client."""
    words = ("ping", "-n", "-i", "0.2", *options, address)
    output = lab.client.run(*words, check=False).stdout
    found = re.search(r"(\d+) received", output)
    assert found is not None, output
    delays = [float(text) for text in re.findall(r"time=([\d.]+) ms", output)]
    return Pings(int(found[1]), delays, output)


@FARS
def test_delay_is_the_real_one(lab: Lab, link: Link, address: str) -> None:
    """The path to the server has none worth mentioning: all is behind it."""
    for delay_s in (0.05, 0.25, 0.0):
        link.impair(Way(delay_s=delay_s))
        pings = ping(lab, address, "-c3")
        assert pings.received == 3, pings.output
        assert min(pings.delays_ms) >= 2000 * delay_s
        # Half of the next longer one: what is due to load cannot look like it three times.
        assert min(pings.delays_ms) < 2000 * delay_s + 250


@FARS
def test_answers_overtake_one_another(lab: Lab, link: Link, address: str) -> None:
    """Each answer goes with its request: the delays are those of the answers, not of the order."""
    link.impair(Way(), Way(reorder=0.5, late_s=0.5))
    pings = ping(lab, address, "-c16", "-i", "0.05")
    link.impair(Way())
    assert pings.received == 16, pings.output
    assert "DUP" not in pings.output
    late = [delay for delay in pings.delays_ms if delay >= 500]
    assert 0 < len(late) < 16


@FARS
def test_who_does_not_answer_is_silent(lab: Lab, link: Link, address: str) -> None:
    link.impair(Way(loss=1.0))
    pings = ping(lab, address, "-c2", "-W1")
    link.impair(Way())
    assert (pings.received, pings.delays_ms) == (0, []), pings.output
    assert ping(lab, address, "-c1").received == 1


@FARS
def test_absent_host(lab: Lab, address: str) -> None:
    pings = ping(lab, NOBODY[address], "-c2", "-W1")
    assert (pings.received, pings.delays_ms) == (0, []), pings.output


@FARS
def test_payload_comes_back_as_it_was(lab: Lab, address: str) -> None:
    """ping(8) compares; a large echo goes in fragments."""
    for size in ("0", "1400", "8000"):
        pings = ping(lab, address, "-c1", "-s", size, "-p", "a55a3c")
        assert pings.received == 1, pings.output
        assert "wrong data" not in pings.output


def test_lost_ones_are_missing(lab: Lab, link: Link) -> None:
    """What ping(8) finds out about the path is what is so: one of two echoes is lost."""
    link.impair(Way(loss=0.5))
    pings = ping(lab, FAR4, "-c20", "-i", "0.01", "-W1")
    to_far, from_far = link.impair(Way())
    assert to_far.lost > 0
    assert pings.received == from_far.packets - from_far.lost
