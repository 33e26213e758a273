"""A download and an upload that never end; ``python -m scripts.benchlib.noise ADDRESS``.

It prints ``moving`` when octets move both ways, and ends when it is killed.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from scripts.benchlib.far import BULK, WINDOW
from scripts.benchlib.places import Failed, outside
from scripts.benchlib.streams import Stream, run
from tests.helpers.lab_host import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.benchlib.peers import Way

_SETTLE_S = 0.5
_FOREVER_S = 1e6


@contextlib.contextmanager
def noise(way: Way) -> Iterator[None]:
    """It goes on meanwhile."""
    command = outside(way.host, sys.executable, "-m", "scripts.benchlib.noise", way.address)
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"moving\n":
                raise Failed("the streams in the background do not start")
            yield
            if process.poll() is not None:
                raise Failed("the streams in the background have ended early")
        finally:
            process.terminate()


def main() -> None:
    window = WINDOW.pack(_FOREVER_S, _FOREVER_S)
    down = Stream(socket.create_connection((sys.argv[1], BULK)), "down", window)
    up = Stream(socket.create_connection((sys.argv[1], BULK)), "up", window)
    run([down, up], time.perf_counter() + _SETTLE_S)
    if not down.octets:
        raise SystemExit("nothing comes")
    print("moving", flush=True)
    run([down, up], time.perf_counter() + _FOREVER_S)


if __name__ == "__main__":
    main()
