"""Why an SSH server opened no tunnel, in one sentence that says what to do.

OpenSSH's answer is always "open failed". It tells more in an SSH_MSG_DEBUG just before (RFC 4253
section 11.3, server_request_tun() of its serverloop.c): whether its configuration forbids tunnels,
or the system refused the device. Why the system did, it tells nobody; so the account is asked, by a
command that looks at the device.
"""

from __future__ import annotations

import contextlib
import enum
import shlex
from collections import deque
from typing import TYPE_CHECKING

import asyncssh

from ..errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .vpn_terms import Kind

MAX_OVERHEARD = 8
MAX_TEXT = 200
"""Characters of the server's words that are shown."""

_PROHIBITED = "rejected tunnel device forwarding"
_NOT_OPENED = "Failed to open the tunnel device"
_MODE_WORDS = {"tun": "point-to-point", "tap": "ethernet"}
_KIND_FLAGS = {"tun": 0x1, "tap": 0x2}  # IFF_TUN, IFF_TAP of include/uapi/linux/if_tun.h
_MULTI_QUEUE_FLAG = 0x100

_LOOK = """\
echo uid="$(id -u)"; echo gids="$(id -G)"
[ -e /dev/net/tun ] && echo driver=yes
[ -w /dev/net/tun ] && echo writable=yes
cd /sys/class/net/{name} 2>/dev/null || exit 0
echo exists=yes
for f in tun_flags owner group; do [ -r $f ] && echo "$f=$(cat $f)"; done
exit 0
"""


class TunnelRefusal(enum.Enum):
    """Why there is no tunnel."""

    PROHIBITED = "prohibited"
    """The server's configuration, or the key's restrictions."""
    BUSY = "busy"
    """Another program has the device: another unit may be free."""
    NO_RIGHT = "no_right"
    """The account may not open the device."""
    NO_DRIVER = "no_driver"
    UNSUPPORTED = "unsupported"
    """The server knows no tunnels at all."""
    FAILED = "failed"
    """Not known more exactly."""


class TunnelRefused(ServerError):
    """The server is there, and opens no tunnel."""

    def __init__(self, reason: TunnelRefusal, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@contextlib.contextmanager
def overheard(connection: asyncssh.SSHClientConnection) -> Iterator[Sequence[str]]:
    """What the server says in SSH_MSG_DEBUG while the block runs; the last of it."""
    said: deque[str] = deque(maxlen=MAX_OVERHEARD)
    owner = connection.get_owner()

    def listen(msg: str, lang: str, always_display: bool) -> None:
        said.append(msg)

    assert owner is not None
    owner.debug_msg_received = listen  # type: ignore[method-assign]
    try:
        yield said
    finally:
        del owner.debug_msg_received


def wants_look(said: Sequence[str]) -> bool:
    """Whether the reason is to be found with :func:`look_command`."""
    return any(_NOT_OPENED in text for text in said)


def look_command(kind: Kind, unit: int | None) -> str:
    """A command for the server's shell that looks why the device cannot be opened."""
    name = "." if unit is None else f"{kind}{unit}"
    return f"sh -c {shlex.quote(_LOOK.format(name=name))}"


def refused(
    error: asyncssh.ChannelOpenError,
    said: Sequence[str],
    look: bytes | None,
    kind: Kind,
    unit: int | None,
) -> TunnelRefused:
    """The reason for ``error``; ``look`` is what :func:`look_command` printed."""
    if any(_PROHIBITED in text for text in said):
        return TunnelRefused(
            TunnelRefusal.PROHIBITED,
            f"the SSH server does not permit this tunnel: set 'PermitTunnel yes' (or "
            f"{_MODE_WORDS[kind]}) in its sshd_config and reload sshd; 'DisableForwarding' there, "
            f"and 'restrict' before your key in authorized_keys, must not forbid it",
        )
    if error.code == asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE:
        return TunnelRefused(
            TunnelRefusal.UNSUPPORTED,
            "the SSH server knows no tunnels: use one that is OpenSSH, or 'tunproxy serve'",
        )
    if not any(_NOT_OPENED in text for text in said):
        return TunnelRefused(
            TunnelRefusal.FAILED,
            f"the SSH server does not open a tunnel ({printable(error.reason)}): ask its owner",
        )
    if look is None:
        return _unknown(kind, unit)
    fields = (line.partition("=") for line in look.decode("utf-8", "replace").splitlines())
    return _seen({key: value for key, _, value in fields}, kind, unit)


def printable(text: str) -> str:
    """``text`` of the server, safe to be shown."""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT]).strip()


def _seen(seen: Mapping[str, str], kind: Kind, unit: int | None) -> TunnelRefused:
    device = "a device" if unit is None else f"{kind}{unit}"
    if "uid" not in seen:
        return _unknown(kind, unit)
    if "driver" not in seen:
        return TunnelRefused(
            TunnelRefusal.NO_DRIVER,
            "the server's kernel has no TUN driver: load it there with 'modprobe tun', or give its "
            "container the device /dev/net/tun",
        )
    is_root = seen["uid"] == "0"
    exists = unit is not None and "exists" in seen
    if "writable" not in seen:
        return TunnelRefused(
            TunnelRefusal.NO_RIGHT,
            "your account may not open /dev/net/tun on the server: log in as root, or have root "
            "allow it there with 'chmod 666 /dev/net/tun' (the right to a device is another one)",
        )
    if not is_root and not (exists and _may_attach(seen)):
        name = f"{kind}0" if unit is None else device
        return TunnelRefused(
            TunnelRefusal.NO_RIGHT,
            f"your account may not open {device} on the server: log in as root, or have root make "
            f"it with 'ip tuntap add {name} mode {kind} user NAME' there and name it with "
            f"--remote-tun",
        )
    if not exists:
        return _unknown(kind, unit)
    flags = _number(seen.get("tun_flags", ""))
    if not flags & _KIND_FLAGS[kind] or flags & _MULTI_QUEUE_FLAG:
        return TunnelRefused(
            TunnelRefusal.FAILED,
            f"{device} on the server is a link of another kind: choose another one with "
            f"--remote-tun, or delete it there with 'ip link del {device}'",
        )
    return TunnelRefused(
        TunnelRefusal.BUSY,
        f"{device} on the server is used by another program: stop that, or choose another one with "
        f"--remote-tun",
    )


def _may_attach(seen: Mapping[str, str]) -> bool:
    """tun_not_capable() of the kernel's drivers/net/tun.c; -1 is nobody."""
    owner, group = seen.get("owner", "-1"), seen.get("group", "-1")
    return owner in {"-1", seen["uid"]} and group in {"-1", *seen.get("gids", "").split()}


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0


def _unknown(kind: Kind, unit: int | None) -> TunnelRefused:
    device = "a device" if unit is None else f"{kind}{unit}"
    return TunnelRefused(
        TunnelRefusal.FAILED,
        f"the SSH server could not open {device}: another program may use it, your account may "
        f"have no right to it, or 'tunnel=' before your key in authorized_keys names another one; "
        f"choose one with --remote-tun",
    )
