"""One connection of a pool, and what it has to do beside the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .pool_load import LOOK_S, Load, carried
from .ssh import LinkState, SshUpstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from .. import config
    from .pool_login import SharedLogin


class PooledConnection(SshUpstream):
    """An upstream of its own, that tells its pool what becomes of it."""

    def __init__(
        self,
        server: config.Server,
        login: SharedLogin,
        random: Callable[[], float],
        on_change: Callable[[PooledConnection, LinkState], None],
    ) -> None:
        super().__init__(
            server, login, on_state=lambda state: on_change(self, state), random=random
        )
        self.opening = 0
        """Flows that have been placed here and are being opened, or wait for their turn."""
        self.used_at = 0.0
        """When it had a flow, or was wanted, for the last time."""
        self._carried = (0, 0)
        self._measured_at = 0.0
        self._load = Load(0, 0.0, 0.0)

    @property
    def is_used(self) -> bool:
        """There are flows on it."""
        return bool(self.channels or self.opening)

    def rank(self) -> tuple[int, int, float]:
        """The less, the better for the next flow: by how many are there, what waits to be sent, and
        what was carried lately. The number comes first because it is never late: of many flows
        that come at once, all would go where the load was least a second ago."""
        unsent = 0 if self._link is None else self._link.ledger.unsent
        return self.channels + self.opening, unsent, self._load.rate

    def measure(self, now: float) -> Load:
        """The load since it was measured before."""
        octets, round_trip_s = self._carried, 0.0
        if self._link is not None:
            counted = carried(self._link.connection.get_extra_info("socket"))
            if counted is not None:
                octets, round_trip_s = counted, self._link.ledger.round_trip.shortest()
        most = max(new - old for new, old in zip(octets, self._carried, strict=True))
        rate = most / max(now - self._measured_at, LOOK_S / 2)
        self._carried, self._measured_at = octets, now
        self._load = Load(self.channels + self.opening, rate, round_trip_s)
        return self._load
