"""A real OpenSSH server with keys of its own, on a free port of loopback or inside a namespace."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from tests.helpers.aio import free_port
from tests.helpers.processes import descendants
from tests.helpers.ssh_files import new_key, public_key, sshd_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEADLINE_S = 15.0


class Sshd:
    """An sshd that lets root in with ``key``; use as a context manager, or start() and kill()."""

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        listen: str = "127.0.0.1",
        port: int | None = None,
        prefix: Sequence[str] = (),
        options: Mapping[str, str] | None = None,
    ) -> None:
        """``directory`` takes keys, configuration and log. ``prefix`` is put before the command,
        such as ``["nsenter", "--net=/run/netns/x"]``. ``options`` are of sshd_config(5)."""
        self.directory = directory
        self.listen = listen
        self.port = free_port() if port is None else port
        directory.mkdir(exist_ok=True, parents=True)
        self.key = new_key(directory / "user_key")
        self.host_key = new_key(directory / "host_key")
        self.known_hosts = directory / "known_hosts"
        self.known_hosts.write_text(self.known_hosts_line())
        self._prefix = list(prefix)
        self._options = {**sshd_options(self.host_key, self.key), **(options or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sshd:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def start(self, options: Mapping[str, str] | None = None) -> None:
        """Start, with ``options`` over the usual ones, and wait until it says that it listens."""
        pathlib.Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        lines = [f"{name} {value}" for name, value in {**self._options, **(options or {})}.items()]
        lines += [f"ListenAddress {self.listen}", f"Port {self.port}"]
        config = self.directory / "sshd_config"
        config.write_text("\n".join(lines) + "\n")
        said = self.log().count("Server listening")
        self._process = subprocess.Popen(
            [*self._prefix, "/usr/sbin/sshd", "-D", "-E", self._log_file, "-f", config],
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + DEADLINE_S
        while self.log().count("Server listening") == said:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"sshd does not listen:\n{self.log()}")
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL it with all its connections."""
        if self._process is None:
            return
        for pid in [*descendants(self._process.pid), self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def kill_connections(self) -> None:
        """SIGKILL the processes that serve connections; it goes on listening."""
        for pid in self.connection_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def connection_pids(self) -> list[int]:
        """The processes that serve connections."""
        assert self._process is not None
        return descendants(self._process.pid)

    def log(self) -> str:
        """What it has logged so far."""
        return self._log_file.read_text() if self._log_file.exists() else ""

    def known_hosts_line(self, host: str | None = None, key: pathlib.Path | None = None) -> str:
        """A line of known_hosts for this server, with its own key unless another is given."""
        return f"[{host or self.listen}]:{self.port} {public_key(key or self.host_key)}\n"

    @property
    def _log_file(self) -> pathlib.Path:
        return self.directory / "sshd.log"
