"""Split DNS: names of some domains are the far side's, all others the near resolver's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import BESIDE_ORIGIN, DEAD_RESOLVER, OUTSIDE4, Lab
from tests.helpers.lab import WORLD4 as NEAR4
from tests.helpers.lab import WORLD6 as NEAR6
from tests.helpers.lab_http import whoami
from tests.helpers.lab_names import Uplink, dig, fake
from tests.helpers.lab_tunproxy import run_command, run_program, up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab_tunproxy import Tunproxy

pytestmark = pytest.mark.netns

LOCAL = "127.0.0.1"
TEXT = "near-" * 40
LONG = 20
"""Texts of long.near.example: more than fits into a datagram."""

_NEAR = """
no-resolv
no-hosts
bind-interfaces
log-queries
log-facility={log}
local=/example/
host-record=near.example,192.0.2.1,2001:db8:4e::1
mx-host=near.example,mail.near.example,10
dns-rr=near.example,65280,0a0b0c
ptr-record=1.2.0.192.in-addr.arpa,near.example
address=/test/192.0.2.66
""" + "".join(f"txt-record=long.near.example,{number}-{TEXT}\n" for number in range(LONG))
"""What the near resolver knows; of ``test``, the domain of the far side, it tells lies."""

_STUB = f"""
no-resolv
no-hosts
bind-interfaces
cache-size=0
server={NEAR4}
"""


class Near:
    """The resolver outside the tunnel, which the client uses."""

    def __init__(self, lab: Lab) -> None:
        self._log = lab.directory / "near.log"
        lab.serve_names(lab.world, [NEAR4, NEAR6], _NEAR.format(log=self._log))

    def asked(self) -> set[str]:
        """The names that it has been asked for so far."""
        lines = map(str.split, self._log.read_text().splitlines())
        return {
            words[index + 1].lower()
            for words in lines
            for index, word in enumerate(words)
            if word.startswith("query[")
        }


@pytest.fixture(scope="module")
def near(lab: Lab) -> Near:
    return Near(lab)


@pytest.fixture(scope="module", params=["elsewhere", "on this machine"])
def resolver(lab: Lab, near: Near, request: pytest.FixtureRequest) -> str:
    """Where the resolver of the client is: the near one, or a program that asks that one."""
    if request.param == "elsewhere":
        lab.set_resolver(lab.client, NEAR4)
        return NEAR4
    lab.serve_names(lab.client, [LOCAL], _STUB)
    lab.set_resolver(lab.client, LOCAL)
    return LOCAL


@pytest.fixture(scope="module")
def uplink(lab: Lab, resolver: str) -> Iterator[Uplink]:
    """What leaves the client, from before the program starts."""
    with Uplink(lab.client) as capture:
        yield capture


@pytest.fixture(scope="module")
def program(lab: Lab, uplink: Uplink) -> Iterator[Tunproxy]:
    with up(lab, "--split-dns", "test") as running:
        yield running


@pytest.mark.parametrize("over", ["+notcp", "+tcp"])
@pytest.mark.usefixtures("program")
def test_other_names_are_the_near_resolvers(lab: Lab, resolver: str, over: str) -> None:
    def ask(*words: str) -> list[str]:
        found = dig(lab.client, over, *words, server=resolver)
        assert found.rcode == "NOERROR"
        return [record.data for record in found.records]

    assert ask("near.example") == ["192.0.2.1"]
    assert ask("near.example", "AAAA") == ["2001:db8:4e::1"]
    assert ask("near.example", "MX") == ["10 mail.near.example."]
    assert ask("near.example", "TYPE65280") == [r"\# 3 0A0B0C"]
    assert ask("-x", "192.0.2.1") == ["near.example."]
    # By UDP this is truncated, and dig asks again by TCP.
    assert len(ask("+bufsize=1232", "long.near.example", "TXT")) == LONG
    assert dig(lab.client, over, "none.near.example", server=resolver).rcode == "NXDOMAIN"


@pytest.mark.parametrize("over", ["+notcp", "+tcp"])
@pytest.mark.usefixtures("program")
def test_names_below_the_suffix_are_the_far_sides(lab: Lab, resolver: str, over: str) -> None:
    (address,) = dig(lab.client, over, "origin.test", server=resolver).data("A")
    assert whoami(lab.client, address) in BESIDE_ORIGIN
    (address6,) = dig(lab.client, over, "origin.test", "AAAA", server=resolver).data("AAAA")
    assert whoami(lab.client, address6) in BESIDE_ORIGIN
    mx = dig(lab.client, over, "origin.test", "MX", server=resolver)
    assert mx.data("MX") == ["10 mail.test."]
    assert dig(lab.client, over, "nowhere.test", server=resolver).rcode == "NXDOMAIN"
    pointer = dig(lab.client, over, "-x", address, server=resolver)
    assert pointer.data("PTR") == ["origin.test."]
    canary = dig(lab.client, over, "use-application-dns.net", server=resolver)
    assert canary.rcode == "NXDOMAIN", "browsers must not ask a resolver of their own"


def test_it_is_said_where_an_answer_comes_from(lab: Lab, program: Tunproxy) -> None:
    other = run_program(lab, "dns", "query", "near.example").stdout
    assert "; forwarded, asked the machine's resolver, " in other
    assert "it is below none of dns.split" in other
    ours = run_program(lab, "dns", "query", "origin.test").stdout
    assert "; fake, " in ours
    assert "rule MATCH,PROXY" in ours
    assert program.status()["dns_split"] == ["test"]
    shown = run_program(lab, "status").stdout
    assert ", names of test; the machine's own resolvers answer the others\n" in shown


def test_only_other_names_leave(
    lab: Lab, near: Near, resolver: str, uplink: Uplink, program: Tunproxy
) -> None:
    """The last test with this program: what all of them have sent is looked at."""
    assert dig(lab.client, "v4.test", server=resolver).rcode == "NOERROR"
    assert dig(lab.client, "last.near.example", server=resolver).rcode == "NXDOMAIN"
    assert program.stop() == 0, program.output()
    assert set(uplink.strays(OUTSIDE4)) <= {f"UDP to {NEAR4} port 53", f"TCP to {NEAR4} port 53"}
    asked = near.asked()
    assert "last.near.example" in asked
    assert not [name for name in asked if name == "test" or name.endswith(".test")]


@pytest.mark.usefixtures("near")
def test_a_command_asks_whom_it_should(lab: Lab, resolver: str) -> None:
    words = ("dig", "+short", "+tries=1", "+timeout=5", "near.example", "origin.test")
    found = run_command(lab, *words, options=("--split-dns", "test")).stdout.split()
    assert found[0] == "192.0.2.1"
    assert found[1].startswith("198.18.")


def test_far_names_need_no_near_resolver(lab: Lab) -> None:
    """A query to anybody is captured, where the resolver is not on this machine."""
    lab.set_resolver(lab.client, DEAD_RESOLVER)
    with up(lab, "--split-dns", "test") as running:
        assert fake(lab.client, "origin.test")
        assert running.stop() == 0, running.output()


@pytest.mark.usefixtures("near")
def test_the_near_resolver_is_that_of_the_network_by_then(lab: Lab) -> None:
    lab.set_resolver(lab.client, DEAD_RESOLVER)
    with up(lab, "--split-dns", "test") as running:
        lab.set_resolver(lab.client, NEAR6)
        found = dig(lab.client, "near.example", server=DEAD_RESOLVER)
        assert found.data("A") == ["192.0.2.1"]
        assert running.stop() == 0, running.output()


@pytest.mark.usefixtures("near")
def test_a_reload_does_not_change_who_is_asked(lab: Lab) -> None:
    lab.set_resolver(lab.client, NEAR4)
    config = lab.directory / "split.toml"
    config.write_text('[dns]\nsplit = ["test"]\n')
    with up(lab, "-c", str(config)) as running:
        config.write_text('[dns]\nreal = ["real.test"]\n')
        assert "dns.split" in run_program(lab, "reload").stdout
        assert dig(lab.client, "near.example", server=NEAR4).data("A") == ["192.0.2.1"]
        assert "dns.real" in run_program(lab, "dns", "query", "real.test").stdout
        assert running.stop() == 0, running.output()
