"""Names: the truth about them, who decides, and fake addresses that outlive the program."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers import origin
from tests.helpers.lab import BESIDE_ORIGIN, ORIGIN4, ORIGIN6, WORLD4
from tests.helpers.lab_http import whoami
from tests.helpers.lab_tunproxy import run_program, up
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

FAKE4 = ipaddress.ip_network("198.18.0.0/15")


def dig(lab: Lab, *arguments: str) -> str:
    return lab.client.run("dig", "+tries=1", "+timeout=5", *arguments).stdout


def ask(lab: Lab, *arguments: str) -> Any:
    return json.loads(run_program(lab, "dns", *arguments, "--json").stdout)


def fake_address(lab: Lab, name: str) -> str:
    text = dig(lab, "+short", name).strip()
    assert ipaddress.ip_address(text) in FAKE4
    return text


def test_the_truth_and_who_decides(lab: Lab) -> None:
    with up(lab) as program:
        found = ask(lab, "query", "origin.test")
        assert (found["kind"], found["server"]) == ("fake", "the far resolver")
        assert ask(lab, "query", "origin.test")["server"] is None, "it is seen now"
        assert "status: NXDOMAIN" in dig(lab, "nowhere.test")
        assert ask(lab, "query", "nowhere.test")["rcode"] == "NXDOMAIN"
        mx = ask(lab, "query", "origin.test", "MX")
        assert mx["kind"] == "forwarded"
        assert mx["answers"][0]["data"] == "10 mail.test."
        (listed,) = ask(lab, "list", "origin.test")
        assert (listed["type"], listed["kind"]) == ("A", "fake")
        assert run_program(lab, "dns", "flush").stdout.startswith("forgot ")
        assert ask(lab, "query", "origin.test")["server"] == "the far resolver"
        whoami(lab.client, fake_address(lab, "origin.test"))
        assert program.status()["counters"].get("open_by_address", 0) >= 1
        assert program.stop() == 0, program.output()


# What only the server's hosts file knows


def curl(lab: Lab, name: str) -> int:
    """Fetch something from ``name``; return curl's exit status (6: there is no such name)."""
    url = f"http://{name}:{origin.HTTP}/bytes/1000"
    return lab.client.run(
        "curl", "-sS", "--max-time", "20", "-o/dev/null", url, check=False
    ).returncode


@pytest.fixture
def hosts_file(lab: Lab) -> Iterator[None]:
    """Only the server itself knows these; the resolver of its side denies them."""
    path = lab.server.path("/etc/hosts")
    before = path.read_text()
    path.write_text(
        f"{before}\n{ORIGIN4} Listed.test intranet shop.local # ours\n127.0.0.1 own.test\n"
    )
    yield
    path.write_text(before)


@pytest.mark.usefixtures("hosts_file")
def test_hosts_of_the_server(lab: Lab) -> None:
    with up(lab) as program:
        for name in ("listed.test", "intranet", "shop.local"):
            assert curl(lab, name) == 0, name
        assert program.status()["counters"]["open_by_address"] >= 3, "it was not sshd that knew"
        found = ask(lab, "query", "listed.test")
        assert (found["kind"], found["server"]) == ("fake", "hosts of the server")
        assert ask(lab, "query", "listed.test", "AAAA")["answers"] == []
        assert fake_address(lab, "own.test")
        assert curl(lab, "nowhere") == 6
        for name in ("nowhere.test", "nowhere.local"):
            assert "status: NXDOMAIN" in dig(lab, name)
            assert curl(lab, name) == 6
        # Types that a hosts file does not have: the name exists all the same.
        assert "status: NOERROR" in dig(lab, "listed.test", "MX")
        assert program.stop() == 0, program.output()


@pytest.mark.usefixtures("hosts_file")
def test_hosts_of_the_server_have_real_addresses(lab: Lab) -> None:
    with up(lab, "--dns", "remote") as program:
        assert dig(lab, "+short", "listed.test").split() == [ORIGIN4]
        assert ask(lab, "query", "intranet")["server"] == "hosts of the server"
        assert curl(lab, "intranet") == 0
        # Its address here would be that of the client itself.
        assert "status: NXDOMAIN" not in dig(lab, "own.test")
        assert dig(lab, "+short", "own.test") == ""
        assert "status: NXDOMAIN" in dig(lab, "nowhere.test")
        assert program.stop() == 0, program.output()


