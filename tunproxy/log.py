"""Logging: where it goes and how much of it.

Levels are doctrine. ERROR: we stop. WARNING: somebody should look. INFO: the life of the program
(ready, reconnecting, stopped). DEBUG: one line for a flow, with names and addresses.
TRACE: one line for a packet, always guarded by ``isEnabledFor``. Payload and secrets: never.
"""

from __future__ import annotations

import logging
import sys

TRACE = 5
"""A level below DEBUG for what happens once per packet."""

_BY_VERBOSITY = (logging.WARNING, logging.INFO, logging.DEBUG, TRACE)


def setup(verbosity: int) -> None:
    """Send the log to standard error; ``verbosity`` counts the ``-v`` options (0 to 3)."""
    logging.addLevelName(TRACE, "TRACE")
    level = _BY_VERBOSITY[max(0, min(verbosity, len(_BY_VERBOSITY) - 1))]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("tunproxy")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level)
    # asyncssh logs each connection and channel at INFO: two lines for every flow.
    logging.getLogger("asyncssh").setLevel(level if level <= TRACE else logging.WARNING)
