"""How a process of ours that serves many is run."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING, Any

import uvloop

if TYPE_CHECKING:
    from collections.abc import Coroutine


def run(work: Coroutine[Any, Any, None]) -> None:
    """Do ``work`` on an event loop of its own, with as many descriptors as we may have.

    A channel of a server is one, and so is a flow of the kernel's stack, and one that goes DIRECT;
    the soft limit is made for select(2).
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)
