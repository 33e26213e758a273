"""The engine of a hub: whose rights it has, what it remembers, what else it does."""

from __future__ import annotations

import json
import pathlib
import signal
from typing import Any

import pytest

from tests.helpers import aio
from tests.helpers.hubs import BESIDE_WORLD, NOBODY, WORLD, HubLab, client, echo_server, far, lab

__all__ = ["lab"]

pytestmark = pytest.mark.netns


def test_what_it_says(lab: HubLab) -> None:
    hub = lab.start("--listen", "0.0.0.0:0")
    fingerprint, listening, ready = hub.stdout
    assert fingerprint.startswith("host key SHA256:")
    assert fingerprint.endswith(f" ({lab.host_key})")
    assert listening.startswith("listening on 0.0.0.0 port ")
    assert not listening.endswith(" 0")
    assert ready == (
        "ready: tphub0 (10.74.0.1/24, fd00:7470:1::1/64, mtu 1500) leads to the clients of this hub"
    )


def test_leases_outlive_everything(lab: HubLab) -> None:
    known: dict[int, Any] = {}

    async def join(*numbers: int) -> None:
        for number in numbers:
            async with client(lab, number) as one:
                assert one.terms.addresses == known.setdefault(number, one.terms.addresses)

    hub = lab.start()
    aio.run(join(2, 0))
    hub.stop(signal.SIGKILL)
    lab.start().stop()
    lab.start()
    aio.run(join(0, 1, 2))
    assert len(set(known.values())) == 3


def test_leases_of_another_pool_are_forgotten(lab: HubLab) -> None:
    async def join(expected: tuple[str, ...]) -> None:
        async with client(lab, 0) as one:
            assert one.terms.addresses == expected

    file = lab.state / "tunproxy/hub-tphub0.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"SHA256:x": ["10.74.0.2", null], "SHA256:y": ["10.75.0.2", null]}')
    lab.start("--pool", "10.75.0.0/24").stop()
    assert json.loads(file.read_text()) == {"SHA256:y": ["10.75.0.2", None]}
    file.write_text("[")
    hub = lab.start()
    aio.run(join(("10.74.0.2/24", "fd00:7470:1::2/64")))
    assert hub.stop() == 0
    (warning,) = hub.stderr
    assert "they may get others" in warning
    assert list(json.loads(file.read_text()).values()) == [["10.74.0.2", "fd00:7470:1::2"]]


def test_it_has_the_rights_of_the_caller_alone(lab: HubLab) -> None:
    lab.give_away()
    hub = lab.start(SUDO_UID=str(NOBODY), SUDO_GID=str(NOBODY), HOME="/root")
    status = pathlib.Path(f"/proc/{hub.engine_pid()}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["Uid"].split() == [str(NOBODY)] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"

    async def go() -> None:
        async with client(lab, 0) as one:
            assert await one.ping(WORLD[4])

    aio.run(go())
    assert hub.stop() == 0
    (written,) = (lab.state / "tunproxy").iterdir()
    assert written.name == "hub-tphub0.json"
    assert written.stat().st_uid == NOBODY


def test_it_is_an_exit_as_well(lab: HubLab) -> None:
    lab.start("--permit-open", f"{WORLD[4]}:7")

    async def go() -> None:
        async with client(lab, 0) as one:
            with echo_server(lab.world, WORLD[4]) as callers:
                recorder = aio.Recorder()
                stream = await one.upstream.open(WORLD[4], 7, (far(0)[4], 1), recorder)
                stream.write(b"hello")
                await recorder.wait_for_octets(5)
                stream.abort()
                assert callers == [BESIDE_WORLD[4]]

    aio.run(go())


def test_device_that_somebody_deletes(lab: HubLab) -> None:
    hub = lab.start()
    lab.hub.ip("link", "del", "tphub0")
    assert hub.wait() == 4
    assert "another program has deleted it" in hub.stderr[-1]


def test_status(lab: HubLab) -> None:
    hub = lab.start()
    told = lab.status()
    assert (told["mode"], told["tun"], told["pid"]) == ("hub", "tphub0", hub.engine_pid())
    assert told["hub"]["local"] == ["10.74.0.1/24", "fd00:7470:1::1/64"]
    lines = lab.run("status", check=True).stdout.splitlines()
    assert lines[0].startswith("tphub0: hub on :: port 22, running for ")
    assert lines[-1] == "  clients  0"
