"""What an instance is going to change on this machine: one value, written down before it is done.

Everything that is needed to undo it is in it. :mod:`.policy` and :mod:`.ruleset` make of it what
the kernel is told. That of ``tunproxy vpn`` is completed when the other end has said what the link
is like (:meth:`CapturePlan.with_link`); all others are made at once.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from ..config_values import canonical_name, is_host
from ..errors import ConfigError, ServerError
from ..flow.dnspolicy import split_domains
from ..linux import marks, resolved
from ..linux.netlink import Family, Interface, Network, ipv6_enabled, network_namespace
from .ipc import LinkTerms
from .sysctls import Sysctl, forwarding_sysctls, lenient_sysctls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..config import Config

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

EVERYTHING: Final[dict[Family, str]] = {4: "0.0.0.0/0", 6: "::/0"}
"""The network of all addresses."""
_EVERYTHINGS: Final = frozenset(EVERYTHING.values())

_MIN_MTU: Final = 576
_MAX_MTU: Final = 65535


class CapturePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is captured, and all that is needed to undo it; it goes to ``state.json``."""

    slot: int
    tun: str
    """Name of the device."""
    mode: Literal["system", "cgroup"]
    ipv6: bool = True
    names: bool = True
    """Whether there is a name server on the TUN, for which port 53 is captured."""
    translated: bool = False
    """Whether the kernel terminates TCP: its peers are at the end of the fake ranges."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    gateway: bool = False
    kill_switch: bool = False
    fake4: str = "198.18.0.0/15"
    fake6: str = "fd00:7470::/64"
    cgroups: tuple[str, ...] = ()
    """Paths below the mount point that others have made, for mode ``cgroup``."""
    run_cgroup: str | None = None
    """Path of the cgroup we make for the command of ``tunproxy run``."""
    resolved: bool = False
    """Whether systemd-resolved is told."""
    split: tuple[str, ...] = ()
    """Domains whose names alone are asked here, the reverse zones of fake addresses among them;
    empty: all names are."""
    stub: bool = False
    """Whether the machine's own resolver is a program on it, such as dnsmasq; looked for where
    names are split."""
    sysctls: tuple[Sysctl, ...] = ()
    tap: bool = False
    """Whether the device carries Ethernet frames."""
    link: LinkTerms | None = None
    """The link of ``tunproxy vpn``, which has addresses of its own and none that stand for names;
    nothing is captured as long as it has none. ``None``: all other commands."""
    given: tuple[str, ...] = ()
    """Addresses that the device has from us (it may be somebody's, and stay)."""

    @classmethod
    def from_config(
        cls,
        config: Config,
        slot: int,
        run: bool,
        *,
        vpn: bool = False,
        earlier: CapturePlan | None = None,
    ) -> CapturePlan:
        """What ``config`` asks for on this machine, as it is now.

        ``run``: a cgroup of our own is captured, and nothing else. ``vpn``: what is behind a link
        is captured, once it is known. ``earlier`` is what a dead instance has left in place
        (:attr:`Instance.earlier`): its settings are undone by us.

        Raises:
            ConfigError: the parts of ``config`` contradict each other.
        """
        capture, dns = config.capture, config.dns
        if vpn and capture.mode != "system":
            raise ConfigError(
                'a VPN leads to networks and knows no cgroups: leave out capture.mode = "cgroup"'
            )
        names = dns.mode != "off" and not vpn
        split = _split_domains(config, vpn=vpn)
        mode: Literal["system", "cgroup"] = "cgroup" if run else capture.mode
        cgroups = () if run else tuple(path.strip("/") for path in capture.cgroups)
        if mode == "cgroup" and capture.gateway:
            raise ConfigError("a gateway captures everything: leave out --gateway or the cgroups")
        if mode == "cgroup" and not run and (not cgroups or not all(cgroups)):
            raise ConfigError(
                'name at least one cgroup in capture.cgroups, or choose capture.mode = "system"'
            )
        sysctls = () if earlier is None else earlier.sysctls
        if mode == "system":
            sysctls += lenient_sysctls()
        if capture.gateway:
            sysctls += forwarding_sysctls()
        return cls(
            slot=slot,
            tun=config.tun.name,
            mode=mode,
            ipv6=ipv6_enabled(),
            names=names,
            translated=config.tun.stack == "system" and not vpn,
            include=() if vpn else tuple(map(str, capture.include)),
            exclude=tuple(map(str, capture.exclude)),
            gateway=capture.gateway,
            kill_switch=capture.kill_switch,
            fake4=str(dns.fake_ip_range),
            fake6=str(dns.fake_ip_range6),
            cgroups=cgroups if mode == "cgroup" else (),
            run_cgroup=marks.run_cgroup(network_namespace(), slot) if run else None,
            resolved=names and mode == "system" and resolved.available(),
            split=split,
            stub=bool(split) and any(map(resolved.is_here, resolved.system_resolvers())),
            sysctls=sysctls,
            tap=vpn and config.vpn.tap,
            link=LinkTerms() if vpn else None,
            given=() if earlier is None else earlier.given,
        )

    def with_link(self, terms: LinkTerms, servers: Sequence[Address] = ()) -> CapturePlan:
        """This plan, for the link of ``terms``; ``servers`` are addresses of the SSH server.

        What is said of IPv6 is left out where this machine has none.

        Raises:
            ConfigError: such a link cannot work.
            ServerError: what should be an address is none, or no host's.
        """
        try:
            link = _normal(terms, self._possible)
        except ValueError as error:
            raise ServerError(
                f"the terms of the link make no sense ({error}): have the server corrected"
            ) from None
        plan = msgspec.structs.replace(
            self,
            link=link,
            names=bool(link.dns),
            resolved=bool(link.dns) and resolved.available(),
        )
        near = map(str, plan.near())
        closed = [EVERYTHING[family] for family in plan.families if plan.closes(family)]
        include = tuple(dict.fromkeys((*near, *link.routes, *closed)))
        plan = msgspec.structs.replace(plan, include=include)
        for problem in plan._problems(servers):
            raise ConfigError(problem)
        return plan

    def _problems(self, servers: Sequence[Address]) -> Iterator[str]:
        """Why the link cannot work."""
        assert self.link is not None
        if self.names and self.split and not self.resolved:
            yield "a VPN splits names by systemd-resolved, which is not here: leave out dns.split"
        if self.names and self.split and self.gateway:
            yield "a VPN splits names for this machine only: leave out dns.split or the gateway"
        for what, texts in (
            ("the route", self.link.routes),
            ("the peer", self.link.peers),
            ("the resolver", self.link.dns),
        ):
            for text in texts:
                family = _version(text)
                if not self.addresses(family):
                    yield (
                        f"the link has no address for {what} {text}: "
                        f"name one of IPv{family} with --local"
                    )
                elif not self._reaches(ipaddress.ip_network(text)):
                    yield f"{what} {text} is behind a router of the segment: name it with --peer"
        for text in self.link.local:
            network = ipaddress.ip_interface(text).network
            for server in servers:
                if server in network:
                    yield (
                        f"the link's network {network} has the address of the SSH server "
                        f"({server}) in it: take another, with --local"
                    )

    def _reaches(self, network: Network) -> bool:
        """Whether packets to ``network`` find their way on the link."""
        if not self.tap or self.next_hop(network) is not None:
            return True
        return any(n.version == network.version and network[0] in n for n in self.near())

    @property
    def families(self) -> tuple[Family, ...]:
        """The IP versions that are captured."""
        if self.link is None:
            return self._possible
        return tuple(f for f in self._possible if self.addresses(f) or self.closes(f))

    @property
    def _possible(self) -> tuple[Family, ...]:
        return (4, 6) if self.ipv6 else (4,)

    @property
    def fakes(self) -> bool:
        """Whether what goes to the fake ranges has to come to us."""
        return self.link is None and (self.names or self.translated)

    def fake_range(self, family: Family) -> Network:
        """The addresses that stand for names, and for the peers of the kernel's stack."""
        return ipaddress.ip_network(self.fake4 if family == 4 else self.fake6)

    def addresses(self, family: Family) -> list[Address]:
        """The addresses of the device, the first for what has none yet; of its link, or ours."""
        if self.link is None:
            return [self.fake_range(family)[1]]
        interfaces = map(ipaddress.ip_interface, self.link.local)
        return [interface.ip for interface in interfaces if interface.version == family]

    def closes(self, family: Family) -> bool:
        """Whether a link that everything has to go through has no address of that IP version.

        What is captured of it goes nowhere, because there is a kill switch.
        """
        if self.link is None or not self.kill_switch or self.addresses(family):
            return False
        return not _EVERYTHINGS.isdisjoint(self.link.routes)

    def tun_address(self, family: Family) -> Address:
        """The source address of what is captured, the first of the fake range or of the link."""
        return next(iter(self.addresses(family)), self.fake_range(family)[1])

    def near(self) -> list[Network]:
        """What is on the link itself: its networks, and the peers as networks of one."""
        if self.link is None:
            return []
        found = [network for network in self.connected() if network.num_addresses > 1]
        return list(dict.fromkeys([*found, *map(ipaddress.ip_network, self.link.peers)]))

    def connected(self) -> list[Network]:
        """The networks of the device's addresses, to which the kernel has routes of its own."""
        return [interface.network for interface in self.tun_addresses]

    def next_hop(self, network: Network) -> Address | None:
        """The router of a segment that leads to ``network``; ``None``: it needs none."""
        if self.link is None or not self.tap or network in self.near():
            return None
        peers = map(ipaddress.ip_address, self.link.peers)
        return next((peer for peer in peers if peer.version == network.version), None)

    def dns_address(self, family: Family) -> Address | None:
        """Where queries go: the second address of the fake range, or a resolver of the link's."""
        return next(iter(self.resolvers(family)), None)

    def resolvers(self, family: Family) -> list[Address]:
        """Who answers queries on the device, the best first."""
        if self.link is None:
            return [self.fake_range(family)[2]]
        return [a for a in map(ipaddress.ip_address, self.link.dns) if a.version == family]

    def direct_address(self, family: Family) -> Address:
        """The third: what comes from here was sent by the bypass cgroup and is to go out direct."""
        return self.fake_range(family)[3]

    @property
    def splits_locally(self) -> bool:
        """Whether a resolver of this machine answers names that are not ours to answer.

        What it asks the resolvers of others goes to them, like every query that is not for us.
        """
        there = self.resolved or self.stub
        return self.names and self.mode == "system" and bool(self.split) and there

    @property
    def diverts(self) -> bool:
        """Whether local queries, for whichever resolver, are brought to ours."""
        return self.names and not (self.resolved and self.split)

    @property
    def stub_asker(self) -> Address:
        """The last of IPv6, where the name server sees those who ask ::1."""
        return self.fake_range(6)[-1]

    @property
    def tun_addresses(self) -> list[Interface]:
        """For :func:`tunproxy.linux.netlink.configure_link`."""
        if self.link is not None:
            return [ipaddress.ip_interface(text) for text in self.link.local]
        return [ipaddress.ip_interface(self.tun_address(family)) for family in self.families]

    @property
    def trap(self) -> str | None:
        """Name of the device that closes IPv6, where a kill switch needs one."""
        if self.kill_switch and self.mode == "system" and 6 in self.families:
            return marks.trap_device(self.slot)
        return None

    @property
    def strict(self) -> bool:
        """Whether reverse path filters of this machine make us mark incoming packets."""
        return any(sysctl.path.endswith("/src_valid_mark") for sysctl in self.sysctls)


def _split_domains(config: Config, *, vpn: bool) -> tuple[str, ...]:
    """What ``dns.split`` comes to, the domains of the user first."""
    dns = config.dns
    ours = split_domains(dns.split)
    if not ours:
        return ()
    zones: list[str] = []
    mode = dns.mode or ("remote" if config.capture.include else "fake-ip")
    if mode == "fake-ip" and not vpn:
        for network in (dns.fake_ip_range, dns.fake_ip_range6):
            zones += resolved.reverse_zones(network)
    first = list(dict.fromkeys(map(canonical_name, dns.split)))
    return tuple(dict.fromkeys([*first, *sorted(ours), *zones]))


def _normal(terms: LinkTerms, families: Sequence[Family]) -> LinkTerms:
    """``terms`` in their usual spelling, ``default`` spelled out, and of ``families`` only.

    Raises:
        ValueError: something is no address, or one that cannot be a host's.
    """
    if not _MIN_MTU <= terms.mtu <= _MAX_MTU:
        raise ValueError(f"an MTU of {terms.mtu}")
    local = [ipaddress.ip_interface(text) for text in terms.local]
    peers = [ipaddress.ip_address(text) for text in terms.peers]
    dns = [ipaddress.ip_address(text) for text in terms.dns]
    for value in (*local, *peers, *dns):
        if not is_host(str(value).partition("/")[0]):
            raise ValueError(f"{value} is not the address of one host")
    versions = {interface.version for interface in local}
    everything = [EVERYTHING[family] for family in families if family in versions]
    routes: list[str] = []
    for text in terms.routes:
        routes += everything if text == "default" else [str(ipaddress.ip_network(text))]

    def kept(values: Iterable[object]) -> tuple[str, ...]:
        texts = dict.fromkeys(map(str, values))
        return tuple(text for text in texts if _version(text) in families)

    return LinkTerms(
        local=kept(local), peers=kept(peers), routes=kept(routes), dns=kept(dns), mtu=terms.mtu
    )


def _version(text: str) -> Family:
    return 6 if ":" in text else 4
