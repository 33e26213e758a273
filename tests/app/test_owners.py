"""What the rules learn about a flow, and when it is asked."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.aio import both_loops, turns
from tunproxy.app import owners as owners_module
from tunproxy.app.ipc import MAX_OWNERS
from tunproxy.app.owners import Owners, Question
from tunproxy.app.rulefiles import read
from tunproxy.app.tasks import TaskSet
from tunproxy.config import Config
from tunproxy.flow.facts import NotYetKnown
from tunproxy.flow.key import Endpoints
from tunproxy.linux.sockdiag import SocketDiag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunproxy.flow.facts import Facts

LOOPBACK = socket.inet_aton("127.0.0.1")


class Supervisor:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self.programs: dict[int, str] = {}
        self.cgroups: dict[int, str] = {}
        self.may_answer = asyncio.Event()

    async def __call__(
        self, inodes: tuple[int, ...], cgroups: tuple[int, ...]
    ) -> tuple[dict[int, str], dict[int, str]]:
        self.asked.append((inodes, cgroups))
        await self.may_answer.wait()
        return self.programs, self.cgroups


class Setup:
    """Owners, and a socket of this process that is theirs to know."""

    def __init__(self, **options: Any) -> None:
        self.supervisor = Supervisor()
        self.diag = SocketDiag()
        self.owners = Owners(self.supervisor, self.diag, read(Config()), TaskSet(), **options)
        self.sock = socket.socket(type=socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.inode = os.fstat(self.sock.fileno()).st_ino

    def facts(self, name: str | None = None) -> Facts:
        ends = Endpoints(LOOPBACK, self.sock.getsockname()[1], LOOPBACK, 9)
        return self.owners.facts("udp", ends, name, time.monotonic())

    def close(self) -> None:
        self.sock.close()
        self.diag.close()


def question_of(facts: Facts, kind: str) -> Question:
    """What has to be asked before ``facts`` know the path of the program, or of the cgroup."""
    owner = facts.process()
    assert owner is not None
    with pytest.raises(NotYetKnown) as missing:
        getattr(owner, kind)
    assert isinstance(missing.value.question, Question)
    return missing.value.question


@both_loops
async def test_user_is_known_at_once() -> None:
    setup = Setup()
    owner = setup.facts().process()
    assert owner is not None
    assert owner.uid == os.geteuid()
    assert setup.facts().source == ipaddress.ip_address("127.0.0.1")
    assert setup.facts().source_port == setup.sock.getsockname()[1]
    assert setup.supervisor.asked == []
    setup.close()


@both_loops
async def test_program_is_asked_for_once() -> None:
    setup = Setup()
    question = question_of(setup.facts(), "name")
    assert question == ("program", setup.inode)
    setup.supervisor.programs = {setup.inode: "/usr/bin/Some Thing"}
    setup.supervisor.may_answer.set()
    await asyncio.gather(setup.owners.find(question), setup.owners.find(question))
    owner = setup.facts().process()
    assert owner is not None
    assert (owner.path, owner.name) == ("/usr/bin/Some Thing", "Some Thing")
    assert setup.supervisor.asked == [((setup.inode,), ())]
    setup.close()


@both_loops
async def test_cgroup_is_asked_for_by_its_number() -> None:
    setup = Setup()
    question = question_of(setup.facts(), "cgroup")
    setup.supervisor.cgroups = {question.number: "/user.slice"}
    setup.supervisor.may_answer.set()
    await setup.owners.find(question)
    owner = setup.facts().process()
    assert owner is not None
    assert owner.cgroup == "/user.slice"
    assert setup.supervisor.asked == [((), (question.number,))]
    setup.close()


@both_loops
async def test_nobody_knows() -> None:
    setup = Setup()
    question = question_of(setup.facts(), "path")
    setup.supervisor.may_answer.set()
    await setup.owners.find(question)
    owner = setup.facts().process()
    assert owner is not None
    assert owner.path is None
    assert owner.name is None
    setup.close()


@both_loops
async def test_questions_gather_while_one_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners_module, "PAUSE_S", 0.0)
    setup = Setup()
    loop = asyncio.get_running_loop()
    questions = [Question("program", number) for number in range(2 * MAX_OWNERS)]
    waiting = []
    for question in questions:
        waiting.append(loop.create_task(setup.owners.find(question), name="find"))
        await turns(2)
    assert setup.supervisor.asked == [((0,), ())]
    setup.supervisor.may_answer.set()
    await asyncio.gather(*waiting)
    assert [len(inodes) for inodes, _ in setup.supervisor.asked] == [1, MAX_OWNERS, MAX_OWNERS - 1]
    setup.close()


@both_loops
async def test_answers_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup()
    monkeypatch.setattr(owners_module, "UNKNOWN_KEPT_S", 0.0)
    question = question_of(setup.facts(), "path")
    setup.supervisor.may_answer.set()
    await setup.owners.find(question)
    assert question_of(setup.facts(), "path") == question
    setup.close()


@both_loops
async def test_end_of_the_session_leaves_nobody_waiting() -> None:
    tasks = TaskSet()
    setup = Setup()
    setup.owners = Owners(setup.supervisor, None, read(Config()), tasks)
    asking = asyncio.get_running_loop().create_task(
        setup.owners.find(Question("program", 1)), name="find"
    )
    await turns(3)
    await tasks.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    setup.close()


@both_loops
async def test_flows_of_other_hosts_have_no_owner_here() -> None:
    setup = Setup(local=frozenset({socket.inet_aton("192.0.2.1")}))
    assert setup.facts().process() is None
    setup.close()


@both_loops
async def test_pings_and_unknown_sockets_have_no_owner() -> None:
    setup = Setup()
    ends = Endpoints(LOOPBACK, 0, LOOPBACK, 0)
    assert setup.owners.facts("icmp", ends, None, 1.0).process() is None
    port = setup.sock.getsockname()[1]
    setup.sock.close()
    ends = Endpoints(LOOPBACK, port, LOOPBACK, 9)
    assert setup.owners.facts("udp", ends, None, 1.0).process() is None
    setup.close()


@both_loops
async def test_address_of_a_name() -> None:
    def resolve(name: str, now: float) -> Sequence[bytes]:
        return [socket.inet_aton("192.0.2.7")] if name == "a.example" else []

    setup = Setup(resolve=resolve)
    assert setup.facts("a.example").resolved() == ipaddress.ip_address("192.0.2.7")
    assert setup.facts("b.example").resolved() is None
    assert setup.facts().resolved() is None
    # There are no databases.
    assert setup.facts().country(ipaddress.ip_address("192.0.2.7")) is None
    assert setup.facts().asn(ipaddress.ip_address("192.0.2.7")) is None
    setup.close()
