"""The running program as its raw peers see it: addresses, targets, and what it says of itself."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

from tests.helpers import packets
from tests.helpers.lab import ORIGIN4, ORIGIN6, UNROUTED4, UNROUTED6
from tests.helpers.packets import Ends
from tests.helpers.wire_peer import Peer, padded

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tests.helpers.lab import Lab
    from tests.helpers.wire import Wire

NEAR4, NEAR6 = "10.99.0.2", "fd99::2"
"""Whom the tests play; no host has these addresses."""


def ends_of(near: str, far: str) -> Ends:
    """A pair of literal addresses."""
    family = socket.AF_INET6 if ":" in near else socket.AF_INET
    src, dst = (socket.inet_pton(family, text) for text in (near, far))
    return Ends(4 if len(src) == 4 else 6, src, dst, 20 if len(src) == 4 else 40)


UNROUTED = {4: ends_of(NEAR4, UNROUTED4), 6: ends_of(NEAR6, UNROUTED6)}
ENDS = {4: ends_of(NEAR4, ORIGIN4), 6: ends_of(NEAR6, ORIGIN6)}
"""The initiator and the origin, by family; and a target that the server has no route to."""


def expect_no_icmp(wire: Wire, ends: Ends) -> None:
    """No error, and nothing else of ICMP, answers what was sent."""
    wire.barrier()
    found = wire.pending(
        lambda heard: heard.protocol in (packets.ICMP, packets.ICMPV6) and heard.ip.dst == ends.src
    )
    assert found == []


class Status:
    """What the running program says of itself, asked at its control socket as ``status`` does."""

    def __init__(self, path: pathlib.Path, wire: Wire) -> None:
        self._path = path
        self._wire = wire

    def __call__(self) -> dict[str, Any]:
        """The present status, with everything counted that was sent before."""
        self._wire.barrier()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(20)
            sock.connect(str(self._path))
            sock.sendall(b'{"cmd": "status"}\n')
            answer = b""
            while not answer.endswith(b"\n"):
                answer += sock.recv(1 << 16)
        result = json.loads(answer)["result"]
        assert isinstance(result, dict)
        return result

    def counter(self, name: str) -> int:
        """How often the program has counted ``name``."""
        return int(self()["counters"].get(name, 0))

    @contextlib.contextmanager
    def counts(self, name: str, times: int = 1) -> Iterator[None]:
        """What happens inside is counted ``times`` times as ``name``."""
        before = self.counter(name)
        yield
        after = self()["counters"]
        assert after.get(name, 0) - before == times, (name, after)


class Dialler:
    """Opens connections to targets that the test holds the other end of."""

    def __init__(self, lab: Lab, wire: Wire, ends: Ends, stack: contextlib.ExitStack) -> None:
        self.wire = wire
        self.ends = ends
        self._lab = lab
        self._stack = stack

    def listener(self, receive_buffer: int | None = None) -> socket.socket:
        """A target of its own that listens at the origin; ``receive_buffer`` in octets."""
        address = ORIGIN4 if self.ends.version == 4 else ORIGIN6
        listener = self._stack.enter_context(self._lab.origin.listen(address))
        if receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listener.settimeout(20)
        return listener

    def accept(self, listener: socket.socket) -> socket.socket:
        """The next connection of ``listener``."""
        accepted, _ = listener.accept()
        accepted.settimeout(20)
        return self._stack.enter_context(accepted)

    def peer(self, target_port: int, **fields: Any) -> Peer:
        """An initiator that has said nothing yet."""
        return Peer(self.wire, self.ends, target_port, **fields)

    def unrouted_peer(self) -> Peer:
        """An initiator whose target the server has no route to."""
        ends = UNROUTED[self.ends.version]
        return Peer(self.wire, ends, 80)

    def __call__(
        self,
        options: bytes = b"",
        *,
        iss: int = 0x10000000,
        win: int = 0xFFFF,
        tsval: int | None = None,
        receive_buffer: int | None = None,
    ) -> tuple[Peer, socket.socket]:
        """An established connection: its initiator, and the target's socket.

        ``options`` are the SYN's; ``win`` is the window that the initiator offers; ``tsval`` its
        clock if it offers timestamps.
        """
        listener = self.listener(receive_buffer)
        peer = self.peer(listener.getsockname()[1], iss=iss)
        peer.win = win
        peer.tsval = tsval
        peer.open(padded(options + peer.own_timestamps()))
        peer.send("A")
        return peer, self.accept(listener)
