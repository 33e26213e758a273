"""Rules: what becomes of a flow, or of a name before there is a flow.

A rule list has one rule per line, ``TYPE,payload,TARGET``, and the first that matches decides::

    DOMAIN,www.example.com,DIRECT          this name
    DOMAIN-SUFFIX,example.com,PROXY        this name and all below it
    DOMAIN-KEYWORD,example,PROXY           names that contain this
    IP-CIDR,192.168.0.0/16,DIRECT          addresses (IP-CIDR6 for IPv6)
    DST-PORT,25/6881-6889,REJECT           ports and ranges, separated by slashes
    NETWORK,udp,REJECT                     tcp or udp
    RULE-SET,private.list,DIRECT           whatever a line of another file matches
    MATCH,PROXY                            everything

``TARGET`` is PROXY, DIRECT or REJECT. ``#`` begins a comment. IP rules may end in
``,no-resolve``, which is accepted and has no effect: no rule ever resolves a name. A list in
which nothing else matches ends in PROXY.

A rule set has the same lines without target (the "classical" format), and may have bare ones
as well: ``example.com`` is this name, ``+.example.com`` this name and all below it, and
``10.0.0.0/8`` or ``fd00::/8`` a network. It includes no other set and has no MATCH.

Names and networks are looked up in dictionaries, whatever their number: one look for each
label of the name and for each prefix length in use. Each entry is the number of the first rule
that has it, so the order of the lines is kept by taking the lowest. Only the keyword, port and
network rules before that one are tried one by one.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import ConfigError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Load: TypeAlias = Callable[[str], tuple[str, str]]
Transport: TypeAlias = Literal["tcp", "udp"]


class Action(enum.Enum):
    """What becomes of a flow."""

    PROXY = "PROXY"
    """It leaves through the SSH server."""
    DIRECT = "DIRECT"
    """It leaves as if we were not there."""
    REJECT = "REJECT"
    """It is refused at once."""


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, and the rule that made it."""

    action: Action
    rule: str
    """The rule as written."""
    place: str
    """``file:line``, or ``implicit``."""


class RuleTable:
    """A compiled rule list; make one with :meth:`parse`."""

    def __init__(self, compiler: _Compiler) -> None:
        self._decisions = compiler.decisions
        self._last = compiler.last
        self._names = compiler.names
        self._suffixes = compiler.suffixes
        self._networks = compiler.networks
        self._conditions = compiler.conditions
        about_flow = (c.index for c in self._conditions if not isinstance(c, _Keyword))
        self._first_about_flow = next(about_flow, self._last)

    @classmethod
    def parse(cls, files: Sequence[tuple[str, str]], load: Load) -> RuleTable:
        """Compile the ``(source, text)`` pairs of ``files``, one after the other.

        ``source`` is what error messages call the file. ``load`` gives such a pair for the name
        in a RULE-SET line, or raises ConfigError.

        Raises:
            ConfigError: naming the line and what is wrong with it.
        """
        compiler = _Compiler(load)
        for source, text in files:
            compiler.add_list(source, text)
        compiler.finish()
        return cls(compiler)

    @property
    def decisions(self) -> Sequence[Decision]:
        """What each rule decides, in their order, with the implicit last one."""
        return self._decisions

    def decide(
        self, *, name: str | None, address: Address | None, port: int, network: Transport
    ) -> Decision:
        """Return the decision for a flow.

        ``name`` is in lower case without trailing dot; ``None``, when it is not known, matches no
        name rule. ``address`` is ``None`` for a flow to a fake one, and matches no IP rule.
        """
        best = self._last
        if name is not None:
            best = self._match_name(name, best)
        if address is not None:
            best = self._match_address(address, best)
        for condition in self._conditions:
            if condition.index >= best:
                break
            if condition.matches(name, port, network):
                return self._decisions[condition.index]
        return self._decisions[best]

    def decide_name(self, name: str) -> Decision | None:
        """Return the decision that holds for every flow to ``name`` with a fake address.

        ``None``: port or network rules come before the one that would match.
        """
        best = self._match_name(name, self._last)
        for condition in self._conditions:
            if condition.index >= best:
                break
            if isinstance(condition, _Keyword) and condition.keyword in name:
                best = condition.index
        return None if self._first_about_flow < best else self._decisions[best]

    def _match_name(self, name: str, best: int) -> int:
        """Return the first rule before ``best`` that names ``name`` or an ancestor of it."""
        best = min(best, self._names.get(name, best))
        for suffix in ancestry(name):
            best = min(best, self._suffixes.get(suffix, best))
        return best

    def _match_address(self, address: Address, best: int) -> int:
        """Return the first rule before ``best`` with a network that ``address`` is in."""
        number = int(address)
        for shift, networks in self._networks[address.version].items():
            best = min(best, networks.get(number >> shift, best))
        return best


