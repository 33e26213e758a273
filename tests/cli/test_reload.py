"""``tunproxy reload``; what it does to flows is in e2e/test_rules.py."""

from __future__ import annotations

import pytest

from tests.helpers.command import failure, tunproxy
from tests.helpers.instance import FakeInstance, instance

__all__ = ["instance"]

pytestmark = pytest.mark.netns


def test_nothing_runs() -> None:
    expected = "nothing runs here; start it with tunproxy up"
    assert failure("reload", status=1, within=["unshare", "--net"]) == expected


def test_says_what_is_in_force(instance: FakeInstance) -> None:
    done = tunproxy("reload", within=instance.enter)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "tp0: 3 rules are in force\ntp0: changed, in force after a restart: tun\n"
    )


def test_only_one_of_several(instance: FakeInstance) -> None:
    with FakeInstance("tp1", beside=instance):
        done = tunproxy("reload", "--tun", "tp1", within=instance.enter)
        assert done.stdout.startswith("tp1: ")
        assert "tp0" not in done.stdout
        expected = "nothing runs here with the device tp2; start it with tunproxy up"
        assert failure("reload", "--tun", "tp2", status=1, within=instance.enter) == expected


def test_instance_that_does_not_answer() -> None:
    with FakeInstance("tp1", answers=False) as mute:
        said = failure("reload", status=1, within=mute.enter)
        assert said.endswith("tunproxy is not running")
