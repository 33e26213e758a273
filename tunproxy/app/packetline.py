"""One packet in one line for a person, in the words of tcpdump(8).

Whatever the octets are, there is a line, and nothing in it but ASCII of ours. dpkt is handed
transport headers alone: left to itself it follows tunnels and ICMP quotations as deep as a packet
is long.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final

import dpkt

from ..errors import WireError
from ..wire import ip

if TYPE_CHECKING:
    from collections.abc import Callable

_ETHERNET_LEN: Final = 14
_MAX_TAGS: Final = 2
_TYPE_IP4, _TYPE_ARP, _TYPE_IP6 = 0x0800, 0x0806, 0x86DD
_TYPE_VLAN, _TYPE_SERVICE_VLAN = 0x8100, 0x88A8
_LEAST_TYPE: Final = 0x600  # IEEE 802.3: below it, the field is a length

_PROTOCOLS: Final = {
    0: "hop-by-hop options",
    2: "IGMP",
    4: "IPv4 inside",
    41: "IPv6 inside",
    47: "GRE",
    50: "ESP",
    51: "AH",
    89: "OSPF",
    103: "PIM",
    112: "VRRP",
    115: "L2TP",
    132: "SCTP",
    136: "UDP-Lite",
    ip.TCP: "TCP",
    ip.UDP: "UDP",
    ip.ICMP: "ICMP",
    ip.ICMPV6: "ICMP6",
}

_TCP_FLAGS: Final = tuple(zip((2, 1, 4, 8, 16, 32, 64, 128), "SFRP.UEW", strict=True))
_TCP_MSS: Final = 2
_TCP_OPTION_NOP: Final = 1

_UNREACHABLE4: Final = {
    0: "net",
    1: "host",
    2: "protocol",
    3: "port",
    4: "need to fragment",
    10: "host prohibited",
    13: "admin prohibited",
}
_UNREACHABLE6: Final = {0: "no route", 1: "admin prohibited", 3: "address", 4: "port"}
_ICMP: Final = {
    0: "echo reply",
    3: "unreachable",
    5: "redirect",
    8: "echo request",
    11: "time exceeded",
    12: "parameter problem",
}
_ICMP6: Final = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    4: "parameter problem",
    128: "echo request",
    129: "echo reply",
    130: "multicast listener query",
    131: "multicast listener report",
    132: "multicast listener done",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbor solicitation",
    136: "neighbor advertisement",
    137: "redirect",
    143: "multicast listener report v2",
}
_ECHO: Final = (0, 8, 128, 129)


def describe(packet: bytes, *, ethernet: bool) -> str:
    """Return the line for ``packet``, which begins with an Ethernet header or with that of IP."""
    return _ethernet(packet) if ethernet else _ip(packet)


def _ethernet(frame: bytes) -> str:
    if len(frame) < _ETHERNET_LEN:
        return f"Ethernet, truncated, length {len(frame)}"
    target, source = _mac(frame[:6]), _mac(frame[6:12])
    at, tags = _ETHERNET_LEN, ""
    kind = _word(frame, at - 2)
    for _ in range(_MAX_TAGS):
        if kind not in (_TYPE_VLAN, _TYPE_SERVICE_VLAN) or len(frame) < at + 4:
            break
        tags += f"vlan {_word(frame, at) & 0xFFF}, "
        kind = _word(frame, at + 2)
        at += 4
    if kind in (_TYPE_IP4, _TYPE_IP6):
        return tags + _ip(frame[at:])
    if kind == _TYPE_ARP:
        return tags + _arp(frame[at:])
    what = f"ethertype {kind:#06x}" if kind >= _LEAST_TYPE else "802.3"
    return f"{tags}{source} > {target}, {what}, length {len(frame)}"


def _arp(octets: bytes) -> str:
    try:
        arp: Any = dpkt.arp.ARP(octets)
    except dpkt.Error:
        return f"ARP, truncated, length {len(octets)}"
    sender, target = _address(arp.spa), _address(arp.tpa)
    if (arp.pro, arp.hln, arp.pln) != (_TYPE_IP4, 6, 4):
        return f"ARP, hardware {arp.hrd}, protocol {arp.pro:#06x}, length {len(octets)}"
    if arp.op == dpkt.arp.ARP_OP_REQUEST:
        return f"ARP, request who-has {target} tell {sender}"
    if arp.op == dpkt.arp.ARP_OP_REPLY:
        return f"ARP, reply {sender} is-at {_mac(arp.sha)}"
    return f"ARP, operation {arp.op}, length {len(octets)}"


def _ip(octets: bytes) -> str:
    try:
        packet = ip.parse(memoryview(octets))
    except WireError as error:
        return _unusual(octets, error.reason)
    name = "IP" if packet.version == 4 else "IP6"
    payload = bytes(packet.payload)
    fragment = packet.fragment
    if fragment is not None:
        place = f"id {fragment.ident} offset {fragment.offset}{' more' if fragment.more else ''}"
        return (
            f"{name} {_address(packet.src)} > {_address(packet.dst)}: "
            f"{_protocol(packet.protocol)} fragment {place}, length {len(payload)}"
        )
    return f"{name} {_transport(packet, payload)}"


def _unusual(octets: bytes, reason: str) -> str:
    """Return what can be told of a packet that :func:`ip.parse` refuses."""
    version = octets[0] >> 4 if octets else 0
    if version == 4 and len(octets) >= ip.HEADER4_LEN:
        name, source, target, protocol = "IP", octets[12:16], octets[16:20], octets[9]
    elif version == 6 and len(octets) >= ip.HEADER6_LEN:
        name, source, target, protocol = "IP6", octets[8:24], octets[24:40], octets[6]
    else:
        return f"IP, bad packet ({reason}), length {len(octets)}"
    return (
        f"{name} {_address(source)} > {_address(target)}: "
        f"bad packet ({reason}), {_protocol(protocol)}, length {len(octets)}"
    )


def _transport(packet: ip.Packet, payload: bytes) -> str:
    source, target = _address(packet.src), _address(packet.dst)
    describe = _TRANSPORTS.get((packet.version, packet.protocol))
    if describe is not None:
        try:
            return describe(source, target, payload)
        except dpkt.Error:
            truncated = f"{_protocol(packet.protocol)}, truncated, length {len(payload)}"
            return f"{source} > {target}: {truncated}"
    return f"{source} > {target}: {_protocol(packet.protocol)}, length {len(payload)}"


def _tcp(source: str, target: str, payload: bytes) -> str:
    tcp: Any = dpkt.tcp.TCP(payload)
    flags = "".join(letter for bit, letter in _TCP_FLAGS if tcp.flags & bit) or "none"
    length = len(tcp.data)
    parts = [f"Flags [{flags}]", f"seq {tcp.seq}"]
    if length:
        parts[1] += f":{tcp.seq + length & 0xFFFFFFFF}"
    if tcp.flags & dpkt.tcp.TH_ACK:
        parts.append(f"ack {tcp.ack}")
    parts.append(f"win {tcp.win}")
    if tcp.flags & dpkt.tcp.TH_SYN:
        parts += _mss(tcp.opts)
    parts.append(f"length {length}")
    return f"{source}.{tcp.sport} > {target}.{tcp.dport}: {', '.join(parts)}"


def _mss(options: bytes) -> list[str]:
    return [
        f"mss {int.from_bytes(option[1], 'big')}"
        for option in dpkt.tcp.parse_opts(options)
        if option is not None and option[0] == _TCP_MSS and len(option[1]) == 2
    ]


def _udp(source: str, target: str, payload: bytes) -> str:
    udp: Any = dpkt.udp.UDP(payload)
    return f"{source}.{udp.sport} > {target}.{udp.dport}: UDP, length {len(udp.data)}"


def _icmp4(source: str, target: str, payload: bytes) -> str:
    return f"{source} > {target}: ICMP {_message(payload, _ICMP, 3, _UNREACHABLE4)}"


def _icmp6(source: str, target: str, payload: bytes) -> str:
    return f"{source} > {target}: ICMP6 {_message(payload, _ICMP6, 1, _UNREACHABLE6)}"


def _message(payload: bytes, names: dict[int, str], unreachable: int, codes: dict[int, str]) -> str:
    # The type and code of both are alike (RFC 792, RFC 4443 2.1), and so is an echo.
    header: Any = dpkt.icmp.ICMP(payload[:4])
    text = names.get(header.type, f"type {header.type}")
    if header.type == unreachable:
        text += f" ({codes.get(header.code, f'code {header.code}')})"
    elif header.type in _ECHO and header.type in names:
        echo: Any = dpkt.icmp.ICMP.Echo(payload[4:8])
        text += f", id {echo.id}, seq {echo.seq}"
    return f"{text}, length {len(payload)}"


_TRANSPORTS: Final[dict[tuple[int, int], Callable[[str, str, bytes], str]]] = {
    (4, ip.TCP): _tcp,
    (6, ip.TCP): _tcp,
    (4, ip.UDP): _udp,
    (6, ip.UDP): _udp,
    (4, ip.ICMP): _icmp4,
    (6, ip.ICMPV6): _icmp6,
}


def _protocol(number: int) -> str:
    return _PROTOCOLS.get(number, f"protocol {number}")


def _address(octets: bytes) -> str:
    return str(ipaddress.ip_address(bytes(octets)))


def _mac(octets: bytes) -> str:
    return octets.hex(":")


def _word(octets: bytes, at: int) -> int:
    return int.from_bytes(octets[at : at + 2], "big")
