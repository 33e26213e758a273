"""``tunproxy status``: what it prints, and what it says when there is nothing to print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.helpers.command import failure, sentence, tunproxy
from tests.helpers.instance import STATUS, FakeInstance
from tunproxy.cli.status import describe, duration, octets

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def instance() -> Iterator[FakeInstance]:
    with FakeInstance("tp0") as running:
        yield running


@pytest.mark.netns
def test_nothing_runs() -> None:
    expected = "nothing runs here; start it with tunproxy up or tunproxy run"
    assert failure("status", status=1, within=["unshare", "--net"]) == expected
    done = tunproxy("status", "--json", within=["unshare", "--net"])
    assert (done.returncode, done.stdout, done.stderr) == (1, "[]\n", "")


@pytest.mark.netns
def test_status_of_an_instance(instance: FakeInstance) -> None:
    done = tunproxy("status", within=instance.enter)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "\n".join(describe(STATUS)) + "\n"


@pytest.mark.netns
def test_status_as_json(instance: FakeInstance) -> None:
    done = tunproxy("status", "--json", within=instance.enter)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [msgspec.to_builtins(STATUS)]


@pytest.mark.netns
def test_instance_that_does_not_answer_is_named() -> None:
    with FakeInstance("tp1", answers=False) as mute, FakeInstance("tp0", beside=mute):
        done = tunproxy("status", "--json", within=mute.enter)
        assert done.returncode == 1
        assert len(json.loads(done.stdout)) == 1
        said = sentence(done.stderr)
        assert said.startswith(f"tp1 (process {mute.pid}): ")
        assert said.endswith("tunproxy is not running")


@pytest.mark.netns
def test_dead_instance_is_not_shown() -> None:
    with FakeInstance("tp0") as running:
        running.kill()
        done = tunproxy("status", "--json", within=running.enter)
        assert (done.returncode, done.stdout, done.stderr) == (1, "[]\n", "")


def test_text() -> None:
    assert list(describe(STATUS)) == [
        "tp0: user@host, link up, running for 1 min 5 s, aes128-gcm@openssh.com,"
        " reconnected 2 times",
        "  engine   pid 77, 40.0 MiB of memory",
        "  capture  system, user stack with offload",
        "  flows    3 open, 120 in all",
        "  traffic  1.5 KiB up, 2.0 GiB down",
        "  dns      9 queries",
        "  refused  prohibited 1, refused 4",
        "  counters tcp_checksum 2",
    ]


def test_text_while_there_is_no_connection() -> None:
    status = msgspec.structs.replace(
        STATUS,
        state="connecting",
        cipher=None,
        reconnects=0,
        offload=False,
        refused={},
        counters={},
    )
    first, *_, last = describe(status)
    assert first == "tp0: user@host, link connecting, running for 1 min 5 s"
    assert last == "  dns      9 queries"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "0 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90061, "1 d 1 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_octets(count: int, text: str) -> None:
    assert octets(count) == text
