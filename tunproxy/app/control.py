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
