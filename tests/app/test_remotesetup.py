"""The script that sets a server up, run by a real shell in a network namespace."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import subprocess
import textwrap
from typing import TYPE_CHECKING

import pytest

from tunproxy.app import remotesetup
from tunproxy.app.remotesetup import FAILED, LEAVE, READY, SHOWN, RemoteEnd

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

END = RemoteEnd(
    device="tun70",
    addresses=(ipaddress.ip_interface("10.74.70.1/24"), ipaddress.ip_interface("fd00:7474::1/64")),
    clients=(ipaddress.ip_address("10.74.70.2"), ipaddress.ip_address("10.99.0.2")),
    mtu=1400,
)

NSENTER = shutil.which("nsenter") or "nsenter"

NAME = "c0ffee"

TOOLS = (
    "sh",
    "ip",
    "nft",
    "cat",
    "ls",
    "sed",
    "sleep",
    "mkdir",
    "rm",
    "tr",
    "grep",
    "mount",
    "kill",
    "id",
)


class Server:
    """A shell with a network namespace and a /run of its own, and a device tun70.

    It has the programs of ``tools``, and whatever ``extra`` says (a name and a shell script).
    """

    def __init__(self, directory: pathlib.Path, tools: tuple[str, ...] = TOOLS) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        for name in tools:
            found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
            assert found is not None, name
            (self.bin / name).symlink_to(found)
        self._shell = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.run("mount -t tmpfs none /run; ip link set lo up; ip tuntap add tun70 mode tun")

    def close(self) -> None:
        self._shell.communicate()

    def program(self, name: str, text: str) -> None:
        """Have a program ``name`` that is this script."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{textwrap.dedent(text)}")
        path.chmod(0o755)

    def run(self, command: str) -> str:
        """Run ``command``; return what it prints."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{{ {command}\n}} 2>&1; echo; echo END\n")
        self._shell.stdin.flush()
        lines = []
        while (line := self._shell.stdout.readline()) != "END\n":
            assert line, "the shell has ended"
            lines.append(line)
        return "".join(lines)[:-1]

    def start(self, text: str) -> subprocess.Popen[str]:
        """Feed ``text`` to a shell on the server, whose standard input stays open."""
        shell = subprocess.Popen(
            [NSENTER, f"--target={self._shell.pid}", "--net", "--mount", "sh", "-s"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # The script adds the usual places of programs; here they must not count.
            env={"PATH": f"{self.bin}"},
        )
        assert shell.stdin is not None
        shell.stdin.write(text.replace(":/usr/sbin:/sbin:/usr/local/sbin", ""))
        shell.stdin.flush()
        return shell

    def state(self) -> str:
        """What a script may change, apart from the device's MTU."""
        return self.run(
            "nft list ruleset; ip -br addr show dev tun70; ls /run/tunproxy;"
            "grep . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/*/forwarding"
            " /proc/sys/net/ipv6/conf/*/accept_ra"
        )


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.close()


def until(shell: subprocess.Popen[str], word: str) -> list[str]:
    """Read the lines up to one that begins with ``word``."""
    assert shell.stdout is not None
    lines: list[str] = []
    while not lines or not lines[-1].startswith(word):
        lines.append(shell.stdout.readline().removesuffix("\n"))
        assert lines[-1], lines
    return lines


def test_everything_is_shown_done_and_undone(server: Server) -> None:
    server.run("mkdir /run/tunproxy; echo 1 >/proc/sys/net/ipv6/conf/tun70/accept_ra")
    before = server.state()
    shell = server.start(remotesetup.script(END, NAME))
    shown = until(shell, READY)[:-1]
    assert all(line.startswith(SHOWN) for line in shown)
    assert f"{SHOWN}ip addr replace 10.74.70.1/24 dev tun70" in shown
    assert f"{SHOWN}ip route replace 10.99.0.2 dev tun70" in shown
    during = server.state()
    for expected in (
        "10.74.70.1/24",
        "fd00:7474::1/64",
        'ip saddr 10.74.70.0/24 oifname != "tun70" masquerade',
        'ip6 saddr fd00:7474::/64 oifname != "tun70" masquerade',
        "maxseg size set rt mtu",
        "/proc/sys/net/ipv4/ip_forward:1",
        "/proc/sys/net/ipv6/conf/all/forwarding:1",
        "/proc/sys/net/ipv6/conf/tun70/accept_ra:2",
    ):
        assert expected in during
    assert "mtu 1400" in server.run("ip link show tun70")
    shell.communicate(LEAVE)
    assert server.state() == before


