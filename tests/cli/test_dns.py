"""``tunproxy dns``: what it asks a running instance, and how it shows the answers."""

from __future__ import annotations

import json

import pytest

from tests.helpers.command import failure, tunproxy
from tests.helpers.instance import FakeInstance, instance
from tunproxy.app.controlanswers import DnsRecord, Listed, Queried
from tunproxy.cli.dns import describe, table

__all__ = ["instance"]

WHY = "rule MATCH,PROXY (my.list:1)"
RECORD = DnsRecord(name="a.test.", ttl=1, type="A", data="198.18.0.4")


def queried(
    rcode: str, *records: DnsRecord, kind: str = "forwarded", server: str | None = None
) -> list[str]:
    """How it is shown."""
    return list(
        describe(
            Queried(
                name="a.test", type="A", rcode=rcode, answers=records,
                kind=kind, server=server, why=WHY, ms=1.25,
            )
        )
    )  # fmt: skip


@pytest.mark.netns
def test_query(instance: FakeInstance) -> None:
    done = tunproxy("dns", "query", "a.test", within=instance.enter)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"a.test. 1 A 198.18.0.4\n; fake, 0.2 ms: {WHY}\n"


@pytest.mark.netns
def test_query_as_json(instance: FakeInstance) -> None:
    done = tunproxy("dns", "query", "b.test", "mx", "--json", within=instance.enter)
    answer = json.loads(done.stdout)
    assert (answer["name"], answer["type"], answer["kind"]) == ("b.test", "mx", "fake")


@pytest.mark.netns
def test_list_and_flush(instance: FakeInstance) -> None:
    done = tunproxy("dns", "list", within=instance.enter)
    assert done.stdout == "a.test  A      fake    198.18.0.4\n1 fake address, 0 kept answers\n"
    done = tunproxy("dns", "list", "b.test", "--json", within=instance.enter)
    assert [entry["name"] for entry in json.loads(done.stdout)] == ["b.test"]
    done = tunproxy("dns", "flush", within=instance.enter)
    assert (done.returncode, done.stdout) == (0, "forgot 3 answers\n")


@pytest.mark.netns
def test_which_instance(instance: FakeInstance) -> None:
    with FakeInstance("tp1", beside=instance):
        said = failure("dns", "list", status=2, within=instance.enter)
        assert said == "several instances run here, say which one with --tun: tp0, tp1"
        done = tunproxy("dns", "list", "--tun", "tp1", within=instance.enter)
        assert done.returncode == 0
    said = failure("dns", "list", "--tun", "tp9", status=1, within=instance.enter)
    assert said == "nothing runs on tp9; start it with tunproxy up or run"


@pytest.mark.netns
def test_nothing_runs() -> None:
    said = failure("dns", "flush", status=1, within=["unshare", "--net"])
    assert said == "nothing runs here; start it with tunproxy up or run"


def test_answers_in_words() -> None:
    assert queried("NOERROR", RECORD, kind="fake") == [
        "a.test. 1 A 198.18.0.4",
        f"; fake, 1.2 ms: {WHY}",
    ]
    asked = f"; forwarded, asked the far resolver, 1.2 ms: {WHY}"
    assert queried("NXDOMAIN", server="the far resolver") == ["no such name", asked]
    assert queried("NOERROR", server="the far resolver") == ["no record of type A", asked]
    assert queried("SERVFAIL", server="the far resolver") == ["failed: SERVFAIL", asked]


def test_table() -> None:
    entries = [
        Listed(name="a.test", type="A", kind="fake", value="198.18.0.4", ttl=None),
        Listed(name="longer.a.test", type="AAAA", kind="fake", value="fd00:7470::4", ttl=None),
        Listed(name="a.test", type="MX", kind="cached", value="2 records", ttl=59),
    ]
    assert list(table(entries)) == [
        "a.test         A      fake    198.18.0.4",
        "longer.a.test  AAAA   fake    fd00:7470::4",
        "a.test         MX     cached  2 records for 59 s",
        "2 fake addresses, 1 kept answer",
    ]
    assert list(table([])) == ["0 fake addresses, 0 kept answers"]
