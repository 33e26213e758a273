"""What the network loses, delays, repeats and mixes up arrives whole.

A host of the LAN sends through ``tunproxy up --gateway`` over a bad link, so the TCP on the TUN has
a kernel at the other end of that link as its peer. The way to the SSH server is clean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.helpers import origin
from tests.helpers.lab import ORIGIN4, ORIGIN6
from tests.helpers.lab_http import download, upload
from tests.helpers.lab_link import Link, bad_link
from tests.helpers.lab_tunproxy import up
from tests.helpers.link import Tally, Way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

KIB = 1 << 10
MIB = 1 << 20
DELAY_S = 0.001
PATIENCE_S = 60.0
"""With a packet in five lost each way, several attempts in a row fail, each twice as far away."""


class Case(NamedTuple):
    """What the link does both ways, and how many octets pass in a few seconds nevertheless."""

    way: Way
    length: int


CASES = {
    "loss-1": Case(Way(delay_s=DELAY_S, loss=0.01), 8 * MIB),
    "loss-5": Case(Way(delay_s=DELAY_S, loss=0.05), 2 * MIB),
    "loss-20": Case(Way(delay_s=DELAY_S, loss=0.2), 64 * KIB),
    "reorder": Case(Way(delay_s=DELAY_S, reorder=0.1), 8 * MIB),
    "duplicate": Case(Way(delay_s=DELAY_S, duplicate=0.1), 8 * MIB),
    "all": Case(Way(delay_s=DELAY_S, loss=0.02, reorder=0.05, duplicate=0.05), 4 * MIB),
}


@pytest.fixture(scope="module")
def link(lab: Lab) -> Iterator[Link]:
    with bad_link(lab) as bad:
        yield bad


@pytest.fixture(scope="module", autouse=True)
def _program(lab: Lab, link: Link, stack: str) -> Iterator[None]:
    with up(lab, "--gateway", "--stack", stack) as program:
        yield
        assert program.stop() == 0, program.output()


@pytest.fixture(params=CASES)
def case(link: Link, request: pytest.FixtureRequest) -> Iterator[Case]:
    """The link is as bad as the case says."""
    found = CASES[request.param]
    link.impair(found.way)
    yield found
    link.impair(Way())


def assert_impaired(case: Case, tally: Tally) -> None:
    """The packets that carried the data have met what the case is about."""
    assert tally.packets > case.length // 1500
    assert bool(tally.lost) == bool(case.way.loss)
    assert bool(tally.reordered) == bool(case.way.reorder)
    assert bool(tally.duplicated) == bool(case.way.duplicate)


@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
def test_download(link: Link, case: Case, address: str) -> None:
    found = download(link.far, address, case.length, timeout_s=PATIENCE_S)
    assert found == origin.digest(case.length)
    assert_impaired(case, link.impair(case.way)[0])


@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
def test_upload(link: Link, case: Case, address: str) -> None:
    found = upload(link.far, address, case.length, timeout_s=PATIENCE_S)
    assert found == (case.length, origin.digest(case.length))
    assert_impaired(case, link.impair(case.way)[1])
