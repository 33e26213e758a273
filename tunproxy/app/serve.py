"""``tunproxy serve``: an exit of our own, from its keys to its end."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import signal
from typing import TYPE_CHECKING

from ..errors import ConfigError, MachineError
from ..upstream.exit import ExitServer, generate_key
from ..upstream.permit import Permit
from . import process
from .statedirectory import state_directory

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Sequence

_log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(
    listen: tuple[str, int],
    *,
    host_key: pathlib.Path | None,
    authorized_keys: pathlib.Path,
    permit_open: Sequence[str],
    say: Callable[[str], None],
) -> int:
    """Serve until a signal comes; return the exit status of the command.

    Without ``host_key`` a key of our own is used, made at the first start. Without ``permit_open``
    every target may be opened. ``say`` prints a line for the user: the host key's fingerprint, and
    one that begins with ``listening``.

    Raises:
        ConfigError, MachineError: a key cannot be used or made, or the address.
    """
    permit = Permit(permit_open) if permit_open else None
    key = host_key if host_key is not None else own_host_key()
    server = ExitServer(
        listen, host_keys=[str(key)], authorized_keys=str(authorized_keys), permit=permit
    )
    process.run(_run(server, listen[0], key, say))
    return 0


def fingerprint(key: pathlib.Path) -> str | None:
    """Return the SHA256 fingerprint of a private key as ssh shows it, from the ``.pub`` beside it.

    ``None`` when there is no such file: the server can do without.
    """
    try:
        words = key.with_name(f"{key.name}.pub").read_text(encoding="utf-8").split()
        blob = base64.b64decode(words[1], validate=True)
    except (OSError, ValueError, IndexError):
        return None
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode()
    return f"SHA256:{digest.rstrip('=')}"


async def _run(
    server: ExitServer, host: str, key: pathlib.Path, say: Callable[[str], None]
) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    await server.start()
    try:
        known = fingerprint(key)
        if known is not None:
            say(f"host key {known} ({key})")
        say(f"listening on {host} port {server.port}")
        await stopped.wait()
        _log.info("stopped; refused: %s", dict(server.counters) or "nothing")
    finally:
        await server.close()


def own_host_key() -> pathlib.Path:
    """Return our host key, which is made when there is none."""
    key = state_directory() / "host_key"
    try:
        if not key.exists():
            key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            generate_key(key)
    except OSError as error:
        raise MachineError(
            f"cannot make a host key in {key.parent} ({error.strerror}): give one with --host-key"
        ) from None
    except RuntimeError:
        raise ConfigError("there is no home directory: give a host key with --host-key") from None
    return key