def test_what_a_crash_has_left_is_undone_by_the_next_script(server: Server) -> None:
    server.run("mkdir /run/tunproxy; ip tuntap add tun71 mode tun")
    before = server.state()
    crashed = server.start(remotesetup.script(END, NAME))
    until(crashed, READY)
    crashed.kill()
    crashed.communicate()
    assert "masquerade" in server.state()
    other = RemoteEnd("tun71", (ipaddress.ip_interface("10.74.71.1/24"),), (), 1500)
    shell = server.start(remotesetup.script(other, NAME))
    until(shell, READY)
    assert "tunproxy_tun70" not in server.state()
    shell.communicate(LEAVE)
    assert server.state() == before


def test_forwarding_stays_on_until_the_last_device_has_gone(server: Server) -> None:
    server.run("ip tuntap add tun71 mode tun")
    first = server.start(remotesetup.script(END, NAME))
    until(first, READY)
    second = server.start(
        remotesetup.script(
            RemoteEnd("tun71", (ipaddress.ip_interface("10.74.71.1/24"),), (), 1500), NAME
        )
    )
    until(second, READY)
    first.communicate(LEAVE)
    assert "ip_forward:1" in server.state()
    second.communicate(LEAVE)
    assert "ip_forward:0" in server.state()


def test_a_command_that_fails_undoes_the_others(server: Server) -> None:
    server.run("mkdir /run/tunproxy")
    before = server.state()
    server.program(
        "nft",
        f"""\
        case "$*" in *masquerade*) exit 1;; esac
        exec {shutil.which("nft", path="/usr/sbin:/sbin")} "$@"
        """,
    )
    shell = server.start(remotesetup.script(END, NAME))
    output, _ = shell.communicate()
    assert output.splitlines()[-1].startswith(f"{FAILED}nft add table")
    assert server.state() == before


def test_a_server_without_nft_gets_iptables_rules(tmp_path: pathlib.Path) -> None:
    tools = tuple(name for name in TOOLS if name != "nft")
    server = Server(tmp_path, (*tools, "iptables", "ip6tables"))
    # As Docker has it.
    server.run("mkdir /run/tunproxy; iptables -P FORWARD DROP")
    rules = "for t in nat mangle filter; do iptables -t $t -S; ip6tables -t $t -S; done"
    server.run(rules)
    before = server.run(rules)
    shell = server.start(remotesetup.script(END, NAME))
    until(shell, READY)
    comment = "-m comment --comment tunproxy_tun70"
    during = server.run(rules)
    assert f"-A POSTROUTING -s 10.74.70.0/24 ! -o tun70 {comment} -j MASQUERADE" in during
    assert f"-A POSTROUTING -s fd00:7474::/64 ! -o tun70 {comment} -j MASQUERADE" in during
    assert "TCPMSS --clamp-mss-to-pmtu" in during
    assert f"-A FORWARD -i tun70 {comment} -j ACCEPT" in during
    shell.communicate(LEAVE)
    assert server.run(rules) == before
    server.close()


def test_a_server_with_neither_says_so(tmp_path: pathlib.Path) -> None:
    server = Server(tmp_path, tuple(name for name in TOOLS if name != "nft"))
    output, _ = server.start(remotesetup.script(END, NAME)).communicate()
    assert output.splitlines()[-1] == f"{FAILED}neither nft nor iptables is installed"
    server.close()


def test_a_lost_connection_may_come_back(server: Server) -> None:
    """Its rules stay for a while; who takes over neither finds them twice nor without a chain."""
    server.run("mkdir /run/tunproxy")
    before = server.state()
    lost = server.start(remotesetup.script(END, NAME))
    until(lost, READY)
    assert lost.stdin is not None
    lost.stdin.close()
    during = server.state()
    assert "masquerade" in during
    again = server.start(remotesetup.script(END, NAME))
    until(again, READY)
    assert lost.wait() == 0
    assert lost.stdout is not None
    lost.stdout.close()
    assert server.state() == during
    again.communicate(LEAVE)
    assert server.state() == before


def test_what_was_lost_is_undone_in_the_end(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remotesetup, "RETURN_S", 1)
    server.run("mkdir /run/tunproxy")
    before = server.state()
    lost = server.start(remotesetup.script(END, NAME))
    until(lost, READY)
    lost.communicate()
    assert server.state() == before