def test_hosts_are_read_again_after_a_reconnection(lab: Lab, hosts_file: None) -> None:
    with up(lab) as program:
        assert curl(lab, "later.test") == 6
        with lab.server.path("/etc/hosts").open("a") as file:
            file.write(f"{ORIGIN4} later.test\n")
        lab.sshd.restart()
        until(lambda: program.status()["reconnects"] == 1, "the reconnection")
        until(lambda: curl(lab, "later.test") == 0, "the new name to be known")
        assert program.stop() == 0, program.output()


def test_without_commands_nothing_is_known(lab: Lab, hosts_file: None) -> None:
    lab.sshd.restart({"MaxSessions": "0"})
    try:
        with up(lab, "--dns", "fake-ip") as program:
            assert curl(lab, "intranet") == 6
            assert program.stop() == 0, program.output()
    finally:
        lab.sshd.restart()


# Settings that change


CHANGED = f"""
[dns]
hosts = {{ "printer.test" = ["{ORIGIN4}"] }}
real = ["v4.test"]
truthful = false
resolve = "server"
cache_size = 0
[[dns.rule]]
suffix = ["v6.test"]
server = "{ORIGIN4}"
"""


def test_settings_are_read_again(lab: Lab) -> None:
    """By ``tunproxy reload`` and by SIGHUP; a flow that there is does not notice."""
    config = lab.directory / "names.toml"
    config.write_text("")
    with up(lab, "-c", str(config)) as program, lab.client.connect(WORLD4, origin.ECHO) as flow:
        assert is_usual(lab)
        config.write_text(CHANGED)
        assert "restart" not in run_program(lab, "reload").stdout
        assert dig(lab, "+short", "printer.test").split() == [ORIGIN4]
        assert dig(lab, "+short", "v4.test").split() == [ORIGIN4]
        assert ask(lab, "query", "v6.test", "AAAA")["server"] == ORIGIN4
        assert ask(lab, "query", "v6.test", "AAAA")["answers"][0]["data"] == ORIGIN6
        assert [each["kind"] for each in ask(lab, "list", "v6.test")] == []
        assert fake_address(lab, "nowhere.test"), "nobody is asked whether it exists"
        by_address = program.status()["counters"].get("open_by_address", 0)
        whoami(lab.client, fake_address(lab, "origin.test"))
        assert program.status()["counters"].get("open_by_address", 0) == by_address
        config.write_text("")
        os.kill(program.pid, signal.SIGHUP)
        until(lambda: is_usual(lab), "the settings of the start")
        flow.sendall(b"still here")
        assert flow.recv(100) == b"still here"
        assert program.stop() == 0, program.output()


def is_usual(lab: Lab) -> bool:
    """Whether names are answered as without a config."""
    answers = [dig(lab, "+short", name).strip() for name in ("printer.test", "v4.test")]
    return answers[0] == "" and answers[1].startswith(("198.18.", "198.19."))


@pytest.mark.parametrize("killed", [False, True])
def test_an_old_fake_address_still_leads_to_its_name(lab: Lab, killed: bool) -> None:
    with up(lab) as program:
        address = fake_address(lab, "v4.test")
        journal = "/root/.local/state/tunproxy/names/tun0.journal"
        until(
            lambda: address in lab.client.run("cat", journal, check=False).stdout,
            "the address to be written down",
        )
        if killed:
            os.kill(program.engine_pid(), signal.SIGKILL)
            assert program.wait() != 0
        else:
            assert program.stop() == 0, program.output()
    with up(lab) as program:
        for number in range(3):
            ask(lab, "query", f"other{number}.test")
        assert whoami(lab.client, address) in BESIDE_ORIGIN
        assert fake_address(lab, "v4.test") == address
        assert program.stop() == 0, program.output()
