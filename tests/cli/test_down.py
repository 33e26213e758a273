"""``tunproxy down`` against instances that capture nothing."""

from __future__ import annotations

import pytest

from tests.helpers.command import UNPRIVILEGED, failure, tunproxy
from tests.helpers.instance import FakeInstance, instance
from tunproxy.cli.down import stop
from tunproxy.errors import TunproxyError

__all__ = ["instance"]

pytestmark = pytest.mark.netns


def test_nothing_runs() -> None:
    assert failure("down", status=1, within=["unshare", "--net"]) == "nothing runs here"


def test_down_returns_when_it_is_gone(instance: FakeInstance) -> None:
    done = tunproxy("down", within=instance.enter)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped tp0\n", "")
    assert failure("down", status=1, within=instance.enter) == "nothing runs here"
    assert not instance.runs()


def test_instance_of_another_namespace_is_left_alone(instance: FakeInstance) -> None:
    assert failure("down", status=1, within=["unshare", "--net"]) == "nothing runs here"
    assert instance.runs()


def test_several_have_to_be_told_apart(instance: FakeInstance) -> None:
    with FakeInstance("tp1", beside=instance) as other:
        said = failure("down", status=2, within=instance.enter)
        assert said == "several run here, choose one with --tun: tp0, tp1"
        assert instance.runs()
        assert other.runs()
        said = failure("down", "--tun", "tp2", status=1, within=instance.enter)
        assert said == "nothing runs with tp2, only tp0, tp1"
        done = tunproxy("down", "--tun", "tp1", within=instance.enter)
        assert (done.returncode, done.stdout) == (0, "stopped tp1\n")
        assert not other.runs()
        assert instance.runs()


def test_process_id_of_a_dead_instance_is_not_signalled(instance: FakeInstance) -> None:
    instance.kill()
    assert failure("down", status=1, within=instance.enter) == "nothing runs here"


def test_one_that_does_not_stop_is_given_up_on() -> None:
    with FakeInstance("tp0", stubborn=True) as stubborn:
        with pytest.raises(TunproxyError, match=r"did not stop within 0\.5 s: kill it, then"):
            stop(stubborn.instance(), 0.5)
        assert stubborn.read_line() == "asked"
        assert stubborn.runs()


def test_others_may_not_stop_it(instance: FakeInstance) -> None:
    said = failure("down", status=4, within=[*instance.enter, *UNPRIVILEGED])
    assert said == "only root may stop it: run this as root"
    assert instance.runs()
