"""nftables.py against the real nft, in a namespace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab_wait import until
from tests.helpers.netns import Namespace
from tunproxy.errors import MachineError
from tunproxy.linux import nftables

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

CHAIN = """
chain input {  # hooks are not the point here
  type filter hook input priority filter; policy accept
  udp dport { 53, 5353 } counter
}
"""
OTHER = "chain other { }"

_HOLDER = """
import sys
from tunproxy.linux.nftables import OwnedTable
table = OwnedTable("probe")
table.load({"inet": "chain input { }"})
print(table._nft.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def namespace() -> Iterator[Namespace]:
    with Namespace("nft") as namespace, namespace.entered():
        yield namespace


def listed(family: str = "inet") -> str:
    done = subprocess.run(
        ["nft", "list", "table", family, "probe"], check=False, capture_output=True, text=True
    )
    return done.stdout


def test_owned_load_replaces_the_whole_table() -> None:
    with nftables.OwnedTable("probe") as table:
        table.load({"inet": CHAIN})
        assert "udp dport { 53, 5353 } counter" in listed()
        assert "flags owner" in listed()
        table.load({"inet": OTHER, "netdev": OTHER})
        assert "chain other" in listed()
        assert "chain input" not in listed()
        assert nftables.tables() == {("inet", "probe"), ("netdev", "probe")}
        table.load({"inet": CHAIN})
        assert nftables.tables() == {("inet", "probe")}
    assert nftables.tables() == set()
    assert not table.alive
    table.close()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("chain input { nonsense }", "syntax error"),
        ("chain input {\n jump nowhere\n}", "No such file or directory"),
        ('chain input {\n ip daddr "unresolvable..name" drop\n}', r"\(.+\)"),
    ],
)
def test_owned_load_failure_changes_nothing(body: str, complaint: str) -> None:
    with nftables.OwnedTable("probe") as table:
        table.load({"inet": CHAIN})
        before = listed()
        with pytest.raises(MachineError, match=complaint):
            table.load({"inet": CHAIN + body})
        assert listed() == before
        table.load({"inet": OTHER})
        assert "chain other" in listed()


def test_owned_large_ruleset_is_loaded() -> None:
    elements = ", ".join(f"10.{n // 256}.{n % 256}.0/24" for n in range(20_000))
    body = f"set s {{\n type ipv4_addr; flags interval\n elements = {{ {elements} }}\n}}"
    with nftables.OwnedTable("probe") as table:
        table.load({"inet": body})
        assert listed().count("/24") == 20_000


def test_owned_table_is_nobody_elses() -> None:
    with nftables.OwnedTable("probe") as table:
        table.load({"inet": CHAIN})
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        assert "chain input" in listed()
        with pytest.raises(MachineError, match="not permitted"):
            nftables.delete("inet", "probe")


def test_owned_nft_killed_is_noticed() -> None:
    with nftables.OwnedTable("probe") as table:
        table.load({"inet": CHAIN})
        os.kill(table._nft.pid, signal.SIGKILL)
        until(lambda: not table.alive, "nft to end")
        assert listed() == ""
        with pytest.raises(MachineError, match="start again"):
            table.load({"inet": CHAIN})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_owned_table_dies_with_its_process(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        assert "chain input" in listed()
        holder.send_signal(number)
        holder.wait()
    until(lambda: nftables.tables() == set(), "the table to vanish")


def test_owned_table_survives_the_terminals_interrupt() -> None:
    """^C goes to the foreground process group: ours, where nft is not."""
    with subprocess.Popen(
        ["env", "--ignore-signal=INT", sys.executable, "-c", _HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as holder:
        assert holder.stdout is not None
        nft = int(holder.stdout.readline())
        assert os.getpgid(nft) != os.getpgid(holder.pid)
        os.killpg(holder.pid, signal.SIGINT)
        assert "chain input" in listed()
        holder.kill()


def test_owned_leaves_no_history_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with nftables.OwnedTable("probe") as table:
        table.load({"inet": CHAIN})
    assert list(tmp_path.iterdir()) == []


def test_unowned_replacement_stays_until_deleted() -> None:
    for body in (CHAIN, OTHER):
        nftables.run(nftables.replacement("probe", {"inet": body, "netdev": OTHER}))
    assert "chain other" in listed()
    assert "chain input" not in listed()
    assert "flags owner" not in listed()
    for family in ("inet", "netdev", "netdev"):
        nftables.delete(family, "probe")
    assert nftables.tables() == set()


def test_unowned_failure_is_one_sentence_and_changes_nothing() -> None:
    nftables.run(nftables.replacement("probe", {"inet": CHAIN}))
    before = listed()
    with pytest.raises(
        MachineError, match=r"^nft refuses our ruleset \(syntax error.*\)"
    ) as caught:
        nftables.run(nftables.replacement("probe", {"inet": "nonsense"}))
    assert "\n" not in str(caught.value)
    assert listed() == before


def test_missing_nft_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(nftables, "_environment", lambda: {"PATH": str(tmp_path)})
    with pytest.raises(MachineError, match="install the package nftables"):
        nftables.OwnedTable("probe")
    with pytest.raises(MachineError, match="install the package nftables"):
        nftables.run("")
    assert nftables.tables() == set()
