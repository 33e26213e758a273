"""The rules in force: watched, and read again without anybody noticing but the next flow.

When a file changes, or somebody asks for it, the next edition (:mod:`.rulefiles`) is read beside
the one in force, in a thread; a wrong one is never put in force. Files are looked at once a second.
One that has changed is read when it has stopped changing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ..errors import ConfigError
from . import rulefiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import Config
    from .rulefiles import Edition, State

LOOK_S = 1.0

_log = logging.getLogger(__name__)


class Rulebook:
    """Has the rules in force.

    Attributes:
        edition: those rules.
        on_change: called with each new edition, before it is in force.
    """

    def __init__(self, edition: Edition) -> None:
        self.edition = edition
        self.on_change: Callable[[Edition], None] = lambda edition: None
        self._lock = asyncio.Lock()

    async def reload(self, config: Config) -> Edition:
        """Read the rules that ``config`` names, and put them in force.

        Raises:
            ConfigError: they are wrong; the old ones stay in force.
        """
        async with self._lock:
            edition = await asyncio.to_thread(rulefiles.read, config)
            self.on_change(edition)
            self.edition = edition
            return edition

    async def watch(self) -> None:
        """Look for changes for ever; log what comes of them."""
        refused: list[State] | None = None
        before = self._states()
        while True:
            await asyncio.sleep(LOOK_S)
            states = self._states()
            is_settled, before = states == before, states
            if not is_settled or states == refused or not self.edition.has_changed():
                continue
            try:
                edition = await self.reload(self.edition.config)
            except ConfigError as error:
                refused = states
                _log.error("the rules stay as they were: %s", error)
            else:
                refused = None
                before = self._states()
                _log.warning("%d rules are in force, read again", len(edition.table.decisions))

    def _states(self) -> list[State]:
        return [rulefiles.state_of(path) for path in self.edition.files]
