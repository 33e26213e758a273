from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from tests.helpers.aio import both_loops, turns, until
from tunproxy.app import poolstore
from tunproxy.app.poolstore import PoolStore
from tunproxy.flow.fakeip import FakePools

V4 = "198.18.0.0/24"
V6 = "fd00:7470::/64"


def pools(v4: str = V4, v6: str = V6) -> FakePools:
    return FakePools(ipaddress.IPv4Network(v4), ipaddress.IPv6Network(v6))


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "state" / "tun0.journal"


def octets(path: pathlib.Path) -> bytes:
    return path.read_bytes()


def write(path: pathlib.Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def copied(path: pathlib.Path) -> pathlib.Path:
    """What a kill at this moment would leave."""
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    return copy


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poolstore, "WRITE_AFTER_S", 0.0)


async def filled(path: pathlib.Path, *names: str, layout: str = "") -> dict[str, str]:
    """Keep the addresses of ``names`` and end in order; return what they are."""
    ours = pools()
    store = PoolStore(path, ours, layout)
    store.load()
    given = {name: str(ours.assign(name, 4)) for name in names}
    await store.close()
    return given


def names_in(path: pathlib.Path, layout: str = "") -> tuple[dict[str, str], int]:
    """What another run finds, and how many it says."""
    ours = pools()
    store = PoolStore(path, ours, layout)
    count = store.load()
    store._release()
    return dict(ours.export()), count


@both_loops
async def test_the_next_run_knows_the_names(path: pathlib.Path) -> None:
    given = await filled(path, "a.test", "b.test")
    assert names_in(path) == (given, 2)


@both_loops
async def test_both_families(path: pathlib.Path) -> None:
    ours = pools()
    store = PoolStore(path, ours)
    assert store.load() == 0
    addresses = {str(ours.assign("a.test", 4)), str(ours.assign("a.test", 6))}
    await store.close()
    later = pools()
    store = PoolStore(path, later)
    assert store.load() == 2
    assert {address for _, address in later.export()} == addresses
    await store.close()


@both_loops
async def test_what_is_new_is_written_without_an_end(path: pathlib.Path) -> None:
    ours = pools()
    store = PoolStore(path, ours)
    store.load()
    address = str(ours.assign("a.test", 4))
    await until(lambda: b"a.test" in octets(path), "the name to be written")
    assert names_in(copied(path)) == ({"a.test": address}, 1)
    await store.close()


