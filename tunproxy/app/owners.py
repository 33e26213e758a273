"""What the rules may know of a flow beyond its target; see :mod:`..flow.facts`.

The user and the cgroup's number are asked of the kernel at once: some microseconds, for the flows
whose rules ask. The program, and a cgroup's name when it is seen first, take a pass over /proc or
the cgroup tree, with rights that the engine has not: the supervisor is asked, and the flow waits
(:class:`~..flow.facts.NotYetKnown`). While one answer is awaited further questions gather; so there
is at most one pass at a time, and a pause between two. Answers are kept.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

from ..flow.facts import NotYetKnown
from ..flow.key import address
from .ipc import MAX_OWNERS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeAlias

    from ..flow.events import Network
    from ..flow.facts import Facts
    from ..flow.key import Address, Endpoints
    from ..linux.sockdiag import SocketDiag, SocketOwner
    from .rulefiles import Edition
    from .tasks import TaskSet

    Ask: TypeAlias = Callable[
        [tuple[int, ...], tuple[int, ...]], Awaitable[tuple[dict[int, str], dict[int, str]]]
    ]
    """Returns programs by the inodes of sockets, and paths by the ids of cgroups."""
    Resolve: TypeAlias = Callable[[str, float], Sequence[bytes]]
    """Returns the addresses of a name, as on the wire, that are known at a time."""

MAX_KEPT = 4096
"""Answers of each kind."""
KEPT_S = 60.0
"""The kernel may give the number of a socket that is gone to another one, in the end."""
UNKNOWN_KEPT_S = 5.0
PAUSE_S = 0.01
"""Between two passes of the supervisor, at least. After a long one it is :data:`PAUSE_PASSES` times
as long: a user who opens very many connections must not keep it busy."""
PAUSE_PASSES = 4
MAX_PAUSE_S = 0.25

_T = TypeVar("_T")


class Question(NamedTuple):
    """What the supervisor is to be asked."""

    kind: Literal["program", "cgroup"]
    number: int
    """The inode of a socket, or the id of a cgroup."""


class Owners:
    """Knows whose flows are whose.

    Args:
        ask: puts questions to the supervisor.
        diag: puts them to the kernel; ``None``: it answers none.
        local: addresses as on the wire that this host's own flows come from; ``None``: all do.
        resolve: knows addresses of names.
        tasks: runs what waits for answers.
    """

    def __init__(
        self,
        ask: Ask,
        diag: SocketDiag | None,
        edition: Edition,
        tasks: TaskSet,
        *,
        local: frozenset[bytes] | None = None,
        resolve: Resolve = lambda name, now: (),
    ) -> None:
        self.edition = edition
        self._ask = ask
        self._diag = diag
        self._tasks = tasks
        self._local = local
        self._resolve = resolve
        self._known: dict[str, _Kept[str]] = {"program": _Kept(), "cgroup": _Kept()}
        self._wanted: OrderedDict[Question, asyncio.Future[None]] = OrderedDict()
        self._is_asking = False

    def facts(self, network: Network, ends: Endpoints, name: str | None, now: float) -> Facts:
        """Return what there is to know about a flow; nothing is looked for before it is wanted."""
        return _FlowFacts(self, network, ends, name, now)

    async def find(self, question: Question) -> None:
        """Wait until :meth:`facts` know what there is to know about ``question``."""
        answered = self._wanted.get(question)
        if answered is None:
            answered = self._wanted[question] = asyncio.get_running_loop().create_future()
        if not self._is_asking:
            self._is_asking = True
            self._tasks.spawn(self._ask_all(), "ask for owners")
        await asyncio.shield(answered)

    async def _ask_all(self) -> None:
        try:
            while self._wanted:
                began_at = time.monotonic()
                await self._ask_some()
                pass_s = time.monotonic() - began_at
                await asyncio.sleep(max(PAUSE_S, min(PAUSE_PASSES * pass_s, MAX_PAUSE_S)))
        finally:
            self._is_asking = False
            for answered in self._wanted.values():
                answered.cancel()
            self._wanted.clear()

    async def _ask_some(self) -> None:
        asked = {
            kind: [question for question in self._wanted if question.kind == kind][:MAX_OWNERS]
            for kind in self._known
        }
        numbers = [tuple(question.number for question in asked[kind]) for kind in self._known]
        answers = await self._ask(*numbers)
        now = time.monotonic()
        for (kind, questions), found in zip(asked.items(), answers, strict=True):
            for question in questions:
                self._known[kind].put(question.number, found.get(question.number), now)
                self._wanted.pop(question).set_result(None)

    # --- for the facts --------------------------------------------------------------------------

    def owner(self, network: Network, ends: Endpoints) -> SocketOwner | None:
        """Return what the kernel says of the socket of an initiator."""
        if self._diag is None or network == "icmp":
            return None
        if self._local is not None and ends.src not in self._local:
            return None
        return self._diag.owner(network, ends.src, ends.src_port, ends.dst, ends.dst_port)

    def known(self, question: Question, now: float) -> str | None:
        """Return the answer to ``question``.

        Raises:
            NotYetKnown: it was not asked.
        """
        kept = self._known[question.kind].get(question.number, now)
        if kept is None:
            raise NotYetKnown(question)
        return kept.value

    def addresses(self, name: str, now: float) -> Sequence[bytes]:
        """Return known addresses of ``name``."""
        return self._resolve(name, now)


class _FlowFacts:
    """One flow's facts."""

    __slots__ = ("_ends", "_name", "_network", "_now", "_owner", "_owners")

    def __init__(
        self, owners: Owners, network: Network, ends: Endpoints, name: str | None, now: float
    ) -> None:
        self._owners = owners
        self._network = network
        self._ends = ends
        self._name = name
        self._now = now
        self._owner: tuple[_FlowOwner | None] | None = None

    @property
    def source(self) -> Address:
        return address(self._ends.src)

    @property
    def source_port(self) -> int:
        return self._ends.src_port

    def process(self) -> _FlowOwner | None:
        if self._owner is None:
            found = self._owners.owner(self._network, self._ends)
            owner = None if found is None else _FlowOwner(self._owners, found, self._now)
            self._owner = (owner,)
        return self._owner[0]

    def country(self, address: Address) -> str | None:
        database = self._owners.edition.geoip
        return None if database is None else database.country(address)

    def asn(self, address: Address) -> int | None:
        database = self._owners.edition.asn
        return None if database is None else database.asn(address)

    def resolved(self) -> Address | None:
        if self._name is None:
            return None
        found = self._owners.addresses(self._name, self._now)
        return address(found[0]) if found else None


