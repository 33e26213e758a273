"""Network namespaces for tests of devices, and users who may open the TUN driver."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

NOBODY = 65534
"""Whom tests.helpers.command.UNPRIVILEGED makes of us: user and group."""

_CLONE_NEWNET = 0x40000000
_DRIVER = "10 200"  # Documentation/admin-guide/devices.txt: /dev/net/tun

_OPEN_TO_ALL = f"""
mount -t tmpfs none "$1" && mknod -m 666 "$1/tun" c {_DRIVER} &&
mount --bind "$1/tun" /dev/net/tun && shift && exec "$@"
"""


@contextlib.contextmanager
def network_namespace() -> Iterator[None]:
    """This thread, and what it starts, is in a network namespace that ends with its last user."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.setns(home, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(home)


def driver_open_to_all(directory: pathlib.Path) -> list[str]:
    """What to put before a command that is to find /dev/net/tun as most systems have it: 0666.

    In a mount namespace of the command's own; ``directory`` is any that is empty.
    """
    return ["unshare", "--mount", "sh", "-c", _OPEN_TO_ALL, "sh", str(directory)]


def ip(command: str) -> str:
    """Run ``ip COMMAND``; return what it prints."""
    done = subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)
    return done.stdout
