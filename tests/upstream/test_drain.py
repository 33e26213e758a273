from __future__ import annotations

from typing import TYPE_CHECKING

from tests.helpers.aio import both_loops, turns, until
from tunproxy.upstream.drain import DrainWatch

if TYPE_CHECKING:
    from collections.abc import Callable


class Pipe:
    def __init__(self, looks: int) -> None:
        self.looked = 0
        self._looks = looks
        self.on_look: Callable[[], None] = lambda: None

    def settle(self) -> bool:
        self.looked += 1
        self.on_look()
        return self.looked < self._looks


def watch() -> DrainWatch:
    import asyncio

    return DrainWatch(asyncio.get_running_loop())


@both_loops
async def test_looks_until_settled_and_no_longer() -> None:
    watching, pipe = watch(), Pipe(looks=3)
    watching.add(pipe)
    await until(lambda: pipe.looked == 3, "three looks")
    other = Pipe(looks=2)
    watching.add(other)
    await until(lambda: other.looked == 2, "two looks")
    assert pipe.looked == 3


@both_loops
async def test_wake_looks_in_the_next_turn_once() -> None:
    watching, pipe = watch(), Pipe(looks=2)
    watching.add(pipe)
    watching.wake()
    watching.wake()
    await turns(2)
    assert pipe.looked == 1
    watching.close()


@both_loops
async def test_wake_of_nothing_does_nothing() -> None:
    watching, pipe = watch(), Pipe(looks=2)
    watching.add(pipe)
    watching.discard(pipe)
    watching.wake()
    await turns(3)
    assert pipe.looked == 0


@both_loops
async def test_discarded_during_a_look_is_not_looked_at() -> None:
    watching, first, second = watch(), Pipe(looks=1), Pipe(looks=1)
    first.on_look = lambda: watching.discard(second)
    watching.add(first)
    watching.add(second)
    watching.wake()
    await turns(3)
    assert (first.looked, second.looked) == (1, 0)
