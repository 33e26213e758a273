"""The supervisor of ``tunproxy vpn``, real, in a namespace of its own, with an engine made up."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.command import UNPRIVILEGED
from tests.helpers.lab_wait import until
from tests.helpers.supervised import END_S, Place, Supervised, place
from tests.helpers.tun_namespace import NOBODY, driver_open_to_all

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

LINK: dict[str, Any] = {
    "local": ["10.74.0.2/24", "fd74::2/64"],
    "peers": ["10.74.0.1"],
    "routes": ["10.0.0.0/8"],
    "dns": ["10.74.0.53"],
    "mtu": 1400,
}


def link(**terms: Any) -> str:
    """What an engine does that has a link of LINK, but for ``terms``."""
    return f"""
        from tunproxy.app.ipc import LinkTerms, Note
        terms = LinkTerms(**{{k: tuple(v) if isinstance(v, list) else v
                              for k, v in {(LINK | terms)!r}.items()}})
        link.send(Connected("the hub", ("192.0.2.1", "2001:db8::1"), terms))
        if link.recv() != (Captured(), []):
            sys.exit(0)
        assert link.recv() is None
    """


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def start(here: Place, engine: str | None = None, **options: Any) -> Supervised:
    return here.start(link() if engine is None else engine, vpn=True, **options)


def test_the_link_is_configured_as_the_terms_say(here: Place) -> None:
    supervised = start(here)
    supervised.wait_ready()
    assert supervised.stdout == [
        "ready: tun0 (10.74.0.2/24, fd74::2/64, mtu 1400) leads to the hub"
    ]
    shown = json.loads(here.run("ip", "-j", "address", "show", "tun0"))[0]
    assert shown["mtu"] == 1400
    assert "UP" in shown["flags"]
    addresses = {f"{each['local']}/{each['prefixlen']}" for each in shown["addr_info"]}
    assert addresses == set(LINK["local"])
    assert "dev tun0" in here.run("ip", "route", "get", "10.200.0.1")
    supervised.send_signal(signal.SIGTERM)
    assert supervised.wait() == 0
    assert here.snapshot() == here.before
    assert supervised.stderr == []


def test_nothing_is_configured_before_the_engine_is_connected(here: Place) -> None:
    supervised = start(
        here,
        """
        say(start.mode, start.tun.name, start.tun.offload, start.listeners)
        say(start.dns4, start.dns6, list(start.direct), start.local)
        assert link.recv() is None
        """,
        config={"tun": {"stack": "system"}},
    )
    assert supervised.wait_for(2) == [["vpn", "tun0", True, 0], [None, None, [], None]]
    assert here.run("ip", "rule") == here.before["ip rule"]
    shown = json.loads(here.run("ip", "-j", "address", "show", "tun0"))[0]
    assert shown["addr_info"] == []
    assert "UP" not in shown["flags"]


def test_a_tap_without_an_address_is_up_and_captures_nothing(here: Place) -> None:
    bare = link(local=[], peers=[], routes=[], dns=[], mtu=1500)
    config = {"vpn": {"tap": True}, "tun": {"name": "tap7"}}
    supervised = start(here, bare, config=config)
    supervised.wait_ready()
    assert supervised.stdout == ["ready: tap7 (without an address, mtu 1500) leads to the hub"]
    shown = json.loads(here.run("ip", "-j", "-d", "link", "show", "tap7"))[0]
    assert shown["linkinfo"]["info_data"]["type"] == "tap"
    assert "UP" in shown["flags"]
    assert here.run("ip", "rule") == here.before["ip rule"]
    assert here.run("nft", "list", "ruleset") == ""


def test_notes_are_shown_and_cannot_speak_to_the_terminal(here: Place) -> None:
    supervised = start(
        here,
        """
        from tunproxy.app.ipc import Note
        link.send(Note("on the server, root has to run: ip link"))
        link.send(Note("\\x1b]0;mine\\x07 \\u202e two\\nlines" + "." * 5000))
        say("noted")
        assert link.recv() is None
        """,
    )
    supervised.wait_for(1)
    until(lambda: len(supervised.stdout) == 2, "the notes")
    plain, strange = supervised.stdout
    assert plain == "on the server, root has to run: ip link"
    assert strange.startswith("?]0;mine? ? two?lines...")
    assert len(strange) == 1000


@pytest.mark.parametrize(
    ("terms", "status", "sentence"),
    [
        ({"routes": ["nowhere"]}, 3, "the terms of the link make no sense"),
        ({"local": []}, 2, "the link has no address for the route 10.0.0.0/8"),
        ({"local": ["192.0.2.9/24"], "dns": []}, 2, "has the address of the SSH server"),
    ],
)
def test_terms_that_cannot_be(
    here: Place, terms: dict[str, Any], status: int, sentence: str
) -> None:
    supervised = start(here, link(**terms))
    assert supervised.wait() == status
    (line,) = supervised.stderr
    assert sentence in line
    assert here.snapshot() == here.before


def test_an_engine_without_terms_is_a_defect(here: Place) -> None:
    supervised = start(here, "connect()")
    assert supervised.wait() == 1
    assert "does not say what the link is like" in supervised.stderr[-1]


def test_a_link_that_carries_half_of_everything(here: Place) -> None:
    half = link(local=LINK["local"][:1], routes=["default"])
    supervised = start(here, half)
    supervised.wait_ready()
    (line,) = supervised.stderr
    assert line.endswith(
        "IPv6 goes its ordinary way, the link does not carry it; --kill-switch stops it"
    )
    supervised.send_signal(signal.SIGTERM)
    assert supervised.wait() == 0
    closing = start(here, half, config={"capture": {"kill_switch": True}})
    closing.wait_ready()
    assert closing.stderr == []


def test_a_killed_supervisor_is_recovered_from(here: Place) -> None:
    supervised = start(here, link(routes=["default"]), config={"capture": {"kill_switch": True}})
    supervised.wait_ready()
    supervised.send_signal(signal.SIGKILL)
    supervised.wait()
    assert "unreachable default" in here.run("ip", "route", "show", "table", "all")
    again = start(here, link(routes=["default"]))
    again.wait_ready()
    again.send_signal(signal.SIGKILL)
    again.wait()
    here.recover()
    assert here.snapshot() == here.before


def test_a_persistent_device_keeps_nothing_of_ours(here: Place) -> None:
    here.run("ip", "tuntap", "add", "tun0", "mode", "tun")
    here.run("ip", "address", "add", "10.74.0.2/24", "dev", "tun0")
    before = here.run("ip", "-br", "address")
    for end in (signal.SIGTERM, signal.SIGKILL):
        supervised = start(here)
        supervised.wait_ready()
        supervised.send_signal(end)
        supervised.wait()
        here.recover()
        words = [line.split() for line in here.run("ip", "-br", "address").splitlines()]
        assert [line[0:1] + line[2:] for line in words] == [
            line.split()[0:1] + line.split()[2:] for line in before.splitlines()
        ]


# ---- who is not root


@pytest.fixture
def runtime() -> Iterator[pathlib.Path]:
    """The XDG_RUNTIME_DIR of nobody; its name is short, as that of a socket has to be."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        own = pathlib.Path(directory, "own")
        own.mkdir(mode=0o700)
        os.chown(own, NOBODY, NOBODY)
        yield own


