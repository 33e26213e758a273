"""Runs the program in the laboratory as a user would, and looks at what it does to the client."""

from __future__ import annotations

import contextlib
import difflib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.helpers.lab import OUTSIDE4, SSH_PORT
from tests.helpers.processes import command_line, descendants, resident
from tests.helpers.program import Program

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tests.helpers.lab import Lab
    from tests.helpers.lab_host import Host

PROGRAM = (sys.executable, "-m", "tunproxy")


def server_options(lab: Lab, key: pathlib.Path | None = None) -> list[str]:
    """The options that let the program log in to the laboratory's sshd."""
    sshd = lab.sshd
    return [
        "-F",
        "none",
        "-p",
        str(SSH_PORT),
        "-i",
        str(key or sshd.key),
        "--known-hosts",
        str(sshd.known_hosts),
    ]


class Tunproxy(Program):
    """A running ``tunproxy``, in the client of ``lab`` or in another ``host``."""

    end_s = 10.0

    def __init__(
        self,
        lab: Lab,
        *command: str,
        env: dict[str, str] | None = None,
        host: Host | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        """``prefix`` goes before the command line, to run it as another user for instance.

        ``pid`` is the supervisor's.
        """
        self._lab = lab
        self._host = host or lab.client
        super().__init__(
            self._host.popen(
                *prefix, *PROGRAM, *command, env=env,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip

    def _clean_up(self) -> None:
        run_program(self._lab, "recover", check=False, host=self._host)

    # What it says of itself

    def status(self) -> dict[str, Any]:
        """What ``tunproxy status --json`` says of it."""
        shown = json.loads(run_program(self._lab, "status", "--json", host=self._host).stdout)
        children = descendants(self.pid)
        (found,) = (instance for instance in shown if instance["pid"] in children)
        assert isinstance(found, dict)
        return found

    def engine_pid(self) -> int:
        """The process id of the engine."""
        return next(
            pid for pid in descendants(self.pid) if "tunproxy.app.daemon" in command_line(pid)
        )

    def rss_bytes(self) -> dict[int, int]:
        """The resident memory of the supervisor and all it has started, by process id."""
        return {pid: resident(pid) for pid in (self.pid, *descendants(self.pid))}


def run_program(
    lab: Lab, *command: str, check: bool = True, host: Host | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``tunproxy COMMAND`` in the client, or in another ``host``, to its end."""
    return (host or lab.client).run(*PROGRAM, *command, check=check, **options)


@contextlib.contextmanager
def up(
    lab: Lab, *options: str, target: str = f"root@{OUTSIDE4}", env: dict[str, str] | None = None
) -> Iterator[Tunproxy]:
    """``tunproxy up`` with the laboratory's server, ready; gone afterwards whatever happens."""
    program = Tunproxy(lab, "up", target, *server_options(lab), *options, env=env)
    try:
        program.wait_ready()
        yield program
    finally:
        program.close()


def run_command(
    lab: Lab, *command: str, options: tuple[str, ...] = (), **run_options: Any
) -> subprocess.CompletedProcess[str]:
    """``tunproxy run ... -- COMMAND`` to its end, with the laboratory's server."""
    words = ["run", f"root@{OUTSIDE4}", *server_options(lab), *options, "--", *command]
    return run_program(lab, *words, **run_options)


# Looking from outside


_VIEWS = {
    "rules": "ip rule",
    "rules6": "ip -6 rule",
    "routes": "ip route show table all",
    "routes6": "ip -6 route show table all",
    "addresses": "ip -o addr",
    "nft": "nft list ruleset",
    "resolv.conf": "ls -l /etc/resolv.conf; cat /etc/resolv.conf",
    "sysctl": "sysctl -a -r 'rp_filter|route_localnet|forwarding|ip_forward|src_valid_mark'",
    # Network namespaces that others remove meanwhile (nsfs) go from every mount namespace.
    "mounts": "grep -v ' nsfs ' /proc/self/mounts",
}
_SEPARATOR = "=====\n"


def snapshot(host: Host) -> dict[str, str]:
    """Everything in ``host`` that the program may change while it runs, to compare."""
    script = f"\nprintf '%s' '{_SEPARATOR}'\n".join(_VIEWS.values())
    views = host.run("sh", "-c", script).stdout.split(_SEPARATOR)
    found = dict(zip(_VIEWS, views, strict=True))
    found["cgroups"] = "\n".join(host.cgroups())
    return found


def changes(host: Host, before: dict[str, str]) -> list[str]:
    """How ``host`` differs from the :func:`snapshot` taken ``before``, in lines of diff(1)."""
    after = snapshot(host)
    return [
        line
        for view, text in before.items()
        for line in difflib.unified_diff(
            text.splitlines(), after[view].splitlines(), view, view, n=0, lineterm=""
        )
    ]
