"""Memory that a process does not need any more."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Return to the kernel what can be returned, before a process begins to wait.

    What refers to itself is only found by looking at everything, which Python does when much is
    made: not in a process that waits. What was freed in between, GNU's C library keeps (read
    malloc_trim(3)); others have no such function.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