class _FlowOwner:
    """Who has opened it."""

    __slots__ = ("_now", "_owner", "_owners")

    def __init__(self, owners: Owners, owner: SocketOwner, now: float) -> None:
        self._owners = owners
        self._owner = owner
        self._now = now

    @property
    def uid(self) -> int:
        return self._owner.uid

    @property
    def path(self) -> str | None:
        return self._owners.known(Question("program", self._owner.inode), self._now)

    @property
    def name(self) -> str | None:
        path = self.path
        return None if path is None else path.rpartition("/")[2]

    @property
    def cgroup(self) -> str | None:
        number = self._owner.cgroup_id
        return None if number is None else self._owners.known(Question("cgroup", number), self._now)


class _Answer(NamedTuple, Generic[_T]):
    value: _T | None
    until: float


class _Kept(Generic[_T]):
    """Answers by number; beyond :data:`MAX_KEPT` the oldest is forgotten."""

    def __init__(self) -> None:
        self._answers: OrderedDict[int, _Answer[_T]] = OrderedDict()

    def put(self, number: int, value: _T | None, now: float) -> None:
        self._answers.pop(number, None)
        kept_s = UNKNOWN_KEPT_S if value is None else KEPT_S
        self._answers[number] = _Answer(value, now + kept_s)
        if len(self._answers) > MAX_KEPT:
            self._answers.popitem(last=False)

    def get(self, number: int, now: float) -> _Answer[_T] | None:
        answer = self._answers.get(number)
        return answer if answer is not None and now < answer.until else None
