"""The engine process: ``python -m tunproxy.app.daemon FD IDS [MODULE]...``.

The supervisor spawns it as root. FD is one end of the link, IDS the caller's uid, gid and groups as
JSON, MODULE one that this run needs (:mod:`.parts`). Every privilege is given up before anything is
read or sent. The code is loaded before that, all of it: an installation that only root may read is
as good as any other.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - loaded at the first name that is resolved, else
import gc
import sys
from typing import TYPE_CHECKING

from . import enginesession, parts
from .engineprocess import become_engine
from .ipc import Start

if TYPE_CHECKING:
    import socket

    from ..linux.tun import Tun
    from .broker import Broker
    from .enginesession import EngineSession


def main(argv: list[str]) -> int:
    """Run the engine until the supervisor goes; return the exit status of the process."""
    parts.load(argv[3:])
    link = become_engine(argv)
    # What is loaded stays for good: the collector need not look through it for each burst of flows.
    gc.freeze()
    return enginesession.run(link, Start, _make_session)


def _make_session(
    start: Start, tun: Tun, broker: Broker, listeners: list[socket.socket]
) -> EngineSession:
    # One of the two has been loaded.
    if start.mode == "vpn":
        from .vpnsession import VpnSession

        return VpnSession(start, tun, broker)
    from .session import Session

    return Session(start, tun, broker, listeners)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
