"""Devices that stay: who may make, use and delete them, and what everybody else is told."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.helpers import packets
from tests.helpers.command import UNPRIVILEGED
from tests.helpers.tun_namespace import NOBODY, driver_open_to_all, ip, network_namespace
from tunproxy.errors import MachineError
from tunproxy.linux.tun import HEADER_LEN, READ_LEN, Tun
from tunproxy.linux.tun_devices import find_device, list_devices
from tunproxy.linux.tun_persistent import add_device, delete_device

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tunproxy.linux.tun_devices import Kind

pytestmark = pytest.mark.netns

OTHER = 1234


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        yield


@pytest.fixture
def open_to_all(tmp_path: pathlib.Path) -> list[str]:
    return [*driver_open_to_all(tmp_path), *UNPRIVILEGED]


def as_nobody(within: list[str], body: str) -> str:
    """Run ``body`` as a user without privileges; return what it prints, or its error says."""
    code = (
        "from tunproxy.errors import MachineError\n"
        "from tunproxy.linux.tun import Tun\n"
        "from tunproxy.linux.tun_persistent import add_device, delete_device\n"
        f"try:\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        "except MachineError as error:\n    print(error)\n"
    )
    command = [*within, sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.rstrip("\n")


# ---- making


@pytest.mark.parametrize("kind", ["tun", "tap"])
@pytest.mark.parametrize("multi_queue", [False, True])
def test_add(kind: Kind, multi_queue: bool) -> None:
    given = add_device("tp0", owner=OTHER, group=42, kind=kind, multi_queue=multi_queue)
    assert given == "tp0"
    device = find_device("tp0")
    assert device is not None
    assert (device.owner, device.group, device.kind) == (OTHER, 42, kind)
    assert (device.multi_queue, device.persistent, device.in_use) == (multi_queue, True, False)
    shown = ip("-d link show tp0")
    assert f"tun type {kind} pi off" in shown
    assert f"user {OTHER} group " in shown


def test_add_with_a_pattern() -> None:
    assert [add_device("tp%d", owner=0, group=None) for _ in range(2)] == ["tp0", "tp1"]


@pytest.mark.parametrize("name", ["tp0", "lo"])
def test_add_of_what_is_there_changes_nothing(name: str) -> None:
    add_device("tp0", owner=OTHER, group=None)
    before = list_devices()
    with pytest.raises(MachineError, match=f"there is a device {name} already"):
        add_device(name, owner=0, group=None)
    assert list_devices() == before


def test_add_with_a_bad_name() -> None:
    with pytest.raises(MachineError, match="cannot be the name of a TUN device"):
        add_device("a/b", owner=0, group=None)


def test_device_for_everybody_is_not_made() -> None:
    with pytest.raises(ValueError, match="open to everybody"):
        add_device("tp0", owner=None, group=None)
    assert list_devices() == []


def test_ids_have_32_bits() -> None:
    add_device("tp0", owner=2**32 - 2, group=2**31)
    device = find_device("tp0")
    assert device is not None
    assert (device.owner, device.group) == (2**32 - 2, 2**31)


def test_add_that_fails_leaves_nothing() -> None:
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(MachineError, match="does not keep the device tp0"):
        add_device("tp0", owner=2**32 - 1, group=None)
    assert list_devices() == []
    assert os.listdir("/proc/self/fd") == descriptors


def test_add_without_the_capability(open_to_all: list[str]) -> None:
    said = as_nobody(open_to_all, f"add_device('tp0', owner={NOBODY}, group=None)")
    assert said.startswith("no permission to create the device tp0; run the command as root, or")


# ---- using


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("kind", ["tun", "tap"])
@pytest.mark.parametrize("multi_queue", [False, True])
def test_owner_attaches_without_a_privilege(
    open_to_all: list[str], offload: bool, kind: Kind, multi_queue: bool
) -> None:
    add_device("tp0", owner=NOBODY, group=None, kind=kind, multi_queue=multi_queue)
    ip("link set tp0 up")
    body = f"""
        import os
        with Tun.open("tp0", offload={offload}, tap={kind == "tap"}) as tun:
            print(os.getuid(), tun.name, tun.offload, tun.write([bytes(10), b"E" + bytes(40)]))
    """
    # Neither an IP packet nor a frame that anybody wants: a TUN refuses it, a TAP takes it.
    assert as_nobody(open_to_all, body) == f"{NOBODY} tp0 {offload} True"
    device = find_device("tp0")
    assert device is not None
    assert not device.in_use


def test_member_of_the_group_attaches(open_to_all: list[str]) -> None:
    add_device("tp0", owner=None, group=NOBODY)
    assert as_nobody(open_to_all, "print(Tun.open('tp0').name)") == "tp0"


@pytest.mark.parametrize(
    ("owner", "group", "whose"),
    [
        (OTHER, None, f"user {OTHER}"),
        (None, 42, "group shadow"),
        (OTHER, NOBODY, f"user {OTHER} and group nogroup"),
        (NOBODY, 42, "user nobody and group shadow"),
    ],
)
@pytest.mark.parametrize("multi_queue", [False, True])
def test_anybody_else_is_told_whose_it_is(
    open_to_all: list[str], owner: int | None, group: int | None, whose: str, multi_queue: bool
) -> None:
    add_device("tp0", owner=owner, group=group, multi_queue=multi_queue)
    assert as_nobody(open_to_all, "Tun.open('tp0')") == (
        f"the device tp0 belongs to {whose}; "
        "run the command as its owner or as root, or choose another device"
    )


def test_device_that_another_program_used_with_offloads_gives_whole_packets() -> None:
    """What one user of a device asks of the kernel outlives him."""
    add_device("tp0", owner=0, group=None)
    Tun.open("tp0").close()
    with Tun.open("tp0", offload=False) as tun:
        ip("address add 10.9.0.1/24 dev tp0")
        ip("link set tp0 up")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            assert sock.connect_ex(("10.9.0.2", 80)) == errno.EINPROGRESS
            segment = read_tcp(tun)
    source, target = segment[12:16], segment[16:20]
    assert packets.transport_is_intact(source, target, packets.TCP, segment[20:])


def read_tcp(tun: Tun) -> bytes:
    buffer = memoryview(bytearray(READ_LEN))
    while True:
        assert select.select([tun], [], [], 10)[0], "the kernel sent nothing"
        length = tun.read_into(buffer)
        if length and buffer[HEADER_LEN] >> 4 == 4 and buffer[HEADER_LEN + 9] == packets.TCP:
            return bytes(buffer[HEADER_LEN:length])


def test_user_who_may_not_open_the_driver(tmp_path: pathlib.Path) -> None:
    within = driver_open_to_all(tmp_path)
    within[within.index("-c") + 1] = within[within.index("-c") + 1].replace("-m 666", "-m 600")
    add_device("tp0", owner=NOBODY, group=None)
    assert as_nobody([*within, *UNPRIVILEGED], "Tun.open('tp0')") == (
        "no permission to open /dev/net/tun; run the command as root, "
        "or have root permit it to all with 'chmod 666 /dev/net/tun'"
    )


@pytest.mark.parametrize("multi_queue", [False, True])
def test_open_while_another_program_has_it(multi_queue: bool) -> None:
    add_device("tp0", owner=0, group=None, multi_queue=multi_queue)
    with Tun.open("tp0"), pytest.raises(MachineError, match="tp0 is used by another program"):
        Tun.open("tp0")
    Tun.open("tp0").close()


def test_one_queue_of_many_is_not_shared_by_accident() -> None:
    add_device("tp0", owner=0, group=None, multi_queue=True)
    descriptors = os.listdir("/proc/self/fd")
    with Tun.open("tp0", multi_queue=True):
        for _ in range(2):
            with pytest.raises(MachineError, match="tp0 is used by another program"):
                Tun.open("tp0")
        device = find_device("tp0")
        assert device is not None
        assert device.queues == 1
    assert os.listdir("/proc/self/fd") == descriptors


def test_two_who_take_one_queue_of_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    add_device("tp0", owner=0, group=None, multi_queue=True)
    late = None

    def as_before(name: str) -> object:
        # What the kernel says is out of date as soon as it is said.
        nonlocal late
        device = find_device(name)
        if late is None:
            late = Tun.open(name, multi_queue=True)
        return device

    monkeypatch.setattr("tunproxy.linux.tun.find_device", as_before)
    with pytest.raises(MachineError, match="tp0 is used by another program"):
        Tun.open("tp0")
    assert isinstance(late, Tun)
    late.close()


@pytest.mark.parametrize("first", [True, False])
def test_queues_of_one_device_have_one_format(first: bool) -> None:
    with Tun.open("tp0", offload=first, multi_queue=True):
        descriptors = os.listdir("/proc/self/fd")
        with pytest.raises(MachineError, match="tp0 is used by another program"):
            Tun.open("tp0", offload=not first, multi_queue=True)
        assert os.listdir("/proc/self/fd") == descriptors
        Tun.open("tp0", offload=first, multi_queue=True).close()


def test_open_of_the_wrong_kind() -> None:
    add_device("tp0", owner=0, group=None, kind="tap")
    add_device("tp1", owner=0, group=None, kind="tun", multi_queue=True)
    with pytest.raises(MachineError, match=r"of another kind \(a TAP device\); choose another"):
        Tun.open("tp0")
    with pytest.raises(MachineError, match=r"of another kind \(a TUN device\); choose another"):
        Tun.open("tp1", tap=True)
    with pytest.raises(MachineError, match=r"of another kind \(no TUN device\); choose another"):
        Tun.open("lo")


def test_open_of_many_queues_where_there_is_one() -> None:
    add_device("tp0", owner=0, group=None)
    with pytest.raises(MachineError, match="tp0 can have one queue only"):
        Tun.open("tp0", multi_queue=True)


# ---- deleting


@pytest.mark.parametrize("kind", ["tun", "tap"])
@pytest.mark.parametrize("multi_queue", [False, True])
def test_delete(kind: Kind, multi_queue: bool) -> None:
    add_device("tp0", owner=OTHER, group=None, kind=kind, multi_queue=multi_queue)
    delete_device("tp0")
    assert list_devices() == []
    assert "tp0" not in ip("link show")


def test_owner_deletes_without_a_privilege(open_to_all: list[str]) -> None:
    add_device("tp0", owner=NOBODY, group=None)
    assert as_nobody(open_to_all, "delete_device('tp0')") == ""
    assert list_devices() == []


def test_delete_of_what_belongs_to_another_user(open_to_all: list[str]) -> None:
    add_device("tp0", owner=OTHER, group=None)
    assert as_nobody(open_to_all, "delete_device('tp0')").startswith("the device tp0 belongs to")
    assert [device.name for device in list_devices()] == ["tp0"]


@pytest.mark.parametrize("multi_queue", [False, True])
def test_delete_of_what_is_in_use(multi_queue: bool) -> None:
    add_device("tp0", owner=0, group=None, multi_queue=multi_queue)
    with Tun.open("tp0"), pytest.raises(MachineError, match="used by another program; stop that"):
        delete_device("tp0")
    delete_device("tp0")


def test_delete_of_the_device_of_a_program() -> None:
    with Tun.open("tp0"), pytest.raises(MachineError, match="tp0 is not persistent and goes with"):
        delete_device("tp0")


def test_delete_of_what_is_not_there() -> None:
    with pytest.raises(MachineError, match="there is no device tp0; see 'tunproxy tun list'"):
        delete_device("tp0")


def test_delete_of_another_sort_of_link() -> None:
    with pytest.raises(MachineError, match="lo is no TUN or TAP device"):
        delete_device("lo")
    assert "lo" in ip("link show")
