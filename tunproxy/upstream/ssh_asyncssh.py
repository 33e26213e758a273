"""What is relied on of asyncssh's inside, and whether it is there.

Beside this, :mod:`.ssh_channel` and :mod:`.ssh_stream` use attributes of channels; for these, the
version has to do.
"""

from __future__ import annotations

import inspect
import types
from typing import TYPE_CHECKING, Any

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.connection import SSHConnection
from asyncssh.encryption import Encryption
from asyncssh.logging import SSHLogger

if TYPE_CHECKING:
    from collections.abc import Callable

KNOWN_VERSIONS = ("2.24.",)
"""The releases whose inside is known, by their beginnings."""

METHODS: dict[type[Any], dict[str, tuple[str, ...]]] = {
    SSHConnection: {
        "_recv_data": (),
        "_recv_packet": (),
        "_recv_pkthdr": (),
        "_finish_recv_packet": ("pkttype", "seq", "_task", "is_async"),
        "_send": ("data",),
        "_send_kexinit": (),
        "_send_deferred_packets": (),
        "_send_disconnect": ("code", "reason", "lang"),
        "_force_close": ("exc",),
        "_keepalive_timer_callback": (),
        "_update_recv_pktlen": ("max_pktsize",),
        "internal_error": ("exc_info", "error_logger"),
        "data_received": ("data", "datatype"),
        "send_packet": ("pkttype", "args", "handler"),
        "create_tcp_channel": ("encoding", "errors", "window", "max_pktsize"),
    },
    SSHChannel: {
        "__init__": ("conn", "loop", "encoding", "errors", "window", "max_pktsize"),
        "_cleanup": ("exc",),
        "_deliver_data": ("data", "datatype"),
        "_flush_recv_buf": ("exc",),
        "_close_send": (),
        "_flush_send_buf": (),
        "_open": ("chantype", "args"),
        "_pause_resume_writing": (),
        "process_open_confirmation": ("send_chan", "send_window", "send_pktsize", "packet"),
        "process_open_failure": ("code", "reason", "lang"),
        "process_packet": ("pkttype", "pktid", "packet"),
        "send_packet": ("pkttype", "args"),
        "write": ("data", "datatype"),
    },
    SSHLogger: {"get_child": ("child", "context"), "log": ("level", "msg", "args", "kwargs")},
    asyncssh.SSHTCPChannel: {"_open_forward": ("session_factory", "chantype", "args")},
    Encryption: {
        "encrypt_packet": ("seq", "header", "packet"),
        "decrypt_packet": ("seq", "first", "rest", "header_len", "mac"),
    },
}
"""The parameters of what is called or overridden, without ``self``."""

ATTRIBUTES: dict[str, Any] = {
    "_auth_complete": bool,
    "_channels": dict,
    "_inpbuf": bytes,
    "_kex_complete": bool,
    "_keepalive_interval": (int, float),
    "_logger": SSHLogger,
    "_max_recv_pktlen": int,
    "_packet": bytes,
    "_pktlen": int,
    "_recv_blocksize": int,
    "_recv_encryption": (Encryption, type(None)),
    "_recv_handler": types.MethodType | types.FunctionType,
    "_recv_macsize": int,
    "_recv_seq": int,
    "_rekey_bytes": int,
    "_rekey_bytes_sent": int,
    "_rekey_seconds": (int, float),
    "_rekey_time": (int, float),
    "_send_encryption": (Encryption, type(None)),
    "_send_seq": int,
    "_transport": object,
}
"""Of a connection, with their types."""


def obstacle(connection: SSHConnection) -> str | None:
    """Why the inside of asyncssh is not what this program was written for; ``None``: it is."""
    if not asyncssh.__version__.startswith(KNOWN_VERSIONS):
        return f"asyncssh {asyncssh.__version__} is not known to this version"
    for owner, methods in METHODS.items():
        for name, parameters in methods.items():
            method = getattr(owner, name, None)
            if method is None or _parameters(method) != parameters:
                return f"asyncssh's {owner.__name__}.{name} is not the one known"
    for name, kind in ATTRIBUTES.items():
        if name not in vars(connection) or not isinstance(vars(connection)[name], kind):
            return f"asyncssh's SSHConnection.{name} is not the one known"
    return None


def _parameters(method: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(method).parameters)[1:]
