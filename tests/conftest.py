"""What every test has: hypothesis profiles, and the promise that nothing is left behind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import hypothesis
import pytest

# What an assertion has seen is said for those of helpers as well, if they are imported after this.
pytest.register_assert_rewrite("tests.helpers")

from tests.helpers import lab  # noqa: E402
from tests.helpers.processes import command_line, descendants  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

hypothesis.settings.register_profile("fast", derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("deep", max_examples=5000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """No namespace, cgroup or process of a laboratory outlives the tests."""
    if os.geteuid() != 0:
        # Nothing of the kind can be made.
        yield
        return
    lab.remove_leftovers()
    yield
    assert lab.own_leftovers() == []
    assert [command_line(pid) for pid in descendants(os.getpid())] == []
