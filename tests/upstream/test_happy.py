"""Racing over an upstream whose openings the test answers, and over a real resolver's lookup."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.helpers.aio import (
    Origin,
    Recorder,
    both_loops,
    echo,
    free_port,
    full_listener,
    turns,
    until,
)
from tests.helpers.exits import through_exit
from tests.helpers.fake_upstream import FakeStream, FakeUpstream
from tunproxy.errors import OpenFailed, Refusal
from tunproxy.upstream import dial, happy
from tunproxy.upstream.happy import Racing, most_telling
from tunproxy.upstream.lookup import LookupFailed

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Coroutine

    from tests.helpers.fake_upstream import Opening
    from tunproxy.upstream.base import Attempt, Opener, Stream
    from tunproxy.upstream.lookup import Lookup

SIX, FOUR, OTHER = "2001:db8::1", "192.0.2.1", "192.0.2.2"
SOURCE = ("198.18.0.1", 40000)


class FakeLookup:
    """Knows what the test says; names that it does not know are looked up for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[str, ...] | None] = {}
        self.known: dict[str, tuple[str, ...]] = {}
        self.asked: list[str] = []

    def cached(self, name: str) -> tuple[str, ...] | None:
        return self.known.get(name)

    async def addresses(self, name: str) -> tuple[str, ...]:
        self.asked.append(name)
        if name not in self.answers:
            await asyncio.Event().wait()
        found = self.answers[name]
        if found is None:
            raise LookupFailed(name)
        return found

    async def close(self) -> None:
        pass


class Noted:
    """An opener."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.failures: list[OpenFailed | None] = []
        self.opened = self.streams.append
        self.failed = self.failures.append


class Setup:
    def __init__(self) -> None:
        self.upstream = FakeUpstream()
        self.lookup = FakeLookup()
        self.lookup.answers = {
            "dual.test": (SIX, FOUR),
            "one.test": (FOUR,),
            "two.test": (FOUR, OTHER),
            "none.test": (),
            "broken.test": None,
        }
        self.handler = Recorder()
        self.flows: list[asyncio.Task[Any]] = []

    def start(self) -> None:
        """Begin, in the event loop."""
        self.racing = Racing(self.upstream, cast("Lookup", self.lookup))

    def begin(self, host: str) -> asyncio.Task[Any]:
        """Begin to open ``host``."""
        self.flows.append(asyncio.create_task(self._open(host), name=f"open {host}"))
        return self.flows[-1]

    def begin_without_task(self, host: str, opener: Opener) -> Attempt | None:
        return self.racing.begin(host, 443, SOURCE, self.handler, opener)

    async def _open(self, host: str) -> Stream:
        stream = await self.racing.open(host, 443, SOURCE, self.handler)
        self.heard_before = list(self.handler.events)
        return stream

    async def attempts(self, count: int) -> list[Opening]:
        """Wait until so many openings were tried in all."""
        await until(lambda: len(self.upstream.streams) >= count, f"{count} attempts")
        assert len(self.upstream.streams) == count
        return self.upstream.streams

    def hosts(self) -> list[str]:
        return [opening.host for opening in self.upstream.streams]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr(dial, "ATTEMPT_DELAY_S", 0.02)
    return Setup()


def racing(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Decorate a test: everything that it has begun is ended after it."""

    @functools.wraps(test)
    async def ending(setup: Setup, **kwargs: Any) -> None:
        setup.start()
        try:
            await test(setup, **kwargs)
        finally:
            for flow in setup.flows:
                flow.cancel()
            await asyncio.gather(*setup.flows, return_exceptions=True)
            await setup.racing.close()

    return both_loops(ending)


def refused(text: str = "no") -> OpenFailed:
    return OpenFailed(Refusal.REFUSED, text)


def unreachable() -> OpenFailed:
    return OpenFailed(Refusal.UNREACHABLE, "no route")


# What is not raced


@racing
async def test_literal_is_opened_as_it_is(setup: Setup) -> None:
    setup.begin(SIX)
    (opening,) = await setup.attempts(1)
    assert (opening.host, opening.port, opening.source) == (SIX, 443, SOURCE)
    assert setup.lookup.asked == []


@racing
async def test_without_lookup_the_name_is_for_the_server(setup: Setup) -> None:
    setup.racing.lookup = None
    setup.begin("dual.test")
    (opening,) = await setup.attempts(1)
    assert opening.host == "dual.test"


