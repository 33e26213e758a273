"""Small questions: what is counted as an answer, as lost, and as wrong."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from typing import TYPE_CHECKING, cast

import dnslib
import pytest

from scripts.benchlib import datagrams
from scripts.benchlib.peers import PEERS, Way
from scripts.benchlib.places import RESOLVER4, Failed, places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scripts.benchlib.datagrams import Kind
    from tests.helpers.lab_host import Host

SECONDS = 0.1


class Here:
    """What is used of a host: it is this one."""

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@pytest.fixture
def way() -> Way:
    return Way(cast("Host", Here()), "127.0.0.1", resolver="127.0.0.1", datagrams=True)


@pytest.fixture
def serving(way: Way) -> Iterator[Callable[[Callable[[int, bytes], bytes]], Kind]]:
    """Start a server that answers the question with a number as it is told; nothing is nothing."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    threads = []

    def serve(answer: Callable[[int, bytes], bytes]) -> None:
        for number in itertools.count():
            question, asker = server.recvfrom(2048)
            if question == b"end":
                return
            if reply := answer(number, question):
                server.sendto(reply, asker)

    def start(answer: Callable[[int, bytes], bytes]) -> Kind:
        threads.append(threading.Thread(target=serve, args=(answer,)))
        threads[-1].start()
        kind = datagrams.echoes(way)
        assert kind is not None
        return kind._replace(port=server.getsockname()[1])

    yield start
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        last.sendto(b"end", server.getsockname())
    for thread in threads:
        thread.join(10)
    server.close()


def test_everything_is_answered(
    way: Way, serving: Callable[[Callable[[int, bytes], bytes]], Kind]
) -> None:
    kind = serving(lambda _number, question: question)
    for asking in (datagrams.by_one_socket, datagrams.by_new_sockets):
        tally = asking(way, kind, SECONDS)
        assert tally.answered > 0
        assert tally.lost == 0
        assert tally.rate == tally.answered / tally.seconds
    assert datagrams.round_trips(way, kind, SECONDS)


def test_what_is_lost_is_counted_and_asked_anew(
    way: Way,
    serving: Callable[[Callable[[int, bytes], bytes]], Kind],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datagrams, "LOST_S", 0.02)
    kind = serving(lambda number, question: question if number % 2 else b"")
    for asking in (datagrams.by_one_socket, datagrams.by_new_sockets):
        tally = asking(way, kind, SECONDS, 4)
        assert tally.answered > 0
        assert tally.lost > 0


def test_an_old_answer_is_no_second_one(
    way: Way, serving: Callable[[Callable[[int, bytes], bytes]], Kind]
) -> None:
    asked: list[bytes] = []

    def first(_number: int, question: bytes) -> bytes:
        asked.append(question)
        return asked[0]

    kind = serving(first)
    assert datagrams.by_one_socket(way, kind, SECONDS, 4).answered == 1


def test_a_wrong_answer_is_told(
    way: Way, serving: Callable[[Callable[[int, bytes], bytes]], Kind]
) -> None:
    kind = serving(lambda _number, question: question[:2])
    with pytest.raises(Failed, match="a wrong answer"):
        datagrams.by_one_socket(way, kind, SECONDS)


def test_no_answer_at_all_is_no_rate() -> None:
    with pytest.raises(Failed, match="no question was answered"):
        _ = datagrams.Tally(0, 5, 1.0).rate


def test_queries_are_for_one_new_name_after_the_other(way: Way) -> None:
    one, other = datagrams.queries(way), datagrams.queries(way)
    assert one is not None
    assert other is not None
    asked = [dnslib.DNSRecord.parse(next(kind.questions)) for kind in (one, other, one, other)]
    assert len({str(query.q.qname) for query in asked}) == 4
    assert all(query.header.rd and query.q.qtype == dnslib.QTYPE.A for query in asked)
    refused = asked[0].reply()
    refused.header.rcode = dnslib.RCODE.NXDOMAIN
    assert not one.is_right(refused.pack())
    assert not one.is_right(asked[0].reply().pack())


def test_who_carries_none_is_not_asked() -> None:
    way = Way(cast("Host", Here()))
    assert datagrams.dns(way, SECONDS) == {}
    assert datagrams.udp(way, SECONDS) == {}


@pytest.mark.netns
def test_every_query_reaches_the_resolver_on_the_far_side() -> None:
    def served() -> int:
        words = ["dig", "+short", f"@{RESOLVER4}", "count.test", "TXT"]
        return int(where.lab.origin.run(*words).stdout.strip().strip('"'))

    with places() as where, where.near_client() as host, PEERS["up user"].run(where, host) as way:
        kind = datagrams.queries(way)
        assert kind is not None
        datagrams.warm_up(way, kind)
        before = served()
        tally = datagrams.by_one_socket(way, kind, 2 * SECONDS)
        assert served() - before > tally.answered > 0
