"""The engine's requests, and the supervisor's answers, in every order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.aio import both_loops, turns, until
from tunproxy.app import broker as broker_module
from tunproxy.app import ipc
from tunproxy.app.broker import Broker
from tunproxy.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Setup:
    """A broker, and the supervisor's end of its link."""

    def __init__(self) -> None:
        self.supervisor, theirs = ipc.pair()
        self.engine = ipc.engine_link(theirs)
        self.broker = Broker(self.engine, asyncio.get_running_loop())
        self.asking: list[asyncio.Task[Any]] = []

    def want_socket(self) -> asyncio.Task[socket.socket]:
        task = asyncio.get_running_loop().create_task(
            self.broker.make_socket(socket.AF_INET, socket.SOCK_STREAM), name="want socket"
        )
        self.asking.append(task)
        return task

    def want_ping_socket(self, family: int) -> asyncio.Task[socket.socket]:
        task = asyncio.get_running_loop().create_task(
            self.broker.make_ping_socket(family), name="want ping socket"
        )
        self.asking.append(task)
        return task

    def want_owners(self, *inodes: int) -> asyncio.Task[tuple[dict[int, str], dict[int, str]]]:
        task = asyncio.get_running_loop().create_task(
            self.broker.owners(inodes, (5,)), name="want owners"
        )
        self.asking.append(task)
        return task

    def ask(self, prompt: str) -> asyncio.Task[str | None]:
        task = asyncio.get_running_loop().create_task(
            self.broker.ask(prompt, echo=False), name="ask"
        )
        self.asking.append(task)
        return task

    async def request(self) -> ipc.ToSupervisor:
        """The next message at the supervisor."""
        found: list[ipc.Received[ipc.ToSupervisor]] = []

        def poll() -> bool:
            with contextlib.suppress(BlockingIOError):
                received = self.supervisor.recv_nowait()
                assert received is not None
                found.append(received)
            return bool(found)

        await until(poll, "a request")
        return found[0].message

    def nothing_asked(self) -> bool:
        """Whether no message is at the supervisor."""
        try:
            self.supervisor.recv_nowait()
        except BlockingIOError:
            return True
        return False

    def answer_socket(self, ask_id: int) -> socket.socket:
        """Send one end of a pair; return the other, which tells when the first is closed."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.supervisor.send(ipc.Socket(ask_id), [theirs.fileno()])
        ours.setblocking(False)
        return ours

    def fill_link(self) -> None:
        """Send until the supervisor's queue takes no more."""
        with contextlib.suppress(ipc.LinkError):
            while True:
                self.broker.connected("ada@example.org", ["192.0.2.1"] * 100)

    async def close(self) -> None:
        self.broker.close()
        for task in self.asking:
            task.cancel()
        await asyncio.gather(*self.asking, return_exceptions=True)
        await turns(3)
        self.supervisor.close()
        self.engine.close()


