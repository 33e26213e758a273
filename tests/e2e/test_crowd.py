"""Very many connections in the same moment: each is served, however long it takes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import ORIGIN4
from tests.helpers.lab_many import echoed, echoes, files_for
from tests.helpers.lab_tunproxy import up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

COUNT = 1500


@pytest.fixture(scope="module", autouse=True)
def _files() -> Iterator[None]:
    """Before the laboratory: the origin, sshd and the program inherit it."""
    with files_for(COUNT):
        yield


@pytest.mark.parametrize("queue", [4096, 16])
def test_none_of_them_is_reset(lab: Lab, stack: str, queue: int) -> None:
    """``queue``: how many connections a listener of this machine may have waiting."""
    lab.client.run("sysctl", "-qw", f"net.core.somaxconn={queue}")

    async def all_in_one_moment() -> None:
        async with asyncio.timeout(90), echoes(lab.client, ORIGIN4, COUNT, COUNT) as sockets:
            assert await echoed(sockets, 4000, COUNT) == COUNT
            assert program.status()["flows"] == COUNT

    with up(lab, "--stack", stack) as program:
        asyncio.run(all_in_one_moment())
        assert not {"unanswered_evicted", "nat_unknown"} & program.status()["counters"].keys()
