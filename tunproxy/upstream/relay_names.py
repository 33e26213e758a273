"""Names for relays that can be told addresses only: looked up, remembered, and waited for."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, TypeAlias

from ..errors import OpenFailed, ServerError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable, Sequence

    Resolve: TypeAlias = Callable[[str], Awaitable[Sequence[str]]]
    Action: TypeAlias = Callable[[bytes | None], None]

NAME_S = 60.0
MAX_NAMES = 1024
MAX_LOOKUPS = 64
MAX_WAITING = 16
"""Datagrams that wait for one name."""
MAX_WAITING_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class Names:
    """Looks names up, remembers them for a minute, and lets datagrams wait meanwhile."""

    def __init__(self, resolve: Resolve, counters: Counter[str], prefix: str) -> None:
        """``resolve`` finds literal addresses on the server's side, the best first; none: there is
        no such name. What is dropped is counted as ``PREFIX_...``."""
        self._resolve = resolve
        self._counters = counters
        self._prefix = prefix
        self._loop = asyncio.get_running_loop()
        self._known: OrderedDict[str, _Name] = OrderedDict()
        self._lookups: set[asyncio.Task[None]] = set()

    def find(self, host: str, size: int, action: Action, *, version: int = 0) -> None:
        """Call ``action`` with the address of ``host`` as on the wire, or with ``None`` where there
        is none; at once or later, and never if too much waits. ``size`` octets wait meanwhile.

        It is one of the IP ``version`` if there is any; 0: the first."""
        literal = packed(host)
        if literal is not None:
            self._act((literal,), version, action)
            return
        name = self._known.get(host)
        if name is not None and name.waiting is None and name.expires_at > self._loop.time():
            self._act(name.addresses, version, action)
            return
        if name is None or name.waiting is None:
            if len(self._lookups) >= MAX_LOOKUPS:
                self._count("resolver_full")
                return
            name = self._look_up(host)
        assert name.waiting is not None
        name.waiting.append((size, version, action))
        while (
            len(name.waiting) > MAX_WAITING
            or sum(size for size, _, _ in name.waiting) > MAX_WAITING_BYTES
        ):
            name.waiting.popleft()
            self._count("waiting")

    def close(self) -> None:
        """Forget everything; nothing that waits is done."""
        for task in self._lookups:
            task.cancel()
        self._known.clear()

    def _act(self, addresses: Sequence[bytes], version: int, action: Action) -> None:
        if not addresses:
            self._count("no_address")
            action(None)
            return
        length = {4: 4, 6: 16}.get(version)
        fits = (address for address in addresses if len(address) == length)
        action(next(fits, addresses[0]))

    def _look_up(self, host: str) -> _Name:
        self._known.pop(host, None)
        if len(self._known) >= MAX_NAMES:
            # There are fewer lookups than names, so one of them waits for nothing.
            del self._known[next(h for h, name in self._known.items() if name.waiting is None)]
        name = self._known[host] = _Name()
        task = asyncio.create_task(self._find(host, name), name=f"{self._prefix} name")
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)
        return name

    async def _find(self, host: str, name: _Name) -> None:
        try:
            found = await self._resolve(host)
        except (OSError, ServerError, OpenFailed) as error:
            log.debug("cannot look %s up: %s", host, error)
            found = ()
        name.addresses = [a for a in map(packed, found) if a is not None]
        # Who does not exist may do so soon, and the resolver knows best when to ask again.
        name.expires_at = self._loop.time() + (NAME_S if name.addresses else 0.0)
        waiting, name.waiting = name.waiting, None
        for _, version, action in waiting or ():
            self._act(name.addresses, version, action)

    def _count(self, reason: str) -> None:
        self._counters[f"{self._prefix}_{reason}"] += 1


class _Name:
    def __init__(self) -> None:
        self.addresses: Sequence[bytes] = ()
        self.expires_at = 0.0
        self.waiting: deque[tuple[int, int, Action]] | None = deque()
        """``None``: nothing is being looked up."""


def packed(host: str) -> bytes | None:
    """The octets of a literal address; ``None``: it is a name."""
    try:
        return ipaddress.ip_address(host).packed
    except ValueError:
        return None
