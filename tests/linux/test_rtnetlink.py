"""The socket, against the kernel: errors, dumps of many datagrams, and dumps that are disturbed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.helpers.tun_namespace import ip, network_namespace
from tunproxy.linux import rtnetlink
from tunproxy.linux.netlink_messages import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLMSG_ERROR,
    Attributes,
    MalformedMessage,
    pack_message,
    unpack,
)
from tunproxy.linux.netlink_rules import Rule, rule_message, rules_message
from tunproxy.linux.rtnetlink import (
    ADDRESS,
    IFLA_IFNAME,
    LINK,
    RTM_DELLINK,
    RTM_DELRULE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETRULE,
    RTM_NEWLINK,
    RTM_NEWRULE,
    Socket,
    link_message,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

pytestmark = pytest.mark.netns

MANY = 3000
NEW = NLM_F_CREATE | NLM_F_EXCL
RULE = rule_message(4, Rule(priority=7470, action="nop"))
OTHER = rule_message(4, Rule(priority=7471, action="nop"))
RULES = rules_message(4)
ADDRESSES = ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)
PRIORITY = 6


@pytest.fixture
def kernel() -> Iterator[Socket]:
    with network_namespace(), Socket() as kernel:
        yield kernel


@pytest.fixture
def many_rules(kernel: Socket) -> None:
    """More than a hundred KiB of them."""
    batch(f"rule add priority {1000 + number} nop\n" for number in range(MANY))


@pytest.fixture
def many_addresses(kernel: Socket) -> None:
    """A list of which the kernel says when it has changed; it does not of rules and routes."""
    batch(f"address add 10.0.{n >> 8}.{n & 255}/32 dev lo\n" for n in range(MANY))


def batch(commands: Iterable[str]) -> None:
    """Have ip(8) carry out many commands."""
    subprocess.run(["ip", "-batch", "-"], input="".join(commands), text=True, check=True)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def priority(body: bytes) -> int:
    return Attributes(body[12:]).number(PRIORITY) or 0


def name(body: bytes) -> str | None:
    return Attributes(body[LINK.size :]).text(IFLA_IFNAME)


def test_orders_are_carried_out(kernel: Socket) -> None:
    kernel.order(RTM_NEWRULE, RULE, NEW)
    assert 7470 in kernel.dump(RTM_GETRULE, RULES, priority)
    kernel.order(RTM_DELRULE, RULE)
    assert 7470 not in kernel.dump(RTM_GETRULE, RULES, priority)


def test_link_is_changed_as_ip_sees_it(kernel: Socket) -> None:
    kernel.order(
        RTM_NEWLINK, link_message({rtnetlink.IFLA_MTU: 1234, rtnetlink.IFLA_TXQLEN: 77}, index=1)
    )
    kernel.order(RTM_NEWLINK, link_message({}, index=1, flags=1, change=1))
    (link,) = json.loads(ip("-j link show lo"))
    assert (link["mtu"], link["txqlen"]) == (1234, 77)
    assert "UP" in link["flags"]


def test_question_has_one_answer(kernel: Socket) -> None:
    answer = kernel.ask(RTM_GETLINK, link_message({IFLA_IFNAME: "lo"}))
    assert unpack(LINK, answer)[2] == 1
    assert name(answer) == "lo"
    # Nothing of it is left over.
    assert name(kernel.ask(RTM_GETLINK, link_message({}, index=1))) == "lo"


def test_order_is_no_question(kernel: Socket) -> None:
    with pytest.raises(MalformedMessage, match="0 answers to one question"):
        kernel.ask(RTM_NEWLINK, link_message({}, index=1))


@pytest.mark.parametrize(
    ("kind", "body", "flags", "number", "text"),
    [
        (RTM_NEWRULE, RULE, NEW, errno.EEXIST, "File exists"),
        (RTM_DELLINK, link_message({}, index=99), 0, errno.ENODEV, "No such device"),
        (RTM_GETLINK, link_message({IFLA_IFNAME: "absent"}), 0, errno.ENODEV, "No such device"),
        (RTM_DELRULE, OTHER, 0, errno.ENOENT, "No such file or directory"),
        (RTM_NEWRULE, RULE[:4], 0, errno.EINVAL, "Invalid argument"),
        (0xFFFF, b"", 0, errno.EOPNOTSUPP, "Operation not supported"),
    ],
)
def test_error_is_that_of_the_kernel(
    kernel: Socket, kind: int, body: bytes, flags: int, number: int, text: str
) -> None:
    kernel.order(RTM_NEWRULE, RULE, NEW)
    with pytest.raises(OSError, match=text) as caught:
        kernel.order(kind, body, flags)
    assert caught.value.errno == number
    # The socket is as good as before.
    assert name(kernel.ask(RTM_GETLINK, link_message({}, index=1))) == "lo"


def test_words_of_the_kernel_are_in_the_error(kernel: Socket) -> None:
    backwards = rule_message(4, Rule(priority=7470, action="goto", target=1))
    with pytest.raises(OSError, match="Invalid argument: Backward goto not supported"):
        kernel.order(RTM_NEWRULE, backwards, NEW)


def test_kernel_that_knows_no_option_is_asked_all_the_same(
    kernel: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtnetlink, "_OPTIONS", (0x7FFF,))
    with Socket() as plain:
        backwards = rule_message(4, Rule(priority=7470, action="goto", target=1))
        with pytest.raises(OSError, match=r"Invalid argument$"):
            plain.order(RTM_NEWRULE, backwards, NEW)
        assert len(plain.dump(RTM_GETRULE, RULES, priority)) == 3


def test_without_privilege_one_may_ask_but_not_order(kernel: Socket) -> None:
    with unprivileged(), Socket() as ours:
        with pytest.raises(PermissionError, match="Operation not permitted"):
            ours.order(RTM_NEWRULE, RULE, NEW)
        assert ours.dump(RTM_GETLINK, link_message({}), name) == ["lo"]


@pytest.mark.usefixtures("many_rules")
def test_dump_of_many_datagrams_is_whole_and_in_order(kernel: Socket) -> None:
    ours = [number for number in kernel.dump(RTM_GETRULE, RULES, priority) if number < 32766]
    assert ours == [0, *range(1000, 1000 + MANY)]


def test_what_is_not_wanted_is_not_kept(kernel: Socket) -> None:
    kernel.order(RTM_NEWRULE, RULE, NEW)
    ours = kernel.dump(RTM_GETRULE, RULES, lambda body: True if priority(body) == 7470 else None)
    assert ours == [True]


def test_error_of_a_dump_that_cannot_begin(kernel: Socket) -> None:
    body = bytes((0x2F,)).ljust(12, b"\0")
    with pytest.raises(OSError, match="Address family not supported by protocol"):
        kernel.dump(RTM_GETRULE, body, priority)
    with pytest.raises(OSError, match="Operation not supported"):
        kernel.dump(0xFFFF, b"", priority)
    assert kernel.dump(RTM_GETLINK, link_message({}), name) == ["lo"]


@pytest.mark.usefixtures("many_addresses")
def test_list_that_changes_meanwhile_is_asked_for_again(kernel: Socket) -> None:
    read: list[bytes] = []

    def disturbed(body: bytes) -> bytes:
        if not read:
            ip("address add 10.99.0.1/32 dev lo")
        read.append(body)
        return body

    found = kernel.dump(RTM_GETADDR, ADDRESSES, disturbed)
    assert len(set(found)) == len(found) == MANY + 1
    # The first time was read to its end, or the kernel would not have begun anew.
    assert len(read) >= MANY + len(found)


@pytest.mark.usefixtures("many_addresses")
def test_list_that_never_stops_changing_is_an_error(
    kernel: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtnetlink, "_ATTEMPTS", 3)
    verbs = itertools.cycle(["add", "delete"])
    first, *_ = kernel.dump(RTM_GETADDR, ADDRESSES, bytes)

    def disturbed(body: bytes) -> None:
        if body == first:
            ip(f"address {next(verbs)} 10.99.0.1/32 dev lo")

    with pytest.raises(BlockingIOError, match="the list kept changing while it was read"):
        kernel.dump(RTM_GETADDR, ADDRESSES, disturbed)
    assert next(verbs) == "delete"
    assert len(kernel.dump(RTM_GETADDR, ADDRESSES, bytes)) == MANY + 1


def test_what_another_process_says_is_not_the_kernels_word(kernel: Socket) -> None:
    port, _ = kernel._sock.getsockname()
    lie = pack_message(NLMSG_ERROR, 0, kernel._sequence + 1, struct.pack("=i", -errno.EPERM))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as liar:
        liar.sendto(lie, (port, 0))
    assert name(kernel.ask(RTM_GETLINK, link_message({}, index=1))) == "lo"


@pytest.mark.usefixtures("many_rules")
def test_what_is_left_of_an_answer_is_skipped(kernel: Socket) -> None:
    def fail(body: bytes) -> None:
        raise MalformedMessage("nonsense")

    with pytest.raises(MalformedMessage, match="the kernel sends nonsense"):
        kernel.dump(RTM_GETRULE, RULES, fail)
    assert name(kernel.ask(RTM_GETLINK, link_message({}, index=1))) == "lo"


def test_answer_that_does_not_fit(kernel: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtnetlink, "_ANSWER_LEN", 64)
    with pytest.raises(MalformedMessage, match="more than 64 octets"):
        kernel.ask(RTM_GETLINK, link_message({}, index=1))


def test_answer_that_does_not_come(kernel: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtnetlink, "NLM_F_ACK", 0)
    with pytest.raises(BlockingIOError):
        kernel.order(RTM_NEWRULE, RULE, NEW)


def test_closed_socket(kernel: Socket) -> None:
    kernel.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.order(RTM_NEWRULE, RULE, NEW)
