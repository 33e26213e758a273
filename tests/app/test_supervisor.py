"""The supervisor, real, in a namespace of its own, with engines that behave and that do not."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.lab_wait import until
from tests.helpers.pseudo_terminal import PseudoTerminal
from tests.helpers.supervised import Place, place
from tunproxy.linux import marks

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

SUDO = {"SUDO_UID": "65534", "SUDO_GID": "65534", "SUDO_USER": "nobody"}

HANGING = """
    connect()
    say("connected")
    while True:
        time.sleep(10)
"""


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def status_of(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def is_alive(pid: int) -> bool:
    try:
        return status_of(pid)["State"][0] not in "ZX"
    except FileNotFoundError:
        return False


# ---- up: the beginning and the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=str)
def test_up_captures_until_a_signal_comes(here: Place, number: signal.Signals) -> None:
    supervised = here.start()
    supervised.wait_ready()
    assert supervised.stdout == ["ready: traffic goes through the exit"]
    during = here.snapshot()
    assert all(during[view] != here.before[view] for view in during)
    supervised.send_signal(number)
    assert supervised.wait() == 0
    assert here.snapshot() == here.before
    assert supervised.stderr == []


RELOADED = """
    from tunproxy.app.ipc import Reload
    connect()
    received = link.recv()
    say(received is not None and received.message == Reload())
    assert received is None or link.recv() is None
"""


def test_sighup_has_the_engine_read_the_rules_again(here: Place) -> None:
    supervised = here.start(RELOADED)
    supervised.wait_ready()
    supervised.send_signal(signal.SIGHUP)
    assert supervised.wait_for(1) == [[True]]
    assert supervised.running


def test_a_terminal_that_is_hung_up_is_the_end(here: Place) -> None:
    master, slave = os.openpty()
    try:
        supervised = here.start(RELOADED, stdin=slave, wrapper=["setsid", "--ctty"])
        supervised.wait_ready()
        # While it is there, it is somebody's wish as well.
        supervised.send_signal(signal.SIGHUP)
        assert supervised.wait_for(1) == [[True]]
    finally:
        os.close(slave)
        os.close(master)
    assert supervised.wait() == 0
    assert here.snapshot() == here.before


def test_owners_of_sockets_and_cgroups(here: Place) -> None:
    with socket.socket() as sock:
        inode = os.fstat(sock.fileno()).st_ino
        supervised = here.start(f"""
            from tunproxy.app.ipc import WantOwners
            answer = ask(WantOwners(7, ({inode}, 0xFFFFFFFF), (1 << 60,))).message
            say(answer.id, answer.programs, answer.cgroups)
            connect()
            assert link.recv() is None
        """)
        program = os.path.realpath(sys.executable)
        assert supervised.wait_for(1) == [[7, {str(inode): program}, {}]]
        supervised.wait_ready()


def test_too_many_questions_at_once(here: Place) -> None:
    supervised = here.start("""
        from tunproxy.app.ipc import WantOwners
        link.send(WantOwners(7, tuple(range(1000)), ()))
        assert link.recv() is None
    """)
    assert supervised.wait() == 1
    assert "asks too much at once" in supervised.stderr[0]


def test_nothing_is_captured_before_the_engine_is_connected(here: Place) -> None:
    supervised = here.start("""
        say("here")
        assert link.recv() is None
    """)
    supervised.wait_for(1)
    assert here.run("ip", "rule") == here.before["ip rule"]
    assert "tun0" in here.run("ip", "link")
    supervised.send_signal(signal.SIGTERM)
    assert supervised.wait() == 0
    assert here.snapshot() == here.before


def test_start_says_all_that_the_engine_needs(here: Place) -> None:
    config = {"tun": {"mtu": 1400}, "server": [{"target": "ada@example.org"}]}
    supervised = here.start(
        """
        flags = bytearray(40)
        import fcntl
        fcntl.ioctl(tun, 0x800454D2, flags)  # TUNGETIFF
        say(start.tun.name, start.tun.mtu, flags[:16].rstrip(b"\\0").decode())
        say(start.config.server[0].target, start.verbosity)
        say(str(start.dns4), str(start.dns6), list(start.resolvers))
        assert link.recv() is None
        """,
        config=config,
    )
    tun, server, names = supervised.wait_for(3)
    assert tun == ["tun0", 1400, "tun0"]
    assert server == ["ada@example.org", 0]
    assert names[:2] == ["198.18.0.2", "fd00:7470::2"]
    assert "mtu 1400" in here.run("ip", "link", "show", "tun0")


@pytest.mark.parametrize("ipv6", [True, False])
def test_the_kernels_stack_meets_the_engines_listeners(here: Place, ipv6: bool) -> None:
    """They listen on the TUN alone, and are the engine's only."""
    if not ipv6:
        here.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    supervised = here.start(
        """
        listeners = [link.recv() for _ in range(start.listeners)]
        socks = [socket.socket(fileno=fds[0]) for message, fds in listeners]
        say(*[type(message).__name__ for message, fds in listeners])
        say(*[sock.getsockname()[0] for sock in socks])
        say(*[sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for sock in socks])
        say(*[sock.getsockopt(socket.SOL_SOCKET, 25, 16).decode() for sock in socks])
        connect()
        for sock in socks:
            sock.close()
        say("closed")
        assert link.recv() is None
        """,
        config={"tun": {"stack": "system"}},
    )
    supervised.wait_ready()
    count = 2 if ipv6 else 1
    names, addresses, accepting, devices, _ = supervised.wait_for(5)
    assert names == ["Listener"] * count
    assert addresses == ["198.18.0.1", "fd00:7470::1"][:count]
    assert accepting == [1] * count
    assert [device.rstrip("\0") for device in devices] == ["tun0"] * count
    assert here.run("ss", "-Htln") == ""
    supervised.send_signal(signal.SIGTERM)
    assert supervised.wait() == 0


