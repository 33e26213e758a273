"""The supervisor of a hub: everything is undone, and who is not root is told what to do."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

from tests.helpers import aio
from tests.helpers.command import UNPRIVILEGED, sentence
from tests.helpers.hubs import WORLD, HubLab, client, inside, lab
from tests.helpers.lab_wait import until
from tests.helpers.tun_namespace import NOBODY, driver_open_to_all

__all__ = ["lab"]

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_everything_is_undone(lab: HubLab, number: signal.Signals) -> None:
    before = lab.snapshot()
    hub = lab.start()
    changed = lab.snapshot()
    assert all(changed[view] != text for view, text in before.items() if view != "ip rule")
    assert hub.stop(number) == 0
    assert lab.snapshot() == before
    assert hub.stderr == []


def test_down(lab: HubLab) -> None:
    before = lab.snapshot()
    hub = lab.start("--tap", "--tun", "segment")
    assert lab.run("down", "--tun", "segment").stdout == "stopped segment\n"
    assert hub.wait() == 0
    assert lab.snapshot() == before


def test_engine_that_is_killed(lab: HubLab) -> None:
    before = lab.snapshot()
    hub = lab.start()
    os.kill(hub.engine_pid(), signal.SIGKILL)
    assert hub.wait() == 1
    assert "has been killed by SIGKILL" in hub.stderr[-1]
    assert lab.snapshot() == before


def test_recover_after_sigkill(lab: HubLab) -> None:
    before = lab.snapshot()
    lab.start().stop(signal.SIGKILL)
    until(lambda: "tphub0" not in lab.ask("ip link"), "the device to vanish")
    until(lambda: not lab.ask("nft list ruleset"), "the table to vanish")
    assert lab.snapshot() != before
    assert "ipv4/conf/all/forwarding" in lab.run("recover").stdout
    assert lab.snapshot() == before


def test_next_start_recovers(lab: HubLab) -> None:
    before = lab.snapshot()
    lab.start().stop(signal.SIGKILL)
    hub = lab.start()
    assert hub.stop() == 0
    assert any("recovered: setting net/ipv4/conf/all/forwarding" in line for line in hub.stderr)
    assert lab.snapshot() == before


def test_a_router_stays_one(lab: HubLab) -> None:
    for path in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        lab.ask(f"sysctl -qw {path}=1")
    # A device that is made from here on forwards nothing.
    lab.ask("sysctl -qw net.ipv4.conf.default.forwarding=0")
    before = lab.snapshot()
    hub = lab.start()

    async def go() -> None:
        async with client(lab, 0) as one:
            assert await one.ping(WORLD[4])

    aio.run(go())
    assert hub.stop() == 0
    assert lab.snapshot() == before


def test_addresses_of_a_persistent_device_go(lab: HubLab) -> None:
    lab.run("tun", "add", "tphub0", check=True)
    lab.hub.ip("addr", "add", "10.74.0.1/24", "dev", "tphub0")
    hub = lab.start()
    assert "fd00:7470:1::1/64" in lab.ask("ip addr show dev tphub0")
    assert hub.stop() == 0
    after = lab.ask("ip addr show dev tphub0")
    assert "10.74.0.1/24" in after
    assert "fd00:7470:1::1/64" not in after


def test_device_of_ones_own(lab: HubLab) -> None:
    lab.give_away()
    lab.run("tun", "add", "tphub0", "--user", "nobody", check=True)
    driver = lab.directory / "driver"
    driver.mkdir()
    within = [*driver_open_to_all(driver), *UNPRIVILEGED]
    # A short name, as that of a socket has to be.
    runtime = tempfile.mkdtemp(prefix="tp")
    os.chown(runtime, NOBODY, NOBODY)
    hub = lab.start("--listen", "0.0.0.0:2222", within=within, XDG_RUNTIME_DIR=runtime)
    assert lab.snapshot()["nft list ruleset"] == ""
    _, _, title, *commands, ready = hub.stdout
    assert title == "these commands lead to the clients, for root to run:"
    assert ready.startswith("ready: tphub0 (10.74.0.1/24, ")
    for command in commands:
        subprocess.run([*inside(lab.hub), "sh", "-ec", command], check=True)

    async def go() -> None:
        async with client(lab, 0, port=2222) as one, client(lab, 1, port=2222) as two:
            for family in (4, 6):
                assert await one.ping(WORLD[family])
                assert await one.ping(two.address(family))

    aio.run(go())
    assert hub.stop() == 0
    assert not list(pathlib.Path(runtime).glob("tunproxy/*-tphub0"))
    shutil.rmtree(runtime)


@pytest.mark.parametrize(
    ("within", "options", "status", "said"),
    [
        (UNPRIVILEGED, (), 4, "run the command with sudo, or have root make one that is yours"),
        ((), ("--listen", "192.0.2.1:22"), 4, "choose another address or port with --listen"),
        ((), ("--listen", "no.such.name.invalid:22"), 4, "cannot listen on no.such.name.invalid"),
        ((), ("--authorized-keys", "/nowhere"), 2, "cannot read /nowhere"),
        ((), ("--host-key", "/nowhere"), 2, "/nowhere"),
        ((), ("--permit-open", "x"), 2, "no permitted target"),
        ((), ("--tun", "world0"), 4, "world0 exists already and is of another kind"),
    ],
)
def test_what_cannot_work(
    lab: HubLab, within: tuple[str, ...], options: tuple[str, ...], status: int, said: str
) -> None:
    lab.give_away()
    before = lab.snapshot()
    keys = ("--authorized-keys", str(lab.authorized_keys), "--host-key", str(lab.host_key))
    words = lab.command("serve", "--hub", *keys, *options, within=within)
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == status
    assert said in sentence(done.stderr)
    assert lab.snapshot() == before


def test_one_hub_on_a_device(lab: HubLab) -> None:
    lab.start()
    done = lab.run("serve", "--hub", "--listen", "127.0.0.1:2022")
    assert done.returncode == 4
    assert "tphub0 belongs to the instance with process id" in sentence(done.stderr)
    done = lab.run("serve", "--hub", "--listen", "[::]:22", "--tun", "other")
    assert done.returncode == 4
    assert "cannot listen on :: port 22: Address already in use" in sentence(done.stderr)
    done = lab.run("serve", "--hub", "--listen", "127.0.0.1:2022", "--tun", "other")
    assert done.returncode == 4
    assert "the pool 10.74.0.0/24 overlaps 10.74.0.0/24, which is on tphub0" in done.stderr


def test_clients_without_a_resolver(lab: HubLab) -> None:
    """Those of a machine that asks itself are for nobody else."""
    (lab.directory / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    bind = f'mount --bind {lab.directory}/resolv.conf /etc/resolv.conf && exec "$@"'
    within = ["unshare", "--mount", "sh", "-c", bind, "sh"]
    keys = ("--authorized-keys", str(lab.authorized_keys), "--host-key", "/nowhere")
    for options, warned in (((), True), (("--route", "192.0.2.0/24"), False)):
        words = lab.command("serve", "--hub", *keys, *options, within=within)
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        assert ("name one with --dns" in done.stderr) is warned


_AFTER_A_KILL_SWITCH = """
import pathlib
from tunproxy.app import hubsupervisor
from tunproxy.app.hubsettings import hub_settings
from tunproxy.app.instance import Instance, State
from tunproxy.app.plan import CapturePlan
from tunproxy.errors import MachineError

plan = CapturePlan(slot=0, tun="tphub0", mode="system", kill_switch=True)
state = State(pid=1, started=0, slot=0, tun="tphub0", uid=0, plan=plan)
Instance.create = lambda name: Instance(pathlib.Path("/nowhere"), state)
try:
    hubsupervisor.serve_hub(
        hub_settings(), ("0.0.0.0", 0), host_key=None, authorized_keys="x", permit_open=(),
        verbosity=0,
    )
except MachineError as error:
    print(error)
"""


def test_kill_switch_of_another_instance_stays() -> None:
    words = ["unshare", "--net", sys.executable, "-c", _AFTER_A_KILL_SWITCH]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=20)
    assert done.stdout.startswith("the kill switch of an earlier instance on tphub0 holds: ")