def ancestry(name: str) -> Iterator[str]:
    """Yield ``name`` and the names above it, without the root."""
    yield name
    while dot := name.find(".") + 1:
        name = name[dot:]
        yield name


@dataclass(frozen=True, slots=True)
class _Keyword:
    """A DOMAIN-KEYWORD rule; ``index`` is its place in the order, as in the others."""

    index: int
    keyword: str

    def matches(self, name: str | None, port: int, network: Transport) -> bool:
        return name is not None and self.keyword in name


@dataclass(frozen=True, slots=True)
class _Ports:
    """A DST-PORT rule."""

    index: int
    ranges: tuple[tuple[int, int], ...]

    def matches(self, name: str | None, port: int, network: Transport) -> bool:
        return any(first <= port <= last for first, last in self.ranges)


@dataclass(frozen=True, slots=True)
class _Network:
    """A NETWORK rule."""

    index: int
    network: str

    def matches(self, name: str | None, port: int, network: Transport) -> bool:
        return network == self.network


class _Fault(Exception):
    """What is wrong with a line; its place is added where it is known."""


class _Compiler:
    """Fills the tables of a :class:`RuleTable` line by line.

    Lines come in their order, so the first to enter a key of a table is the one that decides.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self.decisions: list[Decision] = []
        self.last = -1
        self.names: dict[str, int] = {}
        self.suffixes: dict[str, int] = {}
        self.networks: dict[int, dict[int, dict[int, int]]] = {4: {}, 6: {}}
        """By IP version, by the bits that are not in the prefix, by the prefix."""
        self.conditions: list[_Keyword | _Ports | _Network] = []
        self._adders: dict[str, Callable[[int, str], None]] = {
            "DOMAIN": self._add_domain,
            "DOMAIN-SUFFIX": self._add_suffix,
            "DOMAIN-KEYWORD": self._add_keyword,
            "IP-CIDR": self._add_network,
            "IP-CIDR6": self._add_network6,
            "DST-PORT": self._add_ports,
            "NETWORK": self._add_transport,
        }

    def add_list(self, source: str, text: str) -> None:
        """Compile the lines of a rule list."""
        for number, line in _lines(text):
            place = f"{source}:{number}"
            try:
                self._add_rule(place, line)
            except _Fault as fault:
                raise ConfigError(f"{place}: {fault}") from None

    def finish(self) -> None:
        """Add the implicit last rule."""
        self._match(len(self.decisions))
        self.decisions.append(Decision(Action.PROXY, "MATCH,PROXY", "implicit"))

    def _add_rule(self, place: str, line: str) -> None:
        kind, *fields = _fields(line)
        if kind == "MATCH":
            fields.insert(0, "")
        if len(fields) < 2:
            raise _Fault(f"{line!r} is not a rule: write TYPE,payload,TARGET or MATCH,TARGET")
        payload, target, *params = fields
        action = _ACTIONS.get(target)
        if action is None:
            raise _Fault(f"unknown target {target!r}: use {_one_of(_ACTIONS)}")
        index = len(self.decisions)
        self.decisions.append(Decision(action, line, place))
        if kind == "MATCH":
            _check_params(kind, params)
            self._match(index)
        elif kind == "RULE-SET":
            _check_params(kind, params)
            self._add_set(index, payload)
        else:
            self._add(index, kind, payload, params)

    def _match(self, index: int) -> None:
        """Rules after the first MATCH are checked, and never reached."""
        if self.last < 0:
            self.last = index

    def _add_set(self, index: int, name: str) -> None:
        """Make every line of the rule set ``name`` match for the rule ``index``."""
        try:
            source, text = self._load(name)
        except ConfigError as error:
            raise _Fault(str(error)) from error
        for number, line in _lines(text):
            kind, *fields = _fields(line) if "," in line else _bare(line)
            try:
                self._add(index, kind, fields[0], fields[1:])
            except _Fault as fault:
                raise ConfigError(f"{source}:{number}: {fault}") from None

    def _add(self, index: int, kind: str, payload: str, params: Sequence[str]) -> None:
        """Make what ``kind`` and ``payload`` describe match for the rule ``index``."""
        adder = self._adders.get(kind)
        if adder is None and kind in ("MATCH", "RULE-SET"):
            raise _Fault(f"{kind} cannot stand in a rule set")
        if adder is None:
            types = _one_of([*self._adders, "RULE-SET", "MATCH"])
            raise _Fault(f"unknown rule type {kind!r}: use {types}")
        _check_params(kind, params)
        adder(index, payload)

    def _add_domain(self, index: int, payload: str) -> None:
        self.names.setdefault(_domain(payload), index)

    def _add_suffix(self, index: int, payload: str) -> None:
        self.suffixes.setdefault(_domain(payload), index)

    def _add_keyword(self, index: int, payload: str) -> None:
        keyword = payload.lower()
        if not _KEYWORD.fullmatch(keyword):
            raise _Fault(f"no name contains {payload!r}: use letters, digits, '-', '_' and '.'")
        self.conditions.append(_Keyword(index, keyword))

    def _add_network(self, index: int, payload: str) -> None:
        try:
            network = ipaddress.ip_network(payload, strict=False)
        except ValueError:
            raise _Fault(f"{payload!r} is not a network: write it as 10.0.0.0/8") from None
        shift = network.max_prefixlen - network.prefixlen
        networks = self.networks[network.version].setdefault(shift, {})
        networks.setdefault(int(network.network_address) >> shift, index)

    def _add_network6(self, index: int, payload: str) -> None:
        if ":" not in payload:
            raise _Fault(f"{payload!r} is not an IPv6 network: write it as fd00::/8")
        self._add_network(index, payload)

    def _add_ports(self, index: int, payload: str) -> None:
        ranges = tuple(_port_range(part.strip()) for part in payload.split("/"))
        self.conditions.append(_Ports(index, ranges))

    def _add_transport(self, index: int, payload: str) -> None:
        if payload.lower() not in ("tcp", "udp"):
            raise _Fault(f"unknown network {payload!r}: use tcp or udp")
        self.conditions.append(_Network(index, payload.lower()))


_ACTIONS = {action.value: action for action in Action}
_RESOLVING = ("IP-CIDR", "IP-CIDR6", "RULE-SET")
_DOMAIN = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_KEYWORD = re.compile(r"[a-z0-9_.-]+")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that say something, with their numbers."""
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        said = line.partition("#")[0].strip()
        if said:
            yield number, said


