"""How a process of ours that serves many is run."""

from __future__ import annotations

import asyncio
import ctypes
import resource
from typing import TYPE_CHECKING, Any, Final

import uvloop

if TYPE_CHECKING:
    from collections.abc import Coroutine

_M_TRIM_THRESHOLD: Final = -1  # mallopt(3), malloc.h
_KEPT_BYTES: Final = 4 << 20
"""Twice the window that a channel begins with."""


def run(work: Coroutine[Any, Any, None]) -> None:
    """Do ``work`` on an event loop of its own, with as many descriptors as we may have.

    A channel of a server is one, and so is a flow of the kernel's stack, and one that goes DIRECT;
    the soft limit is made for select(2).
    """
    _keep_freed_memory()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def _keep_freed_memory() -> None:
    """Have glibc give the free end of its heap back only where that is more than some packets.

    It does so from 128 KiB on, and the kernel clears each page anew when it is needed again. Where
    packets of 64 KiB happen to be at the end, that is up to 100,000 page faults, and a tenth of the
    CPU time, for each GB.
    """
    # Other C libraries have other ways.
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
