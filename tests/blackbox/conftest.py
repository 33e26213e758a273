"""One laboratory and one running program for the whole suite, and peers that talk to it.

The program is the real one, ``tunproxy up`` with a real sshd. What a test says goes into the TUN as
raw packets (tests/helpers/wire.py); what the target does is an ordinary socket in the test's hands.

Nobody waits to prove that there is no answer: a query that is answered follows (Wire.barrier).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import Lab
from tests.helpers.lab_tunproxy import Tunproxy, up
from tests.helpers.wire import Wire
from tests.helpers.wire_lab import ENDS, Dialler, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.packets import Ends

STACKS = ("user", "system")
"""Who terminates TCP: the values of ``--stack`` that the suite is run with."""


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark of behaviours that are the user stack's own."""
    line = "user_stack(reason): does not apply to --stack system, where the kernel may do otherwise"
    config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with every stack that it applies to."""
    if "stack" in metafunc.fixturenames:
        own = metafunc.definition.get_closest_marker("user_stack")
        stacks = [stack for stack in STACKS if own is None or stack == "user"]
        metafunc.parametrize("stack", stacks, indirect=True, scope="package")


@pytest.fixture(scope="package")
def stack(request: pytest.FixtureRequest) -> str:
    """Who terminates TCP."""
    name: str = request.param
    return name


_KERNEL = (
    "net.ipv4.tcp_invalid_ratelimit=0",
    "net.ipv4.tcp_early_retrans=0",
    "net.ipv4.tcp_rto_min_us=500000",
    "net.ipv4.tcp_rmem=4096 131072 262144",
)
"""What the kernel's stack is told where it is tested: every segment that asks for an answer has one
(by default one in half a second), nothing is sent again before a time-out (a probe for a lost tail
comes within milliseconds) of half a second, and a window is soon full (it may grow to megabytes).
"""


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    """A laboratory with everything in it running."""
    with Lab() as laboratory:
        laboratory.client.run("sysctl", "-qw", *_KERNEL)
        yield laboratory


@pytest.fixture(scope="package")
def program(lab: Lab, stack: str) -> Iterator[Tunproxy]:
    """The program; it must live to the end of the suite, and end well.

    It has no way for datagrams: what is refused how is then its own doing.
    """
    with up(lab, "--stack", stack, "--udp", "reject") as running:
        yield running
        assert running.stop() == 0, running.output()


@pytest.fixture(scope="package")
def wire(lab: Lab, program: Tunproxy) -> Iterator[Wire]:
    """The program's TUN."""
    with Wire(lab.client, program.status()["tun"], ENDS[4]) as device:
        yield device


@pytest.fixture(autouse=True)
def _no_memories(wire: Wire) -> None:
    """What was said to another test is not looked through again."""
    wire.forget()


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def ends(request: pytest.FixtureRequest) -> Ends:
    """The initiator's address and the origin's, of each family in turn."""
    return ENDS[request.param]


@pytest.fixture(scope="package")
def status(lab: Lab, wire: Wire) -> Status:
    """The control socket of the running program."""
    (path,) = lab.client.path("/run/tunproxy").glob("*/control.sock")
    return Status(path, wire)


@pytest.fixture
def dial(lab: Lab, wire: Wire, ends: Ends) -> Iterator[Dialler]:
    """Opens connections of either family in turn."""
    with contextlib.ExitStack() as stack:
        yield Dialler(lab, wire, ends, stack)


@pytest.fixture
def dial4(lab: Lab, wire: Wire) -> Iterator[Dialler]:
    """Opens connections of IPv4: where a timer has to be waited for, or only it has something."""
    with contextlib.ExitStack() as stack:
        yield Dialler(lab, wire, ENDS[4], stack)


@pytest.fixture
def dial6(lab: Lab, wire: Wire) -> Iterator[Dialler]:
    """Opens connections of IPv6: for what only it has."""
    with contextlib.ExitStack() as stack:
        yield Dialler(lab, wire, ENDS[6], stack)
