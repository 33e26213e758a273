"""Running asynchronous tests: on both event loops, nothing left running, nothing swallowed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import socket
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

TIMEOUT_S = 60.0


def both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Decorate an ``async def test_...``: it runs with asyncio's loop and with uvloop.

    It fails on exceptions that nobody handled, and on tasks of its own that are still running.
    """

    @functools.wraps(test)
    def wrapper(*args: Any, loop_factory: Callable[[], Any], **kwargs: Any) -> None:
        run(test(*args, **kwargs), loop_factory)

    signature = inspect.signature(test)
    parameter = inspect.Parameter("loop_factory", inspect.Parameter.KEYWORD_ONLY)
    parameters = [*signature.parameters.values(), parameter]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    mark = pytest.mark.parametrize("loop_factory", loops, ids=["asyncio", "uvloop"])
    marked: Callable[..., None] = mark(wrapper)
    return marked


def run(
    test: Coroutine[Any, Any, None], loop_factory: Callable[[], Any] = asyncio.new_event_loop
) -> None:
    """Run ``test`` to its end, within a minute."""
    problems: list[str] = []

    async def guarded() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(str(context)))
        async with asyncio.timeout(TIMEOUT_S):
            await test
        # Tasks that have been cancelled, and connections being closed, get some turns to end.
        await until(lambda: len(asyncio.all_tasks()) == 1, "all tasks to end")

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(guarded())
    assert not problems, "\n".join(problems)


async def until(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    """Wait for ``condition`` to become true."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"waited {timeout_s} s for {what}")
        await asyncio.sleep(0.005)


async def turns(count: int) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def plain_socket(family: int, kind: int) -> socket.socket:
    """What stands for the supervisor's marked sockets."""
    return socket.socket(family, kind)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def full_listener() -> Iterator[socket.socket]:
    """A listening socket of 127.0.0.1 whose queue is full: the kernel drops further SYNs."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    with listener, socket.create_connection(listener.getsockname()):
        yield listener


class Recorder:
    """A stream handler that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.events: list[str] = []
        self.backlogs: list[int] = []
        self.reset: bool | None = None
        self.stream: Any = None
        """If set, its backlog is noted whenever it is said to have changed."""

    @property
    def eof(self) -> bool:
        return "eof" in self.events

    @property
    def lost(self) -> bool:
        return "lost" in self.events

    def data_received(self, data: bytes) -> None:
        assert not self.lost
        assert not self.eof
        self._note("data")
        self.received += data

    def eof_received(self) -> None:
        assert not self.lost
        self.events.append("eof")

    def backlog_changed(self) -> None:
        assert not self.lost
        if self.stream is not None:
            self.backlogs.append(self.stream.backlog)

    def connection_lost(self, *, reset: bool) -> None:
        assert not self.lost
        self.events.append("lost")
        self.reset = reset

    async def wait(self, event: str) -> None:
        """Wait until ``event`` ("data", "eof" or "lost") has happened."""
        await until(lambda: event in self.events, f"{event}, had {self.events}", 20)

    async def wait_for_octets(self, count: int) -> None:
        """Wait until ``count`` octets were received."""
        await until(lambda: len(self.received) >= count, f"{count} octets", 30)

    def _note(self, event: str) -> None:
        if self.events[-1:] != [event]:
            self.events.append(event)


class Origin:
    """A TCP server of the test: every connection is handed to ``serve`` as two asyncio streams."""

    def __init__(
        self,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.port = port
        self._ssl_context = ssl_context
        self._serve = serve
        self._host = host
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Origin:
        self._server = await asyncio.start_server(
            self._accept, self._host, self.port, backlog=1024, ssl=self._ssl_context
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.transport.abort() if writer.transport.is_closing() else writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, then end as the client ends."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
