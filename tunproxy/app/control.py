"""The control socket: how ``status`` and its like ask a running engine.

One JSON object per line each way: ``{"cmd": "status"}`` is answered by ``{"result": ...}`` or by
``{"error": "one sentence"}``. Only root and the user the engine runs as are heard (SO_PEERCRED,
unix(7)), whatever the mode of the socket file says.

Limits: a request line of 4 KiB, 16 clients, 30 s of silence. Who does not read the answers is not
read from either.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import inspect
import logging
import os
import pathlib
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import msgspec

from tunproxy.errors import TunproxyError
from tunproxy.ipnet_codec import enc_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

_log = logging.getLogger(__name__)

Handler: TypeAlias = "Callable[[dict[str, object]], object]"
"""Takes the request, returns what msgspec can encode, or a coroutine that does so; TunproxyError
becomes the error answer."""

MAX_REQUEST_LEN = 4096
MAX_CLIENTS = 16
IDLE_S = 30.0
MAX_ANSWER_LEN = 64 << 20
"""Octets a client of ours takes: 16 Ki flows with all their fields are a tenth of it."""


class Direction(msgspec.Struct, frozen=True, kw_only=True):
    """What has gone one way over a link."""

    packets: int
    octets: int
    drops: dict[str, int]
    """Packets that were dropped, by reason."""


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the link of ``tunproxy vpn`` is."""

    local: tuple[str, ...]
    """Its addresses, as ``10.74.0.2/24``."""
    mtu: int
    """Octets."""
    big: bool
    """Super-segments cross it as they are."""
    up: Direction
    """From this machine to the server."""
    down: Direction


class ClientStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A client of a hub."""

    key: str
    """The fingerprint of its key."""
    addresses: tuple[str, ...]
    up: Direction
    """From the client to the hub."""
    down: Direction
    """From the hub to the client."""


class HubStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the hub of ``tunproxy serve`` is."""

    kind: str
    """``tun`` or ``tap``."""
    local: tuple[str, ...]
    """Its own addresses, as ``10.74.0.1/24``."""
    mtu: int
    """Octets."""
    isolate: bool
    """Clients do not reach each other."""
    up: Direction
    """From the clients to the device."""
    down: Direction
    """From the device to the clients."""
    clients: tuple[ClientStatus, ...]
    """Who is here."""


class RuleHits(msgspec.Struct, frozen=True, kw_only=True):
    """How often a rule has decided."""

    rule: str
    """As written."""
    place: str
    """``file:line``."""
    hits: int


class Reloaded(msgspec.Struct, frozen=True, kw_only=True):
    """What has come of ``reload``."""

    rules: int
    """How many are in force."""
    restart: tuple[str, ...]
    """The sections of the config that have changed and are not in force before a restart."""
    error: str | None = None
    """What is wrong with the config or its rules; then everything is as it was."""


class ServerDatagrams(msgspec.Struct, frozen=True, kw_only=True):
    """What carries datagrams through another server than the first."""

    name: str
    """What rules call it."""
    udp: str
    """As in :class:`Status`; ``unknown`` before anything is sent there."""
    reason: str
    """Why there is none."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of itself."""

    version: str
    pid: int
    tun: str
    """Name of the device."""
    mode: str
    """``system``, ``cgroup``, ``vpn`` or ``hub``. The last two have no flows and ask no names: all
    zero."""
    stack: str
    """Who terminates TCP."""
    offload: bool
    """The TUN carries super-segments."""
    server: str
    """The SSH server, as the user named it; where a hub listens."""
    state: str
    """How the connection to it stands: ``connecting``, ``up``, ``down`` or ``closed``."""
    cipher: str | None
    """Of the SSH connection; ``None`` while there is none."""
    uptime_s: float
    reconnects: int
    connections: int = 1
    """SSH connections to the server that are up."""
    flows: int = 0
    """Open ones."""
    flows_total: int = 0
    """Opened since the start."""
    refused: dict[str, int] = {}
    """Flows that could not be opened, by kind."""
    bytes_up: int = 0
    """Payload octets from the applications to the servers."""
    bytes_down: int = 0
    dns_queries: int = 0
    dns_split: list[str] = []
    """The domains whose names alone are answered here; empty: all are."""
    counters: dict[str, int]
    """Drops and other rare events, by reason."""
    rss_bytes: int
    """Resident memory of the engine."""
    path: str | None = None
    """Which code the connection's data takes: ``fast: CIPHER``, or ``stock: REASON``."""
    udp: str = "reject"
    """What carries datagrams through the server: ``agent``, or ``reject`` for none. A VPN carries
    them like everything else."""
    udp_reason: str = ""
    """Why there is none."""
    udp_servers: list[ServerDatagrams] = []
    """The same of the other servers."""
    rules: list[RuleHits] = []
    """Those that have decided most often since they were read, in their order."""
    link: LinkStatus | None = None
    """Of a VPN, once it has one."""
    hub: HubStatus | None = None


class DnsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A resource record, for people."""

    name: str
    ttl: int
    """Seconds."""
    type: str
    data: str


class Queried(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a query."""

    name: str
    type: str
    rcode: str
    answers: tuple[DnsRecord, ...]
    kind: str
    """``fake``, ``cached``, ``forwarded``, or ``local``: we know it without asking."""
    server: str | None
    """Who was asked, where it was forwarded."""
    why: str
    """What has decided that."""
    ms: float
    """Milliseconds that it took."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a name is answered with at once."""

    name: str
    type: str
    kind: str
    """``fake`` or ``cached``."""
    value: str
    ttl: int | None
    """Seconds; ``None``: a fake address has none."""


class ControlServer:
    """Answers requests on a listening unix socket, inside the running event loop.

    ``handlers`` maps a command to what answers it. ``owner`` is the uid that is heard beside root.
    """

    def __init__(
        self, sock: socket.socket, handlers: Mapping[str, Handler], owner: int | None = None
    ) -> None:
        self._sock = sock
        self._handlers = handlers
        self._owner = os.geteuid() if owner is None else owner
        self._server: asyncio.Server | None = None
        self._clients: set[_Client] = set()
        self._counters: collections.Counter[str] = collections.Counter()

    async def start(self) -> None:
        """Begin to answer."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Client(self), sock=self._sock)

    def close(self) -> None:
        """Stop, and hang up on everyone."""
        if self._server is not None:
            self._server.close()
        for client in tuple(self._clients):
            client.hang_up()

    def statistics(self) -> dict[str, int]:
        """Return how many requests were answered, and clients turned away, by reason."""
        return dict(self._counters)

    def admit(self, client: _Client, uid: int) -> str | None:
        """Take ``client`` in; or return why not."""
        if uid not in (0, self._owner):
            self._counters["control_not_permitted"] += 1
            return "only root and the user that tunproxy runs as may ask"
        if len(self._clients) >= MAX_CLIENTS:
            self._counters["control_too_many_clients"] += 1
            return "too many clients are asking at once, try again"
        self._clients.add(client)
        return None

    def forget(self, client: _Client) -> None:
        """``client`` is gone."""
        self._clients.discard(client)

    def answer(self, line: bytes) -> bytes | Coroutine[Any, Any, bytes]:
        """Return the answer to one request line, or what waits for it."""
        try:
            request = msgspec.json.decode(line, type=dict[str, object])
            handler = self._handlers.get(str(request.get("cmd")))
            if handler is None:
                known = ", ".join(sorted(self._handlers))
                return self._error("control_bad_request", f"unknown cmd, known are: {known}")
            result = handler(request)
            return self._wait(result) if inspect.iscoroutine(result) else self._encode(result)
        except msgspec.DecodeError:
            return self._error("control_bad_request", "the request is not a JSON object")
        except Exception as error:
            return self._failed(error)

    async def _wait(self, result: Coroutine[Any, Any, object]) -> bytes:
        try:
            return self._encode(await result)
        except Exception as error:
            return self._failed(error)

    def _encode(self, result: object) -> bytes:
        encoded = msgspec.json.encode({"result": result}, enc_hook=enc_hook)
        self._counters["control_answered"] += 1
        return encoded

    def _failed(self, error: Exception) -> bytes:
        if isinstance(error, TunproxyError):
            return self._error("control_failed", str(error))
        # A defect in a handler is no reason to take every flow down with it.
        _log.error("control request failed", exc_info=error)
        return self._error("control_defect", "internal error, see the log of tunproxy")

    def _error(self, counter: str, text: str) -> bytes:
        self._counters[counter] += 1
        return msgspec.json.encode({"error": text})


class _Client(asyncio.Protocol):
    """One connection to the control socket."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._paused = False
        self._waiting: asyncio.Task[None] | None = None
        """For an answer: the next request has to wait, too."""
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        refusal = self._server.admit(self, _peer_uid(transport.get_extra_info("socket")))
        if refusal is not None:
            self._fail(refusal)
            return
        self._watch_idle()

    def data_received(self, data: bytes) -> None:
        self._watch_idle()
        self._buffer += data
        self._answer_lines()

    def pause_writing(self) -> None:
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._go_on()

    def _go_on(self) -> None:
        """Answer what has come meanwhile, then read again."""
        self._answer_lines()
        if self._transport is not None and not self._paused and self._waiting is None:
            self._transport.resume_reading()

    def _answer_lines(self) -> None:
        """Answer the whole lines in the buffer, as long as the answers are taken."""
        while self._transport is not None and not self._transport.is_closing():
            if self._paused or self._waiting is not None:
                return
            line, newline, rest = self._buffer.partition(b"\n")
            if len(line) > MAX_REQUEST_LEN:
                self._fail("the request is too long")
                return
            if not newline:
                return
            self._buffer = rest
            answer = self._server.answer(line)
            if isinstance(answer, bytes):
                self._transport.write(answer + b"\n")
            else:
                loop = asyncio.get_running_loop()
                self._waiting = loop.create_task(self._answer_later(answer), name="control request")
                self._transport.pause_reading()

    async def _answer_later(self, waited: Coroutine[Any, Any, bytes]) -> None:
        answer = await waited
        self._waiting = None
        if self._transport is not None:
            self._transport.write(answer + b"\n")
            self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle is not None:
            self._idle.cancel()
        if self._waiting is not None:
            self._waiting.cancel()
        self._server.forget(self)
        self._transport = None

    def hang_up(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, text: str) -> None:
        if self._transport is not None:
            self._transport.write(msgspec.json.encode({"error": text}) + b"\n")
            self._transport.close()

    def _watch_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self.hang_up)


