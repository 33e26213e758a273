"""What is wrong with a config, in words: fields of a wrong type, values that make no sense."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from .config_values import (
    FILTER,
    canonical_name,
    host_addresses,
    is_address,
    is_below,
    is_dns_server,
    is_domain,
    is_host,
    is_network,
    is_target,
    split_filter,
    split_place,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .config import Capture, Config, Dns, Rules, Server, TunDevice, Udp, Vpn

Problem: TypeAlias = tuple[str, str]
"""The field, as ``server[0].port``, and the reason."""

RESERVED_TARGETS = frozenset({"DIRECT", "PROXY", "REJECT", "REJECT-DROP"})
"""Rule targets that no server can be called."""

_EXPECTED = {
    "port": "an integer between 1 and 65535",
    "mtu": "an integer between 1280 and 65535",
    "include": "a network such as 10.0.0.0/8 or fd00::/8",
    "exclude": "a network such as 10.0.0.0/8 or fd00::/8",
    "udp.via": "auto, agent, udpgw, tun or reject",
    "udp.udpgw": "ADDR:PORT, such as 127.0.0.1:7300 or [::1]:7300",
    "vpn.local": "an address with the length of its prefix, such as 10.74.0.2/24",
    "vpn.peer": "an address such as 10.74.0.1",
    "vpn.route": "a network such as 10.0.0.0/8 or fd00::/8, or default",
    "vpn.dns": "an address such as 10.74.0.1",
    "vpn.mtu": "an integer between 576 and 65535",
    "vpn.remote_tun": "the number of a device, 0 or more",
    "fake_ip_range": "an IPv4 network of at least /24, such as 198.18.0.0/15",
    "fake_ip_range6": "an IPv6 network of at least /112, such as fd00:7470::/64",
    "connections": 'an integer between 1 and 16, or "auto"',
    "truthful": 'true, false or "auto"',
    "dns.resolve": '"auto" or "server"',
    "dns.rule.server": "ADDRESS[:PORT], tls://HOST[:PORT][#NAME] or https://HOST[:PORT]/PATH",
    "pcap_filter": FILTER,
}
"""What a field holds, by its name or its whole path, where its type alone does not say it."""

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
    path = re.sub(r"\[[^.]*\]$", "", field)
    expected = _EXPECTED.get(path) or _EXPECTED.get(path.rpartition(".")[2])
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
    yield from _hosts_problems(config.dns)
    yield from _dns_rule_problems(config.dns)
    yield from _split_problems(config.dns)
    yield from _cache_problems(config.dns)
    if config.dns.mode != "off":
        yield from _overlap_problems(config.capture, config.dns)
    yield from _rules_problems(config.rules)
    yield from _udp_problems(config.udp)
    yield from _vpn_problems(config.vpn)


def _server_problems(servers: tuple[Server, ...]) -> Iterator[Problem]:
    names: set[str] = set()
    for index, server in enumerate(servers):
        here = f"server[{index}]"
        if not is_target(server.target):
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
        if server.connections != "auto" and not 1 <= server.connections <= 16:
            yield f"{here}.connections", f"expected {_EXPECTED['connections']}"
        if server.resolver is not None and not is_address(server.resolver):
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
    if host and not is_address(host) and mode != "fake-ip":
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


def _hosts_problems(dns: Dns) -> Iterator[Problem]:
    wrong = [name for name in dns.hosts if not is_domain(name)]
    for name in wrong:
        yield f"dns.hosts.{name}", "expected a domain name such as nas.lan"
    if wrong:
        return
    hosts = {canonical_name(name): values for name, values in dns.hosts.items()}
    for name in dns.hosts:
        here = f"dns.hosts.{name}"
        try:
            addresses = host_addresses(canonical_name(name), hosts)
        except ValueError as error:
            yield here, f"{error} is neither an IP address nor a name in dns.hosts that has one"
            continue
        for address in addresses:
            if address in dns.fake_ip_range or address in dns.fake_ip_range6:
                yield here, f"{address} is in the range of the fake addresses"


def _dns_rule_problems(dns: Dns) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, rule in enumerate(dns.rule):
        here = f"dns.rule[{index}]"
        if not rule.suffix:
            yield f"{here}.suffix", "name at least one domain, such as corp.example"
        for place, suffix in enumerate(rule.suffix):
            if not is_domain(suffix):
                yield f"{here}.suffix[{place}]", "expected a domain name such as corp.example"
            elif canonical_name(suffix) in seen:
                yield f"{here}.suffix[{place}]", f"{suffix} has a resolver already"
            else:
                seen.add(canonical_name(suffix))
        if not is_dns_server(rule.server):
            yield f"{here}.server", f"expected {_EXPECTED['dns.rule.server']}"


def _split_problems(dns: Dns) -> Iterator[Problem]:
    """What is outside the split is asked elsewhere: to say how we answer it is a mistake."""
    wrong = [index for index, suffix in enumerate(dns.split) if not is_domain(suffix)]
    for index in wrong:
        yield f"dns.split[{index}]", "expected a domain name such as corp.example"
    if wrong or not dns.split:
        return
    if dns.mode == "off":
        yield "dns.split", "has no effect, since with dns.mode off no name is asked here"
    suffixes = [canonical_name(suffix) for suffix in dns.split]
    outside = "is not below dns.split, so it is asked elsewhere: add it there, or leave it out"
    for field, text, has_more in _names_of_options(dns):
        if not is_domain(text):
            continue  # another check says so
        name = canonical_name(text)
        # A domain above a suffix still concerns the names below that.
        if not any(
            is_below(name, suffix) or (has_more and is_below(suffix, name)) for suffix in suffixes
        ):
            yield field, f"{name} {outside}"


def _names_of_options(dns: Dns) -> Iterator[tuple[str, str, bool]]:
    """Yield where a name is written, the name, and whether it stands for all below it as well."""
    for index, rule in enumerate(dns.rule):
        for place, suffix in enumerate(rule.suffix):
            yield f"dns.rule[{index}].suffix[{place}]", suffix, True
    for index, name in enumerate(dns.real):
        yield f"dns.real[{index}]", name, True
    for name in dns.hosts:
        yield f"dns.hosts.{name}", name, False


def _cache_problems(dns: Dns) -> Iterator[Problem]:
    for name, least, most in (
        ("cache_size", 0, 65_536),
        ("cache_min_ttl", 0, 3600),
        ("cache_max_ttl", 1, 604_800),
    ):
        if not least <= getattr(dns, name) <= most:
            yield f"dns.{name}", f"expected an integer between {least} and {most}"
    if dns.cache_min_ttl > dns.cache_max_ttl:
        yield "dns.cache_min_ttl", "is more than dns.cache_max_ttl"


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
    for field in ("geoip", "asn"):
        path = getattr(rules, field)
        if path is not None and (not path or "\0" in path):
            yield f"rules.{field}", "expected the path of a .mmdb file"


def _udp_problems(udp: Udp) -> Iterator[Problem]:
    try:
        split_place(udp.udpgw)
    except ValueError:
        yield "udp.udpgw", f"expected {_EXPECTED['udp.udpgw']}"


def _vpn_problems(vpn: Vpn) -> Iterator[Problem]:
    for name, addresses in (("local", vpn.local), ("peer", vpn.peer), ("dns", vpn.dns)):
        for index, address in enumerate(addresses):
            if not is_host(str(address).partition("/")[0]):
                yield f"vpn.{name}[{index}]", f"{address} is not the address of one host"
    for index, text in enumerate(vpn.route):
        if text != "default" and not is_network(text):
            yield f"vpn.route[{index}]", f"expected {_EXPECTED['vpn.route']}"
    if vpn.local:
        ours = {address.version for address in vpn.local}
        for index, peer in enumerate(vpn.peer):
            if peer.version not in ours:
                yield (
                    f"vpn.peer[{index}]",
                    f"{peer} needs a vpn.local of IPv{peer.version} to be reached from",
                )
    if vpn.mtu is not None and not 576 <= vpn.mtu <= 65535:
        yield "vpn.mtu", f"expected {_EXPECTED['vpn.mtu']}"
    if vpn.remote_tun is not None and not 0 <= vpn.remote_tun < 0x7FFFFFFF:
        yield "vpn.remote_tun", f"expected {_EXPECTED['vpn.remote_tun']}"


def lower_first(text: str) -> str:
    """Return ``text`` as it reads after a colon."""
    return text[:1].lower() + text[1:]


def _words(types: str) -> str:
    """Return ``int | null`` in words; null is what an absent option has, and cannot be written."""
    parts = types.removesuffix(" | null").split(" | ")
    return " or ".join(_TYPE_WORDS.get(part, part) for part in parts)


def _join(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name
