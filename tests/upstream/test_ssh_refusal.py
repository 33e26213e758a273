"""Why there is no tunnel; that OpenSSH says these things is tested in test_ssh_tunnel.py."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import asyncssh
import pytest

from tests.helpers.netns import Namespace
from tunproxy.upstream.ssh_refusal import (
    TunnelRefusal,
    TunnelRefused,
    look_command,
    printable,
    refused,
    wants_look,
)

if TYPE_CHECKING:
    from tunproxy.upstream.vpn_terms import Kind

OPEN_FAILED = asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "open failed")
REJECTED = ["Server has rejected tunnel device forwarding"]
NOT_OPENED = ["Failed to open the tunnel device."]
NOBODY = 65534

USER = "uid=1000\ngids=1000 27\ndriver=yes\nwritable=yes\n"
ROOT = "uid=0\ngids=0\ndriver=yes\nwritable=yes\n"


def seen(look: str | None, kind: Kind = "tun", unit: int | None = 7) -> TunnelRefused:
    return refused(OPEN_FAILED, NOT_OPENED, None if look is None else look.encode(), kind, unit)


@pytest.mark.parametrize(("kind", "word"), [("tun", "point-to-point"), ("tap", "ethernet")])
def test_configuration_forbids_it(kind: Kind, word: str) -> None:
    error = refused(OPEN_FAILED, REJECTED, None, kind, None)
    assert error.reason is TunnelRefusal.PROHIBITED
    assert f"'PermitTunnel yes' (or {word})" in str(error)
    assert not wants_look(REJECTED)


def test_only_a_failed_device_is_looked_at() -> None:
    assert wants_look(["something else", *NOT_OPENED])
    assert not wants_look([])


def test_server_that_knows_no_tunnels() -> None:
    error = asyncssh.ChannelOpenError(asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE, "Unknown channel type")
    assert refused(error, [], None, "tun", None).reason is TunnelRefusal.UNSUPPORTED


def test_server_with_reasons_of_its_own() -> None:
    error = asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "no address\x1b[2J\nleft")
    told = refused(error, [], None, "tun", None)
    assert told.reason is TunnelRefusal.FAILED
    assert "(no address [2J left)" in str(told)


@pytest.mark.parametrize(
    ("look", "unit", "reason"),
    [
        (ROOT + "exists=yes\ntun_flags=0x1001\nowner=-1\ngroup=-1\n", 7, TunnelRefusal.BUSY),
        (USER + "exists=yes\ntun_flags=0x1001\nowner=1000\ngroup=-1\n", 7, TunnelRefusal.BUSY),
        (USER + "exists=yes\ntun_flags=0x1001\nowner=-1\ngroup=27\n", 7, TunnelRefusal.BUSY),
        (USER + "exists=yes\ntun_flags=0x1001\nowner=0\ngroup=-1\n", 7, TunnelRefusal.NO_RIGHT),
        (USER + "exists=yes\ntun_flags=0x1001\nowner=-1\ngroup=5\n", 7, TunnelRefusal.NO_RIGHT),
        (USER, 7, TunnelRefusal.NO_RIGHT),
        (USER, None, TunnelRefusal.NO_RIGHT),
        (USER.replace("writable=yes\n", ""), None, TunnelRefusal.NO_RIGHT),
        ("uid=0\ngids=0\n", 7, TunnelRefusal.NO_DRIVER),
        (ROOT + "exists=yes\ntun_flags=0x1002\n", 7, TunnelRefusal.FAILED),
        (ROOT + "exists=yes\ntun_flags=0x1101\n", 7, TunnelRefusal.FAILED),
        (ROOT + "exists=yes\n", 7, TunnelRefusal.FAILED),
        (ROOT + "exists=yes\ntun_flags=\n", 7, TunnelRefusal.FAILED),
        (ROOT, 7, TunnelRefusal.FAILED),
        (ROOT, None, TunnelRefusal.FAILED),
        ("This account is not available.\n", 7, TunnelRefusal.FAILED),
        (None, 7, TunnelRefusal.FAILED),
    ],
)
def test_what_the_device_tells(look: str | None, unit: int | None, reason: TunnelRefusal) -> None:
    error = seen(look, unit=unit)
    assert error.reason is reason
    assert "\n" not in str(error)


def test_sentences_say_what_to_do() -> None:
    assert "'ip tuntap add tap7 mode tap user NAME'" in str(seen(USER, kind="tap"))
    assert "'ip tuntap add tun0 mode tun user NAME'" in str(seen(USER, unit=None))
    assert "modprobe tun" in str(seen("uid=1\n"))
    assert "'chmod 666 /dev/net/tun'" in str(seen("uid=1\ndriver=yes\n"))
    busy = str(seen(ROOT + "exists=yes\ntun_flags=0x1001\n"))
    assert "tun7 on the server is used by another program" in busy


@pytest.mark.netns
def test_the_look_itself() -> None:
    with Namespace("look") as namespace:
        add = ["tuntap", "add", "tun7", "mode", "tun", "user", str(NOBODY)]
        namespace.ip(*add)
        command = ["ip", "netns", "exec", namespace.name, "setpriv", "--reuid", str(NOBODY)]
        command += ["--regid", str(NOBODY), "--clear-groups", "sh", "-c"]

        def look(unit: int | None) -> str:
            words = [*command, look_command("tun", unit)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            assert not done.stderr
            assert "driver=yes\n" in done.stdout
            return done.stdout + "writable=yes\n"  # whatever this machine's udev says

        assert seen(look(7), unit=7).reason is TunnelRefusal.BUSY
        assert seen(look(8), unit=8).reason is TunnelRefusal.NO_RIGHT
        assert seen(look(None), unit=None).reason is TunnelRefusal.NO_RIGHT


def test_printable_is_short() -> None:
    assert len(printable("a" * 1000)) == 200
