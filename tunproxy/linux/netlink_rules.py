"""Rules of the routing policy, and the messages that add, list and delete them.

Deleting looks for :data:`marks.PROTOCOL`: a rule of somebody else is never touched, whatever its
priority. Read ip-rule(8), include/uapi/linux/fib_rules.h and net/core/fib_rules.c of the kernel
before editing.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from . import marks
from .netlink_messages import Attributes, pack_attributes, unpack

if TYPE_CHECKING:
    from .netlink_messages import Value

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Family: TypeAlias = Literal[4, 6]

AF: Final[dict[Family, int]] = {4: socket.AF_INET, 6: socket.AF_INET6}

_FRA_DST: Final = 1
_FRA_SRC: Final = 2
_FRA_IIFNAME: Final = 3
_FRA_GOTO: Final = 4
_FRA_PRIORITY: Final = 6
_FRA_FWMARK: Final = 10
_FRA_SUPPRESS_PREFIXLEN: Final = 14
_FRA_TABLE: Final = 15
_FRA_FWMASK: Final = 16
_FRA_PROTOCOL: Final = 21
_FRA_IP_PROTO: Final = 22
_FRA_DPORT_RANGE: Final = 24

_FIB_RULE_INVERT: Final = 0x2
_ACTIONS: Final = {"lookup": 1, "goto": 2, "nop": 3}

_RULE: Final = struct.Struct("=BBBBBxxBI")
"""struct fib_rule_hdr: family, lengths of the destination and the source, type of service, table
(which the attribute goes before), action, flags."""
_PORTS: Final = struct.Struct("=HH")
"""struct fib_rule_port_range: first and last."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of the routing policy. What is ``None`` matches everything."""

    priority: int
    action: Literal["lookup", "goto", "nop"]
    target: int = 0
    """The table to look up, or the priority to go to."""
    mark: int | None = None
    mask: int = 0xFFFFFFFF
    iif: str | None = None
    """Incoming interface; ``lo``: made on this machine."""
    invert: bool = False
    """Match where the selectors do not."""
    source: Network | None = None
    destination: Network | None = None
    protocol: int | None = None
    """Transport protocol."""
    dport: int | None = None
    suppress: int | None = None
    """Ignore what the table says when its prefix is no longer than this."""


class OurRule(NamedTuple):
    """A rule of ours that the kernel has."""

    priority: int
    is_nop: bool
    body: bytes
    """Of the message that deletes it."""


def rules_message(family: Family) -> bytes:
    """Return the body of the message that asks for all rules."""
    return _RULE.pack(AF[family], 0, 0, 0, 0, 0, 0)


def rule_message(family: Family, rule: Rule) -> bytes:
    """Return the body of the message that adds ``rule``."""
    attributes: dict[int, Value] = {
        _FRA_PRIORITY: rule.priority,
        _FRA_PROTOCOL: bytes((marks.PROTOCOL,)),
    }
    if rule.action != "nop":
        attributes[_FRA_TABLE if rule.action == "lookup" else _FRA_GOTO] = rule.target
    if rule.mark is not None:
        attributes |= {_FRA_FWMARK: rule.mark, _FRA_FWMASK: rule.mask}
    if rule.iif is not None:
        attributes[_FRA_IIFNAME] = rule.iif
    for kind, network in ((_FRA_SRC, rule.source), (_FRA_DST, rule.destination)):
        if network is not None:
            attributes[kind] = network.network_address.packed
    if rule.protocol is not None:
        attributes[_FRA_IP_PROTO] = bytes((rule.protocol,))
    if rule.dport is not None:
        attributes[_FRA_DPORT_RANGE] = _PORTS.pack(rule.dport, rule.dport)
    if rule.suppress is not None:
        attributes[_FRA_SUPPRESS_PREFIXLEN] = rule.suppress
    header = _RULE.pack(
        AF[family],
        rule.destination.prefixlen if rule.destination is not None else 0,
        rule.source.prefixlen if rule.source is not None else 0,
        0,
        0,
        _ACTIONS[rule.action],
        _FIB_RULE_INVERT if rule.invert else 0,
    )
    return header + pack_attributes(attributes)


def read_our_rule(body: bytes) -> OurRule | None:
    """Return the rule of a message that lists one; ``None``: it is not ours.

    Raises:
        MalformedMessage: it is none.
    """
    *header, action, flags = unpack(_RULE, body)
    octets = body[_RULE.size :]
    attributes = Attributes(octets)
    if attributes.number(_FRA_PROTOCOL) != marks.PROTOCOL:
        return None
    # The kernel deletes the first rule that has all that is given here.
    deletes = _RULE.pack(*header, action, flags & _FIB_RULE_INVERT) + octets
    priority = attributes.number(_FRA_PRIORITY) or 0
    return OurRule(priority, action == _ACTIONS["nop"], deletes)
