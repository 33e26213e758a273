"""What a rule may have to know about a flow, beyond its target.

Everything here is asked for late: only when a rule is reached that depends on it, and none before
that one has matched. ``None`` stands for what nobody knows, and matches nothing: neither
``PROCESS-NAME,curl`` nor ``PROCESS-NAME,wget`` decides a flow without known process, while
``NOT,((PROCESS-NAME,curl))`` does.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Hashable

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Transport: TypeAlias = Literal["tcp", "udp", "icmp"]


class Need(enum.StrEnum):
    """A kind of fact."""

    SNIFF = "sniff"
    """The name that the first octets of a flow to a bare address tell."""
    RESOLVED = "resolved"
    """An address of a flow's name."""
    SOURCE = "source"
    """The address and port of the initiator."""
    PROCESS = "process"
    """The name or path of the program that opened the flow."""
    UID = "uid"
    """The user it runs as."""
    CGROUP = "cgroup"
    """The control group it is in."""
    COUNTRY = "country"
    """The country of an address."""
    ASN = "asn"
    """The autonomous system of an address."""


class NotYetKnown(Exception):
    """A fact that was asked for takes time to find out.

    Raised by :class:`Facts` and their :class:`Owner`, and let pass by the rules, which count
    nothing then. When whoever knows the answer has been asked ``question``, ask the rules again.
    """

    def __init__(self, question: Hashable) -> None:
        super().__init__(question)
        self.question = question


class Owner(Protocol):
    """The process that opened a flow; each property is looked at only when a rule needs it."""

    @property
    def name(self) -> str | None:
        """The last part of ``path``."""

    @property
    def path(self) -> str | None:
        """The program file."""

    @property
    def uid(self) -> int | None:
        """The effective user."""

    @property
    def cgroup(self) -> str | None:
        """The cgroup v2 path below the mount point, with or without a slash before it."""


@dataclass(frozen=True, slots=True)
class Process:
    """An :class:`Owner` of which all is known that will be."""

    name: str | None = None
    path: str | None = None
    uid: int | None = None
    cgroup: str | None = None


class Facts(Protocol):
    """Where the rules learn about one flow; no question is asked twice for a decision."""

    @property
    def source(self) -> Address | None:
        """The initiator's address."""

    @property
    def source_port(self) -> int | None:
        """The initiator's port."""

    def process(self) -> Owner | None:
        """Who opened the flow."""

    def country(self, address: Address) -> str | None:
        """The two letters of ISO 3166-1, in upper case."""

    def asn(self, address: Address) -> int | None:
        """The number of the autonomous system that announces ``address``."""

    def resolved(self) -> Address | None:
        """An address of the flow's name, if one is known without waiting."""


class Unknown:
    """Facts about a flow of which nothing is known; to be derived from where something is."""

    source: Address | None = None
    source_port: int | None = None

    def process(self) -> Owner | None:
        return None

    def country(self, address: Address) -> str | None:
        return None

    def asn(self, address: Address) -> int | None:
        return None

    def resolved(self) -> Address | None:
        return None


UNKNOWN: Final = Unknown()
_NOTHING: Final[frozenset[Need]] = frozenset()
_UNASKED: Final = Process(name="nobody has asked")


class Subject:
    """A flow as the rules look at it.

    Attributes:
        name: in lower case without trailing dot; ``None``: not known.
        address: ``None`` for a flow to a fake one.
        is_outlook: this stands for all flows to ``name`` with a fake address, whatever their
            ports, protocols and owners.
        missing: what was asked for and is not known.
        trail: where each rule is noted that was tried and did not match, with ``missing`` at that
            time.
    """

    __slots__ = (
        "_asn",
        "_country",
        "_facts",
        "_owner",
        "_resolved",
        "address",
        "is_outlook",
        "missing",
        "name",
        "network",
        "port",
        "trail",
    )

    def __init__(
        self,
        name: str | None,
        address: Address | None,
        port: int,
        network: Transport,
        facts: Facts = UNKNOWN,
        *,
        is_outlook: bool = False,
    ) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.network = network
        self.is_outlook = is_outlook
        self.missing = _NOTHING
        self.trail: list[tuple[int, frozenset[Need]]] | None = None
        self._facts = facts
        self._owner: Owner | None = _UNASKED
        # Answers, None among them, once they were asked for.
        self._resolved: tuple[Address | None] | None = None
        self._country: tuple[str | None] | None = None
        self._asn: tuple[int | None] | None = None

    def miss(self, need: Need) -> None:
        """Note that ``need`` is not known."""
        self.missing |= {need}

    def source(self) -> Address | None:
        """The initiator's address."""
        source = self._facts.source
        if source is None:
            self.miss(Need.SOURCE)
        return source

    def source_port(self) -> int | None:
        """The initiator's port."""
        port = self._facts.source_port
        if port is None:
            self.miss(Need.SOURCE)
        return port

    def owner(self) -> Owner | None:
        """Who opened the flow."""
        if self._owner is _UNASKED:
            self._owner = self._facts.process()
        return self._owner

    def resolved(self) -> Address | None:
        """The address of the flow, or else one of its name."""
        if self.address is not None:
            return self.address
        if self._resolved is None:
            self._resolved = (self._facts.resolved(),)
            if self._resolved[0] is None:
                self.miss(Need.RESOLVED)
        return self._resolved[0]

    def country(self, address: Address) -> str | None:
        """The country of ``address``, which is always the same for a subject."""
        if self._country is None:
            self._country = (self._facts.country(address),)
            if self._country[0] is None:
                self.miss(Need.COUNTRY)
        return self._country[0]

    def asn(self, address: Address) -> int | None:
        """The autonomous system of ``address``, which is always the same for a subject."""
        if self._asn is None:
            self._asn = (self._facts.asn(address),)
            if self._asn[0] is None:
                self.miss(Need.ASN)
        return self._asn[0]
