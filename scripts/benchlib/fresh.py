"""What is measured of a peer that has just been started in a client of its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from scripts.benchlib.peers import answers
from scripts.benchlib.places import Failed
from tests.helpers.lab_many import echoed, echoes
from tests.helpers.lab_wait import settled, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scripts.benchlib.peers import Peer, Way
    from scripts.benchlib.places import Places

MIB = 1 << 20
FLOWS = (1_000, 10_000)
_ANSWER_S = 20.0
_CROWDS_S = 90.0
"""Who takes longer to carry so many flows does not carry them."""


def ready(places: Places, peer: Peer) -> dict[str, float]:
    """Seconds from its start until a request has been answered."""
    with places.near_client() as host:
        started = time.perf_counter()
        with peer.run(places, host) as way:
            until(lambda: answers(host, way.address), f"{peer.name} to answer", _ANSWER_S)
            return {"ready": time.perf_counter() - started}


def no_flow(places: Places, peer: Peer) -> dict[str, float]:
    """Resident memory of its processes in MiB, when it has served one request."""
    with _served(places, peer) as way:
        return {"rss_0": way.resident() / MIB}


def idle_flows(count: int) -> Callable[[Places, Peer], dict[str, float]]:
    """The same with so many idle flows."""

    async def measure(way: Way) -> dict[str, float]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(_CROWDS_S):
                    for _ in range(count // way.crowd):
                        crowd = echoes(way.host, way.address, way.crowd)
                        sockets = await stack.enter_async_context(crowd)
                        if await echoed(sockets, 1) != way.crowd:
                            raise Failed("a connection does not echo")
            except TimeoutError:
                raise Failed(f"{count} flows take more than {_CROWDS_S:g} s") from None
            return {f"rss_{count}": settled(way.resident, "the memory", 50) / MIB}

    def memory(places: Places, peer: Peer) -> dict[str, float]:
        with _served(places, peer) as way:
            return asyncio.run(measure(way))

    return memory


@contextlib.contextmanager
def _served(places: Places, peer: Peer) -> Iterator[Way]:
    with places.near_client() as host, peer.run(places, host) as way:
        until(lambda: answers(host, way.address), f"{peer.name} to answer", _ANSWER_S)
        yield way


FRESH: dict[str, Callable[[Places, Peer], dict[str, float]]] = {
    "ready": ready,
    "rss_0": no_flow,
    **{f"rss_{count}": idle_flows(count) for count in FLOWS},
}