def test_our_own_stack_needs_no_listener(here: Place) -> None:
    supervised = here.start("say(start.listeners)\nassert link.recv() is None")
    assert supervised.wait_for(1) == [[0]]


@pytest.mark.parametrize("sudo", [False, True])
def test_the_engine_is_the_caller_in_the_bypass_cgroup(here: Place, sudo: bool) -> None:
    uid = 65534 if sudo else 0
    supervised = here.start(
        """
        say(os.getpid(), os.getresuid(), os.environ["HOME"])
        say(open("/proc/self/cgroup").read())
        assert link.recv() is None
        """,
        env=SUDO if sudo else {},
    )
    (pid, uids, home), (groups,) = supervised.wait_for(2)
    assert uids == [uid] * 3
    assert os.getpgid(pid) == pid
    assert (home == os.environ["HOME"]) == (not sudo)
    assert any(line.endswith(":/" + marks.bypass_cgroup()) for line in groups.splitlines())


def test_the_control_socket_is_the_callers(here: Place) -> None:
    supervised = here.start(
        """
        listening = socket.socket(fileno=control)
        say("listening")
        accepted, _ = listening.accept()
        accepted.sendall(b"hello")
        assert link.recv() is None
        """,
        env=SUDO,
    )
    supervised.wait_for(1)
    (directory,) = here.state_directories()
    path = directory / "control.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_uid == 65534
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        assert sock.recv(100) == b"hello"


def test_sockets_are_made_with_the_mark(here: Place) -> None:
    supervised = here.start("""
        for family, kind in (
            (socket.AF_INET, socket.SOCK_STREAM),
            (socket.AF_INET6, socket.SOCK_DGRAM),
        ):
            received = ask(WantSocket(7, family, kind))
            with socket.socket(fileno=received.fds[0]) as sock:
                mark = sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
                say(received.message.id, sock.family == family, sock.type == kind, mark)
        assert link.recv() is None
    """)
    expected = [7, True, True, marks.BYPASS_MARK]
    assert supervised.wait_for(2) == [expected, expected]


