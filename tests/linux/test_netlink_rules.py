"""Rules, as ip(8) sees what we add, and as we see what it adds."""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.tun_namespace import ip, network_namespace
from tunproxy.errors import MachineError
from tunproxy.linux import netlink_rules
from tunproxy.linux.netlink import Netlink
from tunproxy.linux.netlink_messages import MalformedMessage, pack_attributes
from tunproxy.linux.netlink_rules import Family, OurRule, Rule, read_our_rule, rule_message

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIXES: dict[Family, tuple[str, str]] = {
    4: ("10.0.0.0/24", "10.1.0.0/16"),
    6: ("fd00:1::/64", "fd00:2::/32"),
}

EVERYTHING = (
    "tos 0x10 fwmark 5/0xff iif up0 oif lo uidrange 0-10 ipproto tcp sport 1-5 dport 6-7 "
    "lookup 7470 suppress_prefixlength 3 suppress_ifgroup 4"
)
"""Every selector that ip-rule(8) has, but those that exclude others."""


@pytest.fixture
def kernel() -> Iterator[Netlink]:
    with network_namespace(), Netlink() as netlink:
        yield netlink


def rules(family: Family) -> list[dict[str, Any]]:
    """What ip(8) lists, without the rules that are there from the beginning."""
    listed: list[dict[str, Any]] = json.loads(ip(f"-{family} -d -j rule"))
    return [rule for rule in listed if rule["priority"] not in (0, 32766, 32767)]


@pytest.mark.netns
@pytest.mark.parametrize("family", [4, 6])
def test_rule_with_every_attribute_is_what_ip_lists(kernel: Netlink, family: Family) -> None:
    source, destination = map(ipaddress.ip_network, PREFIXES[family])
    kernel.add_rule(
        family,
        Rule(
            priority=7470,
            action="lookup",
            target=100_000,
            mark=0xFFFFFFF0,
            mask=0xFFFFFFF1,
            iif="a-name-of-15-ch",
            invert=True,
            source=source,
            destination=destination,
            protocol=17,
            dport=53,
            suppress=31,
        ),
    )
    (rule,) = rules(family)
    assert rule == {
        "priority": 7470,
        "not": None,
        "src": str(source.network_address),
        "srclen": source.prefixlen,
        "dst": str(destination.network_address),
        "dstlen": destination.prefixlen,
        "fwmark": "0xfffffff0",
        "fwmask": "0xfffffff1",
        "iif": "a-name-of-15-ch",
        "iif_detached": None,
        "ipproto": "udp",
        "dport": 53,
        "table": "100000",
        "suppress_prefixlen": 31,
        "protocol": "116",
    }


@pytest.mark.netns
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("rule", "listed"),
    [
        (Rule(priority=1, action="lookup", target=254), {"table": "main"}),
        (Rule(priority=2, action="goto", target=0xFFFFFFFF), {"goto": 0xFFFFFFFF}),
        (Rule(priority=3, action="nop"), {"nop": None}),
        (Rule(priority=4, action="nop", mark=0), {"nop": None, "fwmark": "0"}),
        (Rule(priority=5, action="nop", suppress=0), {"nop": None}),
    ],
)
def test_actions(
    kernel: Netlink, family: Family, rule: Rule, listed: dict[str, str | int | None]
) -> None:
    kernel.add_rule(family, rule)
    (found,) = rules(family)
    assert {key: found[key] for key in listed} == listed
    assert kernel.rule_priorities(family) == {rule.priority}


@pytest.mark.netns
@pytest.mark.parametrize("family", [4, 6])
def test_a_dumped_rule_with_everything_is_the_one_deleted(kernel: Netlink, family: Family) -> None:
    source, destination = PREFIXES[family]
    add = f"-{family} rule add priority 7470 not from {source} to {destination} {EVERYTHING}"
    ip(f"{add} protocol 117")
    theirs = rules(family)
    ip(f"{add} protocol 116")
    # One that is like it, but for what a rule can go without.
    ip(f"-{family} rule add priority 7470 lookup 7470 protocol 116")
    assert kernel.delete_rules(family, {7470}) == 2
    assert rules(family) == theirs


@pytest.mark.netns
@pytest.mark.parametrize(
    "selector", ["tun_id 7 lookup 9", "l3mdev", "blackhole", "unreachable", "prohibit"]
)
def test_rules_of_our_protocol_that_we_would_not_add_can_be_deleted(
    kernel: Netlink, selector: str
) -> None:
    ip(f"rule add priority 7471 {selector} protocol 116")
    assert kernel.delete_rules(4, {7471}) == 1
    assert rules(4) == []


@pytest.mark.netns
def test_a_rule_that_is_there_is_not_added_again(kernel: Netlink) -> None:
    rule = Rule(priority=7470, action="nop")
    kernel.add_rule(4, rule)
    with pytest.raises(MachineError, match="cannot add IPv4 rule 7470 \\(File exists\\)"):
        kernel.add_rule(4, rule)


@pytest.mark.netns
def test_the_kernel_says_what_is_wrong_with_a_rule(kernel: Netlink) -> None:
    with pytest.raises(MachineError, match="Invalid argument: Backward goto not supported"):
        kernel.add_rule(6, Rule(priority=7470, action="goto", target=7469))


@pytest.mark.netns
def test_a_family_that_the_kernel_does_not_have_has_no_rules(
    kernel: Netlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(netlink_rules.AF, 6, 0x2F)
    assert kernel.rule_priorities(6) == set()
    assert kernel.delete_rules(6, {7470}) == 0
    with pytest.raises(MachineError, match="needs IP_MULTIPLE_TABLES and IPV6_MULTIPLE_TABLES"):
        kernel.add_rule(6, Rule(priority=7470, action="nop"))


def test_deleting_gives_what_was_listed_without_the_state_of_the_rule() -> None:
    listed = rule_message(4, Rule(priority=9, action="goto", target=10, iif="up0", invert=True))
    detached_and_unresolved = listed[:8] + b"\x0e" + listed[9:]
    assert read_our_rule(detached_and_unresolved) == OurRule(9, False, listed)


@given(st.binary(max_size=60))
def test_any_octets_are_a_rule_or_not(octets: bytes) -> None:
    try:
        assert read_our_rule(octets) is None
    except MalformedMessage:
        return


@given(st.binary(min_size=12, max_size=12), st.binary(max_size=12))
def test_any_octets_of_ours_are_a_rule(header: bytes, source: bytes) -> None:
    rule = read_our_rule(header + pack_attributes({21: bytes((116,)), 6: 5, 2: source}))
    assert rule is not None
    assert (rule.priority, rule.is_nop) == (5, header[7] == 3)
