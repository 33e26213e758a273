"""One run of the engine: log in to the server, build the parts, relay until the end.

This is where flow and upstream meet. The order matters: the rules are read first, because they can
be wrong; then we log in, while nothing is captured yet; then the supervisor captures the traffic,
and packets begin to arrive. What few runs need is imported where it is used (:mod:`.parts`).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import ipaddress
import logging
import os
import secrets
from typing import TYPE_CHECKING

from .. import __version__, config
from ..flow.engine import Engine, Settings
from ..flow.fakeip import CAPACITY, RESERVED, FakePools
from ..flow.nameserver import NameServer
from ..flow.nat import NatTable, Place, nat_network
from ..flow.translator import Translator
from ..linux import resolved
from ..upstream.direct import DirectUpstream
from ..upstream.direct_datagrams import DirectDatagrams
from ..upstream.pool import SshPool
from ..upstream.resolver_direct import DirectResolver
from ..upstream.ssh import LinkState
from . import rulefiles
from .controlanswers import Status
from .datagramtiers import FarNames, candidates
from .datagramways import DatagramWays
from .devicereader import device_lost
from .driver import Driver
from .enginesession import EngineSession, rss_bytes
from .kernelstack import KernelStack
from .names import Names
from .relay import Relay
from .serverways import ServerWays
from .steering import Steering
from .tasks import TaskSet

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ..linux.tun import Tun
    from ..upstream.base import Relay as DatagramWay
    from .broker import Broker
    from .control import Handler
    from .ipc import Start
    from .pcap import PacketTrace

_log = logging.getLogger(__name__)


class Session(EngineSession):
    """The parts of an engine that relays flows."""

    def __init__(
        self, start: Start, tun: Tun, broker: Broker, listeners: list[socket.socket]
    ) -> None:
        """Read the rules and make what needs no server.

        Raises:
            ConfigError: a rule file is missing or wrong, or the trace cannot be written.
        """
        super().__init__(broker)
        self._start = start
        self._config = start.config
        self._tun = tun
        self._listeners = listeners
        cfg = self._config
        rules = rulefiles.read(cfg)
        self._pools = _make_pools(cfg)
        ours = {str(address) for address in (start.dns4, start.dns6) if address}
        near = resolved.SystemResolvers(start.resolvers, ours)
        self.direct_resolver = DirectResolver(broker.make_socket, near)
        self.direct = DirectUpstream(broker.make_socket, self.direct_resolver)
        self.direct_datagrams = DirectDatagrams(
            broker.make_socket, broker.make_ping_socket, self.direct_resolver
        )
        self._engine: Engine | None = None
        self.ssh = self._make_server(cfg.server[0], self._on_state)
        self._tasks = TaskSet()
        self.names = Names(
            cfg,
            self._pools,
            ssh=self.ssh,
            direct=self.direct,
            direct_resolver=self.direct_resolver,
            make_socket=broker.make_socket,
            tasks=self._tasks,
        )
        self.proxy = self.names.proxy
        self._local = None if start.local is None else _packed(start.local)
        self._steering = Steering(
            start, rules, broker, self._tasks, self.proxy, self._make_other, self._local
        )
        self._far_names = FarNames(functools.partial(self.names.query, server=None, direct=False))
        self._datagram_ways = DatagramWays(
            candidates(cfg, self.ssh, self._far_names), self._datagram_way_changed
        )
        self._server_ways = ServerWays(
            cfg,
            self._datagram_ways,
            self._steering.servers.others,
            self._tasks,
            self._datagram_way_changed,
        )
        self._driver: Driver | None = None
        self._relay: Relay | None = None
        self._kernel: KernelStack | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._trace: PacketTrace | None = None
        if cfg.tun.pcap is not None:
            from .pcap import PacketTrace

            names = self._pools.name_of_packed
            self._trace = PacketTrace.open(cfg.tun.pcap, cfg.tun.pcap_filter, names)

    def handlers(self) -> dict[str, Handler]:
        """Who answers what is asked at the control socket."""
        return {
            "status": self._status,
            "reload": self._steering.answer_reload,
            "dns-query": self.names.answer_query,
            "dns-list": self.names.answer_list,
            "dns-flush": self.names.answer_flush,
        }

    async def run(self) -> None:
        """Log in, then relay until the supervisor ends it.

        Raises:
            ServerError: the first login failed.
        """
        if not await self._until_ended(self.ssh.connect()):
            return
        if not self.ssh.resolver_addresses:
            _log.warning(
                "the resolver of the server's side is not known (its /etc/resolv.conf cannot be "
                "read): set server.resolver, or only A and AAAA queries are answered"
            )
        self._build()
        await self.names.connected(self.ssh.resolver_addresses)
        loop = asyncio.get_running_loop()
        self._keeper = loop.create_task(self.ssh.run(), name="keep connected")
        self._tasks.spawn(self._datagram_ways.run(), "keep a way for datagrams")
        self._broker.connected(self._config.server[0].target, list(self.ssh.addresses))
        assert self._driver is not None
        await self._until_ended(device_lost(self._driver))

    async def close(self) -> None:
        """Stop reading packets, abort all streams, leave the server."""
        if self._driver is not None:
            self._driver.stop()
        if self._trace is not None:
            self._trace.close()
        await self._tasks.cancel()
        await self._server_ways.close()
        await self._far_names.close()
        if self._relay is not None:
            await self._relay.close()
        self.direct_datagrams.close()
        if self._kernel is not None:
            await self._kernel.close()
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._steering.close()
        await self.names.close()
        await self.ssh.close()

    def _build(self) -> None:
        cfg = self._config
        mode = cfg.dns.mode or ("remote" if cfg.capture.include else "fake-ip")
        known = [ipaddress.ip_address(text) for text in self.ssh.addresses]
        server_names = {name: known for name in self.ssh.names}
        nameserver = NameServer.from_config(
            cfg.dns,
            self._pools,
            self._steering.table,
            mode="fake-ip" if mode == "fake-ip" else "remote",
            server_names=server_names,
        )
        self.names.nameserver = nameserver
        self.names.load()
        settings = Settings(
            mtu=self._start.tun.mtu,
            offload=self._tun.offload,
            capture_dns=mode != "off",
            direct_sources=_packed(self._start.direct),
            sniff=cfg.rules.sniff,
            server=cfg.server[0].name,
            local_sources=self._local,
            secret=secrets.token_bytes(32),
        )
        loop = asyncio.get_running_loop()
        translator = _make_translator(cfg, self._listeners)
        engine = Engine(
            settings,
            self._steering.table,
            self._pools,
            nameserver,
            translator,
            self._steering.owners.facts,
        )
        if translator is None:
            self._relay = Relay(engine, self)
            self._driver = Driver(self._tun, engine, self._relay, loop, self._trace)
        else:
            self._kernel = KernelStack(engine, self._listeners, loop)
            self._relay = Relay(engine, self, self._kernel)
            self._driver = Driver(self._tun, engine, self._kernel, loop, self._trace)
            self._kernel.relay = self._relay
            self._kernel.wake = self._driver.wake
            if self._trace is not None:
                from .pcap import Inside

                places = [_place(listener) for listener in self._listeners]
                self._trace.inside = Inside(places, translator.nat.contains)
            self._kernel.start()
        self._engine = engine
        self._relay.wake = self._driver.wake
        self._relay.find_fact = self._steering.find
        self._relay.find_server = self._steering.servers.find
        self._steering.begin(engine, server_names, self.names)
        for name in self._server_ways:
            self._datagram_way_changed(name)
        self._driver.start()

    def _make_server(
        self, server: config.Server, on_state: Callable[[LinkState], None] = lambda state: None
    ) -> SshPool:
        return SshPool(
            server,
            make_socket=self._broker.make_socket,
            ask=self._broker.ask,
            resolve=self.direct_resolver.addresses,
            on_state=on_state,
            is_captured=self._engine is not None,
        )

    def _make_other(self, server: config.Server) -> SshPool:
        """One that is not the first; its way for datagrams is looked for elsewhere."""

        def on_state(state: LinkState) -> None:
            if state is LinkState.UP:
                self._server_ways.try_again(server.name)

        return self._make_server(server, on_state)

    def _on_state(self, state: LinkState) -> None:
        _log.info("ssh: %s", state.value)
        if state is LinkState.UP:
            if self._engine is not None:
                self._tasks.spawn(self.names.look_around(), "look at the far resolver")
            self._datagram_ways.try_again()

    def find_datagrams(self, server: str | None) -> DatagramWay | None:
        """The way of datagrams through a server, by the name that a decision has for it."""
        return self._server_ways.find(server)

    def _datagram_way_changed(self, server: str | None = None) -> None:
        if self._relay is not None:
            self._relay.datagrams.way_changed(server)

    def _status(self, request: dict[str, object]) -> Status:
        engine, proxy = self._engine, self.ssh
        counters = collections.Counter(self.defects())
        if engine is not None:
            counters.update(engine.counters)
        counters.update(self.names.counters())
        counters.update(self._server_ways.counters())
        counters.update(self.direct_datagrams.counters)
        counters.update({f"ssh_{name}": count for name, count in proxy.counters.items()})
        return Status(
            version=__version__,
            pid=os.getpid(),
            tun=self._tun.name,
            mode=self._start.mode,
            stack=self._config.tun.stack,
            offload=self._tun.offload,
            server=self._config.server[0].target,
            state=proxy.state.value,
            cipher=proxy.cipher,
            path=proxy.connection_path,
            uptime_s=self.uptime_s(),
            reconnects=proxy.reconnects,
            connections=proxy.connections,
            flows=len(engine.table) if engine else 0,
            flows_total=engine.flows_total if engine else 0,
            refused=dict(engine.refused) if engine else {},
            bytes_up=engine.bytes_up if engine else 0,
            bytes_down=engine.bytes_down if engine else 0,
            dns_queries=engine.dns.queries if engine else 0,
            dns_split=list(self._config.dns.split),
            counters={name: count for name, count in counters.items() if count},
            rss_bytes=rss_bytes(),
            rules=self._steering.hits(),
            udp=self._datagram_ways.name,
            udp_reason=self._datagram_ways.reason,
            udp_servers=self._server_ways.describe(),
        )


def _packed(addresses: tuple[str, ...]) -> frozenset[bytes]:
    return frozenset(ipaddress.ip_address(text).packed for text in addresses)


def _make_pools(cfg: config.Config) -> FakePools:
    v4, v6 = cfg.dns.fake_ip_range, cfg.dns.fake_ip_range6
    if cfg.tun.stack != "system":
        return FakePools(v4, v6)
    # The end of each range is for mappings.
    room = min(v4.num_addresses, v6.num_addresses)
    room -= room // 16
    return FakePools(v4, v6, capacity=min(CAPACITY, room - RESERVED))


def _make_translator(cfg: config.Config, listeners: list[socket.socket]) -> Translator | None:
    if not listeners:
        return None
    places = {len(place.address): place for place in map(_place, listeners)}
    nat = NatTable(nat_network(cfg.dns.fake_ip_range), nat_network(cfg.dns.fake_ip_range6))
    return Translator(nat, places)


def _place(listener: socket.socket) -> Place:
    address, port = listener.getsockname()[:2]
    return Place(ipaddress.ip_address(address).packed, port)
