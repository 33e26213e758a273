"""The link between supervisor and engine: what it carries, and what it makes of nonsense."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunproxy.app import ipc
from tunproxy.app.hubsettings import hub_settings
from tunproxy.config import Capture, Config, Dns, Origin, Overrides, Rules, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = Config(
    server=(Server(target="ada@example.org", port=2222, identity="~/.ssh/id"),),
    capture=Capture(
        include=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")),
        exclude=(ipaddress.ip_network("10.1.0.0/16"),),
        cgroups=("user.slice",),
    ),
    dns=Dns(mode="remote", fake_ip_range=ipaddress.IPv4Network("198.18.0.0/16")),
    rules=Rules(files=("a.list", "b.list")),
)


def start(config: Config = CONFIG) -> ipc.Start:
    return ipc.Start(
        config=config,
        mode="system",
        tun=ipc.TunInfo(name="tun0", mtu=1500, offload=True),
        dns4=ipaddress.IPv4Address("198.18.0.2"),
        dns6=None,
        direct=("198.18.0.3",),
        local=None,
        resolvers=("192.0.2.53", "fe80::1%eth0"),
        verbosity=2,
        origin=Origin(file="/etc/tunproxy.toml", overrides=Overrides(target="b", mtu=1400)),
    )


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


@pytest.fixture
def supervisor(sockets: tuple[socket.socket, socket.socket]) -> ipc.SupervisorLink:
    return ipc.supervisor_link(sockets[0])


@pytest.fixture
def engine(sockets: tuple[socket.socket, socket.socket]) -> ipc.EngineLink:
    return ipc.engine_link(sockets[1])


@pytest.fixture
def wire(sockets: tuple[socket.socket, socket.socket]) -> socket.socket:
    """Return the engine's end as a bare socket, to misbehave with."""
    return sockets[1]


@pytest.fixture
def fds() -> Iterator[list[int]]:
    ends = list(os.pipe())
    yield ends
    for fd in ends:
        os.close(fd)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- messages


def test_start_carries_the_config_and_its_descriptors(
    supervisor: ipc.SupervisorLink, engine: ipc.EngineLink, fds: list[int]
) -> None:
    supervisor.send(start(), fds)
    received = engine.recv()
    assert received is not None
    assert received.message == start()
    with os.fdopen(received.fds[0], "rb") as reader, os.fdopen(received.fds[1], "wb") as writer:
        assert not os.get_inheritable(reader.fileno())
        assert {reader.fileno(), writer.fileno()}.isdisjoint(fds)
        os.write(fds[1], b"same pipe")
        assert os.read(reader.fileno(), 100) == b"same pipe"


def test_start_of_a_hub(
    supervisor: ipc.SupervisorLink, engine: ipc.EngineLink, fds: list[int]
) -> None:
    message = ipc.HubStart(
        hub=hub_settings(isolate=True),
        tun=ipc.TunInfo(name="tphub0", mtu=1500, offload=True),
        listeners=1,
        host="::",
        host_key=None,
        authorized_keys="~/.ssh/authorized_keys",
        permit_open=("192.0.2.0/24:*",),
        verbosity=1,
    )
    supervisor.send(message, fds)
    received = engine.recv()
    assert received is not None
    assert received.message == message
    for fd in received.fds:
        os.close(fd)


@pytest.mark.parametrize(
    "message",
    [
        ipc.Captured(),
        ipc.SocketFailed(3, "no such family"),
        ipc.Answer(4, "passphrase"),
        ipc.Answer(4, None),
        ipc.Owners(5, {7: "/usr/bin/curl"}, {1 << 40: "/user.slice"}),
        ipc.Reload(),
    ],
    ids=repr,
)
def test_to_engine(
    supervisor: ipc.SupervisorLink, engine: ipc.EngineLink, message: ipc.ToEngine
) -> None:
    supervisor.send(message)
    assert engine.recv() == (message, [])


