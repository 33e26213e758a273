"""The far half of the agent, run by a real Python and spoken to frame by frame."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import pathlib
import re
import select
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tests.helpers.netns import Namespace
from tunproxy.upstream import agent_bundle
from tunproxy.upstream import agent_frames as frames

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEADLINE_S = 15.0
_HEAD = struct.Struct(">IB")


def changed(*replacements: tuple[str, str], **constants: object) -> bytes:
    """The program, with other values of some constants, and other changes of its text."""
    parts = {name: agent_bundle.part(name) for name in agent_bundle.PARTS}
    for name, value in constants.items():
        _change(parts, rf"^{name} = .*$", f"{name} = {value}")
    for before, after in replacements:
        _change(parts, re.escape(before), after)
    return agent_bundle.assembled(parts)


def _change(parts: dict[str, str], pattern: str, after: str) -> None:
    """Replace the one match of ``pattern`` in all ``parts``."""
    found = [name for name, text in parts.items() if re.search(pattern, text, re.MULTILINE)]
    assert len(found) == 1, (pattern, found)
    text, count = re.subn(pattern, lambda _: after, parts[found[0]], flags=re.MULTILINE)
    assert count == 1, pattern
    parts[found[0]] = text


class FarHalf:
    """A running agent program; use as a context manager."""

    def __init__(
        self,
        *,
        prefix: Sequence[str] = (),
        python: str = sys.executable,
        program: bytes | None = None,
    ) -> None:
        """``prefix`` is put before the command; ``program`` is what :func:`changed` has made."""
        command = [*prefix, python, "-BIS", "-c", agent_bundle.BOOTSTRAP]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._received = b""
        self._targets = 0
        self.frames: list[tuple[int, bytes]] = []
        """What has come and was not asked for yet."""
        self.write(program or agent_bundle.BUNDLE)
        while b"\n" not in self._received:
            self._read()
        greeting, _, self._received = self._received.partition(b"\n")
        magic, version, *features = greeting.decode().split()
        assert (magic, version) == ("TUNPROXY-AGENT", "1")
        self.features = set(features)

    def __enter__(self) -> FarHalf:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        self.process.wait()

    def write(self, octets: bytes) -> None:
        while octets:
            octets = octets[os.write(self._in, octets) :]

    def ended(self) -> tuple[int, str]:
        """Wait for its end: exit status, and what it has said."""
        status = self.process.wait(DEADLINE_S)
        assert self.process.stderr is not None
        return status, self.process.stderr.read().decode()

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def rss(self) -> int:
        """Its memory, in octets."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def open(self, number: int, version: int | None = None) -> None:
        preference = b"" if version is None else bytes([version])
        self.write(frames.frame(frames.OPEN, struct.pack(">I", number) + preference))

    def close(self, number: int) -> None:
        self.write(frames.frame(frames.CLOSE, struct.pack(">I", number)))

    def target(self, host: str, port: int) -> int:
        """Define a target; return its number."""
        self._targets += 1
        body = struct.pack(">IH", self._targets, port) + host.encode()
        self.write(frames.frame(frames.TARGET, body))
        return self._targets

    def send(self, source: int, target: int, payload: bytes, *, whole: bool = False) -> None:
        kind = frames.DATA_WHOLE if whole else frames.DATA
        self.write(frames.frame(kind, struct.pack(">II", source, target) + payload))

    def echo(self, number: int, target: int, payload: bytes, hops: int = 64, v: int = 0) -> None:
        body = struct.pack(">IIBB", number, target, hops, v) + payload
        self.write(frames.frame(frames.ECHO, body))

    def next(self, *kinds: int) -> tuple[int, bytes]:
        """The next frame of one of ``kinds``; others are kept."""
        while True:
            for at, (kind, _) in enumerate(self.frames):
                if kind in kinds:
                    return self.frames.pop(at)
            self._read()
            self._cut()

    def received(self) -> tuple[int, int, bytes]:
        """The next datagram of a target: source, target, payload."""
        _, body = self.next(frames.RECEIVED)
        return *struct.unpack_from(">II", body), body[8:]

    def stranger(self) -> tuple[int, str, int, bytes]:
        """The next datagram of anybody else: source, address, port, payload."""
        _, body = self.next(frames.RECEIVED_FROM)
        source, port, packed = struct.unpack_from(">IH16s", body)
        return source, unpacked(packed), port, body[22:]

    def error(self) -> tuple[int, int, int, int]:
        """The next error: source, target, kind, MTU."""
        _, body = self.next(frames.ERROR)
        source, target, kind, mtu = struct.unpack_from(">IIBI", body)
        return source, target, kind, mtu

    def echo_error(self) -> tuple[int, int, int, str]:
        """The next error of an echo: its number, kind, MTU, who says so."""
        _, body = self.next(frames.ECHO_ERROR)
        number, kind, mtu, packed = struct.unpack(">IBI16s", body)
        return number, kind, mtu, unpacked(packed)

    def counters(self) -> dict[str, int]:
        """As they are. Reports that had come before are forgotten."""
        self.write(frames.frame(frames.REPORT, b""))
        # A report of its own accord may be under way: only an answer comes after a second one.
        counters: dict[str, int] = json.loads(self.next(frames.COUNTERS)[1])
        return counters

    def _cut(self) -> None:
        while len(self._received) >= _HEAD.size:
            length, kind = _HEAD.unpack_from(self._received)
            if len(self._received) < 4 + length:
                return
            self.frames.append((kind, self._received[_HEAD.size : 4 + length]))
            self._received = self._received[4 + length :]

    def _read(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        if not select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError("the agent program says nothing")
        octets = os.read(self._out, 1 << 20)
        if not octets:
            raise AssertionError(f"the agent program has ended: {self.ended()}")
        self._received += octets


def unpacked(packed: bytes) -> str:
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)


