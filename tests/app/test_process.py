"""What a process that serves many is given."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING

import pytest
import uvloop

from tunproxy.app import process

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def most() -> Iterator[int]:
    """The hard limit, the soft one being lower."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard - 1), hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_descriptors_and_loop(most: int) -> None:
    found: list[object] = []

    async def work() -> None:
        found.extend(resource.getrlimit(resource.RLIMIT_NOFILE))
        found.append(type(asyncio.get_running_loop()))

    process.run(work())
    assert found == [most, most, uvloop.Loop]


def test_what_the_work_raises_is_raised(most: int) -> None:
    async def work() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        process.run(work())
