"""Small requests: how many in a second, and how long one takes."""

from __future__ import annotations

import contextlib
import re
import socket
import statistics
import time
from typing import TYPE_CHECKING

from scripts.benchlib.places import SMALL, WEB, Failed, run_outside

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.benchlib.peers import Way

_CONNECTIONS = 32
_PAUSE_S = 0.002
"""Between the small requests of one client."""


def rate(way: Way, seconds: float, *, keep_alive: bool) -> float:
    """Answers in a second, over some connections at a time; each has one or very many requests."""
    options = [] if keep_alive else ["-H", "Connection: close"]
    # wrk takes whole seconds.
    words = ["wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{max(1, round(seconds))}", *options]
    output = run_outside(way.host, *words, f"http://{way.address}:{WEB}/")
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if found is None or "Non-2xx" in output:
        raise Failed(f"wrk says {output}")
    return float(found[1])


def fresh(way: Way, seconds: float) -> tuple[list[float], list[float]]:
    """One request after the other, each on a connection of its own: return the seconds that each
    connect() took, and those from its beginning to the first octet of the answer."""
    connects, answers = [], []

    def ask() -> None:
        sock = way.host.open_socket(way.address, socket.SOCK_STREAM)
        with sock:
            started = time.perf_counter()
            sock.connect((way.address, WEB))
            connects.append(time.perf_counter() - started)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(SMALL)
            sock.recv(1 << 16)
            answers.append(time.perf_counter() - started)

    _repeat(ask, seconds)
    return connects, answers


def kept(way: Way, seconds: float) -> list[float]:
    """One request after the other on one connection: return the seconds that each took."""
    answers = []
    with way.host.connect(way.address, WEB) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask() -> None:
            started = time.perf_counter()
            sock.sendall(SMALL)
            sock.recv(1 << 16)
            answers.append(time.perf_counter() - started)

        _repeat(ask, seconds)
    return answers


def quantiles(name: str, seconds: list[float]) -> dict[str, float]:
    """The median and the 99th percentile, in ms."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"{name}_p50": cuts[49] * 1e3, f"{name}_p99": cuts[98] * 1e3}


def _repeat(ask: Callable[[], None], seconds: float) -> None:
    until = time.perf_counter() + seconds
    ask()  # the first one warms up caches, and counts as the others do
    while time.perf_counter() < until:
        time.sleep(_PAUSE_S)
        with contextlib.suppress(ConnectionResetError):
            ask()
