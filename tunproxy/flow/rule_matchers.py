"""What one rule looks at: a matcher for each type, and AND, OR and NOT of them.

A matcher has two verbs. ``matches`` says whether the rule holds for a flow; what is not known
matches nothing. ``judge`` says the same before there is a flow, or before its name is known, and
answers ``None`` where that is still open. Both are free to be called in any order.
"""

from __future__ import annotations

import abc
import ipaddress
import re
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from .facts import Need

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .facts import Address, Owner, Subject

Ranges = tuple[tuple[int, int], ...]
"""First and last of each."""


class Network(NamedTuple):
    """An IP network as the tables have it."""

    version: int
    shift: int
    """How many bits are not part of the prefix."""
    prefix: int
    """The others, as a number."""

    def holds(self, address: Address) -> bool:
        return address.version == self.version and int(address) >> self.shift == self.prefix


class Matcher(abc.ABC):
    """A condition on a flow.

    ``needs`` are the facts that it can ask for. ``cost`` orders those that are tried together:
    what is at hand before what has to be looked for.
    """

    needs: frozenset[Need] = frozenset()
    cost: int = 0

    @abc.abstractmethod
    def matches(self, subject: Subject) -> bool:
        """Whether it holds for ``subject``."""

    def judge(self, subject: Subject) -> bool | None:
        """Whether it holds for ``subject``, whatever it will turn out to be."""
        return None if subject.is_outlook else self.matches(subject)


class NameMatcher(Matcher):
    """A condition on the name."""

    needs = frozenset({Need.SNIFF})
    cost = 1

    def matches(self, subject: Subject) -> bool:
        if subject.name is None:
            subject.miss(Need.SNIFF)
            return False
        return self.matches_name(subject.name)

    def judge(self, subject: Subject) -> bool | None:
        return None if subject.name is None else self.matches_name(subject.name)

    @abc.abstractmethod
    def matches_name(self, name: str) -> bool:
        """Whether it holds for flows to ``name``."""


class Domain(NameMatcher):
    """DOMAIN."""

    def __init__(self, name: str) -> None:
        self._name = name

    def matches_name(self, name: str) -> bool:
        return name == self._name


class DomainSuffix(NameMatcher):
    """DOMAIN-SUFFIX."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._below = f".{name}"

    def matches_name(self, name: str) -> bool:
        return name == self._name or name.endswith(self._below)


class DomainKeyword(NameMatcher):
    """DOMAIN-KEYWORD."""

    def __init__(self, keyword: str) -> None:
        self._keyword = keyword

    def matches_name(self, name: str) -> bool:
        return self._keyword in name


class DomainPattern(NameMatcher):
    """DOMAIN-WILDCARD and DOMAIN-REGEX."""

    cost = 3

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def matches_name(self, name: str) -> bool:
        return self._pattern.search(name) is not None


class _TargetAddress(Matcher):
    """A condition on the address of the flow, or of its name if ``resolves``."""

    cost = 1

    def __init__(self, *, resolves: bool) -> None:
        self._resolves = resolves
        if resolves:
            self.needs = self.needs | {Need.RESOLVED}

    def matches(self, subject: Subject) -> bool:
        address = subject.resolved() if self._resolves else subject.address
        return address is not None and self._matches_address(subject, address)

    def judge(self, subject: Subject) -> bool | None:
        # A fake address is none: without an address of the name no such rule can match.
        if subject.is_outlook:
            return None if self._resolves else False
        return self.matches(subject)

    @abc.abstractmethod
    def _matches_address(self, subject: Subject, address: Address) -> bool: ...


class TargetNetwork(_TargetAddress):
    """IP-CIDR."""

    def __init__(self, network: Network, *, resolves: bool) -> None:
        super().__init__(resolves=resolves)
        self._network = network

    def _matches_address(self, subject: Subject, address: Address) -> bool:
        return self._network.holds(address)


class Country(_TargetAddress):
    """GEOIP."""

    needs = frozenset({Need.COUNTRY})
    cost = 4

    def __init__(self, code: str, *, resolves: bool) -> None:
        super().__init__(resolves=resolves)
        self._code = code

    def _matches_address(self, subject: Subject, address: Address) -> bool:
        return subject.country(address) == self._code


class Private(_TargetAddress):
    """GEOIP,LAN: addresses that no database of countries has."""

    def _matches_address(self, subject: Subject, address: Address) -> bool:
        return not address.is_global or address.is_multicast


class AutonomousSystem(_TargetAddress):
    """IP-ASN."""

    needs = frozenset({Need.ASN})
    cost = 4

    def __init__(self, number: int, *, resolves: bool) -> None:
        super().__init__(resolves=resolves)
        self._number = number

    def _matches_address(self, subject: Subject, address: Address) -> bool:
        return subject.asn(address) == self._number


class TargetPort(Matcher):
    """DST-PORT."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges

    def matches(self, subject: Subject) -> bool:
        return _within(self._ranges, subject.port)


