"""What the end-to-end tests share: a laboratory for each module, and both stacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=["user", "system"])
def stack(request: pytest.FixtureRequest) -> str:
    """Who terminates TCP (``--stack``): what is asked for has to be so with either."""
    return str(request.param)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A laboratory with everything in it running."""
    with Lab() as laboratory:
        yield laboratory