@racing
async def test_one_address_is_one_channel_and_no_task(
    setup: Setup,
) -> None:
    flow = setup.begin("One.Test.")
    (opening,) = await setup.attempts(1)
    assert opening.host == FOUR
    assert opening.handler is setup.handler
    assert {task for task in asyncio.all_tasks() if task.get_name().startswith("race")} == set()
    stream = FakeStream()
    opening.result.set_result(stream)
    assert await flow is stream


@racing
async def test_what_does_not_race_begins_without_a_task(setup: Setup) -> None:
    setup.upstream.prompt = True
    opener = Noted()
    assert setup.begin_without_task(SIX, opener) is not None
    assert setup.begin_without_task("one.test", opener) is None, "it has to be looked up"
    setup.lookup.known = {"one.test": (FOUR,), "dual.test": (SIX, FOUR), "none.test": ()}
    assert setup.begin_without_task("One.Test.", opener) is not None
    assert [begun.host for begun in setup.upstream.begun] == [SIX, FOUR]
    for host in ("dual.test", "none.test"):
        assert setup.begin_without_task(host, opener) is None
    assert setup.racing.counters == {"by_address": 1}
    stream = FakeStream()
    setup.upstream.begun[1].opener.opened(stream)
    assert opener.streams == [stream]


@racing
async def test_address_that_is_prohibited_begins_anew(setup: Setup) -> None:
    setup.upstream.prompt = True
    setup.lookup.known = {"one.test": (FOUR,)}
    opener = Noted()
    setup.begin_without_task("one.test", opener)
    failures = [refused(), OpenFailed(Refusal.PROHIBITED, "no"), None]
    for failure in failures:
        setup.upstream.begun[0].opener.failed(failure)
    assert opener.failures == [failures[0], None, None]


@racing
async def test_name_that_worked_is_left_to_the_server(setup: Setup) -> None:
    setup.upstream.prompt = True
    flow = setup.begin("one.test")
    (first,) = await setup.attempts(1)
    first.result.set_exception(OpenFailed(Refusal.PROHIBITED, "no"))
    _, second = await setup.attempts(2)
    second.result.set_result(FakeStream())
    await flow
    setup.lookup.known = {"one.test": (FOUR,)}
    assert setup.begin_without_task("one.test", Noted()) is None


@racing
async def test_no_address_is_unreachable(setup: Setup) -> None:
    with pytest.raises(OpenFailed) as caught:
        await setup.begin("none.test")
    assert caught.value.refusal is Refusal.UNREACHABLE
    assert setup.upstream.streams == []
    assert setup.racing.counters == {"no_address": 1}


@racing
async def test_addresses_that_are_known_are_not_looked_up(setup: Setup) -> None:
    setup.racing.known = lambda name: [OTHER] if name == "dual.test" else []
    setup.begin("dual.test")
    (opening,) = await setup.attempts(1)
    assert opening.host == OTHER
    assert setup.lookup.asked == []


# A resolver that is no good


@racing
async def test_a_failed_lookup_leaves_the_name_to_the_server(setup: Setup) -> None:
    setup.begin("broken.test")
    (opening,) = await setup.attempts(1)
    assert opening.host == "broken.test"
    assert setup.racing.counters == {"lookup_failed": 1, "by_name": 1}


