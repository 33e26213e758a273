"""Everything about names that needs the network: who asks whom, and what the user may ask us.

The name server of the engine is pure; what it wants to be forwarded is asked for here
(:meth:`Names.query`): at the far resolver, the machine's own, or one that a ``[[dns.rule]]`` names.
The far resolver stands behind the server's hosts file, which is read at each login.
Flows to names leave through :attr:`Names.proxy`, which finds their addresses by the same far
resolver, if that answers quickly when the connection comes up (:meth:`Names.look_around`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import pathlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import dnslib

from ..errors import ConfigError, TunproxyError, WireError
from ..flow.nameserver import Forward, NameServer
from ..flow.rules import Action
from ..upstream.base import PromptUpstream
from ..upstream.far_hosts import FarHosts
from ..upstream.happy import Racing
from ..upstream.lookup import Lookup
from ..upstream.resolver import RemoteResolver
from ..upstream.resolver_named import NamedResolvers
from ..wire.dns import Rcode
from ..wire.dnsquery import make_query
from .controlanswers import DnsRecord, Listed, Queried
from .poolstore import PoolStore
from .statedirectory import state_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config import Config, Dns
    from ..flow.fakeip import FakePools
    from ..upstream.dial import MakeSocket
    from ..upstream.direct import DirectUpstream
    from ..upstream.resolver_direct import DirectResolver
    from .tasks import TaskSet

QUICK_S = 0.4
"""A resolver that takes longer would be noticed by whoever waits for a name."""
MAX_LISTED = 200_000
"""Of each kind; more than the pools and the cache hold."""

HOSTS_OF_SERVER = "hosts of the server"

_log = logging.getLogger(__name__)


class Server(PromptUpstream, Protocol):
    """What is needed of an SSH server."""

    @property
    def hosts_file(self) -> bytes | None:
        """Its /etc/hosts; ``None``: it cannot be read."""

    async def surveyed(self) -> None:
        """Wait until that has been read over the present connection."""


class Names:
    """The resolvers of one session, and what is done with them. Made in the event loop.

    Attributes:
        proxy: the way out for flows, by name or address.
        nameserver: the engine's, once there is one.
    """

    def __init__(
        self,
        config: Config,
        pools: FakePools,
        *,
        ssh: Server,
        direct: DirectUpstream,
        direct_resolver: DirectResolver,
        make_socket: MakeSocket,
        tasks: TaskSet,
    ) -> None:
        self.proxy = Racing(ssh, None)
        self.remote_resolver = RemoteResolver(ssh, ())
        self.nameserver: NameServer | None = None
        self._config = config.dns
        self._ssh = ssh
        self._far_hosts = FarHosts()
        self._hosts_file: bytes | None = None
        """What those were made of."""
        self._direct_resolver = direct_resolver
        self._named = NamedResolvers(proxy=self.proxy, direct=direct, make_socket=make_socket)
        self._tasks = tasks
        layout = config.tun.stack
        self._store: PoolStore | None = None
        try:
            path = state_directory() / "names" / config.tun.name
        except RuntimeError:
            _log.warning("there is no home directory, so names are not kept: set XDG_STATE_HOME")
        else:
            self._store = PoolStore(pathlib.Path(f"{path}.journal"), pools, layout)

    def load(self) -> None:
        """Take over the fake addresses of an earlier run, and keep the new ones."""
        if self._store is not None and (loaded := self._store.load()):
            _log.info("%d fake addresses of an earlier run are known", loaded)

    async def connected(self, addresses: Sequence[str]) -> None:
        """The server is there, and ``addresses`` are its resolvers; find out what they can do."""
        self.remote_resolver.close()
        self.remote_resolver = RemoteResolver(self._ssh, addresses)
        await self.look_around()

    async def look_around(self) -> None:
        """Read the server's hosts, and see whether the far resolver answers quickly: then names are
        our business."""
        await self._ssh.surveyed()
        self._take_hosts()
        quick = self.remote_resolver.is_there and await self._is_quick()
        if self._config.resolve == "auto" and quick and self.proxy.lookup is None:
            self.proxy.lookup = Lookup(self._ask_far)
            self.proxy.known = self._seen
        if self._config.truthful == "auto" and self.nameserver is not None:
            self.nameserver.truthful = quick

    async def _is_quick(self) -> bool:
        """Whether the far resolver is."""
        began_at = time.monotonic()
        try:
            async with asyncio.timeout(QUICK_S):
                # Which every resolver knows; an error is an answer, too.
                answer = await self.remote_resolver.query(make_query(".", dnslib.QTYPE.NS))
        except TimeoutError:
            answer = None
        quick = answer is not None
        took_ms = 1000 * (time.monotonic() - began_at)
        _log.info("the far resolver %s (%.0f ms)", "answers" if quick else "is slow", took_ms)
        return quick

    async def query(self, message: bytes, server: str | None, *, direct: bool) -> bytes | None:
        """What the resolver ``server`` answers, or the usual one of a way; ``None``: nothing."""
        if server is not None:
            return await self._named.get(server, direct=direct).query(message)
        if direct:
            return await self._direct_resolver.query(message)
        return await self._ask_far(message)

    def reconfigure(self, config: Dns) -> None:
        """Go by ``config`` from now on, as far as it can change while we run: not by its mode and
        fake ranges. The name server has the policy of it already. Flows stay as they are."""
        before, self._config = self._config, config
        if config == before:
            return
        self._named.forget()
        if self.nameserver is not None:
            self.nameserver.configure(config)
        if config.resolve == "server" and self.proxy.lookup is not None:
            self._tasks.spawn(self.proxy.lookup.close(), "end looking up names")
            self.proxy.lookup = None
        if (config.resolve, config.truthful) != (before.resolve, before.truthful):
            self._tasks.spawn(self.look_around(), "look at the far resolver")

    def counters(self) -> Counter[str]:
        """What has happened, by kind."""
        found: Counter[str] = Counter()
        parts = {
            "dns": Counter() if self.nameserver is None else self.nameserver.counters,
            "resolver": self.remote_resolver.counters + self._named.counters(),
            "far_hosts": Counter(ignored=self._far_hosts.ignored),
            "direct_resolver": self._direct_resolver.counters,
            "open": self.proxy.counters,
            "lookup": Counter() if self.proxy.lookup is None else self.proxy.lookup.counters,
        }
        for part, counters in parts.items():
            found.update({f"{part}_{name}": count for name, count in counters.items()})
        return found

    async def close(self) -> None:
        """Let go of everything; the fake addresses are written down."""
        await self.proxy.close()
        self._named.forget()
        self.remote_resolver.close()
        if self._store is not None:
            await self._store.close()

    # --- what the control socket asks -----------------------------------------------------------

    async def answer_query(self, request: dict[str, object]) -> Queried:
        """Ask the name server as an application would: ``name`` and ``type``.

        Raises:
            TunproxyError: there is no such name or type, or nobody to ask yet.
        """
        nameserver = self._ready()
        name, text = str(request.get("name", "")), str(request.get("type", "A")).upper()
        qtype = _type_number(text)
        try:
            name = name if name.isascii() else name.encode("idna").decode("ascii")
            message = make_query(name, qtype)
        except (WireError, UnicodeError):
            raise ConfigError(f"{name} cannot be a name in DNS") from None
        began_at = time.monotonic()
        earlier = nameserver.counters.copy()
        outcome = nameserver.handle_query(message, began_at, stream=True)
        kind = _kind(nameserver.counters - earlier)
        server = None
        if isinstance(outcome, Forward):
            server = self._server_of(outcome)
            kind, answer = await self._carry(nameserver, outcome)
        else:
            answer = outcome.message
            if kind == "fake" and name.lower().removesuffix(".") in self._far_hosts.names:
                server = HOSTS_OF_SERVER
            if outcome.refresh is not None:
                self._tasks.spawn(self._refresh(nameserver, outcome.refresh), f"refresh {name}")
        why = nameserver.why(name.lower().removesuffix("."))
        rcode, records = _read(answer)
        return Queried(
            name=name,
            type=text,
            rcode=rcode,
            answers=records,
            kind=kind,
            server=server,
            why=why,
            ms=round(1000 * (time.monotonic() - began_at), 3),
        )

    def answer_list(self, request: dict[str, object]) -> list[Listed]:
        """What is answered at once; ``suffix`` restricts that to a domain.

        Raises:
            TunproxyError: there is nothing yet.
        """
        nameserver = self._ready()
        suffix = str(request.get("suffix", "")).lower().strip(".")
        below = f".{suffix}"
        found = []
        for entry in nameserver.entries(time.monotonic()):
            if suffix and entry.name != suffix and not entry.name.endswith(below):
                continue
            found.append(
                Listed(
                    name=entry.name,
                    type=_type_name(entry.qtype),
                    kind=entry.kind,
                    value=entry.value,
                    ttl=entry.ttl_s,
                )
            )
            if len(found) >= MAX_LISTED:
                break
        return found

    def answer_flush(self, request: dict[str, object]) -> int:
        """Forget what resolvers have said; how many answers that were.

        Raises:
            TunproxyError: there is nothing yet.
        """
        count = self._ready().flush() + self._direct_resolver.flush()
        return count + (0 if self.proxy.lookup is None else self.proxy.lookup.flush())

    def _ready(self) -> NameServer:
        if self.nameserver is None:
            raise TunproxyError("names are not answered yet: try again when it is connected")
        return self.nameserver

    async def _carry(self, nameserver: NameServer, forward: Forward) -> tuple[str, bytes]:
        """What the name server makes of a resolver's answer, and of which kind that is."""
        asking = asyncio.create_task(self._forward(forward), name="control query")
        try:
            done, _ = await asyncio.wait([asking], timeout=forward.patience_s)
            now, fakes = time.monotonic(), nameserver.counters["fake"]
            if done:
                answer = nameserver.finish(forward, asking.result(), now, stream=True)
            else:
                answer = nameserver.give_up(forward, now, stream=True)
            return ("forwarded" if nameserver.counters["fake"] == fakes else "fake"), answer
        finally:
            asking.cancel()

    async def _refresh(self, nameserver: NameServer, forward: Forward) -> None:
        nameserver.learn(forward, await self._forward(forward), time.monotonic())

    async def _forward(self, forward: Forward) -> bytes | None:
        direct = forward.via is Action.DIRECT
        return await self.query(forward.message, forward.server, direct=direct)

    def _server_of(self, forward: Forward) -> str:
        if forward.server is not None:
            return forward.server
        if forward.via is Action.DIRECT:
            return "the machine's resolver"
        is_listed = self._far_hosts.answer(forward.message) is not None
        return HOSTS_OF_SERVER if is_listed else "the far resolver"

    # --- what flows need ------------------------------------------------------------------------

    async def _ask_far(self, message: bytes) -> bytes | None:
        listed = self._far_hosts.answer(message)
        if listed is not None:
            return listed
        return self._far_hosts.amend(message, await self.remote_resolver.query(message))

    def _take_hosts(self) -> None:
        """Go by the server's hosts file as it was read last."""
        octets = self._ssh.hosts_file
        if octets is None or octets == self._hosts_file:
            return
        self._hosts_file = octets
        self._far_hosts = hosts = FarHosts(octets)
        _log.info("the server's hosts file has %d names", len(hosts.names))
        if hosts.ignored:
            _log.info("%d lines or names of it were passed over", hosts.ignored)
        if self.nameserver is not None:
            self.nameserver.set_listed(hosts.names)
        if self.proxy.lookup is not None:
            self.proxy.lookup.flush()

    def _seen(self, name: str) -> list[str]:
        """The addresses that the server's hosts file has, or truthful mode has just seen."""
        if self.nameserver is None:
            return []
        packed = self.nameserver.real_addresses(name, time.monotonic())
        return [str(ipaddress.ip_address(address)) for address in packed]


