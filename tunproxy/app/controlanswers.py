"""What an engine answers to those who ask it (:mod:`.control`), a type for each command.

The answers travel as JSON; our own commands read them back as these.
"""

from __future__ import annotations

import msgspec

from ..errors import TunproxyError


class Direction(msgspec.Struct, frozen=True, kw_only=True):
    """What has gone one way over a link."""

    packets: int
    octets: int
    drops: dict[str, int]
    """Packets that were dropped, by reason."""


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the link of ``tunproxy vpn`` is."""

    local: tuple[str, ...]
    """Its addresses, as ``10.74.0.2/24``."""
    mtu: int
    """Octets."""
    big: bool
    """Super-segments cross it as they are."""
    up: Direction
    """From this machine to the server."""
    down: Direction


class ClientStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A client of a hub."""

    key: str
    """The fingerprint of its key."""
    addresses: tuple[str, ...]
    up: Direction
    """From the client to the hub."""
    down: Direction
    """From the hub to the client."""


class HubStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the hub of ``tunproxy serve`` is."""

    kind: str
    """``tun`` or ``tap``."""
    local: tuple[str, ...]
    """Its own addresses, as ``10.74.0.1/24``."""
    mtu: int
    """Octets."""
    isolate: bool
    """Clients do not reach each other."""
    up: Direction
    """From the clients to the device."""
    down: Direction
    """From the device to the clients."""
    clients: tuple[ClientStatus, ...]
    """Who is here."""


class RuleHits(msgspec.Struct, frozen=True, kw_only=True):
    """How often a rule has decided."""

    rule: str
    """As written."""
    place: str
    """``file:line``."""
    hits: int


class Reloaded(msgspec.Struct, frozen=True, kw_only=True):
    """What has come of ``reload``."""

    rules: int
    """How many are in force."""
    restart: tuple[str, ...]
    """The sections of the config that have changed and are not in force before a restart."""
    error: str | None = None
    """What is wrong with the config or its rules; then everything is as it was."""


class ServerDatagrams(msgspec.Struct, frozen=True, kw_only=True):
    """What carries datagrams through another server than the first."""

    name: str
    """What rules call it."""
    udp: str
    """As in :class:`Status`; ``unknown`` before anything is sent there."""
    reason: str
    """Why there is none."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of itself."""

    version: str
    pid: int
    tun: str
    """Name of the device."""
    mode: str
    """``system``, ``cgroup``, ``vpn`` or ``hub``. The last two have no flows and ask no names: all
    zero."""
    stack: str
    """Who terminates TCP."""
    offload: bool
    """The TUN carries super-segments."""
    server: str
    """The SSH server, as the user named it; where a hub listens."""
    state: str
    """How the connection to it stands: ``connecting``, ``up``, ``down`` or ``closed``."""
    cipher: str | None
    """Of the SSH connection; ``None`` while there is none."""
    uptime_s: float
    reconnects: int
    connections: int = 1
    """SSH connections to the server that are up."""
    flows: int = 0
    """Open ones."""
    flows_total: int = 0
    """Opened since the start."""
    refused: dict[str, int] = {}
    """Flows that could not be opened, by kind."""
    bytes_up: int = 0
    """Payload octets from the applications to the servers."""
    bytes_down: int = 0
    dns_queries: int = 0
    dns_split: list[str] = []
    """The domains whose names alone are answered here; empty: all are."""
    counters: dict[str, int]
    """Drops and other rare events, by reason."""
    rss_bytes: int
    """Resident memory of the engine."""
    path: str | None = None
    """Which code the connection's data takes: ``fast: CIPHER``, or ``stock: REASON``."""
    udp: str = "reject"
    """What carries datagrams through the server: ``agent``, or ``reject`` for none. A VPN carries
    them like everything else."""
    udp_reason: str = ""
    """Why there is none."""
    udp_servers: list[ServerDatagrams] = []
    """The same of the other servers."""
    rules: list[RuleHits] = []
    """Those that have decided most often since they were read, in their order."""
    link: LinkStatus | None = None
    """Of a VPN, once it has one."""
    hub: HubStatus | None = None


class DnsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A resource record, for people."""

    name: str
    ttl: int
    """Seconds."""
    type: str
    data: str


class Queried(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a query."""

    name: str
    type: str
    rcode: str
    answers: tuple[DnsRecord, ...]
    kind: str
    """``fake``, ``cached``, ``forwarded``, or ``local``: we know it without asking."""
    server: str | None
    """Who was asked, where it was forwarded."""
    why: str
    """What has decided that."""
    ms: float
    """Milliseconds that it took."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a name is answered with at once."""

    name: str
    type: str
    kind: str
    """``fake`` or ``cached``."""
    value: str
    ttl: int | None
    """Seconds; ``None``: a fake address has none."""


def status_of(answer: object) -> Status:
    """Read the answer to ``status``.

    Raises:
        TunproxyError: it is from a version that says other things.
    """
    try:
        return msgspec.convert(answer, Status)
    except msgspec.ValidationError:
        raise TunproxyError(
            "another version of tunproxy runs: ask it with its own command, or with --json"
        ) from None