def brokered(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Decorate a test: it runs on both loops, and what it was given is closed in the end."""

    async def closing(**kwargs: Any) -> None:
        setup = Setup()
        try:
            await test(setup, **kwargs)
        finally:
            await setup.close()

    functools.update_wrapper(closing, test)
    signature = inspect.signature(test)
    fixtures = [each for name, each in signature.parameters.items() if name != "setup"]
    closing.__signature__ = signature.replace(parameters=fixtures)  # type: ignore[attr-defined]
    return both_loops(closing)


async def closed(ours: socket.socket) -> None:
    """Wait until the other end of ``ours`` is closed."""

    def is_closed() -> bool:
        try:
            return ours.recv(1) == b""
        except BlockingIOError:
            return False

    with ours:
        await until(is_closed, "the socket to be closed")


def is_open(ours: socket.socket) -> bool:
    try:
        ours.recv(1)
    except BlockingIOError:
        return True
    return False


@brokered
async def test_a_socket_comes_non_blocking(setup: Setup) -> None:
    task = setup.want_socket()
    request = await setup.request()
    assert request == ipc.WantSocket(1, socket.AF_INET, socket.SOCK_STREAM)
    ours = setup.answer_socket(1)
    with ours, await task as sock:
        assert not sock.getblocking()
        assert not os.get_inheritable(sock.fileno())
        sock.send(b"x")
        assert ours.recv(10) == b"x"


@brokered
async def test_answers_find_their_askers_in_any_order(setup: Setup) -> None:
    first, second = setup.want_socket(), setup.ask("Password: ")
    assert isinstance(await setup.request(), ipc.WantSocket)
    assert await setup.request() == ipc.Ask(2, "Password: ", echo=False)
    setup.supervisor.send(ipc.Answer(2, "secret"))
    assert await second == "secret"
    ours = setup.answer_socket(1)
    with ours, await first:
        pass


@brokered
async def test_what_the_kernel_refuses_is_an_oserror(setup: Setup) -> None:
    task = setup.want_socket()
    await setup.request()
    setup.supervisor.send(ipc.SocketFailed(1, "Too many open files"))
    with pytest.raises(OSError, match="Too many open files"):
        await task


@brokered
async def test_nobody_to_ask(setup: Setup) -> None:
    task = setup.ask("Password: ")
    await setup.request()
    setup.supervisor.send(ipc.Answer(1, None))
    assert await task is None


@brokered
async def test_the_capture_is_said(setup: Setup) -> None:
    setup.broker.connected("ada@example.org", ["192.0.2.1"])
    assert await setup.request() == ipc.Connected("ada@example.org", ("192.0.2.1",))
    assert not setup.broker.captured.is_set()
    setup.supervisor.send(ipc.Captured())
    await asyncio.wait_for(setup.broker.captured.wait(), 10)
    assert not setup.broker.ended.is_set()


@brokered
async def test_a_link_and_a_note_are_said(setup: Setup) -> None:
    terms = ipc.LinkTerms(local=("10.74.0.2/24",))
    setup.broker.note("a line for the user")
    setup.broker.connected("hub", ["192.0.2.1"], terms)
    assert await setup.request() == ipc.Note("a line for the user")
    assert await setup.request() == ipc.Connected("hub", ("192.0.2.1",), terms)


@brokered
async def test_a_socket_that_comes_after_the_cancellation_is_closed(setup: Setup) -> None:
    task = setup.want_socket()
    await setup.request()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await closed(setup.answer_socket(1))


@brokered
async def test_a_socket_that_comes_with_the_cancellation_is_closed(setup: Setup) -> None:
    task = setup.want_socket()
    await setup.request()
    ours = setup.answer_socket(1)
    setup.broker._on_readable()  # the answer is there, the asker has not run yet
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await closed(ours)


@brokered
async def test_a_socket_that_nobody_wants_is_closed(setup: Setup) -> None:
    await closed(setup.answer_socket(99))


@brokered
async def test_a_socket_for_one_who_waits_is_not_closed_for_another(setup: Setup) -> None:
    gone, stays = setup.want_socket(), setup.want_socket()
    await setup.request()
    await setup.request()
    gone.cancel()
    ours = setup.answer_socket(2)
    with await stays:
        await closed(setup.answer_socket(1))
        assert is_open(ours)
    ours.close()


@brokered
async def test_the_end_of_the_supervisor_ends_all_waiting(setup: Setup) -> None:
    wanted, asked = setup.want_socket(), setup.ask("Password: ")
    await setup.request()
    setup.supervisor.close()
    await asyncio.wait_for(setup.broker.ended.wait(), 10)
    with pytest.raises(OSError, match="supervisor is gone"):
        await wanted
    assert await asked is None
    with pytest.raises(OSError, match="supervisor is gone"):
        await setup.broker.make_socket(socket.AF_INET, socket.SOCK_STREAM)


@brokered
async def test_nonsense_from_the_supervisor_is_its_end(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    task = setup.ask("Password: ")
    await setup.request()
    setup.supervisor._sock.send(b"nonsense")
    await asyncio.wait_for(setup.broker.ended.wait(), 10)
    assert await task is None
    assert "malformed message" in caplog.text


@brokered
async def test_a_supervisor_that_reads_nothing_is_as_good_as_gone(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.fill_link()
    with pytest.raises(OSError, match="supervisor is gone"):
        await setup.broker.make_socket(socket.AF_INET, socket.SOCK_STREAM)
    assert setup.broker.ended.is_set()
    assert "hangs" in caplog.text


@brokered
async def test_a_second_start_is_its_end(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    start = ipc.Start(
        config=Config(),
        mode="system",
        tun=ipc.TunInfo(name="tun0", mtu=1500, offload=False),
        dns4=None,
        dns6=None,
        direct=("198.18.0.3",),
        local=None,
        resolvers=(),
        verbosity=0,
    )
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        setup.supervisor.send(start, [theirs.fileno(), theirs.fileno()])
    await asyncio.wait_for(setup.broker.ended.wait(), 10)
    assert "twice" in caplog.text
    await closed(ours)


@brokered
async def test_a_late_listener_is_its_end(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        setup.supervisor.send(ipc.Listener(), [theirs.fileno()])
    await asyncio.wait_for(setup.broker.ended.wait(), 10)
    assert "twice" in caplog.text
    await closed(ours)


@brokered
async def test_a_closed_broker_lets_nobody_wait(setup: Setup) -> None:
    task = setup.want_socket()
    await setup.request()
    setup.broker.close()
    with pytest.raises(OSError, match="supervisor is gone"):
        await task
    with pytest.raises(OSError, match="supervisor is gone"):
        await asyncio.wait_for(setup.broker.make_socket(socket.AF_INET, socket.SOCK_STREAM), 10)


@brokered
async def test_only_so_many_requests_are_out(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "MAX_PENDING", 2)
    setup.broker.close()
    setup.broker = Broker(setup.engine, asyncio.get_running_loop())
    tasks = [setup.ask(str(number)) for number in range(3)]
    for prompt in ("0", "1"):
        request = await setup.request()
        assert isinstance(request, ipc.Ask)
        assert request.prompt == prompt
    await turns(3)
    assert setup.nothing_asked()
    # Who goes away does not take the answer back that is on its way.
    tasks[0].cancel()
    await turns(3)
    assert setup.nothing_asked()
    setup.supervisor.send(ipc.Answer(1, None))
    request = await setup.request()
    assert isinstance(request, ipc.Ask)
    assert request.prompt == "2"


@brokered
async def test_one_who_gives_up_while_there_is_no_room(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "MAX_PENDING", 1)
    setup.broker.close()
    setup.broker = Broker(setup.engine, asyncio.get_running_loop())
    first, second, third = (setup.ask(str(number)) for number in range(3))
    await setup.request()
    second.cancel()
    setup.supervisor.send(ipc.Answer(1, "one"))
    assert await first == "one"
    request = await setup.request()
    assert isinstance(request, ipc.Ask)
    assert request.prompt == "2"
    setup.supervisor.send(ipc.Answer(request.id, "three"))
    assert await third == "three"


@brokered
async def test_owners(setup: Setup) -> None:
    asking = setup.want_owners(7, 8)
    request = await setup.request()
    assert isinstance(request, ipc.WantOwners)
    assert (request.inodes, request.cgroups) == ((7, 8), (5,))
    setup.supervisor.send(ipc.Owners(request.id, {7: "/bin/seven"}, {5: "/five"}))
    assert await asking == ({7: "/bin/seven"}, {5: "/five"})


@brokered
async def test_owners_are_not_known_without_a_supervisor(setup: Setup) -> None:
    setup.broker.close()
    assert await setup.want_owners(7) == ({}, {})


@brokered
async def test_reload(setup: Setup) -> None:
    reloads: list[None] = []
    setup.broker.on_reload = lambda: reloads.append(None)
    setup.supervisor.send(ipc.Reload())
    await until(lambda: bool(reloads), "the wish")


@pytest.mark.parametrize(
    ("family", "protocol"),
    [(socket.AF_INET, socket.IPPROTO_ICMP), (socket.AF_INET6, socket.IPPROTO_ICMPV6)],
)
@brokered
async def test_ping_sockets(setup: Setup, family: int, protocol: int) -> None:
    """Whatever kind comes is what is handed out; a refusal is an error."""
    for answer in (None, "Permission denied"):
        wanted = setup.want_ping_socket(family)
        request = await setup.request()
        assert isinstance(request, ipc.WantSocket)
        assert (request.family, request.type) == (family, socket.SOCK_DGRAM)
        assert request.protocol == protocol
        if answer is None:
            setup.answer_socket(request.id).close()
            (await wanted).close()
        else:
            setup.supervisor.send(ipc.SocketFailed(request.id, answer))
            with pytest.raises(OSError, match=answer):
                await wanted
