"""A long line: a relay between two TUN devices that holds every packet for the same time.

``python -m scripts.benchlib.delay FD FD SECONDS`` takes the descriptors of two TUN devices with
offloads: one read is up to 64 KiB of one stream, so that it keeps up with what a kernel sends
through it. It loses nothing, and has no rate of its own. It prints ``relaying`` when it begins.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections import deque

_BATCH = 32
_MAX_PACKET = 65535 + 10
_EARLY_S = 0.0002
"""What is due so soon leaves at once: one wait for several packets."""
_IDLE_S = 3600.0

_Held = deque[tuple[float, bytes]]


def relay(one: int, other: int, delay_s: float) -> None:
    """Relay between two descriptors until killed."""
    lanes: list[tuple[int, int, _Held]] = [(one, other, deque()), (other, one, deque())]
    poll = select.epoll()
    for source, _, _ in lanes:
        os.set_blocking(source, False)
        poll.register(source, select.EPOLLIN)
    while True:
        now = time.monotonic()
        next_at = min((held[0][0] for _, _, held in lanes if held), default=now + _IDLE_S)
        poll.poll(max(0.0, next_at - now))
        for source, target, held in lanes:
            _read(source, held, time.monotonic() + delay_s)
            _write(target, held, time.monotonic() + _EARLY_S)


def _read(source: int, held: _Held, at: float) -> None:
    with contextlib.suppress(BlockingIOError):
        for _ in range(_BATCH):
            held.append((at, os.read(source, _MAX_PACKET)))


def _write(target: int, held: _Held, now: float) -> None:
    while held and held[0][0] <= now:
        # A device that goes, or is full: the packet is lost, as on any line.
        with contextlib.suppress(OSError):
            os.write(target, held[0][1])
        held.popleft()


if __name__ == "__main__":
    print("relaying", flush=True)
    relay(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
