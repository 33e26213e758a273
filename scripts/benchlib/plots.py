"""Plots for the README, where matplotlib is installed (``pip install tunproxy[bench]``)."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING, Any

from scripts.benchlib.metrics import FIGURES
from scripts.benchlib.report import Cell, Sample, cells, digits

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterable

PLOTS = {
    "streams": ("down1", "up1", "down8", "up8"),
    "cpu": ("down1_cpu", "up1_cpu", "connections_cpu", "keepalive_cpu"),
    "requests": ("connections", "keepalive", "dns", "udp"),
    "latency": ("first_p50", "first_p99", "request_p50", "request_p99"),
    "load": ("loaded_request_p50", "loaded_request_p99", "loaded_first_p50", "loaded_first_p99"),
    "memory": ("rss_0", "rss_1000", "rss_10000"),
    "far": ("far_down1", "far_up1", "far_down8", "far_up8"),
    "far32": ("far32_down1", "far32_up1", "far32_down8", "far32_up8"),
}
"""The name of each file, and the figures in it, two side by side."""

_OURS, _OTHERS, _ERROR = "#2a6fbb", "#b8bec6", "#444444"
_WIDTH_IN, _BAR_IN, _TITLE_IN, _DPI = 8.0, 0.24, 0.8, 110
"""A page of GitHub shows some 850 pixels side by side: this is shown as large as it is."""
_COLUMNS = 2
_COLOURS = 24


def write(directory: pathlib.Path, samples: Iterable[Sample], peers: list[str]) -> list[str]:
    """Write a PNG for each of :data:`PLOTS` of which something was found; return their names."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    found = cells(samples)
    written = []
    for name, figures in PLOTS.items():
        shown = [figure for figure in figures if figure in found]
        if shown:
            path = directory / f"bench-{name}.png"
            _plot(path, {figure: found[figure] for figure in shown}, peers)
            written.append(path.name)
    return written


def _plot(path: pathlib.Path, found: dict[str, dict[str, Cell]], peers: list[str]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from PIL import Image

    shown = [peer for peer in peers if any(peer in row for row in found.values())][::-1]
    rows = -(-len(found) // _COLUMNS)
    size = (_WIDTH_IN, rows * (_BAR_IN * len(shown) + _TITLE_IN))
    figure, axes = pyplot.subplots(rows, _COLUMNS, sharey=True, squeeze=False, figsize=size)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis, (name, row) in zip(axes.flat, found.items(), strict=False):
        _bars(axis, name, row, shown)
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DPI)
    pyplot.close(figure)
    # With so few colours a palette looks the same, and takes a third of the octets.
    Image.open(drawn).convert("RGB").quantize(_COLOURS).save(path, optimize=True)


def _bars(axis: Any, name: str, row: dict[str, Cell], peers: list[str]) -> None:
    """One figure: a bar for each peer, with the extremes as whiskers."""
    for place, peer in enumerate(peers):
        cell = row.get(peer)
        if cell is None:
            continue
        whisker = [[cell.median - cell.least], [cell.most - cell.median]]
        color = _OURS if peer.startswith(("up", "vpn")) else _OTHERS
        axis.barh(place, cell.median, color=color, xerr=whisker, ecolor=_ERROR)
        text = f" {cell.median:,.{digits(cell.median)}f}"
        axis.text(cell.most, place, text, va="center", fontsize=8)
    what = FIGURES[name]
    axis.set_yticks(range(len(peers)), peers, fontsize=9)
    axis.set_title(what.title, fontsize=9)
    axis.set_xlabel(f"{what.unit} ({'more' if what.higher else 'less'} is better)", fontsize=8)
    axis.margins(x=0.2)
    axis.locator_params(axis="x", nbins=4)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
