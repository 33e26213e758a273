"""Call stacks, as py-spy writes them, and the stages they are in."""

from __future__ import annotations

import pytest

from scripts.benchlib.profiled import STAGES, stage_of

BASE = [
    "<module> (tunproxy/app/daemon.py:60)",
    "run (tunproxy/app/session.py:300)",
    "Runner.run (asyncio/runners.py:118)",
]


@pytest.mark.parametrize(
    ("frames", "stage"),
    [
        ([], "event loop, reading the SSH socket"),
        (["Driver._on_readable (tunproxy/app/driver.py:120)"], "driver and relay"),
        (
            [
                "Driver._on_readable (tunproxy/app/driver.py:120)",
                "Tun.read_into (tunproxy/linux/tun.py:162)",
            ],
            "read from the TUN",
        ),
        (
            [
                "Engine.send (tunproxy/flow/engine.py:300)",
                "IPv4Address.__str__ (ipaddress.py:100)",
            ],
            "packets, TCP, flows",
        ),
        (["Seal.seal (tunproxy/upstream/ssh_packets.py:90)"], "AES-GCM"),
        (["SSHChannel._process_close (asyncssh/channel.py:600)"], "SSH channels and packets"),
    ],
)
def test_stage_is_that_of_the_innermost_frame_that_is_known(frames: list[str], stage: str) -> None:
    assert stage_of(BASE + frames) == stage
    assert stage in STAGES


def test_other_threads_do_not_count() -> None:
    assert stage_of(["Thread._bootstrap (threading.py:1002)", "_worker (thread.py:81)"]) is None
