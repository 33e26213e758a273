"""``tunproxy recover`` in network namespaces with and without something to remove."""

from __future__ import annotations

import sys

import pytest

from tests.helpers.command import UNPRIVILEGED, failure, tunproxy
from tunproxy.linux import marks

pytestmark = pytest.mark.netns


def test_nothing_to_recover() -> None:
    done = tunproxy("recover", within=["unshare", "--net"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing to recover\n", "")


def test_rule_that_was_left_is_removed() -> None:
    priority, table = marks.priority(3, 1), marks.table(3)
    rule = f"priority {priority} table {table} protocol {marks.PROTOCOL}"
    script = f'ip rule add {rule} && "$@" && ip rule >&2'
    done = tunproxy("recover", within=["unshare", "--net", "sh", "-c", script, sys.executable])
    assert done.returncode == 0
    assert "slot 3" in done.stdout
    assert f"{priority}:" not in done.stderr
    assert "32766:" in done.stderr


def test_only_root() -> None:
    assert "sudo" in failure("recover", status=4, within=UNPRIVILEGED)