def _type_number(text: str) -> int:
    number: int | None = dnslib.QTYPE.reverse.get(text)
    if number is None and text.startswith("TYPE") and text[4:].isdecimal():
        number = int(text[4:])  # RFC 3597 section 5
    if number is None or not 0 < number <= 0xFFFF:
        raise ConfigError(f"there is no record type {text}; write TYPE65280 for one without a name")
    return number


def _type_name(number: int) -> str:
    return str(dnslib.QTYPE.forward.get(number, f"TYPE{number}"))


def _kind(changes: Counter[str]) -> str:
    """How a query was answered at once, by what the name server has counted."""
    return next((kind for kind in ("fake", "cached") if changes[kind]), "local")


def _read(message: bytes) -> tuple[str, tuple[DnsRecord, ...]]:
    """The response code and the answer section, for people."""
    try:
        read: Any = dnslib.DNSRecord.parse(message)
    except (dnslib.DNSError, ValueError) as error:
        raise TunproxyError(f"the answer cannot be read: {error}") from None
    records = tuple(
        DnsRecord(
            name=str(rr.rname), ttl=int(rr.ttl), type=_type_name(rr.rtype), data=str(rr.rdata)
        )
        for rr in read.rr
    )
    code = int(read.header.rcode)
    return (Rcode(code).name if code in list(Rcode) else f"RCODE{code}"), records
