"""Each kind of rule decides real flows; rules are changed while flows go on.

What goes PROXY comes to the world from the server, what goes DIRECT from the client itself. All
tests change the rules of one and the same instance.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin
from tests.helpers.lab import CLIENT4, CLIENT6, OUTSIDE4, OUTSIDE6, WORLD4, WORLD6
from tests.helpers.lab_http import whoami
from tests.helpers.lab_tunproxy import Tunproxy, run_program, up
from tests.helpers.lab_wait import until
from tests.helpers.mmdb import write_mmdb
from tests.helpers.quic_peer import make_certificate

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

NOBODY = 65534
CLOSED_PORT = 4999
CURL = ("curl", "-sS", "--globoff", "--max-time", "20")


class Steered:
    """A running instance, and the rules that it goes by."""

    def __init__(self, lab: Lab, program: Tunproxy, directory: pathlib.Path) -> None:
        self.lab = lab
        self.program = program
        self.directory = directory

    def rule(self, *lines: str) -> None:
        """Put these rules in force, and nothing else; what they do not match is proxied."""
        (self.directory / "my.list").write_text("".join(f"{line}\n" for line in lines))
        done = run_program(self.lab, "reload")
        assert f"{len(lines) + 1} rules are in force" in done.stdout

    def seen(self, address: str = WORLD4, *prefix: str, group: str = "") -> str:
        """Whom the world sees when curl, or what ``prefix`` makes of it, connects."""
        command = [*prefix, *CURL, f"http://{address}/whoami"]
        return self.lab.client.run(*command, group=group).stdout.strip()

    def hits(self) -> dict[str, int]:
        """How often each rule has decided."""
        return {entry["rule"]: entry["hits"] for entry in self.program.status()["rules"]}


@pytest.fixture(scope="module")
def steered(lab: Lab, stack: str) -> Iterator[Steered]:
    directory = lab.directory / f"rules-{stack}"
    directory.mkdir()
    directory.chmod(0o755)
    (directory / "my.list").write_text("MATCH,PROXY\n")
    write_mmdb(directory / "country.mmdb", "Country", {WORLD4: {"country": {"iso_code": "CH"}}})
    write_mmdb(directory / "asn.mmdb", "ASN", {WORLD4: {"autonomous_system_number": 64500}})
    config = directory / "config.toml"
    config.write_text(
        f"""
        [tun]
        stack = "{stack}"
        [rules]
        files = ["my.list"]
        geoip = "country.mmdb"
        asn = "asn.mmdb"
        """
    )
    with up(lab, "-c", str(config)) as program:
        yield Steered(lab, program, directory)


@pytest.mark.parametrize(
    ("rule", "address"),
    [
        ("DOMAIN,world.test,DIRECT", "world.test"),
        ("DOMAIN-SUFFIX,test,DIRECT", "world.test"),
        ("DOMAIN-KEYWORD,orl,DIRECT", "world.test"),
        ("DOMAIN-WILDCARD,w*.test,DIRECT", "world.test"),
        ("DOMAIN-REGEX,^wo.*t$,DIRECT", "world.test"),
    ],
)
def test_names(steered: Steered, rule: str, address: str) -> None:
    """The client has no resolver that knows them: what is DIRECT cannot be reached."""
    steered.rule(rule)
    command = [*CURL, f"http://{address}/whoami"]
    assert steered.lab.client.run(*command, check=False).returncode == 6
    steered.rule()
    assert steered.seen(address) in (OUTSIDE4, OUTSIDE6)


@pytest.mark.parametrize(
    ("rule", "direct", "other"),
    [
        (f"IP-CIDR,{WORLD4}/32,DIRECT", WORLD4, f"[{WORLD6}]"),
        (f"IP-CIDR6,{WORLD6}/64,DIRECT,no-resolve", f"[{WORLD6}]", WORLD4),
        (f"SRC-IP-CIDR,{WORLD4}/32,DIRECT", None, WORLD4),
        ("GEOIP,CH,DIRECT", WORLD4, f"[{WORLD6}]"),
        ("IP-ASN,64500,DIRECT", WORLD4, f"[{WORLD6}]"),
        (f"DST-PORT,{origin.HTTP},DIRECT", WORLD4, None),
        ("DST-PORT,1-7,DIRECT", None, WORLD4),
        ("NETWORK,tcp,DIRECT", WORLD4, None),
        ("NETWORK,udp,DIRECT", None, WORLD4),
        ("SRC-PORT,1-65535,DIRECT", WORLD4, None),
        (f"AND,((IP-CIDR,{WORLD4}/32),(NETWORK,tcp)),DIRECT", WORLD4, f"[{WORLD6}]"),
        (f"OR,((IP-CIDR,{WORLD4}/32),(NETWORK,udp)),DIRECT", WORLD4, f"[{WORLD6}]"),
        (f"NOT,((IP-CIDR,{WORLD4}/32)),DIRECT", f"[{WORLD6}]", WORLD4),
        ("PROCESS-NAME,CURL,DIRECT", WORLD4, None),
        ("PROCESS-PATH,/usr/bin/curl,DIRECT", f"[{WORLD6}]", None),
        ("PROCESS-NAME,wget,DIRECT", None, WORLD4),
        ("UID,0,DIRECT", WORLD4, None),
        ("UID,1-9,DIRECT", None, WORLD4),
        ("MATCH,DIRECT", WORLD4, None),
    ],
)
def test_flows(steered: Steered, rule: str, direct: str | None, other: str | None) -> None:
    steered.rule(rule)
    if direct is not None:
        assert steered.seen(direct) == (CLIENT6 if ":" in direct else CLIENT4)
        assert steered.hits()[rule] == 1
    if other is not None:
        assert steered.seen(other) == (OUTSIDE6 if ":" in other else OUTSIDE4)


def test_user(steered: Steered) -> None:
    steered.rule(f"UID,{NOBODY},DIRECT")
    as_nobody = ("setpriv", f"--reuid={NOBODY}", "--clear-groups")
    assert steered.seen(WORLD4, *as_nobody) == CLIENT4
    assert steered.seen(WORLD4) == OUTSIDE4


def test_another_users_program(steered: Steered) -> None:
    steered.rule("PROCESS-NAME,curl,DIRECT")
    as_nobody = ("setpriv", f"--reuid={NOBODY}", "--clear-groups")
    assert steered.seen(WORLD4, *as_nobody) == CLIENT4
    assert whoami(steered.lab.client, WORLD4) == OUTSIDE4


def test_cgroup(steered: Steered) -> None:
    steered.rule("CGROUP,browsers,DIRECT")
    assert steered.seen(WORLD4, group="browsers") == CLIENT4
    assert steered.seen(WORLD4, group="others") == OUTSIDE4
    # Below it.
    below = steered.lab.client
    below.run("true", group="browsers")
    assert steered.seen(WORLD4, group="browsers/deeper") == CLIENT4


def test_rule_set_in_both_formats(steered: Steered) -> None:
    (steered.directory / "one.list").write_text(f"# ours\nIP-CIDR,{WORLD4}/32\n")
    (steered.directory / "two.yaml").write_text(f"payload:\n  - IP-CIDR6,{WORLD6}/128\n")
    steered.rule("RULE-SET,one.list,DIRECT", "RULE-SET,two.yaml,REJECT")
    assert steered.seen() == CLIENT4
    assert steered.lab.client.connect_error(WORLD6, origin.HTTP) == errno.ECONNREFUSED


def test_rule_set_is_watched(steered: Steered) -> None:
    path = steered.directory / "watched.list"
    path.write_text("")
    steered.rule("RULE-SET,watched.list,DIRECT")
    assert steered.seen() == OUTSIDE4
    path.write_text(f"IP-CIDR,{WORLD4}/32\n")
    until(lambda: steered.seen() == CLIENT4, "the change to be seen")
    # What is wrong changes nothing, and is said.
    path.write_text("IP-CIDR,198.51.100.300/32\n")
    until(lambda: "watched.list:1" in steered.program.output(), "a complaint")
    assert steered.seen() == CLIENT4


def test_sub_rule(steered: Steered) -> None:
    (steered.directory / "sub.list").write_text(f"IP-CIDR,{WORLD4}/32,DIRECT\n")
    (steered.directory / "my.list").write_text("SUB-RULE,(NETWORK,tcp),sub.list\nMATCH,PROXY\n")
    run_program(steered.lab, "reload")
    assert steered.seen() == CLIENT4
    assert steered.seen(f"[{WORLD6}]") == OUTSIDE6


def test_reject_and_drop(steered: Steered) -> None:
    client = steered.lab.client
    steered.rule(f"IP-CIDR,{WORLD4}/32,REJECT", f"IP-CIDR6,{WORLD6}/128,REJECT-DROP")
    assert client.connect_error(WORLD4, origin.HTTP) == errno.ECONNREFUSED
    before = steered.program.status()["refused"]["rule"]
    with contextlib.closing(client.open_socket(WORLD6, socket.SOCK_STREAM)) as sock:
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.connect((WORLD6, origin.HTTP))
    assert steered.program.status()["refused"]["rule"] > before
    assert steered.hits()[f"IP-CIDR6,{WORLD6}/128,REJECT-DROP"] >= 1


def test_name_in_a_request_to_a_bare_address(steered: Steered) -> None:
    steered.rule("DOMAIN,sniffed.test,DIRECT", "DOMAIN,refused.test,REJECT")
    host = ("-H", "Host: sniffed.test")
    command = [*CURL, *host, f"http://{WORLD4}/whoami"]
    assert steered.lab.client.run(*command).stdout.strip() == CLIENT4
    assert steered.seen() == OUTSIDE4
    command = [*CURL, "-H", "Host: refused.test", f"http://{WORLD4}/whoami"]
    assert steered.lab.client.run(*command, check=False).returncode == 56


def test_name_in_a_client_hello(steered: Steered) -> None:
    """What the target gets is what the initiator has said, all of it."""
    steered.rule("DOMAIN,sniffed.test,DIRECT")
    hello = client_hello("sniffed.test")
    with steered.lab.client.connect(WORLD4, origin.ECHO) as sock:
        sock.sendall(hello)
        echoed = b""
        while len(echoed) < len(hello):
            echoed += sock.recv(4096)
        assert echoed == hello
    assert steered.hits()["DOMAIN,sniffed.test,DIRECT"] == 1


def test_name_in_a_quic_initial(steered: Steered) -> None:
    """A flow to a bare address is decided by what the client's first flight asks for."""
    lab, name = steered.lab, "www.quic.test"
    until(lambda: steered.program.status()["udp"] == "agent", "the agent")
    certificate, key = make_certificate(name, steered.directory)
    peer = (sys.executable, "-m", "tests.helpers.quic_peer")
    words = (*peer, "ask", name, "443", certificate, "100000", "100000", WORLD4)
    server = lab.world.popen(
        *peer, "serve", WORLD4, "443", certificate, key,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    with server, contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        for rule, seen in (
            ("DOMAIN-SUFFIX,quic.test,DIRECT", CLIENT4),
            ("DOMAIN-SUFFIX,other.test,DIRECT", OUTSIDE4),
        ):
            steered.rule(rule, "AND,((NETWORK,udp),(DST-PORT,1-442)),REJECT")
            assert json.loads(lab.client.run(*words).stdout) == {
                "up": origin.digest(100_000),
                "down": origin.digest(100_000),
                "seen": seen,
            }
            assert steered.hits().get(rule, 0) == (seen == CLIENT4)
        rule = "DOMAIN-SUFFIX,quic.test,REJECT"
        steered.rule(rule)
        with lab.client.popen(*words, stdout=subprocess.PIPE) as client:
            until(lambda: steered.hits().get(rule, 0) >= 1, "the refusal")
            client.kill()
            assert client.stdout is not None
            assert client.stdout.read() == b""


def test_server_that_speaks_first(steered: Steered) -> None:
    steered.rule("DOMAIN,sniffed.test,DIRECT")
    lab = steered.lab
    with (
        contextlib.closing(lab.world.listen(WORLD4)) as listener,
        contextlib.closing(lab.client.connect(WORLD4, listener.getsockname()[1])) as sock,
    ):
        accepted, peer = listener.accept()
        with accepted:
            assert peer[0] == OUTSIDE4
            accepted.sendall(b"220 ready\r\n")
            assert sock.recv(100) == b"220 ready\r\n"


def test_refused_after_it_was_accepted_for_its_name(steered: Steered) -> None:
    steered.rule("DOMAIN,sniffed.test,DIRECT")
    with contextlib.closing(steered.lab.client.connect(WORLD4, CLOSED_PORT)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_change_interrupts_nothing(steered: Steered) -> None:
    steered.rule()
    with steered.lab.client.connect(WORLD4, origin.ECHO) as sock:
        sock.sendall(b"before")
        assert sock.recv(100) == b"before"
        steered.rule("MATCH,REJECT")
        assert steered.lab.client.connect_error(WORLD4, origin.HTTP) == errno.ECONNREFUSED
        sock.sendall(b"behind")
        assert sock.recv(100) == b"behind"


def test_sighup_is_a_reload(steered: Steered) -> None:
    steered.rule()
    (steered.directory / "my.list").write_text("MATCH,REJECT\n")
    os.kill(steered.program.pid, signal.SIGHUP)
    client = steered.lab.client
    until(
        lambda: client.connect_error(WORLD4, origin.HTTP) == errno.ECONNREFUSED,
        "the new rules to be in force",
    )
    assert steered.program.running


def test_wrong_rules_change_nothing(steered: Steered) -> None:
    steered.rule("MATCH,DIRECT")
    (steered.directory / "my.list").write_text("MATCH,DIRECT\nNONSENSE,1,PROXY\n")
    done = run_program(steered.lab, "reload", check=False)
    assert done.returncode == 2
    assert "my.list:2" in done.stderr
    assert steered.seen() == CLIENT4


def test_status_shows_what_has_decided(steered: Steered) -> None:
    steered.rule(f"IP-CIDR,{WORLD4}/32,DIRECT")
    for _ in range(3):
        steered.seen()
    shown = run_program(steered.lab, "status").stdout
    assert f"3 times IP-CIDR,{WORLD4}/32,DIRECT (my.list:1)" in shown


def client_hello(name: str) -> bytes:
    """The first flight of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()