@contextlib.contextmanager
def bound(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A UDP socket of the test."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.settimeout(10)
        yield sock


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


class Road:
    """::

    server ---- router ---- far

    The last link takes 1,300 octets; use as a context manager."""

    def __init__(self) -> None:
        self.server, self.router, self.far = map(Namespace, ("server", "router", "far"))
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Road:
        for namespace in (self.server, self.router, self.far):
            self._stack.enter_context(namespace)
        self.link(self.server, "10.1.0.2", "fd01::2", "10.1.0.1", "fd01::1", "left", 1500)
        self.link(self.far, "10.2.0.2", "fd02::2", "10.2.0.1", "fd02::1", "right", 1300)
        with self.router.entered():
            for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                with open(f"/proc/sys/net/{name}", "w") as file:
                    file.write("1")
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def link(
        self, host: Namespace, ip4: str, ip6: str, via4: str, via6: str, device: str, mtu: int
    ) -> None:
        router = self.router
        router.ip("link", "add", device, "type", "veth", "peer", "eth0", "netns", host.name)
        for namespace, name, address4, address6 in (
            (host, "eth0", ip4, ip6),
            (router, device, via4, via6),
        ):
            namespace.ip("addr", "add", f"{address4}/24", "dev", name)
            namespace.ip("addr", "add", f"{address6}/64", "dev", name)
            namespace.ip("link", "set", name, "up")
        router.ip("link", "set", device, "mtu", str(mtu))
        host.ip("route", "add", "default", "via", via4)
        host.ip("-6", "route", "add", "default", "via", via6)

    def program(self, *, who: str = "root") -> FarHalf:
        prefix = ["nsenter", f"--net={self.server.path}"]
        if who != "root":
            prefix += ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        return FarHalf(prefix=prefix, python="/usr/bin/python3")

    def let_ping(self, groups: str) -> None:
        """Let the members of ``groups``, a range, use ping sockets on the server (icmp(7))."""
        with self.server.entered(), open("/proc/sys/net/ipv4/ping_group_range", "w") as file:
            file.write(groups)
