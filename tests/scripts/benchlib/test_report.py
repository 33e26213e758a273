"""The tables of the benchmark: medians, and ratios within a round."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from scripts.benchlib import report
from scripts.benchlib.metrics import FIGURES
from scripts.benchlib.peers import BASELINE, PACKETS, PEERS
from scripts.benchlib.plots import PLOTS
from scripts.benchlib.report import Sample
from scripts.benchlib.rounds import turned

if TYPE_CHECKING:
    import pathlib

# The machine is three times as slow in the second round: ratios do not notice.
SAMPLES = [
    Sample(number, peer, "down1", value / slowness)
    for number, slowness in enumerate((1.0, 3.0, 1.0))
    for peer, value in ((BASELINE, 900.0), ("up user", 1800.0 - 300 * number))
]


def test_ratios_are_taken_within_rounds() -> None:
    cell = report.cells(SAMPLES)["down1"]["up user"]
    assert (cell.median, cell.least, cell.most) == (1200.0, 500.0, 1800.0)
    assert cell.ratio == pytest.approx(1500 / 900)


def test_without_the_baseline_there_is_no_ratio() -> None:
    (sample, *_) = (sample for sample in SAMPLES if sample.peer != BASELINE)
    assert report.cells([sample])["down1"]["up user"].ratio is None


def test_table() -> None:
    lone = Sample(0, "up user", "dns", 12.34)
    title, _, *rows = report.table([*SAMPLES, lone], [BASELINE, "up user"]).splitlines()
    assert title == "| | ssh -L | up user | ratio |"
    assert rows == [
        "| download, 1 stream, MB/s | 900 | 1,200 | 1.67 |",
        "| DNS answers, new names, 1/s (ratio to ssh -w) |  | 12.3 |  |",
    ]


def test_short_table_says_how_many_times_as_good_each_is() -> None:
    more = [
        Sample(0, peer, figure, value)
        for figure, values in (("up1", (100, 50)), ("ready", (1, 4)), ("rss_0", (10, 1)))
        for peer, value in zip((BASELINE, "up user"), values, strict=True)
    ]
    udp = [Sample(0, PACKETS, "udp", 10.0), Sample(0, "up user", "udp", 123.0)]
    peers = [BASELINE, "vpn", "up user", PACKETS]
    title, _, *rows = report.readme([*SAMPLES, *more, *udp], peers).splitlines()
    assert title == "| times as good | ssh -L | up user | ssh -w |"
    assert rows == [
        "| download / upload, 1 stream | 1.00 / 1.00 | 1.67 / 0.50 |  |",
        "| DNS answers / UDP round trips a second (to ssh -w) |  | - / 12.3 | - / 1.00 |",
        "| start to first answer | 1.00 | 0.25 |  |",
        "| memory: no flow / 10,000 idle flows | 1.00 / - | 10.0 / - |  |",
    ]


def test_every_figure_of_the_short_table_exists() -> None:
    for figures in report.README.values():
        assert len({FIGURES[figure].baseline for figure in figures}) == 1
    assert set(report.README_PEERS) <= set(PEERS)


def test_json_has_every_sample(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bench.json"
    report.write_json(path, {"cores": 2}, SAMPLES)
    content = json.loads(path.read_text())
    assert content["cores"] == 2
    assert len(content["samples"]) == len(SAMPLES)
    assert content["summary"]["down1"][BASELINE]["median"] == 900.0


def test_every_plotted_figure_exists() -> None:
    assert {figure for figures in PLOTS.values() for figure in figures} <= set(FIGURES)


def test_everybody_begins_once() -> None:
    orders = [list(turned(["a", "b", "c"], number)) for number in range(3)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