def as_nobody(
    here: Place, runtime: pathlib.Path, engine: str | None = None, **options: Any
) -> Supervised:
    driver = runtime.with_name("driver")
    driver.mkdir()
    inner = [*driver_open_to_all(driver), *UNPRIVILEGED]
    options = {"vpn": True, "inner": inner, "env": {"XDG_RUNTIME_DIR": str(runtime)}} | options
    return here.start(link() if engine is None else engine, **options)


def wait_for_ready(supervised: Supervised) -> None:
    """The line comes after the commands."""
    until(
        lambda: not supervised.running or any("ready:" in line for line in supervised.stdout),
        "the line",
        END_S,
    )
    assert supervised.running, supervised.stderr


def give_device(here: Place, *words: str) -> None:
    here.run("ip", "tuntap", "add", "tun0", "mode", "tun", "user", str(NOBODY), *words)
    here.before = here.snapshot()


def test_the_owner_of_a_device_needs_not_be_root(here: Place, runtime: pathlib.Path) -> None:
    give_device(here)
    supervised = as_nobody(here, runtime)
    wait_for_ready(supervised)
    intro, *commands, ready = supervised.stdout
    assert "for root to run" in intro
    assert ready == "ready: tun0 (10.74.0.2/24, fd74::2/64, mtu 1400) leads to the hub"
    assert commands[:3] == [
        "ip address add 10.74.0.2/24 dev tun0",
        "ip address add fd74::2/64 dev tun0",
        "ip link set dev tun0 mtu 1400 up",
    ]
    assert "ip route add 10.0.0.0/8 dev tun0" in commands
    found = {view: text for view, text in here.snapshot().items() if view != "ip -o link"}
    assert found == {view: text for view, text in here.before.items() if view != "ip -o link"}
    (directory,) = (runtime / "tunproxy").glob("*-tun0")
    assert (directory / "control.sock").is_socket()
    for command in commands:
        if command.startswith("ip "):
            here.run(*command.split())
    assert "dev tun0" in here.run("ip", "route", "get", "10.200.0.1")
    supervised.send_signal(signal.SIGTERM)
    assert supervised.wait() == 0
    assert not directory.exists()