def _fields(line: str) -> list[str]:
    kind, *fields = (field.strip() for field in line.split(","))
    return [kind.upper(), *fields]


def _bare(line: str) -> list[str]:
    """Return the fields that a line without type in a rule set stands for."""
    if line.startswith("+."):
        return ["DOMAIN-SUFFIX", line[2:]]
    # No top-level domain begins with a digit.
    if "/" in line or ":" in line or line.rpartition(".")[2][:1].isdigit():
        return ["IP-CIDR", line]
    return ["DOMAIN", line]


def _domain(payload: str) -> str:
    """Return a domain name as names are spelled here."""
    name = payload.lower().removesuffix(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise _Fault(f"{payload!r} is not a domain name") from None
    if len(name) > 253 or not _DOMAIN.fullmatch(name):
        raise _Fault(
            f"{payload!r} is not a domain name: write example.com, without '*' or a dot before it"
        )
    return name


def _port_range(part: str) -> tuple[int, int]:
    found = _PORTS.fullmatch(part)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last <= 65535:
        raise _Fault(f"{part!r} is not a port or range: write them as 80/443/8000-8999")
    return first, last


def _check_params(kind: str, params: Sequence[str]) -> None:
    for param in params:
        if param != "no-resolve" or kind not in _RESOLVING:
            raise _Fault(f"unknown parameter {param!r} after {kind}")


def _one_of(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}"
