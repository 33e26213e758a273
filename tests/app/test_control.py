"""The control socket, asked over a real unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import pathlib
import socket
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest

from tunproxy.app import control
from tunproxy.app.control import ControlServer, request
from tunproxy.errors import TunproxyError

if TYPE_CHECKING:
    from collections.abc import Iterator


def _fail(_: dict[str, object]) -> object:
    raise TunproxyError("the flow table is on holiday")


def _defect(_: dict[str, object]) -> object:
    raise KeyError("secret")


async def _later(message: dict[str, object]) -> object:
    await asyncio.sleep(0)
    return message


async def _fail_later(_: dict[str, object]) -> object:
    await asyncio.sleep(0)
    raise TunproxyError("nobody answers")


async def _defect_later(_: dict[str, object]) -> object:
    await asyncio.sleep(0)
    raise KeyError("secret")


async def _never(_: dict[str, object]) -> object:
    await asyncio.Event().wait()
    return None


HANDLERS: dict[str, control.Handler] = {
    "status": lambda _: {"pid": 7, "address": ipaddress.ip_address("10.0.0.1")},
    "echo": lambda message: message,
    "list": lambda _: [1, 2],
    "big": lambda _: "x" * 1_000_000,
    "fail": _fail,
    "defect": _defect,
    "later": _later,
    "fail-later": _fail_later,
    "defect-later": _defect_later,
    "never": _never,
}


class Running:
    """A control server with an event loop of its own, in a thread."""

    def __init__(self, path: pathlib.Path, owner: int | None = None) -> None:
        self.path = path
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        self.server = ControlServer(self._sock, HANDLERS, owner)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.start(), self._loop).result(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _close(self) -> None:
        self.server.close()
        # One turn of the loop for the callbacks that close the transports.
        await asyncio.sleep(0)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(str(self.path))
        return client


@pytest.fixture
def running(tmp_path: pathlib.Path) -> Iterator[Running]:
    server = Running(tmp_path / "control")
    try:
        yield server
    finally:
        server.close()


def read_line(client: socket.socket) -> dict[str, object]:
    data = b""
    while not data.endswith(b"\n"):
        chunk = client.recv(1 << 16)
        assert chunk, f"hung up after {data!r}"
        data += chunk
    answer: dict[str, object] = json.loads(data)
    return answer


def read_to_end(client: socket.socket) -> bytes:
    data = b""
    # A close with our octets unread is a reset, after everything has been delivered.
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(1 << 16):
            data += chunk
    return data


def test_request_returns_the_result(running: Running) -> None:
    assert request(running.path, "status") == {"pid": 7, "address": "10.0.0.1"}
    assert request(running.path, "list") == [1, 2]
    assert request(running.path, "echo") == {"cmd": "echo"}
    assert running.server.statistics() == {"control_answered": 3}


def test_unknown_command_is_an_error_that_names_the_known_ones(running: Running) -> None:
    with pytest.raises(TunproxyError, match="known are: big, defect, defect-later, echo,"):
        request(running.path, "reboot")


def test_error_of_a_handler_reaches_the_client(running: Running) -> None:
    with pytest.raises(TunproxyError, match="the flow table is on holiday"):
        request(running.path, "fail")
    assert running.server.statistics() == {"control_failed": 1}


def test_defect_of_a_handler_is_hidden_and_survived(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TunproxyError, match="internal error") as caught:
        request(running.path, "defect")
    assert "secret" not in str(caught.value)
    assert "control request failed" in caplog.text
    assert request(running.path, "list") == [1, 2]


def test_fields_go_with_the_command(running: Running) -> None:
    answer = request(running.path, "echo", name="a.test", number=7)
    assert answer == {"cmd": "echo", "name": "a.test", "number": 7}


def test_handlers_that_take_their_time(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    assert request(running.path, "later", name="a.test") == {"cmd": "later", "name": "a.test"}
    with pytest.raises(TunproxyError, match="nobody answers"):
        request(running.path, "fail-later")
    with pytest.raises(TunproxyError, match="internal error"):
        request(running.path, "defect-later")
    assert "control request failed" in caplog.text
    assert running.server.statistics() == {
        "control_answered": 1, "control_failed": 1, "control_defect": 1
    }  # fmt: skip


def test_answers_come_in_the_order_of_the_requests(running: Running) -> None:
    with running.connect() as client:
        client.sendall(b'{"cmd":"later"}\n{"cmd":"list"}\n{"cmd":"later"}\n{"cmd":"list"}\n')
        data = b""
        while data.count(b"\n") < 4:
            data += client.recv(1 << 16)
    later, listed = {"result": {"cmd": "later"}}, {"result": [1, 2]}
    assert list(map(json.loads, data.splitlines())) == [later, listed, later, listed]


def test_client_that_hangs_up_before_its_answer(running: Running) -> None:
    with running.connect() as client:
        client.sendall(b'{"cmd":"never"}\n')
    assert request(running.path, "list") == [1, 2]


def test_several_requests_on_one_connection_octet_by_octet(running: Running) -> None:
    with running.connect() as client:
        for octet in b'{"cmd":"list"}\n':
            client.sendall(bytes([octet]))
        assert read_line(client) == {"result": [1, 2]}
        client.sendall(b"junk\n")
        assert read_line(client) == {"error": "the request is not a JSON object"}
        client.sendall(b"[1]\n")
        assert read_line(client) == {"error": "the request is not a JSON object"}
        client.sendall(b'{"cmd":"list"}\n')
        assert read_line(client) == {"result": [1, 2]}
    assert running.server.statistics() == {"control_answered": 2, "control_bad_request": 2}


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_long_line_is_refused(running: Running, end: bytes) -> None:
    with running.connect() as client:
        client.sendall(b"x" * (control.MAX_REQUEST_LEN + 1) + end)
        assert json.loads(read_to_end(client)) == {"error": "the request is too long"}


def test_client_that_does_not_read_is_not_answered_without_bound(running: Running) -> None:
    with running.connect() as client:
        count = 64
        client.sendall(b'{"cmd":"big"}\n' * count)
        assert request(running.path, "list") == [1, 2]
        answered = running.server.statistics()["control_answered"]
        assert answered < count // 2
        for _ in range(count):
            left = 1_000_000 + len(b'{"result":""}\n')
            while left:
                left -= len(client.recv(left))
    assert running.server.statistics()["control_answered"] == count + 1


def test_too_many_clients(running: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(control.MAX_CLIENTS):
            client = stack.enter_context(running.connect())
            client.sendall(b'{"cmd":"list"}\n')
            read_line(client)
        with pytest.raises(TunproxyError, match="too many clients"):
            request(running.path, "list")
        client.close()
        # The server learns of the close in its own time.
        assert _eventually_answered(running)
    assert running.server.statistics()["control_too_many_clients"] >= 1


def _eventually_answered(running: Running) -> bool:
    for _ in range(1000):
        with contextlib.suppress(TunproxyError):
            return request(running.path, "list") == [1, 2]
    return False


def test_silent_client_is_hung_up_on(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "IDLE_S", 0.01)
    with running.connect() as client:
        assert read_to_end(client) == b""


def _ask_as(uid: int, path: pathlib.Path) -> str:
    """Return what a process of ``uid`` gets for an answer."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(uid)
            try:
                text = repr(request(path, "list"))
            except TunproxyError as error:
                text = str(error)
            os.write(writer, text.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_only_owner_and_root_are_heard() -> None:
    # Not in tmp_path: other users cannot enter it.
    path = _public_path()
    server = Running(path, owner=54321)
    try:
        path.chmod(0o666)
        assert request(path, "list") == [1, 2]
        assert _ask_as(54321, path) == "[1, 2]"
        assert "only root and the user" in _ask_as(54322, path)
        path.chmod(0o600)
        assert "is not yours" in _ask_as(54321, path)
        assert server.server.statistics()["control_not_permitted"] == 1
    finally:
        server.close()
        path.unlink()
        path.parent.rmdir()


def _public_path() -> pathlib.Path:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="tunproxy-control-"))
    directory.chmod(0o755)
    return directory / "control"


def test_request_to_nobody(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TunproxyError, match="tunproxy is not running"):
        request(tmp_path / "missing", "status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(TunproxyError, match="tunproxy is not running"):
        request(tmp_path / "dead", "status")


def test_request_to_a_server_that_is_stuck(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(tmp_path / "stuck"))
        stuck.listen()
        with pytest.raises(TunproxyError, match=r"did not answer within 0\.05 s"):
            request(tmp_path / "stuck", "status", timeout=0.05)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "it closed the connection"),
        (b"half", "it closed the connection"),
        (b"junk\n", "not JSON"),
        (b'{"error": "no"}\n', "peer: no"),
    ],
)
def test_request_to_something_else(tmp_path: pathlib.Path, answer: bytes, message: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "peer"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(TunproxyError, match=message):
                request(tmp_path / "peer", "status")
        finally:
            thread.join(10)