def test_up_attaches_as_well(here: Place, runtime: pathlib.Path) -> None:
    give_device(here)
    supervised = as_nobody(here, runtime, "connect()\nassert link.recv() is None", vpn=False)
    wait_for_ready(supervised)
    assert supervised.stdout[-1] == "ready: traffic goes through the exit"
    assert "ip route add 0.0.0.0/1 dev tun0" in supervised.stdout
    assert "ip route add 198.18.0.0/15 dev tun0" in supervised.stdout
    supervised.send_signal(signal.SIGTERM)
    assert supervised.wait() == 0


def test_sockets_of_a_foreign_machine_are_ordinary(here: Place, runtime: pathlib.Path) -> None:
    give_device(here)
    supervised = as_nobody(
        here,
        runtime,
        """
        received = ask(WantSocket(7, socket.AF_INET, socket.SOCK_STREAM))
        with socket.socket(fileno=received.fds[0]) as sock:
            say(sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
        assert link.recv() is None
        """,
    )
    assert supervised.wait_for(1) == [[0]]


def test_a_device_of_somebody_else(here: Place, runtime: pathlib.Path) -> None:
    here.run("ip", "tuntap", "add", "tun0", "mode", "tun", "user", "65533")
    supervised = as_nobody(here, runtime)
    assert supervised.wait() == 4
    (line,) = supervised.stderr
    assert "tun0" in line


def test_no_device_at_all(here: Place, runtime: pathlib.Path) -> None:
    supervised = as_nobody(here, runtime)
    assert supervised.wait() == 4
    assert "only root can capture traffic" in supervised.stderr[0]


def test_what_only_root_can_do(here: Place, runtime: pathlib.Path) -> None:
    give_device(here)
    supervised = as_nobody(here, runtime, config={"capture": {"kill_switch": True}})
    assert supervised.wait() == 4
    assert "more than a device of your own" in supervised.stderr[0]
    assert list((runtime / "tunproxy").glob("*-tun0")) == []


def test_no_directory_for_the_state(here: Place, runtime: pathlib.Path) -> None:
    give_device(here)
    supervised = as_nobody(here, runtime, env={"XDG_RUNTIME_DIR": ""})
    assert supervised.wait() == 4
    assert "set XDG_RUNTIME_DIR" in supervised.stderr[0]
