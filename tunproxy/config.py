"""The configuration: one frozen tree, the same names as in the TOML file.

Read it with :func:`load`, lay the command line over it with :func:`overlay`; modules are handed the
sub-tree that concerns them. The values are checked here, once: whoever holds a :class:`Config` from
one of the two holds a valid one.
"""

from __future__ import annotations

import ipaddress
import pathlib
from typing import Literal, TypeAlias, TypeVar

import msgspec

from .config_check import explain, lower_first, problems
from .errors import ConfigError
from .ipnet_codec import Address as Address
from .ipnet_codec import Interface as Interface
from .ipnet_codec import Network as Network
from .ipnet_codec import dec_hook

_S = TypeVar("_S", bound=msgspec.Struct)

Stack: TypeAlias = Literal["user", "system"]
DnsMode: TypeAlias = Literal["fake-ip", "remote", "off"]
UdpVia: TypeAlias = Literal["auto", "agent", "udpgw", "tun", "reject"]


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One SSH server, in the words of ssh(1)."""

    target: str
    """``[user@]host``, or an alias of ssh_config."""
    name: str = "exit"
    """What rules call it."""
    port: int | None = None
    """``None``: what ssh_config says, else 22."""
    identity: str | None = None
    """Private key file; ``None``: ssh_config, the agent and the default keys."""
    known_hosts: str | None = None
    """``None``: what ssh_config says, else ~/.ssh/known_hosts."""
    ssh_config: str | None = None
    """``None``: ~/.ssh/config; ``"none"``: no file at all, as ``ssh -F none``."""
    jump: str | None = None
    """Comma-separated jump hosts, as ``ssh -J``."""
    connections: int | Literal["auto"] = "auto"
    """How many SSH connections to it, at most 16; auto: one, or up to four as path and load ask."""
    resolver: str | None = None
    """Address of the resolver on the server's side; ``None``: read from its /etc/resolv.conf."""


class TunDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The TUN device."""

    name: str = "tun0"
    """At most 15 characters."""
    mtu: int = 1500
    """Octets, 1280 (the least that IPv6 allows) to 65535."""
    stack: Stack = "user"
    """Who terminates TCP: our own endpoints, or the kernel's behind an address translation."""
    offload: bool = True
    """Use 64 KiB super-segments where the kernel has them."""
    pcap: str | None = None
    """File to write the packets that cross the device to, payload and all; ``None``: none."""
    pcap_filter: str | None = None
    """Only those to or from ``HOST``, ``HOST:PORT`` or ``:PORT``, with IPv6 as ``[::1]:80``."""


