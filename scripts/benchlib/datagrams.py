"""Small questions and answers: how many a second are answered, a bounded number of them at a time.

A question is an echo of 100 octets, or a DNS query for a name that nobody has asked for before: no
cache on the way knows it, and it has to reach the resolver on the server's side. What is not
answered within :data:`LOST_S` counts as lost, and another question is asked.
"""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from scripts.benchlib.far import ECHO
from scripts.benchlib.names import DNS, A
from scripts.benchlib.places import Failed
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scripts.benchlib.peers import Way

AT_ONCE = 32
"""Questions under way: a resolver of a busy machine has as many."""
LOST_S = 1.0

PAUSE_S = 0.002
"""Between questions of one that is in no hurry."""

_FIRST_S = 10.0
"""Some start what carries datagrams when there is one."""
_REST_S = 0.05
"""Between measurements."""
_PAYLOAD = bytes(100)
_QUERY = struct.Struct("!5H")
_RECURSE = 0x0100
_ZONE = b"\x05bench\x04test\x00" + struct.pack("!2H", A, 1)
_RCODE = 0x0F
_names = itertools.count()


class Tally(NamedTuple):
    """How many questions were answered, and lost, in how many seconds."""

    answered: int
    lost: int
    seconds: float

    @property
    def rate(self) -> float:
        """Answers a second.

        Raises:
            Failed: there was none.
        """
        if not self.answered:
            raise Failed("no question was answered")
        return self.answered / self.seconds


class Kind(NamedTuple):
    """Where questions go, each of which begins with a number of its own (16 bit); and whether an
    answer is what it should be."""

    address: str
    port: int
    questions: Iterator[bytes]
    is_right: Callable[[bytes], bool]


def by_one_socket(way: Way, kind: Kind, seconds: float, at_once: int = AT_ONCE) -> Tally:
    """A new question for each answer."""
    waiting: dict[bytes, float] = {}
    answered = lost = 0
    with _sockets(way, kind, 1) as (sock,), selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        started = now = time.perf_counter()
        while now < started + seconds:
            if overdue := [number for number, at in waiting.items() if now - at >= LOST_S]:
                lost += len(overdue)
                waiting = {number: waiting[number] for number in waiting if number not in overdue}
            for question in itertools.islice(kind.questions, at_once - len(waiting)):
                sock.send(question)
                waiting[question[:2]] = now
            selector.select(LOST_S)
            for answer in _received(sock):
                answered += waiting.pop(_number(kind, answer), None) is not None
            now = time.perf_counter()
    return Tally(answered, lost, now - started)


def by_new_sockets(way: Way, kind: Kind, seconds: float, at_once: int = AT_ONCE) -> Tally:
    """So many sockets that ask one question each, as stub resolvers do, then as many others."""
    answered = asked = 0
    started = now = time.perf_counter()
    while now < started + seconds:
        with _sockets(way, kind, at_once) as sockets:
            answered += _ask_once(kind, sockets)
        asked += at_once
        now = time.perf_counter()
    return Tally(answered, asked - answered, now - started)


def round_trips(way: Way, kind: Kind, seconds: float) -> list[float]:
    """One question after the other, in no hurry: return the seconds that each answer took.

    Raises:
        Failed: there was none.
    """
    found = []
    with _sockets(way, kind, 1) as sockets:
        until_at = time.perf_counter() + seconds
        while (started := time.perf_counter()) < until_at:
            if _ask_once(kind, sockets):
                found.append(time.perf_counter() - started)
            time.sleep(PAUSE_S)
    if not found:
        raise Failed("no question was answered")
    return found


def warm_up(way: Way, kind: Kind) -> None:
    """Wait for a first answer."""
    until(lambda: by_one_socket(way, kind, PAUSE_S, 1).answered, "a first answer", _FIRST_S)
    time.sleep(_REST_S)


def _ask_once(kind: Kind, sockets: list[socket.socket]) -> int:
    """Return how many got the answer to their question."""
    answered = 0
    with selectors.DefaultSelector() as selector:
        for sock, question in zip(sockets, kind.questions, strict=False):
            sock.send(question)
            selector.register(sock, selectors.EVENT_READ, question[:2])
        deadline = time.perf_counter() + LOST_S
        while selector.get_map() and (left := deadline - time.perf_counter()) > 0:
            for key, _ in selector.select(left):
                assert isinstance(key.fileobj, socket.socket)
                if any(_number(kind, answer) == key.data for answer in _received(key.fileobj)):
                    answered += 1
                    selector.unregister(key.fileobj)
    return answered


@contextlib.contextmanager
def _sockets(way: Way, kind: Kind, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        with way.host.entered():
            found = [
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                for _ in range(count)
            ]
        for sock in found:
            sock.connect((kind.address, kind.port))
            sock.setblocking(False)
        yield found


def _received(sock: socket.socket) -> Iterator[bytes]:
    """What has come; a refusal is no answer."""
    with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
        while True:
            yield sock.recv(2048)


def _number(kind: Kind, answer: bytes) -> bytes:
    if not kind.is_right(answer):
        raise Failed(f"a wrong answer: {answer!r}")
    return answer[:2]


def echoes(way: Way) -> Kind | None:
    """Datagrams for the echo server, where the peer carries them."""
    if not way.datagrams:
        return None
    questions = (struct.pack("!H", number & 0xFFFF) + _PAYLOAD for number in itertools.count())
    return Kind(way.address, ECHO, questions, lambda answer: answer[2:] == _PAYLOAD)


def queries(way: Way) -> Kind | None:
    """Queries for the address of one new name after the other, where the peer carries DNS."""
    if way.resolver is None:
        return None
    return Kind(way.resolver, DNS, _queries(), _has_address)


def _queries() -> Iterator[bytes]:
    for number in _names:
        header = struct.pack("!H", number & 0xFFFF) + _QUERY.pack(_RECURSE, 1, 0, 0, 0)
        yield header + b"\x08n%07d" % number + _ZONE


def _has_address(answer: bytes) -> bool:
    flags, _, answers, _, _ = _QUERY.unpack_from(answer, 2)
    return not flags & _RCODE and answers > 0


def dns(way: Way, seconds: float) -> dict[str, float]:
    return _figure("dns", way, queries(way), seconds)


def udp(way: Way, seconds: float) -> dict[str, float]:
    return _figure("udp", way, echoes(way), seconds)


def _figure(name: str, way: Way, kind: Kind | None, seconds: float) -> dict[str, float]:
    if kind is None:
        return {}
    warm_up(way, kind)
    return {name: by_one_socket(way, kind, seconds).rate}
