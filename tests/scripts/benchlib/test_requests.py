"""Small requests: what is not answered as it should be is no fast answer."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, cast

import pytest

from scripts.benchlib import requests
from scripts.benchlib.peers import Way
from scripts.benchlib.places import Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers.lab_host import Host

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"

WRK = """Running 1s test @ http://203.0.113.2:8080/
  1 threads and 32 connections
  4422 requests in 1.10s, 690.00KB read
{}Requests/sec:   4020.00
Transfer/sec:    627.27KB
"""


class Loopback:
    """What is used of a host."""

    def open_socket(self, address: str, kind: socket.SocketKind) -> socket.socket:
        sock = socket.socket(socket.AF_INET, kind)
        sock.settimeout(10)
        return sock

    def connect(self, address: str, port: int) -> socket.socket:
        return socket.create_connection((address, port), 10)


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[bytes]], Way]]:
    """Start a server of one connection after the other, which gives these answers to a request
    each, the last one for ever; nothing ends the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def serve(answers: list[bytes]) -> None:
        left = list(answers)
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                while sock.recv(4096):
                    answer = left.pop(0) if len(left) > 1 else left[0]
                    if not answer:
                        break
                    sock.sendall(answer)

    def start(answers: list[bytes]) -> Way:
        threads.append(threading.Thread(target=serve, args=(answers,)))
        threads[-1].start()
        return Way(cast("Host", Loopback()), "127.0.0.1")

    monkeypatch.setattr(requests, "WEB", listener.getsockname()[1])
    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join(10)


def test_answers_are_timed_from_the_second_on(serving: Callable[[list[bytes]], Way]) -> None:
    way = serving([OK])
    connects, answers = requests.fresh(way, 0)
    assert len(connects) == len(answers) == 2
    assert all(whole >= part for part, whole in zip(connects, answers, strict=True))
    assert len(requests.kept(way, 0)) == 2


@pytest.mark.parametrize("bad", [b"", b"HTTP/1.1 502 Bad Gateway\r\n\r\n"])
@pytest.mark.parametrize("ask", [requests.fresh, requests.kept])
def test_an_end_or_an_error_is_no_answer(
    bad: bytes,
    ask: Callable[[Way, float], object],
    serving: Callable[[list[bytes]], Way],
) -> None:
    way = serving([OK, bad])
    with pytest.raises(Failed, match="2 of 3 requests failed"):
        ask(way, 0)


def test_wrk_says_how_many_requests_took_how_long() -> None:
    assert requests.read_wrk(WRK.format("")) == requests.Answered(4422, 1.1)
    few = "  Socket errors: connect 0, read 12, write 0, timeout 3\n"
    assert requests.read_wrk(WRK.format(few)).requests == 4422


@pytest.mark.parametrize(
    "output",
    [
        "",
        WRK.format("  Socket errors: connect 0, read 40, write 0, timeout 5\n"),
        WRK.format("  Non-2xx or 3xx responses: 1\n"),
        WRK.format("").replace("4422 requests", "0 requests"),
    ],
)
def test_wrk_complains(output: str) -> None:
    with pytest.raises(Failed, match="wrk says"):
        requests.read_wrk(output)
