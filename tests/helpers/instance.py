"""An instance of tunproxy that captures nothing: its state, its control socket, its signals."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from tunproxy.app.controlanswers import Status
from tunproxy.app.instance import Instance, State
from tunproxy.linux import marks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

STATUS = Status(
    version="0.0", pid=77, tun="tp0", mode="system", stack="user", offload=True,
    server="user@host", state="up", cipher="aes128-gcm@openssh.com", uptime_s=65.2,
    reconnects=2, flows=3, flows_total=120, refused={"refused": 4, "prohibited": 1, "odd": 0},
    bytes_up=1536, bytes_down=2 << 30, dns_queries=9, counters={"tcp_checksum": 2, "none": 0},
    rss_bytes=40 << 20,
    udp="agent",
)  # fmt: skip

_PROGRAM = """
import asyncio, signal, socket, sys
import msgspec
from tunproxy.app.control import ControlServer
from tunproxy.app.instance import Instance

QUERIED = {
    "rcode": "NOERROR",
    "answers": [{"name": "a.test.", "ttl": 1, "type": "A", "data": "198.18.0.4"}],
    "kind": "fake", "server": None, "why": "rule MATCH,PROXY (my.list:1)", "ms": 0.25,
}
LISTED = {"type": "A", "kind": "fake", "value": "198.18.0.4", "ttl": None}

async def main(tun, answers, stubborn, status):
    instance = Instance.create(tun)
    stopped = asyncio.Event()
    stop = (lambda: print("asked", flush=True)) if stubborn else stopped.set
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    with socket.socket(socket.AF_UNIX) as sock:
        if answers:
            sock.bind(str(instance.control_path))
            sock.listen()
            reloaded = {"rules": 3, "restart": ["tun"], "error": None}
            handlers = {
                "status": lambda _: msgspec.json.decode(status),
                "reload": lambda _: reloaded,
                "dns-query": lambda asked: {**asked, **QUERIED},
                "dns-list": lambda asked: [{**LISTED, "name": asked["suffix"] or "a.test"}],
                "dns-flush": lambda _: 3,
            }
            server = ControlServer(sock, handlers)
            await server.start()
        print("ready", flush=True)
        await stopped.wait()
    instance.remove()

asyncio.run(main(sys.argv[1], sys.argv[2] == "True", sys.argv[3] == "True", sys.argv[4]))
"""


_numbers = itertools.count()


class FakeInstance:
    """Runs in a network namespace of its own, or in that of the one it is ``beside``."""

    def __init__(
        self,
        tun: str,
        *,
        answers: bool = True,
        stubborn: bool = False,
        beside: FakeInstance | None = None,
    ) -> None:
        self._tun = tun
        self._cleanup = contextlib.ExitStack()
        self._namespace: str = beside._namespace if beside else self._make_namespace()
        status = msgspec.json.encode(msgspec.structs.replace(STATUS, tun=tun)).decode()
        words = [sys.executable, "-c", _PROGRAM, tun, str(answers), str(stubborn), status]
        self._process = self._cleanup.enter_context(
            subprocess.Popen([*self.enter, *words], stdout=subprocess.PIPE, text=True)
        )
        self._cleanup.callback(self.kill)
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        try:
            assert self.read_line() == "ready"
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def enter(self) -> list[str]:
        """What goes before a command to run it in the instance's network namespace."""
        return ["nsenter", f"--net=/run/netns/{self._namespace}"]

    def runs(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def instance(self) -> Instance:
        """What it has written down."""
        inode = pathlib.Path("/run/netns", self._namespace).stat().st_ino
        directory = pathlib.Path(marks.RUN_DIR, f"{inode}-{self._tun}")
        state = msgspec.json.decode((directory / "state.json").read_bytes(), type=State)
        return Instance(directory, state)

    def read_line(self) -> str:
        """The next line it prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def kill(self) -> None:
        """End it at once, so that it leaves its state behind."""
        self._process.kill()
        self._process.wait()

    def _make_namespace(self) -> str:
        name = f"tpcli-{os.getpid()}-{next(_numbers)}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        self._cleanup.callback(subprocess.run, ["ip", "netns", "delete", name], check=True)
        inode = pathlib.Path("/run/netns", name).stat().st_ino
        self._cleanup.callback(_remove_state, inode)
        return name


@pytest.fixture
def instance() -> Iterator[FakeInstance]:
    """The fixture of every test that imports it: one on tp0."""
    with FakeInstance("tp0") as running:
        yield running


def _remove_state(inode: int) -> None:
    for directory in pathlib.Path(marks.RUN_DIR).glob(f"{inode}-*"):
        shutil.rmtree(directory)
