"""Names: the truth about them, who decides, and fake addresses that outlive the program."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.lab import BESIDE_ORIGIN
from tests.helpers.lab_http import whoami
from tests.helpers.lab_tunproxy import run_program, up
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
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
