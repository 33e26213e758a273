"""Waiting in tests: poll a condition against a deadline, never sleep for a guessed time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_POLL_S = 0.01


def until(condition: Callable[[], T], what: str, within_s: float = 10.0) -> T:
    """Return the first true value of ``condition()``; fail with ``what`` after ``within_s``."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(_POLL_S)


def settled(
    sample: Callable[[], float], what: str, samples: int = 150, within_s: float = 60.0
) -> float:
    """Return the value of ``sample()`` once it has been the same ``samples`` times running."""
    last: float | None = None
    same = 0

    def still() -> bool:
        nonlocal last, same
        value = sample()
        same = same + 1 if value == last else 0
        last = value
        return same >= samples

    until(still, f"{what} to settle", within_s)
    assert last is not None
    return last
