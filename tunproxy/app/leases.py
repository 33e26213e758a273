"""Who had which addresses of a hub, from one run to the next: a small JSON file.

It is a convenience, and never a reason not to serve: what cannot be read or written is said once.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    import pathlib

_log = logging.getLogger(__name__)

Leases: TypeAlias = dict[str, tuple[str | None, str | None]]
"""Fingerprint to addresses; see :meth:`tunproxy.flow.hub_pool.AddressPool.leases`."""

MAX_LEN: Final = 32 << 20
"""Octets of a file that is read: four times that of a pool with all its leases."""


class LeaseFile:
    """The file at ``path``."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._has_complained = False

    def read(self) -> Leases:
        """What was written last; nothing where there is no such file, or none of ours."""
        try:
            if self.path.stat().st_size > MAX_LEN:
                raise ValueError("it is too long")
            return msgspec.json.decode(self.path.read_bytes(), type=Leases)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._complain("the clients' addresses cannot be read from", error)
            return {}

    def write(self, leases: Leases) -> None:
        """Replace the file: whoever looks finds the old content or the new one."""
        temporary = self.path.with_name(f"{self.path.name}.new")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(msgspec.json.encode(leases))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            self._complain("the clients' addresses cannot be written to", error)

    def _complain(self, text: str, error: Exception) -> None:
        if not self._has_complained:
            self._has_complained = True
            _log.warning("%s %s (%s): they may get others", text, self.path, error)