@pytest.mark.parametrize("groups", ["0 2147483647", "1 0"])
def test_ping_sockets_are_raw_only_where_nobody_may_have_them(here: Place, groups: str) -> None:
    supervised = here.start(f"""
        open("/proc/sys/net/ipv4/ping_group_range", "w").write("{groups}")
        for family, protocol in (
            (socket.AF_INET, socket.IPPROTO_ICMP),
            (socket.AF_INET6, socket.IPPROTO_ICMPV6),
        ):
            received = ask(WantSocket(7, family, socket.SOCK_DGRAM, protocol))
            with socket.socket(fileno=received.fds[0]) as sock:
                mark = sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
                say(sock.family == family, sock.proto == protocol, int(sock.type), mark)
        assert link.recv() is None
    """)
    kind = int(socket.SOCK_RAW if groups == "1 0" else socket.SOCK_DGRAM)
    expected = [True, True, kind, marks.BYPASS_MARK]
    assert supervised.wait_for(2) == [expected, expected]


def test_no_other_sockets_are_made(here: Place) -> None:
    supervised = here.start("""
        for family, kind, protocol in (
            (socket.AF_INET, socket.SOCK_RAW, 0),
            (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
            (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6),
            (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP),
            (socket.AF_PACKET, socket.SOCK_DGRAM, 0),
            (socket.AF_UNIX, socket.SOCK_STREAM, 0),
            (-1, 10**9, -1),
        ):
            say(ask(WantSocket(8, family, kind, protocol)).message.text)
        connect()
        assert link.recv() is None
    """)
    answers = supervised.wait_for(8)
    assert all(text.startswith("no sockets of family") for (text,) in answers)
    supervised.wait_ready()


def test_a_signal_ignored_before_us_stays_ignored(here: Place) -> None:
    supervised = here.start(wrapper=["nohup"])
    supervised.wait_ready()
    assert int(status_of(supervised.pid)["SigIgn"], 16) & 1  # SIGHUP is signal 1
    supervised.send_signal(signal.SIGHUP)
    supervised.send_signal(signal.SIGTERM)
    assert supervised.wait() == 0


def test_without_the_capability(here: Place) -> None:
    supervised = here.start(inner=["setpriv", "--bounding-set=-net_admin"])
    assert supervised.wait() == 4
    assert "CAP_NET_ADMIN is missing" in supervised.stderr[0]


# ---- up: what goes wrong


@pytest.mark.parametrize("connected", [False, True], ids=["at login", "later"])
def test_the_engine_says_why_it_ends(here: Place, connected: bool) -> None:
    supervised = here.start(f"""
        if {connected}:
            connect()
        link.send(Failed(3, "the server refuses us; check the key"))
    """)
    assert supervised.wait() == 3
    assert supervised.stderr == ["tunproxy: the server refuses us; check the key"]
    assert here.snapshot() == here.before


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "the engine has been killed by SIGKILL; start"),
        ("sys.exit(7)", "the engine has ended with status 7; start"),
        ("link.close(); time.sleep(1000)", "the engine has been killed by SIGKILL; start"),
        ("link._sock.send(b'nonsense')", "malformed message between the processes of tunproxy"),
        ("link.send(Failed(0, 'no failure'))", "no failure"),
    ],
)
@pytest.mark.parametrize("connected", [False, True], ids=["at login", "later"])
def test_the_engine_ends_otherwise(here: Place, end: str, sentence: str, connected: bool) -> None:
    supervised = here.start(f"if {connected}: connect()\n{end}", stop_s=0.2)
    assert supervised.wait() == 1
    (line,) = supervised.stderr
    assert line.startswith(f"tunproxy: {sentence}")
    assert here.snapshot() == here.before


def test_the_engine_names_nonsense_as_the_address_of_the_server(here: Place) -> None:
    supervised = here.start('link.send(Connected("it", ("nonsense",)))')
    assert supervised.wait() == 1
    assert "the engine speaks of what is no address" in supervised.stderr[-1]
    assert here.snapshot() == here.before


def test_the_engine_is_told_what_to_load(here: Place) -> None:
    config = {"tun": {"pcap": "/tmp/trace.pcap"}}
    supervised = here.start("say(*sys.argv[3:])", config=config)
    supervised.wait()
    assert supervised.said == [["tunproxy.app.session", "tunproxy.app.pcap"]]