class Protocol(Matcher):
    """NETWORK."""

    def __init__(self, network: str) -> None:
        self._network = network

    def matches(self, subject: Subject) -> bool:
        return subject.network == self._network


class SourceNetwork(Matcher):
    """SRC-IP-CIDR."""

    needs = frozenset({Need.SOURCE})
    cost = 2

    def __init__(self, network: Network) -> None:
        self._network = network

    def matches(self, subject: Subject) -> bool:
        source = subject.source()
        return source is not None and self._network.holds(source)


class SourcePort(Matcher):
    """SRC-PORT."""

    needs = frozenset({Need.SOURCE})
    cost = 2

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges

    def matches(self, subject: Subject) -> bool:
        port = subject.source_port()
        return port is not None and _within(self._ranges, port)


class _OwnerMatcher(Matcher):
    """A condition on the process that opened the flow; ``need`` is what it looks at."""

    need: ClassVar[Need]
    cost = 5

    def __init_subclass__(cls) -> None:
        cls.needs = frozenset({cls.need})

    def matches(self, subject: Subject) -> bool:
        owner = subject.owner()
        verdict = None if owner is None else self._matches_owner(owner)
        if verdict is None:
            subject.miss(self.need)
        return verdict is True

    @abc.abstractmethod
    def _matches_owner(self, owner: Owner) -> bool | None:
        """``None``: that is not known of it."""


class ProcessName(_OwnerMatcher):
    """PROCESS-NAME, in upper or lower case."""

    need = Need.PROCESS

    def __init__(self, name: str) -> None:
        self._name = name.casefold()

    def _matches_owner(self, owner: Owner) -> bool | None:
        name = owner.name
        return None if name is None else name.casefold() == self._name


class ProcessPath(_OwnerMatcher):
    """PROCESS-PATH."""

    need = Need.PROCESS

    def __init__(self, path: str) -> None:
        self._path = path

    def _matches_owner(self, owner: Owner) -> bool | None:
        path = owner.path
        return None if path is None else path == self._path


class User(_OwnerMatcher):
    """UID."""

    need = Need.UID

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges

    def _matches_owner(self, owner: Owner) -> bool | None:
        uid = owner.uid
        return None if uid is None else _within(self._ranges, uid)


class ControlGroup(_OwnerMatcher):
    """CGROUP: this one and all below it. ``path`` begins with a slash and does not end in one."""

    need = Need.CGROUP

    def __init__(self, path: str) -> None:
        self._prefix = f"{path}/"

    def _matches_owner(self, owner: Owner) -> bool | None:
        cgroup = owner.cgroup
        return None if cgroup is None else f"/{cgroup.strip('/')}/".startswith(self._prefix)


class _Logic(Matcher):
    """A condition on other ones, which are tried from the cheapest to the dearest."""

    def __init__(self, parts: Sequence[Matcher]) -> None:
        self._parts = sorted(parts, key=lambda part: part.cost)
        self.needs = frozenset[Need]().union(*(part.needs for part in parts))
        self.cost = self._parts[-1].cost

    def _judge_until(self, subject: Subject, *, stop: bool) -> bool | None:
        """Return ``stop`` if a part says so; else whether the opposite is certain."""
        is_open = False
        for part in self._parts:
            verdict = part.judge(subject)
            if verdict is stop:
                return stop
            is_open = is_open or verdict is None
        return None if is_open else not stop


class And(_Logic):
    """AND."""

    def matches(self, subject: Subject) -> bool:
        return all(part.matches(subject) for part in self._parts)

    def judge(self, subject: Subject) -> bool | None:
        return self._judge_until(subject, stop=False)


class Or(_Logic):
    """OR."""

    def matches(self, subject: Subject) -> bool:
        return any(part.matches(subject) for part in self._parts)

    def judge(self, subject: Subject) -> bool | None:
        return self._judge_until(subject, stop=True)


class Not(_Logic):
    """NOT: of what is not known, too."""

    def __init__(self, part: Matcher) -> None:
        super().__init__([part])
        self._part = part

    def matches(self, subject: Subject) -> bool:
        return not self._part.matches(subject)

    def judge(self, subject: Subject) -> bool | None:
        verdict = self._part.judge(subject)
        return None if verdict is None else not verdict


def network_of(text: str) -> Network:
    """Read ``10.0.0.0/8`` or ``fd00::1``; bits behind the prefix do not matter.

    Raises:
        ValueError: it is no network.
    """
    address, slash, length = text.partition("/")
    base = ipaddress.ip_address(address)
    bits = base.max_prefixlen
    # ipaddress also takes netmasks, which rule lists do not have.
    if slash and not (re.fullmatch("[0-9]{1,3}", length) and int(length) <= bits):
        raise ValueError(f"{length!r} is not the length of a prefix")
    if "%" in address:
        raise ValueError(f"{address!r} has a scope")
    shift = bits - int(length) if slash else 0
    return Network(base.version, shift, int(base) >> shift)


def _within(ranges: Ranges, number: int) -> bool:
    return any(first <= number <= last for first, last in ranges)
