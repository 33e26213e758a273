"""What decides where the flows of a session go: the rules in force, what they may know, who sets
others in force, and the servers they lead to."""

from __future__ import annotations

import functools
import heapq
import logging
import socket
from typing import TYPE_CHECKING

import msgspec

from .. import config as configuration
from ..errors import ConfigError
from ..flow.dnspolicy import DnsPolicy
from ..linux.sockdiag import SocketDiag
from . import parts, rulefiles
from .controlanswers import Reloaded, RuleHits
from .owners import Owners, Question
from .rulebook import Rulebook
from .servers import LazyServer, Servers

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from ..flow.engine import Engine
    from ..flow.rules import RuleTable
    from ..upstream.base import PromptUpstream
    from ..wire.dns import Address
    from .broker import Broker
    from .ipc import Start
    from .names import Names
    from .rulefiles import Edition
    from .servers import Server
    from .tasks import TaskSet

MAX_SHOWN = 100
"""Rules in a status: those that have decided most often."""

_log = logging.getLogger(__name__)


class Steering:
    """See the text of the module.

    Attributes:
        servers: the ways out by the names that rules have for them.
    """

    def __init__(
        self,
        start: Start,
        edition: Edition,
        broker: Broker,
        tasks: TaskSet,
        first: PromptUpstream,
        make_server: Callable[[configuration.Server], Server],
        local: frozenset[bytes] | None,
    ) -> None:
        """``first``: the way out for what names no server. ``make_server``: makes the others.

        ``local`` as for :class:`Owners`.
        """
        self._start = start
        self._tasks = tasks
        self._book = Rulebook(edition)
        self._book.on_change = self._change
        self._diag = _open_diag(start.tun.name)
        self._engine: Engine | None = None
        self._names: Names | None = None
        self._server_names: Mapping[str, Sequence[Address]] = {}
        self.owners = Owners(
            broker.owners, self._diag, edition, tasks, local=local, resolve=self._resolve
        )
        first_server, *others = start.config.server
        self.servers = Servers(
            first_server.name,
            first,
            {
                server.name: LazyServer(server.name, functools.partial(make_server, server), tasks)
                for server in others
            },
        )
        broker.on_reload = self._reload_by_signal

    @property
    def table(self) -> RuleTable:
        """The rules in force."""
        return self._book.edition.table

    def begin(
        self, engine: Engine, server_names: Mapping[str, Sequence[Address]], names: Names
    ) -> None:
        """Let changes reach ``engine`` and ``names``; ``server_names`` as for DnsPolicy."""
        self._engine = engine
        self._names = names
        self._server_names = server_names
        self._tasks.spawn(self._book.watch(), "watch the rule files")

    async def close(self) -> None:
        """Ask nobody any more."""
        await self.servers.close()
        if self._diag is not None:
            self._diag.close()

    async def find(self, question: Hashable) -> None:
        """Wait until there is an answer to what a rule has asked, if there is any."""
        if isinstance(question, Question):
            await self.owners.find(question)

    def hits(self) -> list[RuleHits]:
        """The rules that have decided most often, in their order."""
        table = self.table
        seen = [(count, -index) for index, count in enumerate(table.hits) if count]
        most = sorted(-index for _, index in heapq.nlargest(MAX_SHOWN, seen))
        return [
            RuleHits(
                rule=table.decisions[index].rule,
                place=table.decisions[index].place,
                hits=table.hits[index],
            )
            for index in most
        ]

    async def answer_reload(self, request: dict[str, object]) -> Reloaded:
        """Read the config and the rules again, and go by them from now on."""
        start, origin = self._start.config, self._start.origin
        try:
            config = origin.read() if origin is not None else start
            late = rulefiles.unchanged_until_restart(start, config)
            parts.load(parts.needed(config))
            # A server that is not ours yet cannot be led to.
            await self._book.reload(configuration.replace_servers(config, start.server))
        except ConfigError as error:
            return Reloaded(rules=len(self.table.decisions), restart=(), error=str(error))
        return Reloaded(rules=len(self.table.decisions), restart=tuple(late))

    def _change(self, edition: Edition) -> None:
        # Who asks us for which names has been settled at the start.
        split = self._start.config.dns.split
        dns = msgspec.structs.replace(edition.config.dns, split=split)
        policy = DnsPolicy.from_config(dns, self._server_names)
        self.owners.edition = edition
        if self._engine is not None:
            self._engine.set_rules(edition.table, policy)
        if self._names is not None:
            self._names.reconfigure(dns)

    def _reload_by_signal(self) -> None:
        self._tasks.spawn(self._reload_and_log(), "reload")

    async def _reload_and_log(self) -> None:
        done = await self.answer_reload({})
        if done.error is not None:
            _log.error("everything stays as it was: %s", done.error)
            return
        _log.warning("%d rules are in force, read again", done.rules)
        if done.restart:
            _log.warning("changed, but in force only after a restart: %s", ", ".join(done.restart))

    def _resolve(self, name: str, now: float) -> Sequence[bytes]:
        return [] if self._engine is None else self._engine.dns.nameserver.real_addresses(name, now)


def _open_diag(device: str) -> SocketDiag | None:
    try:
        index = socket.if_nametoindex(device)
    except OSError:
        index = 0
    try:
        return SocketDiag(index)
    except OSError as error:
        _log.warning("rules about programs, users and cgroups do not hold: sock_diag: %s", error)
        return None
