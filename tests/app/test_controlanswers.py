"""Answers of an engine, as they travel."""

from __future__ import annotations

import msgspec
import pytest

from tunproxy.app.controlanswers import Status, status_of
from tunproxy.errors import TunproxyError


def test_status_survives_the_wire() -> None:
    status = Status(
        version="1", pid=1, tun="tun0", mode="system", stack="user", offload=True,
        server="user@host", state="up", cipher=None, uptime_s=1.5, reconnects=0, flows=1,
        flows_total=2, refused={"refused": 1}, bytes_up=3, bytes_down=4, dns_queries=5,
        counters={"bad_checksum": 6}, rss_bytes=7,
    )  # fmt: skip
    assert msgspec.json.decode(msgspec.json.encode(status), type=Status) == status
    assert status_of(msgspec.to_builtins(status)) == status


@pytest.mark.parametrize("answer", [None, [], {"version": "9"}])
def test_status_of_another_version(answer: object) -> None:
    with pytest.raises(TunproxyError, match="another version of tunproxy runs"):
        status_of(answer)
