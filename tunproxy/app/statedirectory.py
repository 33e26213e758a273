"""Where things are kept from one run to the next."""

from __future__ import annotations

import os
import pathlib


def state_directory() -> pathlib.Path:
    """Return our part of the caller's state (XDG base directories); it may not exist.

    Raises:
        RuntimeError: he has no home directory.
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    # "All paths must be absolute. If [not], consider the path invalid and ignore it."
    root = pathlib.Path(base) if base.startswith("/") else pathlib.Path.home() / ".local/state"
    return root / "tunproxy"
