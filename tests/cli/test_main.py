"""The command as a whole: help, wrong usage, and what becomes of every kind of error."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers.command import failure, sentence, tunproxy
from tunproxy import __version__

COMMANDS = {"up", "run", "bypass", "serve", "down", "recover", "check", "status", "demo", "vpn"}

PCAP = ("--pcap", "f.pcap", "--pcap-filter")

HEAVY = {"asyncio", "asyncssh", "uvloop", "cryptography", "dpkt", "dnslib"}


def python(code: str, *args: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_version() -> None:
    done = tunproxy("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tunproxy {__version__}\n", "")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_the_commands(option: str) -> None:
    done = tunproxy(option)
    assert (done.returncode, done.stderr) == (0, "")
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert listed >= COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_each_command(command: str) -> None:
    done = tunproxy(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: tunproxy {command} ")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "missing command; see tunproxy --help"),
        (["upp"], "no such command 'upp'"),
        (["--frobnicate"], "no such option"),
        (["up", "a", "b"], "got unexpected extra argument (b); see tunproxy up --help"),
        (["up", "--frobnicate"], "no such option"),
        (["up", "h", "-p", "ssh"], "invalid value for '-p': 'ssh' is not a valid integer"),
        (["up", "h", "-p", "0"], "invalid value for '-p': 0 is not in the range"),
        (["up", "h", "--mtu", "1279"], "invalid value for '--mtu': 1279 is not in the range"),
        (["up", "h", "--include", "10.0.0.1/8"], "'--include': 10.0.0.1/8 has host bits set"),
        (["up", "h", "--exclude", "lan"], "'--exclude': 'lan' does not appear to be an IPv4"),
        (["up", "h", "--dns", "on"], "'--dns': 'on' is not one of 'fake-ip', 'remote', 'off'"),
        (["up", "h", "--tun", "a/b"], "command line: tun.name: expected 1 to 15 letters"),
        (["up", "h", "--pcap", ""], "command line: tun.pcap: expected the path of a file"),
        (["up", "h", "--pcap-filter", ":53"], "command line: tun.pcap_filter: has no effect wi"),
        (["up", "h", *PCAP, "a:b:c"], "tun.pcap_filter: expected HOST, HOST:PORT or :PORT"),
        (["up", "h", *PCAP, ":0"], "tun.pcap_filter: expected HOST, HOST:PORT or :PORT"),
        (["up", "h", *PCAP, "a", "--dns", "off"], "with dns.mode off there is none"),
        (["up"], "no server: name one as ssh does ([user@]host)"),
        (["up", "-p", "22"], "command line: an SSH option needs a SERVER"),
        (["up", ""], "command line: server[0].target: expected [user@]host"),
        (["up", "h", "-c", "/missing.toml"], "/missing.toml: cannot be read: no such file"),
        (["up", "h", "--rules", "/missing.list"], "/missing.list does not exist"),
        (["run", "h"], "expected -- and a command at the end"),
        (["run", "h", "true"], "expected -- and a command at the end"),
        (["run", "h", "--"], "expected a command after --"),
        (["run", "--", "true"], "no server: name one"),
        (["bypass"], "expected -- and a command at the end"),
        (["bypass", "x", "--", "true"], "got unexpected extra argument (x)"),
        (["check", "extra"], "got unexpected extra argument (extra)"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(args: list[str], expected: str) -> None:
    assert expected in failure(*args, status=2)


@pytest.mark.parametrize("args", [["--help"], ["up", "--help"], ["up"], ["check"]])
def test_nothing_heavy_is_imported(args: list[str]) -> None:
    assert HEAVY & loaded_by(*args) == set()


@pytest.mark.netns
@pytest.mark.parametrize("command", ["down", "status"])
def test_client_of_a_running_instance_is_light(command: str) -> None:
    assert {"asyncssh", "uvloop"} & loaded_by(command) == set()


@pytest.mark.netns
def test_supervisor_knows_no_ssh() -> None:
    loaded = loaded_by("up", "host", "--tun", "lo")
    assert "tunproxy.app.supervisor" in loaded
    assert {"asyncssh", "uvloop", "cryptography"} & loaded == set()


def loaded_by(*args: str) -> set[str]:
    """Return the modules that a command has imported when it ends, in a bare network namespace."""
    code = (
        "import sys; from tunproxy.cli.main import main; main(sys.argv[1:]);"
        " print('LOADED', *sys.modules)"
    )
    bare = ["unshare", "--net"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*bare, sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "tunproxy.cli.up" in loaded
    return loaded


RAISES = """
import os, signal, sys, click
from tunproxy.cli.main import cli, main
from tunproxy.cli.options import verbosity_option
from tunproxy import errors

@cli.command()
@verbosity_option
@click.argument("what")
def go(verbosity, what):
    if what == "status":
        return 7
    if what == "kill":
        os.kill(os.getpid(), signal.SIGINT)
    exec(what)

sys.exit(main())
"""


@pytest.mark.parametrize(
    ("what", "status", "expected"),
    [
        ("raise errors.TunproxyError('a')", 1, "a"),
        ("raise errors.ConfigError('b')", 2, "b"),
        ("raise errors.ServerError('c')", 3, "c"),
        ("raise errors.MachineError('d')", 4, "d"),
        ("raise errors.MachineError('two\\n  lines')", 4, "two lines"),
        ("raise click.ClickException('E.')", 1, "e."),
        ("raise KeyError('x')", 70, "KeyError: 'x'; this is a defect of tunproxy"),
        ("raise ValueError", 70, "ValueError; this is a defect of tunproxy"),
        ("raise OSError(2, 'gone')", 70, "FileNotFoundError: [Errno 2] gone; this is a defect"),
    ],
)
def test_error_becomes_a_sentence_and_a_status(what: str, status: int, expected: str) -> None:
    process = python(RAISES, "go", what)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    assert sentence(err).startswith(expected)


def test_result_of_the_command_is_the_status() -> None:
    process = python(RAISES, "go", "status")
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 7


def test_defect_shows_its_traceback_when_asked() -> None:
    process = python(RAISES, "go", "-vv", "raise KeyError('x')")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 70
    assert err.startswith("Traceback (most recent call last):")
    assert sentence(err.splitlines(keepends=True)[-1]).startswith("KeyError: 'x'; this is a defect")


def test_interrupted_command_says_nothing() -> None:
    process = python(RAISES, "go", "kill")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "")


def test_reader_that_left_is_no_defect() -> None:
    process = python(
        RAISES, "go", "sys.stdin.read(); click.echo('x' * 100_000)", stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdin, process.stderr:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1