class Capture(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which traffic enters the TUN."""

    mode: Literal["system", "cgroup"] = "system"
    include: tuple[Network, ...] = ()
    """Only these destinations; empty: all."""
    exclude: tuple[Network, ...] = ()
    """Never these destinations."""
    cgroups: tuple[str, ...] = ()
    """cgroup v2 paths below the mount point, for mode ``cgroup``."""
    gateway: bool = False
    """Also what other hosts send through this one."""
    kill_switch: bool = False
    """Captured traffic has no other way out, even while the program is dead."""


class DnsRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Names that have a resolver of their own; their real addresses are given out."""

    suffix: tuple[str, ...]
    """Names, with all below them."""
    server: str
    """``ADDRESS[:PORT]``, ``tls://HOST[:PORT][#NAME]`` or ``https://HOST[:PORT]/PATH``; NAME is
    that of the certificate, where HOST is not."""
    via: Literal["proxy", "direct"] = "proxy"
    """From the server's side, or from this machine."""


class Dns(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Names."""

    mode: DnsMode | None = None
    """``None``: ``fake-ip``, or ``remote`` where only some networks are included."""
    fake_ip_range: ipaddress.IPv4Network = ipaddress.IPv4Network("198.18.0.0/15")
    fake_ip_range6: ipaddress.IPv6Network = ipaddress.IPv6Network("fd00:7470::/64")
    real: tuple[str, ...] = ()
    """Names (with all below them) that never get a fake address."""
    hosts: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """Names with their addresses, or with other names in this table."""
    rule: tuple[DnsRule, ...] = ()
    """Resolvers of some names; where several suffixes match, the longest decides."""
    split: tuple[str, ...] = ()
    """Only names at or below these are ours to answer; all others are asked at the resolvers of
    this machine, outside the tunnel. Empty: all are ours."""
    truthful: Literal["auto"] | bool = "auto"
    """Ask the server's side before a fake address is given out; auto: if it answers quickly."""
    resolve: Literal["auto", "server"] = "auto"
    """Who finds the addresses of PROXY names. auto: we do, by asking the resolver of the server's
    side, if it answers quickly, and let them race. server: sshd, which tries one by one."""
    cache_size: int = 4096
    """Answers of resolvers that are kept; 0: none."""
    cache_min_ttl: int = 0
    """Seconds that an answer is kept at least, whatever it says, up to 3600."""
    cache_max_ttl: int = 3600
    """Seconds that it is kept at most, 1 to 604800."""


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which rule files decide, in this order, and what they may know."""

    files: tuple[str, ...] = ("default.list",)
    """Paths; a bare name that is no file in ``directory`` is one of the shipped lists."""
    directory: str | None = None
    """Where relative paths start, in RULE-SET too; ``None``: the directory of the config file."""
    geoip: str | None = None
    """A database of countries in MaxMind's format (.mmdb), for GEOIP."""
    asn: str | None = None
    """One of autonomous systems, for IP-ASN."""
    sniff: bool = True
    """Look for a name in what flows to bare addresses say first (TLS, HTTP, QUIC), where a rule
    needs it. Such a connect() succeeds before the target is reached."""
    resolve: bool = False
    """Rules about addresses hold for names as well, by the address that the server's side has told
    (``dns.truthful``)."""


class Udp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How datagrams and pings get through the servers."""

    via: UdpVia = "auto"
    """agent: a program that runs there while we are connected. udpgw: badvpn's daemon, which has to
    run there; no pings. tun: an SSH tun channel, whose end on the server we configure, as root or
    with sudo. reject: not at all. auto: agent, else udpgw, else reject."""
    udpgw: str = "127.0.0.1:7300"
    """Where udpgw listens, as the server sees it."""


class Vpn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The link of ``tunproxy vpn``: IP packets or Ethernet frames over an SSH tun channel.

    A server of our own says what is not said here; a plain one knows nothing of it.
    """

    tap: bool = False
    """Ethernet frames, and a TAP device."""
    local: tuple[Interface, ...] = ()
    """Our addresses on the link, with the lengths of their prefixes."""
    peer: tuple[Address, ...] = ()
    """The server's addresses on the link."""
    route: tuple[str, ...] = ()
    """Networks behind the server; ``default``: all that the link has addresses for."""
    dns: tuple[Address, ...] = ()
    """Resolvers behind the server, the best first, for all names of this machine."""
    mtu: int | None = None
    """Octets, 576 to 65535; ``None``: what the server's side proposes, or what is safe."""
    remote_setup: bool = False
    """Configure the server's end over the same SSH connection, as root there or with sudo."""
    remote_tun: int | None = None
    """The N of the server's device tunN or tapN; ``None``: the first that is free."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be configured."""

    server: tuple[Server, ...] = ()
    tun: TunDevice = msgspec.field(default_factory=TunDevice)
    capture: Capture = msgspec.field(default_factory=Capture)
    dns: Dns = msgspec.field(default_factory=Dns)
    rules: Rules = msgspec.field(default_factory=Rules)
    udp: Udp = msgspec.field(default_factory=Udp)
    vpn: Vpn = msgspec.field(default_factory=Vpn)


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says; ``None`` and empty: nothing."""

    target: str | None = None
    port: int | None = None
    identity: str | None = None
    ssh_config: str | None = None
    jump: str | None = None
    known_hosts: str | None = None
    rules: str | None = None
    """Takes the place of all rule files of the config."""
    include: tuple[Network, ...] = ()
    """Added to those of the config, as ``exclude`` is."""
    exclude: tuple[Network, ...] = ()
    tun: str | None = None
    mtu: int | None = None
    stack: Stack | None = None
    pcap: str | None = None
    pcap_filter: str | None = None
    dns: DnsMode | None = None
    split_dns: tuple[str, ...] = ()
    """Added to those of the config."""
    udp: UdpVia | None = None
    gateway: bool = False
    kill_switch: bool = False
    vpn: Vpn = msgspec.field(default_factory=Vpn)
    """Each option that is given takes the place of the config's."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a config comes from."""

    file: str | None = None
    """An absolute path; ``None``: there is no file."""
    overrides: Overrides = msgspec.field(default_factory=Overrides)

    def read(self) -> Config:
        """Read it as it is by now.

        Raises:
            ConfigError: it is wrong by now.
        """
        return overlay(load(self.file) if self.file is not None else Config(), self.overrides)


def load(path: str | pathlib.Path) -> Config:
    """Read the config file ``path``; its relative paths start at its own directory.

    Raises:
        ConfigError: naming the file, the field and the reason.
    """
    # Here, and not above: the engine reads no file unless it has to read it again.
    import tomllib

    source = str(path)
    try:
        raw = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {lower_first(str(error))}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {_strerror(error)}") from None
    try:
        config = msgspec.convert(raw, Config, strict=True, dec_hook=dec_hook)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {explain(str(error))}") from None
    _check(config, source)
    return _anchor(config, pathlib.Path(path).absolute().parent)


def overlay(config: Config, overrides: Overrides) -> Config:
    """Return ``config`` with the options of the command line laid over it.

    Raises:
        ConfigError: the result is not a valid config.
    """
    given = overrides
    capture = msgspec.structs.replace(
        config.capture,
        include=config.capture.include + given.include,
        exclude=config.capture.exclude + given.exclude,
        gateway=config.capture.gateway or given.gateway,
        kill_switch=config.capture.kill_switch or given.kill_switch,
    )
    tun = _replace_given(
        config.tun,
        name=given.tun,
        mtu=given.mtu,
        stack=given.stack,
        pcap=_below(given.pcap, pathlib.Path.cwd()),
        pcap_filter=given.pcap_filter,
    )
    dns = _replace_given(config.dns, mode=given.dns, split=config.dns.split + given.split_dns)
    rules = config.rules
    if given.rules is not None:
        rules = msgspec.structs.replace(rules, files=(_rule_option(given.rules),))
    result = msgspec.structs.replace(
        config,
        server=_overlay_server(config.server, given),
        tun=tun,
        capture=capture,
        dns=dns,
        rules=rules,
        udp=_replace_given(config.udp, via=given.udp),
        vpn=_replace_given(config.vpn, **_given_options(given.vpn)),
    )
    _check(result, "command line")
    return result


def replace_servers(config: Config, servers: tuple[Server, ...]) -> Config:
    """Return ``config`` with other servers."""
    return msgspec.structs.replace(config, server=servers)


def _strerror(error: OSError) -> str:
    return lower_first(error.strerror or str(error))


def _check(config: Config, source: str) -> None:
    """Raise ConfigError for the first value that has the right type and makes no sense."""
    for field, reason in problems(config):
        raise ConfigError(f"{source}: {field}: {reason}")


def _anchor(config: Config, base: pathlib.Path) -> Config:
    """Make the relative paths of a config file absolute, below ``base``."""
    servers = tuple(
        msgspec.structs.replace(
            server,
            identity=_anchored(server.identity, base),
            known_hosts=_anchored(server.known_hosts, base),
            ssh_config=_anchored(server.ssh_config, base),
        )
        for server in config.server
    )
    directory = _anchored(config.rules.directory or ".", base)
    rules = msgspec.structs.replace(
        config.rules,
        directory=directory,
        geoip=_below(config.rules.geoip, base),
        asn=_below(config.rules.asn, base),
    )
    tun = msgspec.structs.replace(config.tun, pcap=_below(config.tun.pcap, base))
    return msgspec.structs.replace(config, server=servers, rules=rules, tun=tun)


def _anchored(path: str | None, base: pathlib.Path) -> str | None:
    """As :func:`_below`; the word ``none`` of ssh(1) is no path."""
    return path if path == "none" else _below(path, base)


def _below(path: str | None, base: pathlib.Path) -> str | None:
    # "~" belongs to the user the engine runs as, who may not be the one that reads this.
    if not path or path.startswith("~"):
        return path
    return str(base / path)


def _overlay_server(servers: tuple[Server, ...], given: Overrides) -> tuple[Server, ...]:
    """Make or change the first server."""
    cwd = pathlib.Path.cwd()
    changes = {
        "port": given.port,
        "identity": _anchored(given.identity, cwd),
        "ssh_config": _anchored(given.ssh_config, cwd),
        "jump": given.jump,
        "known_hosts": _anchored(given.known_hosts, cwd),
    }
    first, rest = (servers[0], servers[1:]) if servers else (None, ())
    if given.target is not None and (first is None or given.target != first.target):
        # Another host: the port and the key of the one in the config are none of its business.
        first = Server(target=given.target, name=first.name if first else "exit")
    if first is None:
        if any(value is not None for value in changes.values()):
            raise ConfigError("command line: an SSH option needs a SERVER to go with")
        return ()
    return (_replace_given(first, **changes), *rest)


def _given_options(vpn: Vpn) -> dict[str, object]:
    """The options that the command line names: all but those that are empty."""
    values = {name: getattr(vpn, name) for name in vpn.__struct_fields__}
    return {
        name: value
        for name, value in values.items()
        if not (value is None or value is False or value == ())
    }


def _replace_given(struct: _S, **changes: object) -> _S:
    """Replace the fields whose new value is not ``None``."""
    return msgspec.structs.replace(
        struct, **{name: value for name, value in changes.items() if value is not None}
    )


def _rule_option(name: str) -> str:
    """``--rules``: a path from the working directory, or a bare name to be looked up later."""
    path = pathlib.Path(name).absolute()
    return str(path) if "/" in name or path.exists() else name