@pytest.mark.parametrize("is_listening", [True, False])
def test_it_waits_longer_where_sshd_has_gone(server: Server, is_listening: bool) -> None:
    """Else the client has, or is back at once."""
    (server.bin / "sshd").symlink_to(os.path.realpath("/bin/sh"))
    pauses = server.bin.parent / "pauses"
    server.program("sleep", f"echo $1 >>{pauses}")
    # A child of nobody, for whom no sshd that the tests may run below can stand in.
    lost = server.start("exec 3<&0; sshd -c 'echo sshd $$; sh -s; :' <&3 & exit\n")
    pid = int(until(lost, "sshd")[-1].split()[1])
    lost.wait()
    assert lost.stdin is not None
    lost.stdin.write(remotesetup.script(END, NAME))
    lost.stdin.flush()
    until(lost, READY)
    if not is_listening:
        os.kill(pid, signal.SIGKILL)
    lost.communicate()
    assert "masquerade" not in server.state()
    seconds = remotesetup.LOST_S if is_listening else remotesetup.RETURN_S
    assert sum(map(int, pauses.read_text().split())) == seconds


@pytest.mark.parametrize(("name", "is_ended"), [(NAME, True), ("decaf", False)])
def test_the_process_that_holds_a_device_is_ended(
    server: Server, name: str, is_ended: bool
) -> None:
    """The one with the name of sshd, if it is ours; what is set up stays for who takes over."""
    (server.bin / "sshd").symlink_to(os.path.realpath("/bin/sh"))
    holder = server.start("exec sshd -c 'echo here; sh -s; :'\n")
    until(holder, "here")
    assert holder.stdin is not None
    holder.stdin.write(remotesetup.script(END, NAME))
    holder.stdin.flush()
    until(holder, READY)
    taken = server.start(remotesetup.take_over("tun70", name))
    until(taken, READY)
    taken.communicate()
    assert "masquerade" in server.state()
    if not is_ended:
        assert holder.poll() is None
        server.start(remotesetup.take_over("tun70", NAME)).communicate()
    holder.communicate()


def test_a_device_is_taken_over_within_one_connection(server: Server) -> None:
    """Which goes on."""
    (server.bin / "sshd").symlink_to(os.path.realpath("/bin/sh"))
    pipe = server.bin.parent / "pipe"
    os.mkfifo(pipe)
    holder = server.start(f"exec sshd -c 'sh -s <{pipe} & echo here; sh -s; echo there'\n")
    until(holder, "here")
    with pipe.open("w") as first:
        first.write(remotesetup.script(END, NAME))
        first.flush()
        until(holder, READY)
        assert holder.stdin is not None
        holder.stdin.write(remotesetup.take_over("tun70", NAME))
        holder.stdin.flush()
        until(holder, READY)
        until(holder, "there")
        holder.communicate()
        assert "masquerade" in server.state()


def test_who_has_the_number_of_the_one_that_has_ended_is_left_alone(server: Server) -> None:
    other = server.start("echo here; exec cat\n")
    until(other, "here")
    assert other.stdin is not None
    other.stdin.write("there\n")
    other.stdin.flush()
    until(other, "there")
    files = "/run/tunproxy/tun70"
    server.run(f"mkdir /run/tunproxy; echo {other.pid} >{files}.pid; echo {NAME} >{files}.owner")
    taken = server.start(remotesetup.take_over("tun70", NAME))
    until(taken, READY)
    taken.communicate()
    assert other.poll() is None
    assert other.communicate("alive")[0] == "alive"


def test_the_commands_can_be_typed(server: Server) -> None:
    for line in remotesetup.commands(END):
        assert server.run(f"{line} >/dev/null && echo done").strip() == "done", line
    assert "masquerade" in server.state()


def test_without_nat_nothing_but_the_link_is_touched(server: Server) -> None:
    end = RemoteEnd("tun70", END.addresses, (), 1400, nat=False)
    assert not any("nft" in line or "sysctl" in line for line in remotesetup.commands(end))
    shell = server.start(remotesetup.script(end, NAME))
    until(shell, READY)
    state = server.state()
    assert "10.74.70.1/24" in state
    assert "masquerade" not in state
    assert "ip_forward:0" in state
    shell.communicate(LEAVE)


def test_an_account_without_rights_is_told_so(tmp_path: pathlib.Path) -> None:
    nobody = 65534
    text = remotesetup.script(END, NAME)
    done = subprocess.run(
        ["sh", "-s"],
        input=text,
        text=True,
        capture_output=True,
        user=nobody if os.geteuid() == 0 else None,
        group=nobody if os.geteuid() == 0 else None,
        extra_groups=[] if os.geteuid() == 0 else None,
        check=False,
    )
    assert done.stdout == f"{FAILED}no right to change the system\n"
