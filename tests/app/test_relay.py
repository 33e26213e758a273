"""The relay between a real engine and upstreams that a test controls."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.helpers.engine_dialogue import (
    ACK,
    DIRECT4,
    FIN,
    PSH,
    REAL4,
    RESOLVER4,
    RST,
    SYN,
    Initiator,
    answered,
    datagram,
    query,
    read_datagram,
    read_unreachable,
)
from tests.helpers.fake_upstream import FakeStream
from tests.helpers.relaying import Setup, assert_idle, relayed, setup
from tunproxy.app import relay as relay_module
from tunproxy.errors import OpenFailed, Refusal
from tunproxy.stack.tcp import SEND_QUEUE_HIGH, Endpoint

if TYPE_CHECKING:
    from tunproxy.upstream.base import StreamHandler

__all__ = ["setup"]


# --- open -----------------------------------------------------------------------------------------


@relayed
async def test_the_syn_ack_waits_for_the_upstream(setup: Setup) -> None:
    opening = await setup.open()
    assert (opening.host, opening.port) == ("198.51.100.7", 443)
    assert opening.source == ("198.18.0.1", 40000)
    assert setup.dialogue.sent() == []
    opening.result.set_result(FakeStream())
    await setup.turn()
    assert setup.wakes == 1
    setup.initiator.complete()
    assert len(setup.relay.tasks) == 0


@relayed
async def test_the_rules_choose_the_way(setup: Setup) -> None:
    Initiator(setup.dialogue, DIRECT4).syn()
    Initiator(setup.dialogue, setup.dialogue.fake("www.example.com")).syn()
    await setup.turn()
    assert [opening.host for opening in setup.ways.direct.streams] == ["203.0.113.7"]
    assert [opening.host for opening in setup.ways.proxy.streams] == ["www.example.com"]


@relayed
async def test_most_targets_are_opened_without_a_task(setup: Setup) -> None:
    setup.ways.proxy.prompt = True
    setup.initiator.syn()
    setup.handle_events()
    assert len(setup.relay.tasks) == 0
    (begun,) = setup.ways.proxy.begun
    stream = FakeStream()
    begun.opener.opened(stream)
    assert setup.wakes == 1
    setup.initiator.complete()
    setup.initiator.send(PSH | ACK, b"request")
    setup.handle_events()
    assert stream.written == b"request"


@relayed
async def test_refused_without_a_task(setup: Setup) -> None:
    setup.ways.proxy.prompt = True
    setup.initiator.syn()
    setup.handle_events()
    setup.ways.proxy.begun[0].opener.failed(OpenFailed(Refusal.REFUSED, "connection refused"))
    assert setup.wakes == 1
    setup.initiator.recv_one("R.")
    await setup.turn()
    assert not setup.ways.proxy.begun[0].cancelled
    assert_idle(setup)


@relayed
async def test_what_has_to_wait_after_all_gets_a_task(setup: Setup) -> None:
    setup.ways.proxy.prompt = True
    setup.initiator.syn()
    setup.handle_events()
    setup.ways.proxy.begun[0].opener.failed(None)
    await setup.turn()
    (opening,) = setup.ways.proxy.streams
    opening.result.set_result(FakeStream())
    await setup.turn()
    setup.initiator.complete()


@relayed
async def test_given_up_before_it_is_opened_without_a_task(setup: Setup) -> None:
    setup.ways.proxy.prompt = True
    setup.initiator.syn()
    setup.handle_events()
    (begun,) = setup.ways.proxy.begun
    setup.initiator.send(RST)
    assert setup.dialogue.sent() == []
    await setup.turn()
    assert begun.cancelled
    assert_idle(setup)


@relayed
async def test_refused_is_a_reset(setup: Setup) -> None:
    opening = await setup.open()
    opening.result.set_exception(OpenFailed(Refusal.REFUSED, "connection refused"))
    await setup.turn()
    assert setup.wakes == 1
    setup.initiator.recv_one("R.")
    await setup.turn()
    assert len(setup.closed) == 1
    assert_idle(setup)


@pytest.mark.parametrize(("refusal", "code"), [(Refusal.PROHIBITED, 13), (Refusal.UNREACHABLE, 1)])
@relayed
async def test_other_failures_are_icmp(setup: Setup, refusal: Refusal, code: int) -> None:
    opening = await setup.open()
    opening.result.set_exception(OpenFailed(refusal, "no"))
    await setup.turn()
    (packet,) = setup.dialogue.sent()
    assert read_unreachable(packet).code == code
    await setup.turn()
    assert_idle(setup)


@relayed
async def test_a_defect_of_an_upstream_is_unreachable_and_logged(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    opening = await setup.open()
    opening.result.set_exception(ValueError("defect"))
    await setup.turn()
    (packet,) = setup.dialogue.sent()
    assert read_unreachable(packet).code == 1
    await setup.turn()
    assert_idle(setup)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@relayed
async def test_the_opening_is_cancelled_when_the_initiator_goes(setup: Setup) -> None:
    opening = await setup.open()
    setup.initiator.send(RST)
    setup.dialogue.sent()
    await setup.turn()
    assert opening.cancelled
    assert_idle(setup)


@relayed
async def test_a_new_attempt_of_the_initiator_opens_anew(setup: Setup) -> None:
    first = await setup.open()
    setup.initiator.send(SYN, seq=77)
    await setup.turn()
    _, second = setup.ways.proxy.streams
    assert first.cancelled
    assert not second.cancelled


@relayed
async def test_a_stream_that_comes_too_late_is_aborted(setup: Setup) -> None:
    opening = await setup.open()
    setup.ways.proxy.stubborn = True
    setup.initiator.send(RST)
    setup.dialogue.sent()
    await setup.turn()
    assert opening.cancelled
    assert opening.result.result().aborted
    assert setup.dialogue.sent() == []
    assert_idle(setup)


# --- data -----------------------------------------------------------------------------------------


@relayed
async def test_data_goes_both_ways(setup: Setup) -> None:
    stream, handler = await setup.establish()
    setup.initiator.send(ACK | PSH, b"request")
    await setup.turn()
    assert stream.written == b"request"
    setup.wakes = 0
    handler.data_received(b"response")
    assert setup.wakes == 1
    assert b"".join(segment.data for segment in setup.initiator.recv()) == b"response"


@relayed
async def test_the_backlog_is_the_window(setup: Setup) -> None:
    stream, handler = await setup.establish()
    endpoint = next(setup.dialogue.engine.flows()).endpoint
    assert isinstance(endpoint, Endpoint)
    stream.keep = True
    while room := endpoint.receiver.rcv_wnd:
        setup.initiator.send(ACK, bytes(min(1400, room)))
        setup.handle_events()
        setup.dialogue.sent()
    assert stream.backlog == len(stream.written)
    assert endpoint.receiver.backlog == stream.backlog
    setup.wakes = 0
    stream.backlog = 0
    handler.backlog_changed()
    assert setup.wakes == 1
    assert setup.initiator.recv_one(".").window > 0


@relayed
async def test_a_full_send_queue_pauses_the_stream(setup: Setup) -> None:
    stream, handler = await setup.establish()
    fed = 0
    while not stream.pauses:
        handler.data_received(bytes(64 << 10))
        fed += 64 << 10
        assert fed <= SEND_QUEUE_HIGH + (64 << 10)
    taken = 0
    resumed_at = None
    while segments := setup.initiator.recv():
        await setup.turn()
        if stream.resumes and resumed_at is None:
            resumed_at = taken
        taken += sum(len(segment.data) for segment in segments)
        setup.initiator.send(ACK)
    assert taken == fed
    assert resumed_at is not None
    assert 0 < resumed_at < fed
    assert stream.resumes == 1


# --- the end --------------------------------------------------------------------------------------


@relayed
async def test_the_initiator_ends_first(setup: Setup) -> None:
    stream, handler = await setup.establish()
    setup.initiator.send(ACK | FIN | PSH, b"bye")
    await setup.turn()
    assert (stream.written, stream.eof_written) == (b"bye", True)
    setup.initiator.recv_one(".")
    handler.data_received(b"still here")
    handler.eof_received()
    segments = setup.initiator.recv()
    assert (b"".join(segment.data for segment in segments), segments[-1].kind) == (
        b"still here",
        "F.",
    )
    handler.connection_lost(reset=False)
    setup.initiator.send(ACK)
    assert setup.initiator.recv() == []
    await setup.turn()
    assert [event.reset for event in setup.closed] == [False]
    assert not stream.aborted
    assert_idle(setup)


@relayed
async def test_the_target_ends_first(setup: Setup) -> None:
    stream, handler = await setup.establish()
    handler.data_received(b"that is all")
    handler.eof_received()
    assert setup.initiator.recv()[-1].kind == "F."
    setup.initiator.send(ACK | PSH, b"thanks")
    await setup.turn()
    assert (stream.written, stream.eof_written) == (b"thanks", False)
    setup.initiator.send(ACK | FIN)
    await setup.turn()
    assert stream.eof_written
    setup.initiator.recv()
    await setup.turn()
    assert [event.reset for event in setup.closed] == [False]
    handler.connection_lost(reset=False)
    assert not stream.aborted
    assert_idle(setup)


async def end_in_order(setup: Setup) -> tuple[FakeStream, StreamHandler]:
    """Both ends have said EOF to the initiator, and the stream has still octets to send."""
    stream, handler = await setup.establish()
    stream.keep = True
    handler.eof_received()
    setup.initiator.recv_one("F.")
    setup.initiator.send(ACK | FIN, b"the last words")
    await setup.turn()
    setup.initiator.recv()
    await setup.turn()
    assert [event.reset for event in setup.closed] == [False]
    assert stream.eof_written
    return stream, handler


@relayed
async def test_what_the_stream_has_not_sent_yet_outlives_the_flow(setup: Setup) -> None:
    stream, handler = await end_in_order(setup)
    assert stream.backlog > 0
    assert not stream.aborted
    handler.backlog_changed()
    handler.connection_lost(reset=False)
    assert_idle(setup)


@relayed
async def test_a_reset_after_the_end_changes_nothing(setup: Setup) -> None:
    _, handler = await end_in_order(setup)
    handler.connection_lost(reset=True)
    # TIME-WAIT goes on.
    setup.initiator.send(ACK | FIN, seq=setup.initiator.snd_nxt - 1)
    setup.initiator.recv_one(".")
    assert_idle(setup)


@relayed
async def test_closing_the_relay_aborts_what_lingers(setup: Setup) -> None:
    stream, _ = await end_in_order(setup)
    await setup.relay.close()
    assert stream.aborted
    assert_idle(setup)


@relayed
async def test_there_is_a_bound_for_what_lingers(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "MAX_LINGERING", 1)
    first, _ = await end_in_order(setup)
    setup.ways.proxy.streams.clear()
    setup.closed.clear()
    setup.initiator = Initiator(setup.dialogue, REAL4, src_port=999)
    second, _ = await end_in_order(setup)
    assert (first.aborted, second.aborted) == (True, False)


@relayed
async def test_a_reset_by_the_initiator_aborts_the_stream(setup: Setup) -> None:
    stream, handler = await setup.establish()
    setup.initiator.send(RST)
    setup.dialogue.sent()
    await setup.turn()
    assert stream.aborted
    handler.connection_lost(reset=True)
    assert setup.dialogue.sent() == []
    assert_idle(setup)


@relayed
async def test_a_reset_of_the_stream_resets_the_initiator(setup: Setup) -> None:
    stream, handler = await setup.establish()
    setup.wakes = 0
    handler.connection_lost(reset=True)
    assert setup.wakes == 1
    # What arrives before the reset has gone out finds no stream.
    setup.initiator.send(ACK | PSH, b"too late")
    await setup.turn()
    assert stream.written == b""
    setup.initiator.recv_one("R.")
    await setup.turn()
    assert [event.reset for event in setup.closed] == [True]
    assert_idle(setup)


@relayed
async def test_what_was_delivered_before_the_stream_ended_arrives(setup: Setup) -> None:
    _, handler = await setup.establish()
    setup.initiator.send(ACK | FIN)
    await setup.turn()
    setup.initiator.recv_one(".")
    handler.data_received(bytes(200_000))
    handler.eof_received()
    handler.connection_lost(reset=False)
    taken = 0
    while segments := setup.initiator.recv():
        await setup.turn()
        taken += sum(len(segment.data) for segment in segments)
        setup.initiator.send(ACK)
    await setup.turn()
    assert taken == 200_000
    assert [event.reset for event in setup.closed] == [False]


@relayed
async def test_closing_the_relay_ends_everything(setup: Setup) -> None:
    stream, _ = await setup.establish()
    Initiator(setup.dialogue, REAL4, src_port=999).syn()
    setup.dialogue.feed(datagram(RESOLVER4, query("real.example"), port=53))
    await setup.turn()
    _, opening = setup.ways.proxy.streams
    assert len(setup.relay.tasks) == 2
    await setup.relay.close()
    assert stream.aborted
    assert opening.cancelled
    assert_idle(setup)


# --- names ----------------------------------------------------------------------------------------


@relayed
async def test_queries_are_forwarded_to_their_resolver(setup: Setup) -> None:
    for name in ("real.example", "www.direct.example"):
        setup.dialogue.feed(datagram(RESOLVER4, query(name), port=53))
    await setup.turn()
    ((remote, first),) = setup.ways.names.remote.asked
    ((direct, second),) = setup.ways.names.direct.asked
    assert b"real" in remote
    assert b"direct" in direct
    first.set_result(answered(remote, "192.0.2.7"))
    second.set_result(None)
    await setup.turn()
    assert setup.wakes == 2
    assert len(setup.dialogue.sent()) == 2
    assert_idle(setup)


@relayed
async def test_a_defect_of_a_resolver_is_answered_and_logged(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.dialogue.feed(datagram(RESOLVER4, query("real.example"), port=53))
    await setup.turn()
    ((_, future),) = setup.ways.names.remote.asked
    future.set_exception(ValueError("defect"))
    await setup.turn()
    (packet,) = setup.dialogue.sent()
    assert read_datagram(packet)[3][3] & 0xF == 2
    assert len(caplog.records) == 1
    assert_idle(setup)
