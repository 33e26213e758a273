"""Which ways for datagrams the config allows, the best first, each with what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..config_values import split_place
from ..upstream.agent import Agent
from ..upstream.base import Upstream
from ..upstream.lookup import Lookup, LookupFailed
from ..upstream.udpgw import Udpgw

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..config import Config
    from ..upstream.base import PacketHandler, PacketTunnel, Pipe, PipeHandler
    from ..upstream.vpn_terms import Kind
    from .datagramways import Way
    from .remoteshell import Shell

AUTO = ("agent", "udpgw")
"""Not tun, which changes the server's configuration: that has to be asked for."""


class Server(Upstream, Protocol):
    """What the ways need of an SSH server."""

    async def command(self, command: str) -> Shell: ...

    async def open_tunnel(
        self, kind: Kind, handler: PacketHandler, *, unit: int | None
    ) -> PacketTunnel: ...

    async def pipe(self, command: str, handler: PipeHandler) -> Pipe: ...


class FarNames:
    """Finds the addresses of names with a resolver of the server's side, and only there."""

    def __init__(self, query: Callable[[bytes], Awaitable[bytes | None]]) -> None:
        """``query`` takes and gives messages of DNS; ``None`` is no answer."""
        self._lookup = Lookup(query)

    async def __call__(self, name: str) -> Sequence[str]:
        """The literal addresses of ``name``, IPv4 first: nobody lets datagrams race, and servers
        without IPv6 are more than those without IPv4."""
        try:
            addresses = await self._lookup.addresses(name.lower())
        except LookupFailed:
            return ()
        return sorted(addresses, key=lambda address: ":" in address)

    async def close(self) -> None:
        """End what is under way."""
        await self._lookup.close()


def candidates(config: Config, ssh: Server, names: FarNames) -> list[tuple[str, Way]]:
    """The ways to try, by name; none: datagrams are refused."""
    via = config.udp.via
    order = AUTO if via == "auto" else () if via == "reject" else (via,)
    makers: dict[str, Callable[[], Way]] = {
        "agent": lambda: Agent(ssh.pipe),
        "udpgw": lambda: Udpgw(ssh, names, split_place(config.udp.udpgw)),
        "tun": lambda: _tun(ssh, config.vpn.remote_tun, names),
    }
    return [(name, makers[name]()) for name in order]


def _tun(ssh: Server, unit: int | None, names: FarNames) -> Way:
    # Rare, and much code (tunproxy.app.parts).
    from .rawlink import RawLinks
    from .tunrelay import TunRelay

    return TunRelay(RawLinks(ssh, unit), names)
