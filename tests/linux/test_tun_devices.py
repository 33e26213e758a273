"""The list of devices against the kernel, with iproute2 as the one that makes them."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.helpers.tun_namespace import ip, network_namespace
from tunproxy.errors import MachineError
from tunproxy.linux import rtnetlink
from tunproxy.linux.tun import Tun
from tunproxy.linux.tun_devices import TunDevice, find_device, list_devices
from tunproxy.linux.tun_persistent import add_device

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        yield


def found(name: str) -> TunDevice:
    device = find_device(name)
    assert device is not None
    return device


def test_no_device() -> None:
    assert list_devices() == []


def test_every_property() -> None:
    ip("tuntap add tp1 mode tap user 1234 group 2345 multi_queue")
    ip("tuntap add tp0 mode tun")
    ip("link add veth0 type veth peer name veth1")
    assert list_devices() == [
        TunDevice(
            name="tp0",
            kind="tun",
            owner=None,
            group=None,
            multi_queue=False,
            queues=0,
            persistent=True,
        ),
        TunDevice(
            name="tp1",
            kind="tap",
            owner=1234,
            group=2345,
            multi_queue=True,
            queues=0,
            persistent=True,
        ),
    ]


@pytest.mark.parametrize("name", ["lo", "veth0", "absent", "", "a" * 16, "a/b"])
def test_what_is_no_device(name: str) -> None:
    ip("link add veth0 type veth peer name veth1")
    assert find_device(name) is None


@pytest.mark.parametrize("up", [False, True])
def test_use_of_a_device_with_one_queue(up: bool) -> None:
    ip("tuntap add tp0 mode tun")
    if up:
        ip("link set tp0 up")
    assert not found("tp0").in_use
    with Tun.open("tp0"):
        assert (found("tp0").in_use, found("tp0").queues) == (True, 1)
    assert not found("tp0").in_use


def test_use_of_a_device_with_many_queues() -> None:
    ip("tuntap add tp0 mode tun multi_queue")
    with Tun.open("tp0", multi_queue=True), Tun.open("tp0", multi_queue=True):
        assert (found("tp0").in_use, found("tp0").queues) == (True, 2)
    assert not found("tp0").in_use


def test_device_of_a_program() -> None:
    with Tun.open("tp0"):
        assert not found("tp0").persistent
    assert find_device("tp0") is None


def test_answer_of_many_datagrams() -> None:
    names = [f"tp{number}" for number in range(120)]
    for name in names:
        add_device(name, owner=1000, group=None)
    assert [device.name for device in list_devices()] == sorted(names)


def test_inside_of_a_running_event_loop() -> None:
    async def look() -> list[TunDevice]:
        return list_devices()

    ip("tuntap add tp0 mode tun")
    assert [device.name for device in asyncio.run(look())] == ["tp0"]


def test_kernel_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(rtnetlink.Socket, "dump", refuse)
    with pytest.raises(MachineError, match="Address family not supported by protocol"):
        list_devices()


@pytest.mark.parametrize(
    ("owner", "group", "words"),
    [
        (0, None, "user root"),
        (None, 0, "group root"),
        (0, 4_000_000_001, "user root and group 4000000001"),
        (4_000_000_001, None, "user 4000000001"),
        (None, None, "any user"),
    ],
)
def test_whose_it_is(owner: int | None, group: int | None, words: str) -> None:
    device = TunDevice(
        name="tp0",
        kind="tun",
        owner=owner,
        group=group,
        multi_queue=False,
        queues=0,
        persistent=True,
    )
    assert device.belongs_to == words