def test_an_engine_that_hangs_is_killed_at_the_end(here: Place) -> None:
    supervised = here.start(HANGING, stop_s=0.2)
    supervised.wait_ready()
    supervised.send_signal(signal.SIGTERM)
    assert supervised.wait() == 0
    assert here.snapshot() == here.before


def test_no_signal_interrupts_the_end(here: Place) -> None:
    supervised = here.start(HANGING, stop_s=0.5)
    supervised.wait_ready()
    supervised.send_signal(signal.SIGTERM)

    def disturbed() -> bool:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            supervised.send_signal(number)
        return not supervised.running

    until(disturbed, "the end")
    assert supervised.wait() == 0
    assert here.snapshot() == here.before


def test_a_killed_supervisor_takes_the_engine_with_it(here: Place) -> None:
    supervised = here.start("""
        say(os.getpid())
        connect()
        say("end of file" if link.recv() is None else "a message")
    """)
    supervised.wait_ready()
    engine = supervised.said[0][0]
    supervised.send_signal(signal.SIGKILL)
    assert supervised.wait() == -signal.SIGKILL
    assert supervised.said[1] == ["end of file"]
    until(lambda: not is_alive(engine), "the engine to end")
    assert "tun0" not in here.run("ip", "link")
    here.recover()
    assert here.snapshot() == here.before


def test_a_kill_switch_outlives_a_start_that_fails(here: Place) -> None:
    capture = {"capture": {"kill_switch": True}}
    first = here.start(config=capture)
    first.wait_ready()
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = here.start('link.send(Failed(3, "not today"))', config=capture)
    assert second.wait() == 3
    assert "unreachable default" in here.run("ip", "route", "show", "table", "all")
    assert len(here.state_directories()) == 1
    third = here.start(config=capture)
    third.wait_ready()
    third.send_signal(signal.SIGTERM)
    assert third.wait() == 0
    assert here.snapshot() == here.before


def test_what_cannot_be_captured_is_undone(here: Place) -> None:
    config = {"capture": {"mode": "cgroup", "cgroups": ["no/such/cgroup"]}}
    supervised = here.start(config=config)
    assert supervised.wait() == 4
    (line,) = supervised.stderr
    assert "no cgroup" in line
    assert here.snapshot() == here.before


# ---- run


def test_run_has_the_exit_status_of_the_command(here: Place) -> None:
    supervised = here.start(argv=["sh", "-c", "cat /proc/$$/cgroup; id -u; exit 7"], env=SUDO)
    assert supervised.wait() == 7
    *groups, uid = supervised.stdout
    assert any(line.endswith(":/" + marks.run_cgroup(here.inode, 0)) for line in groups)
    assert uid == "65534"
    assert supervised.stderr == []
    assert here.snapshot() == here.before


def test_the_command_is_killed_by_a_signal(here: Place) -> None:
    assert here.start(argv=["sh", "-c", "kill -KILL $$"]).wait() == 128 + signal.SIGKILL


def test_a_command_that_is_not_there(here: Place) -> None:
    supervised = here.start(argv=["/no/such/command"])
    assert supervised.wait() == 127
    (line,) = supervised.stderr
    assert line.startswith("tunproxy: /no/such/command: command not found")
    assert here.snapshot() == here.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=str)
def test_a_signal_is_forwarded_to_the_command(here: Place, number: signal.Signals) -> None:
    script = f"trap 'echo got it; exit 5' {number.value}; echo ready; while :; do sleep 0.1; done"
    supervised = here.start(argv=["sh", "-c", script])
    supervised.wait_ready()
    supervised.send_signal(number)
    assert supervised.wait() == 5
    assert supervised.stdout == ["ready", "got it"]


