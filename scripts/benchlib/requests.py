"""Small requests: how many in a second, and how long one takes."""

from __future__ import annotations

import re
import socket
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

from scripts.benchlib.places import SMALL, WEB, Failed, run_outside

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.benchlib.peers import Way

CONNECTIONS = 32
_PAUSE_S = 0.002
"""Between the small requests of one client."""
_LEAST = 3
"""So many at least, however slow they are: there are no quantiles of less than two."""
_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0}
_OK = b"HTTP/1.1 200 "
_MAX_FAILED = 0.01
"""Of the requests of one measurement; a peer that fails more of them is not measured."""


class Answered(NamedTuple):
    """How many requests were answered in how many seconds."""

    requests: int
    seconds: float


def many(way: Way, seconds: float, *, keep_alive: bool, connections: int = CONNECTIONS) -> Answered:
    """Have requests answered over so many connections at a time, one each or very many.

    Raises:
        Failed: some were not answered.
    """
    options = [] if keep_alive else ["-H", "Connection: close"]
    # wrk takes whole seconds.
    words = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}", *options]
    return read_wrk(run_outside(way.host, *words, f"http://{way.address}:{WEB}/"))


def read_wrk(output: str) -> Answered:
    """What wrk says at the end.

    Raises:
        Failed: too many requests were not answered, or not as they should be.
    """
    found = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m),", output)
    if found is None or "Non-2xx" in output:
        raise Failed(f"wrk says {output}")
    requests, seconds = int(found[1]), float(found[2]) * _UNITS_S[found[3]]
    errors = re.search(r"Socket errors: (.*)", output)
    failed = sum(map(int, re.findall(r"\d+", errors[1]))) if errors else 0
    if not requests or failed > requests * _MAX_FAILED:
        raise Failed(f"wrk says {output}")
    return Answered(requests, seconds)


def fresh(way: Way, seconds: float) -> tuple[list[float], list[float]]:
    """One request after the other, each on a connection of its own: return the seconds that each
    connect() took, and those from its beginning to the first octet of the answer."""
    connects, answers = [], []

    def ask() -> None:
        sock = way.host.open_socket(way.address, socket.SOCK_STREAM)
        with sock:
            started = time.perf_counter()
            sock.connect((way.address, WEB))
            connected = time.perf_counter()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _request(sock)
            answers.append(time.perf_counter() - started)
            connects.append(connected - started)

    _repeat(ask, seconds)
    # The first one warms up whatever is cold.
    return connects[1:], answers[1:]


def kept(way: Way, seconds: float) -> list[float]:
    """One request after the other on one connection: return the seconds that each took."""
    answers = []
    with way.host.connect(way.address, WEB) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask() -> None:
            started = time.perf_counter()
            _request(sock)
            answers.append(time.perf_counter() - started)

        _repeat(ask, seconds)
    # Who accepts before the target does makes the first request wait for the target.
    return answers[1:]


def _request(sock: socket.socket) -> None:
    """Raises ConnectionError where there is no answer, or another one."""
    sock.sendall(SMALL)
    answer = sock.recv(1 << 16)
    if not answer.startswith(_OK):
        raise ConnectionError(f"the answer is {answer[:40]!r}")


def quantiles(name: str, seconds: list[float]) -> dict[str, float]:
    """The median and the 99th percentile, in ms."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"{name}_p50": cuts[49] * 1e3, f"{name}_p99": cuts[98] * 1e3}


def _repeat(ask: Callable[[], None], seconds: float) -> None:
    """Ask again and again; what is not answered is not counted, and must be rare."""
    asked, failures = 0, []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or asked < _LEAST:
        try:
            ask()
        except ConnectionError as error:
            failures.append(error)
        asked += 1
        time.sleep(_PAUSE_S)
    if len(failures) > asked * _MAX_FAILED:
        raise Failed(f"{len(failures)} of {asked} requests failed: {failures[0]}")
