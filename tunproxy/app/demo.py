"""``tunproxy demo``: the whole thing against an embedded exit, in namespaces of its own.

Three hosts that exist for half a minute. The laptop reaches only the exit; the page is on the
origin, whose name and address only the exit's side knows. Everything is a real process: the exit is
``tunproxy serve``, the proxy is ``tunproxy up``, the browser is curl.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from ..errors import MachineError, TunproxyError
from ..linux import privileges
from ..linux.namespace import Namespace, connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NAME = "intranet.example"
_EXIT, _ORIGIN = "10.86.1.1", "10.86.2.2"
_PORT = 2222
_TUN = "tun0"
_READY_S = 20.0
_PAGE = "Hello from the far side.\n"


def demo(*, verbosity: int = 0) -> int:
    """Run the demonstration and say what happens; return the exit status.

    Raises:
        TunproxyError: it cannot be run here, or something in it failed.
    """
    privileges.require_root()
    for tool in ("curl", "ip", "nft", "nsenter", "unshare"):
        if shutil.which(tool) is None:
            raise MachineError(f"the demo needs {tool}: install it and start again")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        stage = _Stage(stack, verbosity)
        stage.build()
        stage.start_exit()
        stage.start_proxy()
        stage.resolve()
        stage.fetch()
        stage.show_status()
        stage.stop_proxy()
    print(f"\nDone in {time.monotonic() - began:.0f} s; the namespaces are gone as well.")
    return 0


class _Stage:
    """The hosts, and the acts played on them. What is started ends with ``stack``."""

    def __init__(self, stack: contextlib.ExitStack, verbosity: int) -> None:
        self._stack = stack
        self._verbosity = verbosity
        tag = f"tpdemo-{os.getpid()}"
        self._dir = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=tag)))
        # What the parts say on standard error: shown if one of them fails.
        self._log = stack.enter_context((self._dir / "log").open("w+b"))
        self._laptop = stack.enter_context(Namespace(f"{tag}-laptop"))
        self._exit = stack.enter_context(Namespace(f"{tag}-exit"))
        self._origin = stack.enter_context(Namespace(f"{tag}-origin"))
        self._proxy: subprocess.Popen[bytes] | None = None
        self._before = ""

    def build(self) -> None:
        """Three hosts, two cables, and a web server at the far end."""
        _say(
            "Three hosts in network namespaces of their own:\n"
            f"  laptop 10.86.1.2 --- {_EXIT} exit 10.86.2.1 --- {_ORIGIN} origin\n"
            f"The exit does not route. Only its side knows the name {_NAME}."
        )
        connect(self._laptop, "eth0", self._exit, "eth0")
        connect(self._exit, "eth1", self._origin, "eth0")
        self._laptop.add_address("eth0", "10.86.1.2/24", "fd86:1::2/64")
        self._exit.add_address("eth0", f"{_EXIT}/24", "fd86:1::1/64")
        self._exit.add_address("eth1", "10.86.2.1/24", "fd86:2::1/64")
        self._origin.add_address("eth0", f"{_ORIGIN}/24", "fd86:2::2/64")
        self._laptop.add_default_route(_EXIT)
        site = self._dir / "site"
        site.mkdir()
        (site / "index.html").write_text(_PAGE)
        (site / "large").write_bytes(bytes(8 << 20))
        server = [sys.executable, "-m", "http.server", "--bind", _ORIGIN, "--directory", str(site)]
        self._start(self._origin.command([*server, "80"]))
        deadline = time.monotonic() + _READY_S
        while not self._laptop.is_settled() and time.monotonic() < deadline:
            time.sleep(0.05)

    def start_exit(self) -> None:
        """An SSH server that only carries flows, for the one key that it is given."""
        from ..upstream.exit import generate_key

        generate_key(self._dir / "user_key")
        generate_key(self._dir / "host_key")
        host_key = (self._dir / "host_key.pub").read_text()
        (self._dir / "known_hosts").write_text(f"[{_EXIT}]:{_PORT} {host_key}")
        hosts = self._dir / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{_ORIGIN} {_NAME}\n")
        serve = [
            *_tunproxy("serve", "--listen", f"{_EXIT}:{_PORT}"),
            *("--host-key", str(self._dir / "host_key")),
            *("--authorized-keys", str(self._dir / "user_key.pub")),
        ]
        _say(f"\n[1/6] on the exit:   tunproxy serve --listen {_EXIT}:{_PORT} ...")
        # A mount namespace, so that the name is in the hosts file of the exit alone.
        private = 'mount --bind "$0" /etc/hosts && exec "$@"'
        wrapped = ["unshare", "--mount", "sh", "-c", private, str(hosts), *serve]
        self._wait_for_line(self._start(self._exit.command(wrapped)), "listening")

    def start_proxy(self) -> None:
        """The laptop's whole traffic goes through the exit from here on."""
        self._before = self._snapshot()
        _say(f"[2/6] on the laptop: tunproxy up demo@{_EXIT} ...")
        up = [
            *_tunproxy("up", f"demo@{_EXIT}", "-p", str(_PORT), "--tun", _TUN, "-F", "none"),
            *("-i", str(self._dir / "user_key")),
            *("--known-hosts", str(self._dir / "known_hosts")),
            *["-v"] * self._verbosity,
        ]
        self._proxy = self._start(self._laptop.command(up))
        _say("        " + self._wait_for_line(self._proxy, "ready"))

    def resolve(self) -> None:
        """A name is answered at once, with an address that leads back to us."""
        code = f"import socket; print(socket.gethostbyname({_NAME!r}))"
        address = self._on_laptop(sys.executable, "-c", code).strip()
        if not address.startswith("198.18."):
            raise TunproxyError(f"{_NAME} was resolved to {address}, which is no fake address")
        _say(f"[3/6] {_NAME} resolves to {address}, a fake address: nobody was asked")

    def fetch(self) -> None:
        """A page from behind the exit."""
        page = self._on_laptop("curl", "-sS", "--max-time", "20", f"http://{_NAME}/")
        if page != _PAGE:
            raise TunproxyError(f"curl fetched {page!r}, which is not the page of the origin")
        _say(f"[4/6] curl http://{_NAME}/ says: {page.strip()}")

    def show_status(self) -> None:
        """A flow, as the program sees it while it is there."""
        _say("[5/6] tunproxy status, while curl downloads slowly:")
        slowly = ["curl", "-sS", "--limit-rate", "64k", "-o", "/dev/null", f"http://{_NAME}/large"]
        with _ended(self._start(self._laptop.command(slowly))):
            status = self._status_with_a_flow()
        _say("\n".join(f"        {line}" for line in status.splitlines()))

    def _status_with_a_flow(self) -> str:
        deadline = time.monotonic() + _READY_S
        while True:
            status = self._on_laptop(*_tunproxy("status"))
            if " 1 open" in status:
                return status
            if time.monotonic() > deadline:
                raise TunproxyError(f"there is no flow to be seen:\n{status}")

    def stop_proxy(self) -> None:
        """The laptop is as it was."""
        assert self._proxy is not None
        self._proxy.terminate()
        status = self._proxy.wait(timeout=_READY_S)
        after = self._snapshot()
        if status or after != self._before:
            raise TunproxyError(f"tunproxy ended with {status} and left this behind:\n{after}")
        _say("[6/6] stopped: device, routes, rules and nft table of the laptop are as before")

    def _snapshot(self) -> str:
        """What ``up`` changes, as text."""
        shell = (
            "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; "
            "ip -o link; nft list ruleset"
        )
        return self._on_laptop("sh", "-c", shell)

    def _on_laptop(self, *argv: str) -> str:
        done = subprocess.run(
            self._laptop.command(argv), capture_output=True, text=True, timeout=30, check=False
        )
        if done.returncode:
            raise TunproxyError(
                f"{argv[0]} ended with status {done.returncode}: {done.stderr.strip()}"
            )
        return done.stdout

    def _start(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        # Unbuffered: what a buffer holds a selector does not see.
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
        )
        self._stack.enter_context(_ended(process))
        return process

    def _wait_for_line(self, process: subprocess.Popen[bytes], begin: str) -> str:
        """The line of ``process`` that begins so.

        Raises:
            TunproxyError: it ended without, or took too long; with what was said about it.
        """
        assert process.stdout is not None
        deadline = time.monotonic() + _READY_S
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                line = process.stdout.readline().decode()
                if line.startswith(begin):
                    return line.strip()
                if not line:
                    break
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip()
        raise TunproxyError(f"nobody said {begin!r}, but: {said or 'nothing'}")


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _tunproxy(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tunproxy", *arguments]


def _say(text: str) -> None:
    print(text, flush=True)
