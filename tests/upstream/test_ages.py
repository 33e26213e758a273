"""What takes too long, by one timer."""

from __future__ import annotations

import asyncio

from tests.helpers.aio import both_loops, until
from tunproxy.upstream.ages import Ages


@both_loops
async def test_who_stays_too_long_is_told_in_order() -> None:
    loop = asyncio.get_running_loop()
    old: list[str] = []
    ages = Ages[str](loop, 0.02, old.append)
    began = loop.time()
    for name in ("a", "b", "c"):
        ages.add(name)
    ages.discard("b")
    assert len(ages) == 2
    await until(lambda: len(old) == 2, "both to be old")
    assert old == ["a", "c"]
    assert loop.time() - began >= 0.02
    assert len(ages) == 0


@both_loops
async def test_each_has_its_own_time() -> None:
    loop = asyncio.get_running_loop()
    when: dict[str, float] = {}

    def note(name: str) -> None:
        when[name] = loop.time()

    ages = Ages[str](loop, 0.05, note)
    began = {}
    for name in ("early", "late"):
        ages.add(name)
        began[name] = loop.time()
        await asyncio.sleep(0.02)
    await until(lambda: len(when) == 2, "both to be old")
    for name in ("early", "late"):
        assert when[name] - began[name] >= 0.049


@both_loops
async def test_it_begins_anew_after_all_have_ended() -> None:
    loop = asyncio.get_running_loop()
    old: list[str] = []
    ages = Ages[str](loop, 0.01, old.append)
    ages.add("gone")
    ages.discard("gone")
    ages.discard("never there")
    ages.add("next")
    await until(lambda: bool(old), "the next one")
    ages.add("again")
    await until(lambda: len(old) == 2, "the one after it")
    assert old == ["next", "again"]


@both_loops
async def test_who_is_told_may_begin_again() -> None:
    loop = asyncio.get_running_loop()
    old: list[str] = []

    def again(name: str) -> None:
        old.append(name)
        if len(old) < 3:
            ages.add(name)

    ages = Ages[str](loop, 0.01, again)
    ages.add("a")
    await until(lambda: len(old) == 3, "three times")


@both_loops
async def test_nobody_is_told_after_the_end() -> None:
    loop = asyncio.get_running_loop()
    old: list[str] = []
    ages = Ages[str](loop, 0.0, old.append)
    ages.add("a")
    ages.close()
    after = loop.create_future()
    loop.call_later(0.01, after.set_result, None)
    await after
    assert old == []
