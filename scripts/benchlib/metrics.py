"""What is measured: one small function for each metric, which returns named figures.

``NEAR`` ones take turns between peers that run all the time; see :mod:`.fresh` and :mod:`.longpath`
for the others.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from scripts.benchlib import datagrams, requests, streams
from scripts.benchlib.noise import noise
from scripts.benchlib.peers import BASELINE, PACKETS, SESSION
from scripts.benchlib.places import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.benchlib.peers import Way
    from scripts.benchlib.streams import Direction

Figures = dict[str, float]
GB = 1e9
_WAIT_S = 0.3
MIN_QUANTILE_S = 2.0
"""A 99th percentile needs some hundred samples."""


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """How a figure is shown: ``higher`` is better, or lower; whose it is compared with."""

    title: str
    unit: str
    higher: bool = False
    baseline: str = BASELINE


def bulk(direction: Direction, count: int) -> Callable[[Way, float], Figures]:
    def measure(way: Way, seconds: float) -> Figures:
        found = streams.measure(way, direction, count, _WAIT_S, seconds)
        name = f"{direction}{count}"
        return {
            name: found.rate / 1e6,
            f"{name}_cpu": found.client_cpu / found.octets * GB,
            f"{name}_machine": found.machine_cpu / found.octets * GB,
        }

    return measure


def rate(name: str, *, keep_alive: bool) -> Callable[[Way, float], Figures]:
    def measure(way: Way, seconds: float) -> Figures:
        before = cpu_seconds(way.host)
        found = requests.many(way, seconds, keep_alive=keep_alive)
        cpu = cpu_seconds(way.host) - before
        return {name: found.requests / found.seconds, f"{name}_cpu": cpu / found.requests * 1e6}

    return measure


def latency(way: Way, seconds: float) -> Figures:
    seconds = max(seconds, MIN_QUANTILE_S)
    connects, answers = requests.fresh(way, seconds)
    return {
        **requests.quantiles("connect", connects),
        **requests.quantiles("first", answers),
        **requests.quantiles("request", requests.kept(way, seconds)),
    }


def loaded(way: Way, seconds: float) -> Figures:
    seconds = max(seconds, MIN_QUANTILE_S)
    with noise(way):
        answers = requests.kept(way, seconds)
        _, first = requests.fresh(way, seconds)
    return {
        **requests.quantiles("loaded_request", answers),
        **requests.quantiles("loaded_first", first),
    }


NEAR: dict[str, Callable[[Way, float], Figures]] = {
    "down1": bulk("down", 1),
    "up1": bulk("up", 1),
    "down8": bulk("down", 8),
    "up8": bulk("up", 8),
    "connections": rate("connections", keep_alive=False),
    "keepalive": rate("keepalive", keep_alive=True),
    "latency": latency,
    "loaded": loaded,
    "dns": datagrams.dns,
    "udp": datagrams.udp,
}


def _bulk_figures() -> dict[str, Figure]:
    found = {}
    for way, verb in (("down", "download"), ("up", "upload")):
        for count, text in ((1, "1 stream"), (8, "8 streams")):
            found[f"{way}{count}"] = Figure(f"{verb}, {text}", "MB/s", higher=True)
            found[f"{way}{count}_cpu"] = Figure(f"client CPU, {verb}, {text}", "s/GB")
            found[f"{way}{count}_machine"] = Figure(f"machine CPU, {verb}, {text}", "s/GB")
    return found


def _far_figures() -> dict[str, Figure]:
    found = {}
    for prefix, text in (("far", "100 ms"), ("far32", "100 ms, 32 MiB buffers")):
        for way, verb in (("down", "download"), ("up", "upload")):
            for count, streams_ in ((1, "1 stream"), (8, "8 streams")):
                title = f"{text}: {verb}, {streams_}"
                found[f"{prefix}_{way}{count}"] = Figure(title, "MB/s", True, SESSION)
    return found


FIGURES: dict[str, Figure] = {
    **_bulk_figures(),
    "connections": Figure("new connections", "1/s", higher=True),
    "connections_cpu": Figure("client CPU, a new connection", "µs"),
    "keepalive": Figure("keep-alive requests", "1/s", higher=True),
    "keepalive_cpu": Figure("client CPU, a keep-alive request", "µs"),
    "connect_p50": Figure("connect(), median", "ms"),
    "connect_p99": Figure("connect(), p99", "ms"),
    "first_p50": Figure("first byte of a new connection, median", "ms"),
    "first_p99": Figure("first byte of a new connection, p99", "ms"),
    "request_p50": Figure("request, median", "ms"),
    "request_p99": Figure("request, p99", "ms"),
    "loaded_request_p50": Figure("request under load, median", "ms"),
    "loaded_request_p99": Figure("request under load, p99", "ms"),
    "loaded_first_p50": Figure("first byte under load, median", "ms"),
    "loaded_first_p99": Figure("first byte under load, p99", "ms"),
    "dns": Figure("DNS answers, new names", "1/s", higher=True, baseline=PACKETS),
    "udp": Figure("UDP round trips", "1/s", higher=True, baseline=PACKETS),
    "ready": Figure("start to first answer", "s"),
    "rss_0": Figure("memory, no flow", "MiB"),
    "rss_1000": Figure("memory, 1,000 idle flows", "MiB"),
    "rss_10000": Figure("memory, 10,000 idle flows", "MiB"),
    **_far_figures(),
}
