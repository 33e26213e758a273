"""What a process that serves many is given."""

from __future__ import annotations

import asyncio
import platform
import resource
import subprocess
import sys
import textwrap
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no such threshold")
def test_memory_of_packets_is_kept() -> None:
    script = """
        import resource
        from tunproxy.app import process

        def faults():
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

        async def work():
            rounds = []
            for _ in range(4):
                before = faults()
                packets = [b"p" * 65536 for _ in range(32)]
                del packets
                rounds.append(faults() - before)
            print(*rounds)

        process.run(work())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=True, text=True
    )
    first, *others = map(int, done.stdout.split())
    assert max(others) < first / 4, done.stdout
