"""What texts in a config mean: names, addresses, servers, filters.

Whoever uses a value reads it with the function that has checked it.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .ipnet_codec import Address

FILTER = "HOST, HOST:PORT or :PORT, as in [2001:db8::1]:443"
"""What a ``tun.pcap_filter`` is, for people."""


def split_filter(text: str) -> tuple[str, int | None]:
    """Return host and port of a ``tun.pcap_filter``.

    The host is an address, a name as it is in DNS in lower case, or empty; the port may be
    ``None``; one of them is there.

    Raises:
        ValueError: it is none of ``HOST``, ``HOST:PORT``, ``[v6]:PORT`` and ``:PORT``.
    """
    try:
        host, port = _split_port(text)
        return _host(host), port
    except ValueError:
        raise ValueError(f"expected {FILTER}") from None


def split_place(text: str) -> tuple[str, int]:
    """Return address and port of ``ADDR:PORT``, where an IPv6 address stands in brackets.

    Raises:
        ValueError: it is something else.
    """
    host, port = _split_port(text)
    host = host.removeprefix("[").removesuffix("]")
    if port is None or "%" in host:
        raise ValueError(text)
    return str(ipaddress.ip_address(host)), port


def canonical_name(name: str) -> str:
    """Return a name as it is in DNS, in lower case without trailing dot.

    Raises:
        ValueError: there can be no such name.
    """
    if not name.isascii():
        name = name.encode("idna").decode("ascii")
    return name.lower().removesuffix(".")


def is_below(name: str, suffix: str) -> bool:
    """Whether a canonical name is ``suffix`` or a name below it."""
    return name == suffix or name.endswith(f".{suffix}")


def host_addresses(name: str, hosts: Mapping[str, Sequence[str]]) -> tuple[Address, ...]:
    """Return the addresses of one of ``hosts``, whose names are canonical, through its aliases.

    Raises:
        ValueError: naming what leads to no address.
    """
    found: dict[Address, None] = {}
    names = [name]
    for at in names:
        if at not in hosts:
            raise ValueError(at)
        for value in hosts[at]:
            if is_address(value):
                found[ipaddress.ip_address(value)] = None
            elif (alias := _alias(value)) not in names:
                names.append(alias)
    if not found:
        raise ValueError(name)
    return tuple(found)


def is_address(text: str) -> bool:
    """Whether ``text`` is a literal address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_network(text: str) -> bool:
    """Whether ``text`` is a network, of one address at least."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def is_host(text: str) -> bool:
    """Whether ``text`` can be the address of one host on a network, and has no scope."""
    if "%" in text:
        return False
    address = ipaddress.ip_address(text)
    broadcast = address == ipaddress.IPv4Address("255.255.255.255")
    return not (address.is_multicast or address.is_unspecified or address.is_loopback or broadcast)


def is_domain(name: str) -> bool:
    """Whether ``name`` is a domain other than the root, or can be made one."""
    try:
        name = canonical_name(name)
    except UnicodeError:
        return False
    return bool(re.fullmatch(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", name)) and len(name) <= 253


def is_target(target: str) -> bool:
    """Whether ``target`` can be ``[user@]host``.

    ``user`` may hold an ``@``; a leading ``-`` is an option that lost its way.
    """
    host = target.rpartition("@")[2]
    return bool(re.fullmatch(r"[^\s\x00-\x1f]+", target)) and bool(host) and target[0] not in "-@"


def is_dns_server(text: str) -> bool:
    """Whether ``text`` is the ``server`` of a ``[[dns.rule]]``."""
    try:
        if "://" not in text:
            host, _ = _split_port(text)
            return "%" not in host and is_address(host.strip("[]"))
        url = urllib.parse.urlsplit(text)
        port_fits = url.port is None or url.port > 0
    except ValueError:
        return False
    path_fits = bool(url.path) if url.scheme == "https" else url.path == url.query == ""
    named = bool(url.hostname) and url.username is None and not re.search(r"[\s\x00-\x1f]", text)
    return url.scheme in ("tls", "https") and named and port_fits and path_fits


def _alias(value: str) -> str:
    try:
        return canonical_name(value)
    except UnicodeError:
        raise ValueError(value) from None


def _split_port(text: str) -> tuple[str, int | None]:
    if is_address(text):
        return text, None
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/@,*]*)(?::([0-9]{1,5}))?", text)
    if not found or not any(found.groups()):
        raise ValueError(text)
    host, digits = found.groups()
    if digits and not 1 <= int(digits) <= 65535:
        raise ValueError(text)
    return host, int(digits) if digits else None


def _host(text: str) -> str:
    """Return an address, or a name as it is in DNS."""
    if text.startswith("["):
        return str(ipaddress.IPv6Address(text[1:-1]))
    # RFC 1123 2.1: what ends in a label of digits is an address, or a mistake in one.
    if ":" in text or re.search(r"(^|\.)[0-9]+\.?$", text):
        address = ipaddress.ip_address(text)
        if "%" in text:
            raise ValueError(text)  # no packet has a scope
        return str(address)
    return text.encode("idna").decode("ascii").lower().removesuffix(".")
