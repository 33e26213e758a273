"""``tunproxy serve``, with the ssh client of OpenSSH at the other end."""

from __future__ import annotations

import contextlib
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import failure, sentence, tunproxy
from tests.helpers.ssh_files import fingerprint, new_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEADLINE_S = 20


class Exit:
    """A running ``tunproxy serve`` and the files that a client needs."""

    def __init__(self, directory: pathlib.Path, *options: str) -> None:
        self._directory = directory
        self._key = directory / "user"
        if not self._key.exists():
            new_key(self._key)
        words = ["--listen", "127.0.0.1:0", "--authorized-keys", f"{self._key}.pub", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tunproxy", "serve", *words],
            env={"PATH": "/usr/bin:/bin", "HOME": str(directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = [self.process.stdout.readline()]
        while self.said[-1] and not self.said[-1].startswith("listening"):
            self.said.append(self.process.stdout.readline())
        listening = re.fullmatch(r"listening on 127\.0\.0\.1 port (\d+)\n", self.said[-1])
        assert listening, self.process.communicate()
        self.port = int(listening[1])

    @property
    def host_key(self) -> pathlib.Path:
        return self._directory / ".local/state/tunproxy/host_key"

    def ssh(self, *options: str) -> list[str]:
        known_hosts = self._directory / "known_hosts"
        public = pathlib.Path(f"{self.host_key}.pub").read_text()
        known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}")
        return [
            *("ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"),
            *("-o", f"UserKnownHostsFile={known_hosts}", "-o", "IdentitiesOnly=yes"),
            *("-i", str(self._key), "-p", str(self.port), *options, "nobody@127.0.0.1"),
        ]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Return its exit status and what it has said on standard error."""
        self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, stderr

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Callable[..., Exit]]:
    with contextlib.ExitStack() as stack:

        def starter(*options: str) -> Exit:
            server = Exit(tmp_path, *options)
            stack.callback(server.close)
            return server

        yield starter


@pytest.fixture
def echo_port() -> Iterator[int]:
    """An origin that sends back what it gets, in capitals, to one client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            listener.settimeout(DEADLINE_S)
            try:
                client, _ = listener.accept()
            except TimeoutError:
                return
            # Reset where the exit is stopped with the connection open.
            with client, contextlib.suppress(ConnectionResetError):
                while data := client.recv(4096):
                    client.sendall(data.upper())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]


def through(command: Sequence[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=data, capture_output=True, timeout=DEADLINE_S, check=False)


def test_bytes_go_through(start: Callable[..., Exit], echo_port: int) -> None:
    server = start()
    done = through(server.ssh("-W", f"127.0.0.1:{echo_port}"), b"hello")
    assert (done.returncode, done.stdout) == (0, b"HELLO"), done.stderr
    assert server.stop() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_is_an_orderly_end(start: Callable[..., Exit], number: signal.Signals) -> None:
    assert start().stop(number) == (0, "")


def test_stops_with_a_client_connected(start: Callable[..., Exit], echo_port: int) -> None:
    server = start()
    command = server.ssh("-W", f"127.0.0.1:{echo_port}")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"x")
        client.stdin.flush()
        assert client.stdout.read(1) == b"X"
        assert server.stop() == (0, "")
        assert client.wait(DEADLINE_S) == 255


def test_only_permitted_targets(start: Callable[..., Exit], echo_port: int) -> None:
    server = start("--permit-open", "127.0.0.0/8:1", "--permit-open", f"localhost:{echo_port}")
    done = through(server.ssh("-W", f"127.0.0.1:{echo_port}"), b"hello")
    assert done.returncode == 255
    assert b"administratively prohibited" in done.stderr
    done = through(server.ssh("-W", f"localhost:{echo_port}"), b"hello")
    assert (done.returncode, done.stdout) == (0, b"HELLO"), done.stderr


def test_nothing_but_connections(start: Callable[..., Exit]) -> None:
    done = through([*start().ssh(), "echo hello"], b"")
    assert done.returncode == 255
    assert b"hello" not in done.stdout


def test_unknown_key_is_turned_away(start: Callable[..., Exit], tmp_path: pathlib.Path) -> None:
    stranger = new_key(tmp_path / "stranger")
    command = start().ssh("-W", "127.0.0.1:1")
    done = through([str(stranger) if w == str(tmp_path / "user") else w for w in command], b"")
    assert done.returncode == 255
    assert b"Permission denied" in done.stderr


def test_host_key_is_made_once_and_shown(start: Callable[..., Exit]) -> None:
    first = start()
    shown = fingerprint(first.host_key)
    assert first.said[0] == f"host key {shown} ({first.host_key})\n"
    assert first.host_key.stat().st_mode & 0o777 == 0o600
    assert first.host_key.parent.stat().st_mode & 0o777 == 0o700
    first.stop()
    assert start().said[0] == first.said[0]


def test_host_key_of_the_user(start: Callable[..., Exit], tmp_path: pathlib.Path) -> None:
    key = new_key(tmp_path / "given")
    server = start("--host-key", str(key))
    assert server.said[0] == f"host key {fingerprint(key)} ({key})\n"
    assert not server.host_key.exists()


@pytest.mark.parametrize(
    "listen", ["2222", ":2222", "host:ssh", "::1:22", "0.0.0.0:65536", "[::1]", "h:-1", ""]
)
def test_bad_address(listen: str) -> None:
    assert "invalid value for '--listen': expected " in failure(
        "serve", "--listen", listen, status=2
    )


def test_bad_target() -> None:
    assert "no permitted target" in failure("serve", "--permit-open", "x", status=2)


def test_missing_keys(tmp_path: pathlib.Path) -> None:
    done = tunproxy("serve", env={"HOME": str(tmp_path)})
    assert done.returncode == 2
    assert "authorized_keys" in sentence(done.stderr)
    user = new_key(tmp_path / "user")
    words = ["--host-key", str(tmp_path / "missing"), "--authorized-keys", f"{user}.pub"]
    assert str(tmp_path / "missing") in failure("serve", *words, status=2)


def test_address_that_is_taken(tmp_path: pathlib.Path) -> None:
    user = new_key(tmp_path / "user")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = tunproxy(
            *("serve", "--listen", listen, "--authorized-keys", f"{user}.pub"),
            env={"HOME": str(tmp_path)},
        )
    assert done.returncode == 4
    assert "choose another address or port" in sentence(done.stderr)


@pytest.mark.parametrize(
    "options",
    [
        ("--pool", "10.0.0.0/24"),
        ("--tap",),
        ("--isolate",),
        ("--route", "default"),
        ("--dns", "192.0.2.53"),
        ("--mtu", "1400"),
        ("--tun", "tphub1"),
        ("--no-nat",),
    ],
)
def test_options_of_a_hub_need_one(options: tuple[str, ...]) -> None:
    assert failure("serve", *options, status=2) == (
        f"{options[0]} is for a hub: add --hub, or leave it out; see tunproxy serve --help"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pool", "10.0.0.1/24"), "invalid value for '--pool': 10.0.0.1/24 has host bits set"),
        (("--pool", "10.0.0.0/24", "--pool", "10.1.0.0/24"), "one --pool of IPv4"),
        (("--route", "everything"), "invalid value for '--route'"),
        (("--dns", "resolver"), "invalid value for '--dns'"),
        (("--mtu", "100"), "invalid value for '--mtu'"),
    ],
)
def test_hub_that_cannot_be(options: tuple[str, ...], said: str) -> None:
    assert said in failure("serve", "--hub", *options, status=2)
