"""A router in namespaces of the test's own, seen from its TUN.

::

    lan ---- client ---- inet        the client forwards; "far" addresses are on inet's loopback

The test process itself enters the client's network namespace (:meth:`Namespace.entered`): sockets
and processes made inside stay there. No program of ours runs; the tests read and write the TUN.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import ipaddress
import itertools
import os
import pathlib
import select
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import dpkt
import pytest

from tunproxy.linux.netlink import configure_link, network_namespace
from tunproxy.linux.tun import HEADER_LEN, READ_LEN, Tun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunproxy.app.plan import CapturePlan
    from tunproxy.linux.cgroup import Cgroup

DEADLINE_S = 10.0

CLIENT = {4: "10.9.0.2", 6: "2001:db8:1::2"}
INET = {4: "10.9.0.1", 6: "2001:db8:1::1"}
FAR = {4: "203.0.113.5", 6: "2001:db8:f::5"}
OTHER = {4: "203.0.114.5", 6: "2001:db8:e::5"}
ROUTER = {4: "192.168.5.1", 6: "fd05::1"}
LAN = {4: "192.168.5.2", 6: "fd05::2"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
STUB = {4: "127.0.0.53", 6: "::1"}
LENGTH = {4: 24, 6: 64}

families = pytest.mark.parametrize("family", [4, 6])
"""The test holds for both versions of IP."""

NODAD: dict[int, list[str]] = {4: [], 6: ["nodad"]}
"""An address that is usable at once: otherwise it is some work of the kernel later."""

_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


def version(address: str) -> int:
    return ipaddress.ip_address(address).version


class Namespace:
    """A network namespace; use as a context manager."""

    def __init__(self, role: str) -> None:
        self.name = f"tpcap{os.getpid()}-{next(_numbers)}-{role}"
        self.path = pathlib.Path("/run/netns", self.name)

    def __enter__(self) -> Namespace:
        _ip("netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        with self.entered():
            for name in ("all", "default"):
                pathlib.Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0")
        return self

    def __exit__(self, *exc: object) -> None:
        _ip("netns", "del", self.name)

    def ip(self, *args: str) -> None:
        _ip("-n", self.name, *args)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """What this thread makes inside belongs to the namespace."""
        with open("/proc/thread-self/ns/net") as home, self.path.open() as away:
            _setns(away.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def open_socket(self, family: int, kind: socket.SocketKind) -> socket.socket:
        with self.entered():
            sock = socket.socket(_AF[family], kind)
        sock.settimeout(DEADLINE_S)
        return sock

    def bound(self, address: str, port: int, kind: socket.SocketKind) -> socket.socket:
        """A socket bound to ``address``, which listens if it is of TCP."""
        sock = self.open_socket(version(address), kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if version(address) == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock

    def bound_client(self, address: str, kind: socket.SocketKind) -> socket.socket:
        """A socket that will connect from ``address``."""
        sock = self.open_socket(version(address), kind)
        sock.bind((address, 0))
        return sock


def accept(listener: socket.socket) -> socket.socket:
    """The next connection of ``listener``, with a deadline."""
    accepted, _ = listener.accept()
    accepted.settimeout(DEADLINE_S)
    return accepted


@dataclasses.dataclass(frozen=True)
class Packet:
    """One packet that came out of the TUN."""

    source: str
    destination: str
    protocol: int
    sport: int
    dport: int
    payload: bytes
    flags: int = 0


class Device:
    """The TUN, from the side of the program."""

    def __init__(self, tun: Tun) -> None:
        self.tun = tun
        self._buffer = memoryview(bytearray(READ_LEN))

    def read(self) -> Packet:
        """The next packet, of TCP or UDP."""
        packet = parse(self.read_raw())
        assert packet is not None
        return packet

    def read_raw(self) -> bytes:
        """The octets of the next packet of TCP or UDP."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.tun], [], [], left)[0]:
                raise AssertionError("nothing came to the TUN")
            length = self.tun.read_into(self._buffer)
            octets = bytes(self._buffer[HEADER_LEN:length])
            if parse(octets) is not None:
                return octets

    def answer(self, packet: Packet, payload: bytes) -> None:
        """Write the answer to the datagram ``packet``."""
        udp = dpkt.udp.UDP(
            sport=packet.dport, dport=packet.sport, ulen=8 + len(payload), data=payload
        )
        source, destination = (
            ipaddress.ip_address(text).packed for text in (packet.destination, packet.source)
        )
        octets: Any
        if version(packet.source) == 4:
            octets = dpkt.ip.IP(src=source, dst=destination, p=17, data=udp)
            octets.len = len(octets)
        else:
            octets = dpkt.ip6.IP6(src=source, dst=destination, nxt=17, hlim=64, data=udp)
            octets.plen = len(udp)
        assert self.tun.write([bytes(HEADER_LEN), bytes(octets)])


