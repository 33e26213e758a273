"""Who has called us, and how to stop being root.

Read capabilities(7) and Documentation/userspace-api/no_new_privs.rst of the kernel before editing.
Only light modules are imported here: the engine drops its privileges before it imports the rest.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence

# include/uapi/linux/prctl.h
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# include/uapi/linux/capability.h
_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522
_CAP_SETPCAP: Final = 8
_CAP_NET_ADMIN: Final = 12
_CAP_BITS: Final = 64


class Caller(NamedTuple):
    """The user who wants this: whose keys and files are used, whom a command runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """Supplementary groups."""
    name: str
    home: str
    shell: str


def caller() -> Caller:
    """Return the user who called sudo (SUDO_UID) or pkexec (PKEXEC_UID), else our real user.

    Raises:
        MachineError: the variables are not what these programs set.
    """
    # Only root gains nothing from a lie in them.
    if os.getuid() == 0:
        for variable, group_variable in (("SUDO_UID", "SUDO_GID"), ("PKEXEC_UID", None)):
            if variable in os.environ:
                uid = _id_from_environment(variable)
                gid = _id_from_environment(group_variable) if group_variable else None
                return _account(uid, gid, None)
    return _account(os.getuid(), os.getgid(), tuple(os.getgroups()))


def require_root() -> None:
    """Check that we may configure the network and become another user.

    Raises:
        MachineError: we are not root, or root without the capability.
    """
    if os.geteuid() != 0:
        raise MachineError("only root can capture traffic; run the command with sudo")
    if not _status_mask("CapEff") >> _CAP_NET_ADMIN & 1:
        raise MachineError(
            "root may not configure the network here (CAP_NET_ADMIN is missing); "
            "start the container with '--cap-add NET_ADMIN'"
        )


def drop(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Become ``uid``, for good and without any capability; ``uid`` 0 is root without capabilities.

    What cannot be given up for lack of a privilege (the bounding set, when we are not root) is
    harmless with no_new_privs. The result is verified. Threads would each keep their capabilities:
    there may be none yet.

    Raises:
        MachineError: the kernel refuses something, or something is left.
    """
    if _status("Threads") != "1":
        raise RuntimeError("privileges are dropped before the first thread is started")
    try:
        bounded = bool(_status_mask("CapEff") >> _CAP_SETPCAP & 1)
        if bounded:
            _clear_bounding_set()
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        if set(os.getgroups()) != set(groups):
            os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        _clear_capabilities()
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise MachineError(
            f"cannot give up the privileges of root ({error.strerror}); "
            "run the command outside of the sandbox that forbids it"
        ) from error
    left = _what_is_left(uid, gid, groups, bounded=bounded)
    if left:
        raise MachineError(
            f"the kernel has not given up the privileges of root ({', '.join(left)}); "
            "run the command as an ordinary root"
        )


def _id_from_environment(variable: str) -> int:
    text = os.environ.get(variable, "")
    # (uid_t) -1 is no user: it means "leave it as it is" to setresuid(2).
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**32 - 1):
        raise MachineError(f"{variable} is {text!r} and not a number; run the command with sudo")
    return int(text)


def _account(uid: int, gid: int | None, groups: tuple[int, ...] | None) -> Caller:
    """Look ``uid`` up; a user that has no account (a container's) has no groups and lives in /."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        gid = uid if gid is None else gid
        return Caller(uid, gid, groups or (), str(uid), "/", "/bin/sh")
    gid = entry.pw_gid if gid is None else gid
    if groups is None:
        groups = tuple(os.getgrouplist(entry.pw_name, gid))
    return Caller(uid, gid, groups, entry.pw_name, entry.pw_dir, entry.pw_shell or "/bin/sh")


def _clear_bounding_set() -> None:
    for capability in range(_CAP_BITS):
        try:
            _prctl(_PR_CAPBSET_READ, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return  # beyond the last one this kernel knows
            raise
        _prctl(_PR_CAPBSET_DROP, capability)


def _clear_capabilities() -> None:
    """Clear the permitted, effective and inheritable sets, which user 0 keeps by itself."""
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, nothing) != 0:
        raise _last_error()


def _prctl(option: int, *args: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # The kernel checks that the arguments which an option does not use are zero.
    words = [ctypes.c_ulong(value) for value in (*args, 0, 0, 0, 0)[:4]]
    if libc.prctl(option, *words) < 0:
        raise _last_error()


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _what_is_left(uid: int, gid: int, groups: Sequence[int], *, bounded: bool) -> list[str]:
    """Return the names of what should have been given up and has not."""
    left = [name for name in ("CapInh", "CapPrm", "CapEff", "CapAmb") if _status_mask(name)]
    if bounded and _status_mask("CapBnd"):
        left.append("CapBnd")
    if _status("NoNewPrivs") != "1":
        left.append("NoNewPrivs")
    if os.getresuid() != (uid, uid, uid):
        left.append("user")
    if os.getresgid() != (gid, gid, gid):
        left.append("group")
    if set(os.getgroups()) != set(groups):
        left.append("groups")
    return left


def _status_mask(field: str) -> int:
    return int(_status(field), 16)


def _status(field: str) -> str:
    """Return ``field`` of /proc/self/status; see proc(5)."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
    raise MachineError(f"/proc/self/status has no {field}; run a kernel of version 4.10 or later")