@both_loops
async def test_one_write_for_many_names(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = pools()
    store = PoolStore(path, ours)
    store.load()
    writes: list[int] = []
    original = poolstore._write_all

    def counted(descriptor: int, data: bytes) -> None:
        writes.append(len(data))
        original(descriptor, data)

    monkeypatch.setattr(poolstore, "_write_all", counted)
    for number in range(100):
        ours.assign(f"{number}.test", 4)
        ours.assign(f"{number}.test", 4)
    await until(lambda: writes, "a write")
    await turns(5)
    assert len(writes) == 1
    await store.close()


@both_loops
async def test_an_address_belongs_to_the_last_name(path: pathlib.Path) -> None:
    ours = FakePools(ipaddress.IPv4Network(V4), ipaddress.IPv6Network(V6), capacity=2)
    store = PoolStore(path, ours)
    store.load()
    for name in ("a.test", "b.test", "c.test", "d.test"):
        ours.assign(name, 4)
    await until(lambda: b"d.test" in octets(path), "the names to be written")
    found, _ = names_in(copied(path))
    assert found == dict(ours.export())
    assert set(found) == {"c.test", "d.test"}
    await store.close()


@both_loops
async def test_the_order_of_use_survives(path: pathlib.Path) -> None:
    ours = pools()
    store = PoolStore(path, ours)
    store.load()
    for name in ("a.test", "b.test", "a.test"):
        ours.assign(name, 4)
    await store.close()
    later = pools()
    PoolStore(path, later).load()
    assert [name for name, _ in later.export()] == ["b.test", "a.test"]


@both_loops
async def test_a_torn_last_line_is_skipped_in_silence(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = await filled(path, "a.test", "b.test")
    write(path, octets(path)[:-3])
    assert names_in(path) == ({"a.test": given["a.test"]}, 1)
    assert caplog.records == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b"a.test", b"x.test"),
        lambda data: data.replace(b"198.18.0.4 a", b"198.18.0.9 a"),
        lambda data: data.replace(b"a.test", b"a.t\xffst"),
        lambda data: data.replace(b" a.test", b""),
    ],
)
@both_loops
async def test_a_damaged_line_is_skipped_with_a_warning(
    path: pathlib.Path,
    damage: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert callable(damage)
    given = await filled(path, "a.test", "b.test")
    write(path, damage(octets(path)))
    assert names_in(path) == ({"b.test": given["b.test"]}, 1)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "1 lines are not read" in caplog.text


@pytest.mark.parametrize("content", [b"\0" * 5000, b"\xff\xfe\n\n\n", b"{}\n", b"no end of line"])
@both_loops
async def test_a_file_that_is_none_of_ours(
    path: pathlib.Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, content)
    given = await filled(path, "a.test")
    assert "is damaged" in caplog.text
    assert names_in(path) == (given, 1), "it begins anew"


@both_loops
async def test_other_ranges_or_another_layout_begin_anew(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    await filled(path, "a.test", layout="user")
    other = pools("10.0.0.0/24")
    assert PoolStore(path, other, "user").load() == 0
    await filled(path, "a.test", layout="user")
    assert names_in(path, "system") == ({}, 0)
    assert caplog.records == []


@both_loops
async def test_the_second_of_one_name_does_without(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ours, theirs = pools(), pools()
    first, second = PoolStore(path, ours), PoolStore(path, theirs)
    first.load()
    assert second.load() == 0
    assert "belongs to another instance" in caplog.text
    theirs.assign("theirs.test", 4)
    ours.assign("ours.test", 4)
    await second.close()
    await first.close()
    assert set(names_in(path)[0]) == {"ours.test"}


@both_loops
async def test_a_directory_that_cannot_be_is_one_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    ours = pools()
    store = PoolStore(tmp_path / "file" / "tun0.journal", ours)
    assert store.load() == 0
    ours.assign("a.test", 4)
    await store.close()
    (record,) = caplog.records
    assert "names are not kept" in record.getMessage()


@both_loops
async def test_a_full_disk_is_one_warning(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = pools()
    store = PoolStore(path, ours)
    store.load()
    full = os.open("/dev/full", os.O_WRONLY)
    assert store._file is not None
    os.dup2(full, store._file)
    os.close(full)
    ours.assign("a.test", 4)
    await until(lambda: caplog.records, "the warning")
    ours.assign("b.test", 4)
    await store.close()
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()


@both_loops
async def test_outdated_lines_are_cleared_away(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poolstore, "MIN_LINES", 50)
    gate = threading.Event()
    compact = poolstore._compact

    def slowly(old: pathlib.Path, fresh: pathlib.Path, size: int) -> int:
        count = compact(old, fresh, size)
        assert gate.wait(20)
        return count

    monkeypatch.setattr(poolstore, "_compact", slowly)
    ours = FakePools(ipaddress.IPv4Network(V4), ipaddress.IPv6Network(V6), capacity=10)
    store = PoolStore(path, ours)
    store.load()
    for number in range(200):
        ours.assign(f"{number}.test", 4)
    await until(lambda: octets(path).count(b"\n") == 201, "the file to be untidy")
    ours.assign("meanwhile.test", 4)
    await until(lambda: b"meanwhile" in octets(path), "the name to be in the old file")
    gate.set()
    await until(lambda: octets(path).count(b"\n") < 20, "the file to be tidy")
    ours.assign("afterwards.test", 4)
    await until(lambda: b"afterwards" in octets(path), "the last name")
    lines = octets(path).splitlines()
    assert len(lines) < 20
    assert names_in(copied(path))[0] == dict(ours.export())
    await store.close()


KILLED = """
    import asyncio, ipaddress, pathlib, sys
    from tunproxy.app.poolstore import PoolStore
    from tunproxy.flow.fakeip import FakePools

    async def main():
        pools = FakePools(ipaddress.IPv4Network({v4!r}), ipaddress.IPv6Network({v6!r}))
        store = PoolStore(pathlib.Path(sys.argv[1]), pools)
        store.load()
        number = 0
        while True:
            print(number, pools.assign(f"{{number}}.test", 4), flush=True)
            number += 1
            await asyncio.sleep(0.01)

    asyncio.run(main())
"""


def test_sigkill_costs_a_second_at_most(path: pathlib.Path) -> None:
    """What was assigned a second before the kill is there, whenever it comes."""
    program = textwrap.dedent(KILLED).format(v4="198.18.0.0/16", v6=V6)
    given: dict[str, str] = {}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True,
        cwd=pathlib.Path(__file__).parents[2],
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            number, address = line.split()
            given[f"{number}.test"] = address
            if len(given) == 200:
                process.send_signal(signal.SIGKILL)
                break
    later = pools("198.18.0.0/16")

    async def load() -> None:
        store = PoolStore(path, later)
        store.load()
        await store.close()

    asyncio.run(load())
    found = dict(later.export())
    # The program sleeps 10 ms after each, so 100 are a second and more.
    assert len(found) >= 100
    assert found.items() <= given.items()
