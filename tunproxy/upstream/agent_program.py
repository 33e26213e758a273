"""The far half of the agent: relays datagrams and echoes for the program at the other end of stdin.

This file and its neighbours ``agent_*`` that it imports are data: their text is sent over an SSH
connection and run by whatever Python is there. So they keep to what 3.6 knows and to the standard
library, import nothing else of the package, and write no file. ``agent_session`` is the near half.

One loop, and a few threads that look names up. Frames come on standard input and leave on standard
output. Sources end after they were silent for a while, the longest silent first when there are too
many. The process ends with its standard input, with its parent, at the first frame that makes no
sense, or by SIGALRM if its loop stands.
"""

import collections
import json
import os
import selectors
import signal
import socket
import struct
import time

from .agent_echo import Echoes
from .agent_frames import (
    CLOSE,
    CLOSED,
    COUNTERS,
    DATA,
    DATA_WHOLE,
    DATAGRAM,
    ECHO,
    ECHO_ERROR,
    FORGET,
    FRAME,
    HOST_UNREACHABLE,
    MAX_FRAME,
    NOBODY,
    NUMBERS,
    OPEN,
    REPORT,
    TARGET,
    BrokenFrame,
    frame,
)
from .agent_kernel import IS_LINUX, VERSION, family_of, has_udp
from .agent_names import Names, Target
from .agent_output import Output
from .agent_source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_SOURCES = 4096
MAX_TARGETS = 16384
IN_SIZE = 256 * 1024
LOOK_S = 5.0
HUNG_S = 120
"""A turn of the loop takes milliseconds."""
PR_SET_PDEATHSIG = 1