def parse(octets: bytes) -> Packet | None:
    """``octets`` as TCP or UDP, or ``None``."""
    ip: Any = dpkt.ip.IP(octets) if octets[0] >> 4 == 4 else dpkt.ip6.IP6(octets)
    transport = ip.data
    if not isinstance(transport, (dpkt.tcp.TCP, dpkt.udp.UDP)):
        return None
    return Packet(
        source=str(ipaddress.ip_address(ip.src)),
        destination=str(ipaddress.ip_address(ip.dst)),
        protocol=ip.p if octets[0] >> 4 == 4 else ip.nxt,
        sport=transport.sport,
        dport=transport.dport,
        payload=bytes(transport.data),
        flags=getattr(transport, "flags", 0),
    )


class Network:
    """The three namespaces; use as a context manager, which enters the client."""

    def __init__(self) -> None:
        self.client, self.inet, self.lan = map(Namespace, ("client", "inet", "lan"))
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Network:
        with contextlib.ExitStack() as stack:
            for namespace in (self.client, self.inet, self.lan):
                stack.enter_context(namespace)
            self._link("up0", CLIENT, self.inet, INET)
            self._link("lan0", ROUTER, self.lan, LAN)
            for family in (4, 6):
                self.client.ip(f"-{family}", "route", "add", "default", "via", INET[family])
                self.lan.ip(f"-{family}", "route", "add", "default", "via", ROUTER[family])
                lan = str(ipaddress.ip_interface(f"{LAN[family]}/{LENGTH[family]}").network)
                self.inet.ip(f"-{family}", "route", "add", lan, "via", CLIENT[family])
                for address in (FAR[family], OTHER[family]):
                    self.inet.ip("addr", "add", address, "dev", "lo", *NODAD[family])
            stack.enter_context(self.client.entered())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _link(
        self, device: str, here: dict[int, str], peer: Namespace, there: dict[int, str]
    ) -> None:
        self.client.ip("link", "add", device, "type", "veth", "peer", "eth0", "netns", peer.name)
        for namespace, name, addresses in ((self.client, device, here), (peer, "eth0", there)):
            for family in (4, 6):
                address = f"{addresses[family]}/{LENGTH[family]}"
                namespace.ip("addr", "add", address, "dev", name, *NODAD[family])
            namespace.ip("link", "set", name, "up")

    @contextlib.contextmanager
    def tun(self, plan: CapturePlan) -> Iterator[Device]:
        """The TUN device of ``plan``, configured."""
        with Tun.open(plan.tun, offload=False, tap=plan.tap) as tun:
            configure_link(plan.tun, mtu=1500, addresses=plan.tun_addresses, tap=plan.tap)
            yield Device(tun)


@contextlib.contextmanager
def inside(group: Cgroup) -> Iterator[None]:
    """The test process is in ``group``; sockets of cgroup v2 belong to where they were made."""
    home = next(
        line.split(":", 2)
        for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::" if group.hierarchy.version == 2 else tuple("123456789"))
        and (group.hierarchy.version == 2 or "net_cls" in line)
    )[2]
    group.add(os.getpid())
    try:
        yield
    finally:
        procs = group.hierarchy.mount / home.strip("/\n") / "cgroup.procs"
        procs.write_text(str(os.getpid()))


def snapshot() -> dict[str, str]:
    """All that a capture may change in this network namespace, and our cgroups."""
    found = {
        command: subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout
        for command in (
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "ip -6 route show table all",
            "nft list ruleset",
        )
    }
    for path in sorted(pathlib.Path("/proc/sys/net").glob("ipv[46]/conf/*/*")):
        # Some settings can only be written, or not be read before they are set.
        with contextlib.suppress(OSError):
            found[str(path)] = path.read_text()
    # Tests that run at the same time have others, laboratories whole trees of them; what all share
    # (the bypass) is there as long as one of them needs it. os.walk() does not mind what vanishes.
    ours = str(network_namespace())
    cgroups = [path for path, _, _ in os.walk("/sys/fs/cgroup") if ours in path]
    found["cgroups"] = "\n".join(sorted(cgroups))
    return found


def received(sock: socket.socket) -> tuple[bytes, str]:
    """The next datagram of ``sock`` and the address it came from."""
    data, source = sock.recvfrom(2048)
    return data, str(source[0])


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