@racing
async def test_a_slow_lookup_leaves_all_names_to_the_server_for_a_while(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(happy, "LOOKUP_PATIENCE_S", 0.01)
    setup.begin("slow.test")
    await setup.attempts(1)
    setup.begin("dual.test")
    await setup.attempts(2)
    assert setup.hosts() == ["slow.test", "dual.test"]
    assert setup.lookup.asked == ["slow.test"]
    assert setup.racing.counters == {"lookup_slow": 1, "by_name": 2}


# Racing


@racing
async def test_the_first_in_time_is_alone(setup: Setup) -> None:
    flow = setup.begin("dual.test")
    (first,) = await setup.attempts(1)
    assert first.host == SIX
    first.result.set_result(FakeStream())
    assert await flow is first.result.result()
    await asyncio.sleep(2 * dial.ATTEMPT_DELAY_S)
    assert setup.hosts() == [SIX]


@racing
async def test_the_second_begins_after_a_while_and_may_win(setup: Setup) -> None:
    flow = setup.begin("dual.test")
    first, second = await setup.attempts(2)
    assert second.host == FOUR
    stream = FakeStream()
    second.result.set_result(stream)
    assert await flow is stream
    await until(lambda: first.cancelled, "the loser to be given up")
    assert setup.racing.counters["second_choice"] == 1


@racing
async def test_the_first_wins_late(setup: Setup) -> None:
    flow = setup.begin("dual.test")
    first, second = await setup.attempts(2)
    stream = FakeStream()
    first.result.set_result(stream)
    assert await flow is stream
    await until(lambda: second.cancelled, "the loser to be given up")


@racing
async def test_both_at_once_one_is_aborted(setup: Setup) -> None:
    """The second wins while the first, cancelled, is connected nevertheless."""
    setup.upstream.stubborn = True
    flow = setup.begin("dual.test")
    first, second = await setup.attempts(2)
    second.result.set_result(FakeStream())
    stream = await flow
    streams = [first.result.result(), second.result.result()]
    (loser,) = [each for each in streams if each is not stream]
    assert loser.aborted
    assert not stream.aborted


@racing
async def test_a_loser_that_connects_is_aborted(setup: Setup) -> None:
    setup.upstream.stubborn = True
    flow = setup.begin("dual.test")
    first, second = await setup.attempts(2)
    first.result.set_result(FakeStream())
    await flow
    await until(second.result.done, "the loser to be told")
    await until(lambda: second.result.result().aborted, "the loser to be aborted")


@racing
async def test_a_failure_starts_the_next_at_once(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "ATTEMPT_DELAY_S", 1000.0)
    flow = setup.begin("dual.test")
    (first,) = await setup.attempts(1)
    first.result.set_exception(unreachable())
    _, second = await setup.attempts(2)
    second.result.set_result(FakeStream())
    assert await flow is second.result.result()


@pytest.mark.parametrize(
    ("failures", "refusal"),
    [
        ((refused(), unreachable()), Refusal.REFUSED),
        ((unreachable(), refused()), Refusal.REFUSED),
        ((unreachable(), unreachable()), Refusal.UNREACHABLE),
    ],
)
@racing
async def test_all_failed_the_most_telling_is_told(
    setup: Setup, failures: tuple[OpenFailed, OpenFailed], refusal: Refusal
) -> None:
    flow = setup.begin("dual.test")
    for number, failure in enumerate(failures, 1):
        opening = (await setup.attempts(number))[-1]
        opening.result.set_exception(failure)
    with pytest.raises(OpenFailed) as caught:
        await flow
    assert caught.value.refusal is refusal


@racing
async def test_what_the_server_prohibits_by_address_it_may_allow_by_name(setup: Setup) -> None:
    prohibited = OpenFailed(Refusal.PROHIBITED, "no")
    flow = setup.begin("two.test")
    for number in (1, 2):
        (await setup.attempts(number))[-1].result.set_exception(prohibited)
    opening = (await setup.attempts(3))[-1]
    assert opening.host == "two.test"
    opening.result.set_result(FakeStream())
    await flow
    setup.begin("two.test")
    assert (await setup.attempts(4))[-1].host == "two.test", "it is known now"


@racing
async def test_the_initiator_goes(setup: Setup) -> None:
    flow = setup.begin("dual.test")
    first, second = await setup.attempts(2)
    flow.cancel()
    await until(lambda: first.cancelled and second.cancelled, "both to be given up")


# What the handler hears


@racing
async def test_the_winner_of_the_tasks_is_not_heard_too_early(setup: Setup) -> None:
    flow = setup.begin("dual.test")
    _, second = await setup.attempts(2)
    second.result.set_result(FakeStream())
    second.handler.data_received(b"early ")
    await flow
    second.handler.data_received(b"then ")
    await turns(3)
    second.handler.data_received(b"late")
    second.handler.eof_received()
    second.handler.connection_lost(reset=True)
    assert bytes(setup.handler.received) == b"early then late"
    assert setup.handler.events == ["data", "eof", "lost"]
    assert setup.handler.reset
    assert setup.heard_before == []


@racing
async def test_the_winner_of_the_tasks_may_be_lost_before_it_is_given(setup: Setup) -> None:
    flow = setup.begin("dual.test")
    _, second = await setup.attempts(2)
    second.result.set_result(FakeStream())
    second.handler.data_received(b"all")
    second.handler.eof_received()
    second.handler.connection_lost(reset=False)
    await flow
    await turns(3)
    assert setup.handler.events == ["data", "eof", "lost"]
    assert setup.handler.reset is False


# Memory


async def win_second(setup: Setup, host: str) -> None:
    before = len(setup.upstream.streams)
    flow = setup.begin(host)
    opening = (await setup.attempts(before + 2))[-1]
    opening.result.set_result(FakeStream())
    await flow


async def first_choice(setup: Setup, host: str) -> str:
    before = len(setup.upstream.streams)
    flow = setup.begin(host)
    opening = (await setup.attempts(before + 1))[-1]
    opening.result.set_result(FakeStream())
    await flow
    return opening.host


@racing
async def test_what_worked_is_tried_first(setup: Setup) -> None:
    await win_second(setup, "dual.test")
    assert await first_choice(setup, "dual.test") == FOUR
    setup.lookup.answers["dual.test"] = (SIX, OTHER)
    assert await first_choice(setup, "dual.test") == SIX, "that address is gone"


@racing
async def test_a_family_that_always_loses_is_second(setup: Setup) -> None:
    for number in range(happy.LOST_IN_A_ROW + 1):
        setup.lookup.answers[f"{number}.test"] = (SIX, FOUR)
    for number in range(happy.LOST_IN_A_ROW):
        await win_second(setup, f"{number}.test")
    name = f"{happy.LOST_IN_A_ROW}.test"
    assert await first_choice(setup, name) == FOUR


def test_memory_forgets_a_bad_family_in_time() -> None:
    now = 0.0
    memory = happy._Memory(lambda: now)
    for number in range(happy.LOST_IN_A_ROW):
        memory.note(f"{number}.test", FOUR, [SIX])
    assert memory.sort("x.test", [SIX, FOUR]) == [FOUR, SIX]
    now = happy.LOST_FOR_S
    assert memory.sort("x.test", [SIX, FOUR]) == [SIX, FOUR]
    memory.note("x.test", FOUR, [SIX])
    assert memory.sort("y.test", [SIX, FOUR]) == [FOUR, SIX], "one more loss is enough"
    memory.note("y.test", SIX, [FOUR])
    assert memory.sort("z.test", [SIX, FOUR]) == [SIX, FOUR]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(happy, "MAX_REMEMBERED", 2)
    memory = happy._Memory(lambda: 0.0)
    for name in ("a", "b", "c"):
        memory.prefer(name, FOUR)
    assert [memory.preferred(name) for name in ("a", "b", "c")] == [None, FOUR, FOUR]


def test_many_addresses_are_interleaved() -> None:
    memory = happy._Memory(lambda: 0.0)
    assert memory.sort("a", [FOUR, OTHER, SIX]) == [SIX, FOUR, OTHER]
    memory.prefer("a", OTHER)
    assert memory.sort("a", [FOUR, OTHER, SIX]) == [OTHER, SIX, FOUR]


def test_most_telling_prefers_the_refusal() -> None:
    failures = [unreachable(), OpenFailed(Refusal.PROHIBITED, "p"), refused("one"), refused("two")]
    assert str(most_telling(failures)) == "one"


# Through a real server


@both_loops
async def test_through_ssh_the_loser_leaves_no_channel(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One address of the name is silent, the other one answers."""
    monkeypatch.setattr(dial, "ATTEMPT_DELAY_S", 0.05)
    with full_listener() as silent:
        port = silent.getsockname()[1]
        async with through_exit(tmp_path) as (_, upstream), Origin(echo, "127.0.0.2", port):
            lookup = FakeLookup()
            lookup.answers["dual.test"] = ("127.0.0.1", "127.0.0.2")
            racing = Racing(upstream, cast("Lookup", lookup))
            handler = Recorder()
            stream = await racing.open("dual.test", port, SOURCE, handler)
            stream.write(b"hello")
            await handler.wait_for_octets(5)
            assert bytes(handler.received) == b"hello"
            assert racing.counters["second_choice"] == 1
            stream.abort()
            await handler.wait("lost")
            await racing.close()


@both_loops
async def test_through_ssh_a_refusal_is_told(tmp_path: pathlib.Path) -> None:
    async with through_exit(tmp_path) as (_, upstream):
        lookup = FakeLookup()
        lookup.answers["dual.test"] = ("::1", "127.0.0.1")
        racing = Racing(upstream, cast("Lookup", lookup))
        with pytest.raises(OpenFailed) as caught:
            await racing.open("dual.test", free_port(), SOURCE, Recorder())
        assert caught.value.refusal is Refusal.REFUSED
        await until(lambda: upstream.channels == 0, "the channels to be gone")
        await racing.close()