class Relay:
    """The process: its loop, and what all sources share."""

    def __init__(self, stdin: int, stdout: int) -> None:
        self.counters = collections.Counter()  # type: collections.Counter[str]
        self.now = time.monotonic()
        self.selector = selectors.DefaultSelector()
        self.output = Output(stdout, self)
        self.names = Names(self)
        self.sources = collections.OrderedDict()  # type: collections.OrderedDict[int, Source]
        self.targets = {}  # type: dict[int, Target]
        self.echoes = {}  # type: dict[int, Echoes]
        self.families = [f for f in (socket.AF_INET, socket.AF_INET6) if has_udp(f)]
        for family in (socket.AF_INET, socket.AF_INET6):
            echoes = Echoes.start(self, family)
            if echoes is not None:
                self.echoes[family] = echoes
        self.stdin = stdin
        self.rest = b""
        self.parent = os.getppid()
        self.look_at = self.now
        self.reported = {}  # type: dict[str, int]

    def run(self) -> None:
        """Relay until standard input ends.

        Raises:
            BrokenFrame: also struct.error and UnicodeError: the near side is not ours.
            BrokenPipeError: nobody reads what we say.
        """
        os.set_blocking(self.stdin, False)
        self.selector.register(self.stdin, selectors.EVENT_READ, self.read_frames)
        features = ["udp" + VERSION[family] for family in self.families]
        features += ["ping" + VERSION[family] for family in self.echoes]
        self.output.put(" ".join(["TUNPROXY-AGENT 1", *features, "\n"]).encode())
        while self.stdin >= 0:
            if self.now >= self.look_at:
                self.look_around()
            self.output.flush()
            for key, _ in self.selector.select(max(0.0, self.look_at - self.now)):
                self.now = time.monotonic()
                key.data()
            self.now = time.monotonic()

    def look_around(self) -> None:
        """What has to be done from time to time."""
        if os.getppid() != self.parent:
            os._exit(0)
        signal.alarm(HUNG_S)
        self.look_at = self.now + LOOK_S
        for source in list(self.sources.values()):
            if source.last + source.patience < self.now:
                self.end(source, "idle")
            elif source.last + 2 * LOOK_S > self.now:
                source.count_lost()
        for echoes in self.echoes.values():
            echoes.expire()
        if self.counters != self.reported:
            self.report()

    def report(self) -> None:
        self.reported = dict(self.counters)
        self.output.put(frame(COUNTERS, json.dumps(self.reported).encode()))

    def end(self, source: Source, reason: str) -> None:
        """Close ``source`` on our own account."""
        self.counters["closed_" + reason] += 1
        self.output.put(frame(CLOSED, struct.pack(">I", source.number)))
        self.drop(source)

    def drop(self, source: Source) -> None:
        del self.sources[source.number]
        source.close()

    def make_room(self, but: Source) -> bool:
        """Close the source that was silent the longest; descriptors are short."""
        for source in self.sources.values():
            if source is not but and source.sockets:
                self.end(source, "evicted")
                return True
        return False

    def watch_output(self, blocked: bool) -> None:
        """Wake up when standard output takes more; the loop writes in every turn."""
        if blocked:
            self.selector.register(self.output.stdout, selectors.EVENT_WRITE, lambda: None)
        else:
            self.selector.unregister(self.output.stdout)

    # Frames

    def read_frames(self) -> None:
        try:
            data = os.read(self.stdin, IN_SIZE)
        except BlockingIOError:
            return
        if not data:
            self.stdin = -1
            return
        data = self.rest + data
        view = memoryview(data)
        at, end, sources = 0, len(data), self.sources
        while end - at >= FRAME.size:
            length, kind = FRAME.unpack_from(data, at)
            if not 0 < length <= MAX_FRAME:
                raise BrokenFrame(f"{length} octets in a frame")
            behind = at + 4 + length
            if behind > end:
                break
            if kind in (DATA, DATA_WHOLE):
                number, target = NUMBERS.unpack_from(data, at + FRAME.size)
                source = sources.get(number)
                if source is None:
                    self.counters["no_source"] += 1
                else:
                    source.send(target, view[at + DATAGRAM.size : behind], kind == DATA_WHOLE)
            else:
                self.handle(kind, data[at + FRAME.size : behind])
            at = behind
        self.rest = data[at:]

    def handle(self, kind: int, body: bytes) -> None:
        """Do what a frame that is no datagram asks for."""
        if kind == REPORT:
            for source in self.sources.values():
                source.count_lost()
            self.report()
            return
        number = struct.unpack_from(">I", body)[0]
        if kind == OPEN:
            self.open(number, *body[4:5])
        elif kind == CLOSE:
            if number in self.sources:
                self.drop(self.sources[number])
        elif kind == TARGET:
            if len(self.targets) >= MAX_TARGETS:
                raise BrokenFrame("too many targets")
            port = struct.unpack_from(">H", body, 4)[0]
            self.targets[number] = Target(body[6:].decode("utf-8"), port)
        elif kind == FORGET:
            self.targets.pop(number, None)
        elif kind == ECHO:
            target, hops, version = struct.unpack_from(">IBB", body, 4)
            if not hops:
                raise BrokenFrame("an echo without a hop limit")
            self.echo(number, target, hops, version, body[10:])
        else:
            raise BrokenFrame(f"a frame of type {kind}")

    def open(self, number: int, version: int = 0) -> None:
        if number in self.sources:
            raise BrokenFrame("a source is opened twice")
        if len(self.sources) >= MAX_SOURCES:
            self.end(next(iter(self.sources.values())), "evicted")
        self.sources[number] = Source(self, number, version)

    def echo(self, number: int, target: int, hops: int, version: int, payload: bytes) -> None:
        """``version``: of IP, 0 for any."""

        def send(addresses: "list[Any]") -> None:
            for address in addresses:
                family = family_of(address)
                if family in self.echoes and version in (0, int(VERSION[family])):
                    self.echoes[family].send(number, address, hops, payload)
                    return
            self.counters["echo_no_address"] += 1
            self.echo_error(number, HOST_UNREACHABLE)

        if target in self.targets:
            self.names.find(self.targets[target], len(payload), send)
        else:
            self.counters["no_target"] += 1

    def echo_error(self, number: int, kind: int, mtu: int = 0, by: bytes = NOBODY) -> None:
        self.output.put(frame(ECHO_ERROR, struct.pack(">IBI16s", number, kind, mtu, by)))


def die_with_parent() -> None:
    """Have the kernel kill us when sshd's process ends; the loop looks as well."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return


def allow_descriptors() -> None:
    """As many as we may have."""
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ImportError, OSError, ValueError):
        return


def main() -> None:
    allow_descriptors()
    relay = Relay(0, 1)
    if IS_LINUX:
        die_with_parent()
    try:
        relay.run()
    except BrokenPipeError:
        os._exit(0)
    except (BrokenFrame, struct.error, UnicodeError) as error:
        os.write(2, f"a broken frame: {error}\n".encode("utf-8", "replace"))
        os._exit(3)
    # Threads may hang in a lookup: nobody waits for them.
    os._exit(0)
