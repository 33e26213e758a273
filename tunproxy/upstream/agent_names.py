"""Names, looked up on the server by its own resolver, in threads."""

import collections
import os
import queue
import selectors
import socket
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .agent_program import Relay

NAME_S = 60.0
BAD_NAME_S = 5.0
MAX_NAMES = 4096
MAX_LOOKUPS = 512
MAX_WAITING = 1024 * 1024
"""Octets that wait for names."""
WAITING_BYTES = 256
"""What one that waits costs beside its payload."""
RESOLVERS = 16


class Target:
    """Where datagrams go: a name or a literal address, and a port."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.literal = None  # type: Any
        try:
            flags = socket.AI_NUMERICHOST
            found = socket.getaddrinfo(host, port, 0, socket.SOCK_DGRAM, 0, flags)
            self.literal = [found[0][4]]
        except (OSError, ValueError):
            return  # a name

    def addresses(self, found: "list[Any]") -> "list[Any]":
        """``found`` with our port."""
        return [(address[0], self.port, *address[2:]) for address in found]


class Name:
    """What is known of a name, or who waits for it."""

    def __init__(self) -> None:
        self.found = []  # type: list[Any]
        self.expires_at = 0.0
        self.pending = True
        self.waiting = collections.deque()  # type: collections.deque[Any]
        """Target, size and action of each."""


class Names:
    """Looks names up in threads, and remembers them for a minute."""

    def __init__(self, relay: "Relay") -> None:
        self.relay = relay
        self.known = collections.OrderedDict()  # type: collections.OrderedDict[str, Name]
        self.lookups = 0
        self.waiting = 0
        """Octets."""
        self.threads = 0
        self.wanted = queue.Queue()  # type: queue.Queue[str]
        self.done = collections.deque()  # type: collections.deque[Any]
        self.awake, self.wake = os.pipe()
        os.set_blocking(self.wake, False)
        relay.selector.register(self.awake, selectors.EVENT_READ, self.collect)

    def find(self, target: Target, size: int, action: "Callable[[list[Any]], None]") -> None:
        """Call ``action`` with the addresses of ``target``, at once or later; ``size``: what it
        keeps in memory."""
        if target.literal is not None:
            action(target.literal)
            return
        name = self.known.get(target.host)
        if name is not None and not name.pending and name.expires_at > self.relay.now:
            action(target.addresses(name.found))
            return
        if name is None or not name.pending:
            if self.lookups >= MAX_LOOKUPS:
                self.relay.counters["resolver_full"] += 1
                return
            name = self.look_up(target.host)
        size += WAITING_BYTES
        name.waiting.append((target, size, action))
        self.waiting += size
        while self.waiting > MAX_WAITING and name.waiting:
            self.waiting -= name.waiting.popleft()[1]
            self.relay.counters["dropped_waiting"] += 1

    def look_up(self, host: str) -> Name:
        self.known.pop(host, None)
        if len(self.known) >= MAX_NAMES:
            del self.known[next(h for h, name in self.known.items() if not name.pending)]
        name = self.known[host] = Name()
        self.lookups += 1
        if self.lookups > self.threads and self.threads < RESOLVERS:
            self.threads += 1
            threading.Thread(target=self.resolve, daemon=True).start()
        self.wanted.put(host)
        return name

    def resolve(self) -> None:
        """One of the threads."""
        while True:
            host = self.wanted.get()
            try:
                infos = socket.getaddrinfo(host, None, 0, socket.SOCK_DGRAM)
            except (OSError, ValueError):
                infos = []
            self.done.append((host, [info[4] for info in infos]))
            try:
                os.write(self.wake, b"\0")
            except BlockingIOError:
                continue  # the pipe is full of the same news

    def collect(self) -> None:
        """Threads have found something."""
        os.read(self.awake, 4096)
        while self.done:
            host, found = self.done.popleft()
            name = self.known[host]
            name.found = found
            name.pending = False
            name.expires_at = self.relay.now + (NAME_S if found else BAD_NAME_S)
            self.lookups -= 1
            while name.waiting:
                target, size, action = name.waiting.popleft()
                self.waiting -= size
                action(target.addresses(found))
