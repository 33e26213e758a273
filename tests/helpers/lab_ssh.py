"""``ssh -L``: what the program is measured against, and the proof that the laboratory works."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tests.helpers.lab import SERVER4
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

FORWARD4, FORWARD_PORT = "127.0.0.1", 8000
"""Where the client connects to."""


@contextlib.contextmanager
def forwarding(lab: Lab, destination: str, server: str = SERVER4) -> Iterator[None]:
    """``ssh -L`` from the client by way of ``server`` to ``destination`` (``host:port``)."""
    forward = f"{FORWARD4}:{FORWARD_PORT}:{destination}"
    command = ["ssh", *lab.sshd.ssh_options(), "-N", "-L", forward, f"root@{server}"]
    with lab.client.popen(*command) as process:
        try:
            listening = ["ss", "-Htln", f"sport = :{FORWARD_PORT}"]
            until(lambda: lab.client.run(*listening).stdout, "ssh -L to listen", 20)
            yield
        finally:
            process.terminate()
