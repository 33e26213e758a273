"""The laboratory that the end-to-end tests of one module share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A laboratory with everything in it running."""
    with Lab() as laboratory:
        yield laboratory