def test_a_signal_before_there_is_a_command(here: Place) -> None:
    supervised = here.start(
        'say("here"); assert link.recv() is None', argv=["echo", "must not run"]
    )
    supervised.wait_for(1)
    supervised.send_signal(signal.SIGTERM)
    assert supervised.wait() == 128 + signal.SIGTERM
    assert supervised.stdout == []
    assert here.snapshot() == here.before


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"], ids=["yielding", "stubborn"])
def test_the_command_does_not_outlive_the_engine(here: Place, trap: str) -> None:
    supervised = here.start(
        """
        say(os.getpid())
        connect()
        assert link.recv() is None
        """,
        argv=["sh", "-c", f"{trap} sleep 1000 & echo $$ $!; while :; do sleep 0.1; done"],
        stop_s=0.5,
    )
    until(lambda: supervised.stdout, "the command to run")
    os.kill(supervised.said[0][0], signal.SIGKILL)
    assert supervised.wait() == 1
    command, child = map(int, supervised.stdout[0].split())
    assert not is_alive(command)
    assert not is_alive(child)
    (line,) = supervised.stderr
    assert line.startswith("tunproxy: the engine has been killed by SIGKILL")
    assert here.snapshot() == here.before


# ---- the terminal


class Terminal(PseudoTerminal):
    """A terminal with a supervisor in its foreground."""

    def __init__(self, here: Place, engine: str, argv: list[str] | None = None) -> None:
        super().__init__()
        options: dict[str, Any] = {"wrapper": ["setsid", "--ctty"], "stdin": self.slave}
        self.supervised = here.start(engine, argv=argv, **options)
        self.leave_to_programs()


ASK = """
    say(ask(Ask(1, "Passphrase: ", False)).message.text)
    connect()
    assert link.recv() is None
"""


def test_a_question_is_asked_on_the_terminal(here: Place) -> None:
    terminal = Terminal(here, ASK)
    terminal.see("Passphrase: ")
    terminal.type("secret\r")
    assert terminal.supervised.wait_for(1) == [["secret"]]
    assert "secret" not in terminal.see("\r\n")
    terminal.supervised.wait_ready()
    terminal.close()


def test_questions_are_asked_one_after_the_other(here: Place) -> None:
    terminal = Terminal(
        here,
        """
        for number in (1, 2):
            link.send(Ask(number, f"Number {number}: ", True))
        for number in (1, 2):
            answer = link.recv().message
            say(answer.id, answer.text)
        assert link.recv() is None
        """,
    )
    terminal.see("Number 1: ")
    terminal.type("one\r")
    terminal.see("Number 2: ")
    terminal.type("two\r")
    assert terminal.supervised.wait_for(2) == [[1, "one"], [2, "two"]]
    terminal.close()


def test_interrupting_a_question(here: Place) -> None:
    terminal = Terminal(here, ASK)
    terminal.see("Passphrase: ")
    terminal.type("\x03")
    assert terminal.supervised.wait() == 0
    assert here.snapshot() == here.before
    terminal.close()


def test_there_is_nobody_to_ask(here: Place) -> None:
    supervised = here.start(ASK, wrapper=["setsid"])
    assert supervised.wait_for(1) == [[None]]


def test_interrupt_is_for_the_command(here: Place) -> None:
    script = "trap 'echo got it' INT; echo ready; read line; echo $line; exit 5"
    terminal = Terminal(
        here,
        """
        signal.signal(signal.SIGINT, lambda *_: say("interrupted"))
        connect()
        assert link.recv() is None
        """,
        argv=["bash", "-c", script],
    )
    supervised = terminal.supervised
    supervised.wait_ready()
    terminal.type("\x03")
    until(lambda: "got it" in supervised.stdout, "the command to be interrupted")
    terminal.type("a line\r")
    assert supervised.wait() == 5
    assert supervised.stdout == ["ready", "got it", "a line"]
    assert supervised.said == []
    terminal.close()


def test_a_command_has_the_terminal_for_itself(here: Place) -> None:
    terminal = Terminal(
        here,
        """
        connect()
        message = Ask(1, "Passphrase: ", False)
        link.send(WantSocket(9, socket.AF_INET, socket.SOCK_STREAM))
        link.recv()
        say(ask(message).message.text)
        assert link.recv() is None
        """,
        argv=["sh", "-c", "read line; echo $line"],
    )
    assert terminal.supervised.wait_for(1) == [[None]]
    terminal.type("for the command\r")
    assert terminal.supervised.wait() == 0
    assert terminal.supervised.stdout == ["for the command"]
    terminal.close()
