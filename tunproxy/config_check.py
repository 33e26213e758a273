"""What is wrong with a config, in words: fields of a wrong type, values that make no sense."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .config import Capture, Config, Dns, Rules, Server, TunDevice

Problem: TypeAlias = tuple[str, str]
"""The field, as ``server[0].port``, and the reason."""

RESERVED_TARGETS = frozenset({"DIRECT", "PROXY", "REJECT", "REJECT-DROP"})
"""Rule targets that no server can be called."""

_EXPECTED = {
    "port": "an integer between 1 and 65535",
    "mtu": "an integer between 1280 and 65535",
    "include": "a network such as 10.0.0.0/8 or fd00::/8",
    "exclude": "a network such as 10.0.0.0/8 or fd00::/8",
    "fake_ip_range": "an IPv4 network of at least /24, such as 198.18.0.0/15",
    "fake_ip_range6": "an IPv6 network of at least /112, such as fd00:7470::/64",
    "connections": "1",
    "pcap_filter": "HOST, HOST:PORT or :PORT, as in [2001:db8::1]:443",
}
"""What a field holds, where its type alone does not say it."""

_TYPE_WORDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


def explain(message: str) -> str:
    """Turn a message of msgspec (``what - at `$.path```) into ``path: reason``."""
    what, _, place = message.partition(" - at `$")
    field = place.rstrip("`").lstrip(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what)
    if unknown:
        return f"{_join(field, unknown[1])}: there is no such option"
    missing = re.fullmatch(r"Object missing required field `(.*)`", what)
    if missing:
        return f"{_join(field, missing[1])}: is required"
    wrong_type = re.fullmatch(r"Expected `(.*)`, got `(.*)`", what)
    expected = _EXPECTED.get(re.sub(r"\[.*", "", field.rpartition(".")[2]))
    if wrong_type and (expected is None or wrong_type[1] == "array"):
        return f"{field}: expected {_words(wrong_type[1])}, got {_words(wrong_type[2])}"
    if wrong_type:
        return f"{field}: expected {expected}, got {_words(wrong_type[2])}"
    if expected:
        return f"{field}: expected {expected} ({what.replace('`', '')})"
    return f"{field}: {lower_first(what).replace('`', '')}"


def problems(config: Config) -> Iterator[Problem]:
    """Yield what is wrong with values of the right type."""
    yield from _server_problems(config.server)
    yield from _tun_problems(config.tun)
    yield from _pcap_problems(config)
    yield from _capture_problems(config.capture)
    yield from _dns_problems(config.dns)
    if config.dns.mode != "off":
        yield from _overlap_problems(config.capture, config.dns)
    yield from _rules_problems(config.rules)


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
        raise ValueError(f"expected {_EXPECTED['pcap_filter']}") from None


def _split_port(text: str) -> tuple[str, int | None]:
    if _is_address(text):
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


def _server_problems(servers: tuple[Server, ...]) -> Iterator[Problem]:
    names: set[str] = set()
    for index, server in enumerate(servers):
        here = f"server[{index}]"
        if not _is_target(server.target):
            yield f"{here}.target", "expected [user@]host or an alias of ssh_config"
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", server.name):
            yield f"{here}.name", "expected letters, digits and . _ - only, since rules use it"
        if server.name.upper() in RESERVED_TARGETS:
            yield f"{here}.name", f"{server.name} has a meaning of its own in rules, take another"
        if server.name in names:
            yield f"{here}.name", f"another server is called {server.name} too"
        names.add(server.name)
        if server.port is not None and not 1 <= server.port <= 65535:
            yield f"{here}.port", f"expected {_EXPECTED['port']}"
        if server.resolver is not None and not _is_address(server.resolver):
            yield f"{here}.resolver", "expected an IP address"
        for option in ("identity", "known_hosts", "ssh_config", "jump"):
            if getattr(server, option) == "":
                yield f"{here}.{option}", "is empty, leave it out instead"


def _tun_problems(tun: TunDevice) -> Iterator[Problem]:
    # The kernel's dev_valid_name() and IFNAMSIZ, less what nft and sysctl paths would need quoted.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", tun.name):
        yield "tun.name", "expected 1 to 15 letters, digits and . _ -"
    if not 1280 <= tun.mtu <= 65535:
        yield "tun.mtu", f"expected {_EXPECTED['mtu']}"


def _pcap_problems(config: Config) -> Iterator[Problem]:
    tun = config.tun
    if tun.pcap is not None and (not tun.pcap or "\0" in tun.pcap):
        yield "tun.pcap", "expected the path of a file to write"
    if tun.pcap_filter is None:
        return
    if tun.pcap is None:
        yield "tun.pcap_filter", "has no effect without tun.pcap, the file to write"
    try:
        host, _ = split_filter(tun.pcap_filter)
    except ValueError as error:
        yield "tun.pcap_filter", str(error)
        return
    mode = config.dns.mode or ("remote" if config.capture.include else "fake-ip")
    if host and not _is_address(host) and mode != "fake-ip":
        yield (
            "tun.pcap_filter",
            f"packets to {host} are known by its fake address only, and with dns.mode"
            f" {mode} there is none: name an address",
        )


def _capture_problems(capture: Capture) -> Iterator[Problem]:
    if capture.mode == "cgroup" and not capture.cgroups:
        yield "capture.cgroups", 'name at least one cgroup, since capture.mode is "cgroup"'
    for index, path in enumerate(capture.cgroups):
        parts = path.strip("/").split("/")
        if not re.fullmatch(r"[^\s\"\\\x00-\x1f]+", path) or {"", ".", ".."} & set(parts):
            yield (
                f"capture.cgroups[{index}]",
                "expected a cgroup v2 path below the mount point, such as user.slice/tor.slice",
            )


def _dns_problems(dns: Dns) -> Iterator[Problem]:
    if dns.fake_ip_range.prefixlen > 24:
        yield "dns.fake_ip_range", f"expected {_EXPECTED['fake_ip_range']}"
    if dns.fake_ip_range6.prefixlen > 112:
        yield "dns.fake_ip_range6", f"expected {_EXPECTED['fake_ip_range6']}"
    for index, name in enumerate(dns.real):
        if not re.fullmatch(r"[^\s/,]+", name) or len(name) > 253:
            yield f"dns.real[{index}]", "expected a domain name such as lan or example.com"


def _overlap_problems(capture: Capture, dns: Dns) -> Iterator[Problem]:
    for index, network in enumerate(capture.exclude):
        for name in ("fake_ip_range", "fake_ip_range6"):
            fake = getattr(dns, name)
            if fake.version == network.version and fake.overlaps(network):
                yield (
                    f"capture.exclude[{index}]",
                    f"{network} overlaps dns.{name} ({fake}), which has to be captured:"
                    " exclude less, or choose another range",
                )


def _rules_problems(rules: Rules) -> Iterator[Problem]:
    for index, name in enumerate(rules.files):
        if not name or "\0" in name:
            yield f"rules.files[{index}]", "expected a path or the name of a shipped list"


def _is_target(target: str) -> bool:
    """``user`` may hold an ``@``; a leading ``-`` is an option that lost its way."""
    host = target.rpartition("@")[2]
    return bool(re.fullmatch(r"[^\s\x00-\x1f]+", target)) and bool(host) and target[0] not in "-@"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def lower_first(text: str) -> str:
    """Return ``text`` as it reads after a colon."""
    return text[:1].lower() + text[1:]


def _words(types: str) -> str:
    """Return ``int | null`` in words; null is what an absent option has, and cannot be written."""
    parts = types.removesuffix(" | null").split(" | ")
    return " or ".join(_TYPE_WORDS.get(part, part) for part in parts)


def _join(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name