def _peer_uid(sock: socket.socket) -> int:
    credentials = struct.Struct("3i")  # struct ucred: pid, uid, gid
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    uid: int = credentials.unpack(raw)[1]
    return uid


def request(
    path: str | os.PathLike[str], cmd: str, timeout: float = 5.0, **fields: object
) -> object:
    """Ask the engine whose control socket is ``path``; wait ``timeout`` seconds at most.

    ``fields`` go with the command.

    Raises:
        TunproxyError: it does not run, does not answer, may not be asked, or says no.
    """
    name = pathlib.Path(path).name
    try:
        line = _exchange(
            os.fspath(path), msgspec.json.encode({"cmd": cmd, **fields}) + b"\n", timeout
        )
    except (FileNotFoundError, ConnectionRefusedError):
        raise TunproxyError(f"nothing answers at {path}: tunproxy is not running") from None
    except PermissionError:
        raise TunproxyError(
            f"{path} is not yours: ask as root or as the user that tunproxy runs as"
        ) from None
    except TimeoutError:
        raise TunproxyError(f"{path} did not answer within {timeout:g} s") from None
    except OSError as error:
        raise TunproxyError(f"{path} cannot be asked: {error.strerror or error}") from None
    try:
        answer = msgspec.json.decode(line, type=dict[str, object])
    except msgspec.DecodeError:
        raise TunproxyError(f"{path} gave an answer that is not JSON") from None
    if "error" in answer:
        raise TunproxyError(f"{name}: {answer['error']}")
    return answer.get("result")


def status_of(answer: object) -> Status:
    """Read the answer to ``status``.

    Raises:
        TunproxyError: it is from a version that says other things.
    """
    try:
        return msgspec.convert(answer, Status)
    except msgspec.ValidationError:
        raise TunproxyError(
            "another version of tunproxy runs: ask it with its own command, or with --json"
        ) from None


def _exchange(path: str, question: bytes, timeout: float) -> bytes:
    """Send one line and return the line that comes back."""
    deadline = time.monotonic() + timeout
    answer = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(path)
        # A server that turns us away may have closed already; its reason is there to be read.
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(question)
        while not answer.endswith(b"\n"):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            sock.settimeout(remaining)
            data = sock.recv(1 << 16)
            if not data:
                raise ConnectionResetError("it closed the connection")
            answer += data
            if len(answer) > MAX_ANSWER_LEN:
                raise OSError("the answer is too long")
    return bytes(answer)
