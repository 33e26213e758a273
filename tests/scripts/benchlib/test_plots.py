"""The plots of the benchmark: small enough for a README, and as wide as one shows them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from scripts.benchlib import plots
from scripts.benchlib.peers import PEERS
from scripts.benchlib.report import Sample

if TYPE_CHECKING:
    import pathlib

MOST_BYTES = 60 << 10
SHOWN_PX = 900


def test_plots_are_small_and_as_wide_as_they_are_shown(tmp_path: pathlib.Path) -> None:
    figures = {figure for shown in plots.PLOTS.values() for figure in shown}
    samples = [
        Sample(number, peer, figure, 1000.0 + 77 * number + 13 * place)
        for number in range(3)
        for place, peer in enumerate(PEERS)
        for figure in figures
    ]
    written = plots.write(tmp_path, samples, list(PEERS))
    assert written == [f"bench-{name}.png" for name in plots.PLOTS]
    for name in written:
        content = (tmp_path / name).read_bytes()
        assert len(content) < MOST_BYTES
        # The width is the first field of the header (PNG specification, 11.2.2).
        (width,) = struct.unpack_from("!I", content, 16)
        assert width <= SHOWN_PX


def test_what_was_not_measured_is_not_plotted(tmp_path: pathlib.Path) -> None:
    assert plots.write(tmp_path, [Sample(0, "up user", "ready", 1.0)], ["up user"]) == []
    assert plots.write(tmp_path, [Sample(0, "up user", "rss_0", 1.0)], ["up user"]) == [
        "bench-memory.png"
    ]