def test_a_listener_comes_alone(supervisor: ipc.SupervisorLink, engine: ipc.EngineLink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        supervisor.send(ipc.Listener(), [listener.fileno()])
        received = engine.recv()
        assert received is not None
        assert received.message == ipc.Listener()
        with socket.socket(fileno=received.fds[0]) as ours:
            assert ours.getsockname() == listener.getsockname()


@pytest.mark.parametrize(
    "message",
    [
        ipc.WantSocket(1, socket.AF_INET6, socket.SOCK_STREAM),
        ipc.WantSocket(1, socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
        ipc.WantOwners(2, (7, 8), (1 << 40,)),
        ipc.Ask(2, "Passphrase: ", False),
        ipc.Connected("exit", ("192.0.2.1", "2001:db8::1")),
        ipc.Connected("hub", (), ipc.LinkTerms(local=("10.74.0.2/24",), routes=("default",))),
        ipc.Note("on the server, root has to run: ip link set tun7 up"),
        ipc.Failed(3, "the server refuses us; check the key"),
    ],
    ids=repr,
)
def test_to_supervisor(
    supervisor: ipc.SupervisorLink, engine: ipc.EngineLink, message: ipc.ToSupervisor
) -> None:
    engine.send(message)
    assert supervisor.recv() == (message, [])


@given(prompt=st.text(alphabet=st.characters(exclude_categories=["Cs"])), echo=st.booleans())
def test_any_text_survives(prompt: str, echo: bool) -> None:
    supervisor, theirs = ipc.pair()
    with supervisor, ipc.engine_link(theirs) as engine:
        engine.send(ipc.Ask(1, prompt, echo))
        assert supervisor.recv_nowait() == (ipc.Ask(1, prompt, echo), [])


def test_an_answer_does_not_show_its_text() -> None:
    assert "passphrase" not in repr(ipc.Answer(4, "passphrase"))


# ---- reading


def test_recv_nowait_when_there_is_nothing(supervisor: ipc.SupervisorLink) -> None:
    with pytest.raises(BlockingIOError):
        supervisor.recv_nowait()


def test_recv_waits(supervisor: ipc.SupervisorLink, engine: ipc.EngineLink) -> None:
    messages: list[ipc.Received[ipc.ToEngine] | None] = []
    thread = threading.Thread(target=lambda: messages.append(engine.recv()))
    thread.start()
    supervisor.send(ipc.Captured())
    thread.join(10)
    assert messages == [(ipc.Captured(), [])]


def test_end_of_file(supervisor: ipc.SupervisorLink, engine: ipc.EngineLink) -> None:
    engine.close()
    assert supervisor.recv() is None
    assert supervisor.recv_nowait() is None


def test_the_last_words_of_one_that_has_not_read_everything(
    supervisor: ipc.SupervisorLink, engine: ipc.EngineLink
) -> None:
    supervisor.send(ipc.Captured())
    engine.send(ipc.Failed(3, "gone"))
    engine.close()
    assert supervisor.recv() == (ipc.Failed(3, "gone"), [])
    assert supervisor.recv() is None


def test_sending_to_one_that_is_gone(
    supervisor: ipc.SupervisorLink, engine: ipc.EngineLink
) -> None:
    engine.close()
    supervisor.send(ipc.Captured())
    assert supervisor.recv() is None


# ---- what is refused


@pytest.mark.parametrize(
    "octets",
    [
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"{}",
        b'{"message": "Nonsense"}',
        b'{"message": "WantSocket", "id": 1}',
        b'{"message": "WantSocket", "id": "1", "family": 2, "type": 1}',
        b'{"message": "Connected", "server": "a", "addresses": [], "more": 1}',
        b'{"message": "Ask", "id": 1, "prompt": "\\ud800", "echo": true}',
        b"[" * 100_000,
    ],
    ids=lambda octets: octets[:60].decode("latin-1"),
)
def test_malformed(supervisor: ipc.SupervisorLink, wire: socket.socket, octets: bytes) -> None:
    wire.send(octets)
    with pytest.raises(ipc.LinkError, match="malformed message between the processes"):
        supervisor.recv_nowait()


def test_the_engine_may_not_say_what_the_supervisor_says(
    supervisor: ipc.SupervisorLink, wire: socket.socket
) -> None:
    wire.send(b'{"message": "Captured"}')
    with pytest.raises(ipc.LinkError, match="malformed"):
        supervisor.recv_nowait()


def test_stray_descriptors_are_closed(
    supervisor: ipc.SupervisorLink, wire: socket.socket, fds: list[int]
) -> None:
    before = open_fds()
    socket.send_fds(wire, [b'{"message": "Failed", "status": 1, "text": ""}'], fds)
    with pytest.raises(ipc.LinkError, match="2 descriptors with Failed"):
        supervisor.recv_nowait()
    assert open_fds() == before


def test_too_many_descriptors_are_closed(
    supervisor: ipc.SupervisorLink, wire: socket.socket, fds: list[int]
) -> None:
    before = open_fds()
    socket.send_fds(wire, [b'{"message": "Failed", "status": 1, "text": ""}'], fds * 10)
    with pytest.raises(ipc.LinkError, match="was cut"):
        supervisor.recv_nowait()
    assert open_fds() == before


def test_descriptors_that_are_missing(engine: ipc.EngineLink, sockets: list[socket.socket]) -> None:
    sockets[0].send(b'{"message": "Socket", "id": 1}')
    with pytest.raises(ipc.LinkError, match="0 descriptors with Socket"):
        engine.recv_nowait()


def test_a_message_longer_than_the_limit(
    supervisor: ipc.SupervisorLink, engine: ipc.EngineLink, wire: socket.socket, fds: list[int]
) -> None:
    networks = (ipaddress.ip_network("203.0.113.128/25"),) * 10_000
    config = Config(capture=Capture(exclude=networks))
    with pytest.raises(ipc.LinkError, match="configuration is too long"):
        supervisor.send(start(config), fds)
    wire.send(b'"' + b"x" * ipc.MAX_LEN + b'"')
    with pytest.raises(ipc.LinkError, match="was cut"):
        supervisor.recv_nowait()


def test_a_message_of_nearly_the_limit(
    supervisor: ipc.SupervisorLink, engine: ipc.EngineLink
) -> None:
    text = "x" * (ipc.MAX_LEN - 100)
    engine.send(ipc.Failed(1, text))
    assert supervisor.recv_nowait() == (ipc.Failed(1, text), [])


def test_the_wrong_number_of_descriptors_is_our_own_fault(
    supervisor: ipc.SupervisorLink,
) -> None:
    with pytest.raises(ValueError, match="Start goes with 2 descriptors"):
        supervisor.send(start())


def test_as_many_requests_as_allowed_never_fill_the_buffer(
    supervisor: ipc.SupervisorLink, engine: ipc.EngineLink
) -> None:
    for number in range(ipc.MAX_PENDING):
        engine.send(ipc.WantSocket(number, socket.AF_INET6, socket.SOCK_STREAM))
        with socket.socket() as sock:
            supervisor.send(ipc.Socket(number), [sock.fileno()])
    for number in range(ipc.MAX_PENDING):
        received = engine.recv_nowait()
        assert received is not None
        assert received.message == ipc.Socket(number)
        os.close(received.fds[0])


def test_one_that_reads_nothing(engine: ipc.EngineLink, supervisor: ipc.SupervisorLink) -> None:
    def flood() -> None:
        for number in range(100_000):
            engine.send(ipc.Ask(number, "x" * 1000, True))

    with pytest.raises(ipc.LinkError, match="hangs"):
        flood()
