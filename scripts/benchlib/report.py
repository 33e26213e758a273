"""What was found: samples, their medians and ratios, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
from typing import TYPE_CHECKING, Any

from scripts.benchlib.metrics import FIGURES
from scripts.benchlib.peers import BASELINE, PACKETS

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One figure of one peer in one round."""

    round: int
    peer: str
    figure: str
    value: float


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """The median of a peer's samples, the extremes, and the median of the ratios to the baseline
    of the same round."""

    median: float
    least: float
    most: float
    ratio: float | None


def cells(samples: Iterable[Sample]) -> dict[str, dict[str, Cell]]:
    """By figure and peer, in the order of :data:`FIGURES`."""
    by_place: dict[str, dict[str, dict[int, float]]] = {}
    for sample in samples:
        peers = by_place.setdefault(sample.figure, {})
        peers.setdefault(sample.peer, {})[sample.round] = sample.value
    return {
        name: {
            peer: _cell(rounds, by_place[name].get(figure.baseline, {}))
            for peer, rounds in by_place[name].items()
        }
        for name, figure in FIGURES.items()
        if name in by_place
    }


def _cell(rounds: dict[int, float], baseline: dict[int, float]) -> Cell:
    values = list(rounds.values())
    ratios = [value / baseline[number] for number, value in rounds.items() if baseline.get(number)]
    return Cell(
        statistics.median(values),
        min(values),
        max(values),
        statistics.median(ratios) if ratios else None,
    )


def table(samples: Iterable[Sample], peers: list[str]) -> str:
    """A Markdown table: a row for each figure, medians, with ratios to its baseline: that is
    :data:`BASELINE` where the row does not say otherwise."""
    titles = [name if name == BASELINE else f"{name} | ratio" for name in peers]
    columns = sum(1 if name == BASELINE else 2 for name in peers)
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * columns}"]
    for name, found in cells(samples).items():
        figure = FIGURES[name]
        row = [f"{figure.title}, {figure.unit}"]
        if figure.baseline != BASELINE:
            row[0] += f" (ratio to {figure.baseline})"
        for peer in peers:
            cell = found.get(peer)
            row.append(f"{cell.median:,.{digits(cell.median)}f}" if cell else "")
            if peer != BASELINE:
                row.append(f"{cell.ratio:.2f}" if cell and cell.ratio is not None else "")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


README_PEERS = (BASELINE, "up user", "up system", "ssh -D + redsocks", "sshuttle", PACKETS)
README = {
    "download / upload, 1 stream": ("down1", "up1"),
    "download / upload, 8 streams": ("down8", "up8"),
    "client CPU: download / upload, 1 stream": ("down1_cpu", "up1_cpu"),
    "new connections / keep-alive requests a second": ("connections", "keepalive"),
    "client CPU: a new connection / a request": ("connections_cpu", "keepalive_cpu"),
    "first byte / request, median": ("first_p50", "request_p50"),
    "first byte / request, p99": ("first_p99", "request_p99"),
    "the same beside bulk, median": ("loaded_first_p50", "loaded_request_p50"),
    "the same beside bulk, p99": ("loaded_first_p99", "loaded_request_p99"),
    "DNS answers / UDP round trips a second": ("dns", "udp"),
    "start to first answer": ("ready",),
    "memory: no flow / 10,000 idle flows": ("rss_0", "rss_10000"),
    "100 ms away: download / upload, 1 stream": ("far_down1", "far_up1"),
    "100 ms away: download / upload, 8 streams": ("far_down8", "far_up8"),
    "100 ms away, large buffers: download / upload": ("far32_down1", "far32_up1"),
}
"""The rows of the short table, and the figures that share one."""


def readme(samples: Iterable[Sample], peers: list[str]) -> str:
    """The ratios alone, as a short Markdown table: how many times as good as the baseline each is,
    be it that more or that less is better."""
    found = cells(samples)
    shown = [peer for peer in README_PEERS if peer in peers]
    lines = [f"| times as good | {' | '.join(shown)} |", f"|---|{'---:|' * len(shown)}"]
    for title, figures in README.items():
        if not any(figure in found for figure in figures):
            continue
        baseline = FIGURES[figures[0]].baseline
        row = [title if baseline == BASELINE else f"{title} (to {baseline})"]
        for peer in shown:
            times = [_times(figure, found.get(figure, {}).get(peer)) for figure in figures]
            row.append(" / ".join(time or "-" for time in times) if any(times) else "")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _times(figure: str, cell: Cell | None) -> str:
    if cell is None or not cell.ratio:
        return ""
    times = cell.ratio if FIGURES[figure].higher else 1 / cell.ratio
    return f"{times:.{min(digits(times), 2)}f}"


def digits(value: float) -> int:
    """How many digits after the point are of interest."""
    return 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3


def machine() -> dict[str, Any]:
    """Where and when it was measured."""
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr
    cpu = [
        line.partition(":")[2].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cores": os.cpu_count(),
        "cpu": cpu[0] if cpu else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ssh": ssh.strip(),
        "load_before": os.getloadavg(),
    }


def write_json(path: pathlib.Path, about: dict[str, Any], samples: Iterable[Sample]) -> None:
    """Everything that was found."""
    found = list(samples)
    summary = {
        figure: {peer: dataclasses.asdict(cell) for peer, cell in row.items()}
        for figure, row in cells(found).items()
    }
    content = {**about, "summary": summary, "samples": [dataclasses.asdict(s) for s in found]}
    path.write_text(json.dumps(content, indent=1) + "\n")
