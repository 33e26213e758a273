"""The kernel's stack behind the engine's address translation, played by the test."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from tests.helpers.engine_dialogue import CLIENT4, CLIENT6
from tests.helpers.tcp_end import Ends, TcpEnd
from tunproxy.flow.nat import NatTable, Place, nat_network
from tunproxy.flow.translator import Translator

if TYPE_CHECKING:
    from tests.helpers.engine_dialogue import Dialogue

FAKE4 = ipaddress.IPv4Network("198.18.0.0/24")
FAKE6 = ipaddress.IPv6Network("fd00:7470::/64")
LISTENERS = {4: Place(CLIENT4, 41000), 16: Place(CLIENT6, 42000)}
ISN = 0x7FFFFFF0


def translator(*, families: tuple[int, ...] = (4, 6)) -> Translator:
    """One with listeners of these families."""
    sizes = [4 if family == 4 else 16 for family in families]
    nat = NatTable(nat_network(FAKE4), nat_network(FAKE6))
    return Translator(nat, {size: LISTENERS[size] for size in sizes})


class KernelSide(TcpEnd):
    """One connection as the listener has it."""

    def __init__(self, dialogue: Dialogue) -> None:
        super().__init__(dialogue, ISN)
        self.place = Place(b"", 0)
        """What it takes the initiator to be: known from the first segment on."""

    @property
    def listener(self) -> Place:
        return LISTENERS[len(self.place.address)]

    def ends(self) -> Ends:
        return Ends(*self.listener, *self.place)

    def check(self, ends: Ends) -> None:
        if self.place == Place(b"", 0):
            self.place = Place(ends.src, ends.src_port)
        super().check(ends)
