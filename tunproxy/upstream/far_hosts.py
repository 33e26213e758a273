"""The names in the server's /etc/hosts, which its resolver need not know.

Read hosts(5) before editing. sshd resolves with getaddrinfo(), which looks into this file before it
asks a resolver: so say the ``hosts: files dns`` of nsswitch.conf(5) on nearly every system, and we
take it to be so everywhere. A name that is in the file has the addresses there and no others, of
either family; about records that are no addresses the file says nothing.

An address of the server itself (127.0.1.1 stands beside its name on many) is the truth for a flow
that leaves there, and nonsense for who would take it as one of his own: :meth:`FarHosts.answer`
passes it over, and the resolver may know another.

Limits: 10,000 names, 16 addresses each; lines that make no sense are passed over and counted.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from ..errors import WireError
from ..wire import dns
from ..wire.dns import Rcode, Type

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..wire.dns import Address, Query

MAX_NAMES = 10_000
"""Some 4 MB. More are in lists of what to block, and nobody misses those who are missing there."""
MAX_ADDRESSES = 16
TTL = 60
"""Seconds: the file changes when a person changes it, and is read at each login."""

_HEADER_LEN = 12
_VERSIONS: dict[int, int] = {Type.A: 4, Type.AAAA: 6}
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")


class FarHosts:
    """What the file says.

    Attributes:
        names: the names in lower case, without trailing dot, and their addresses.
        ignored: how many lines, or names beyond the bound, were passed over.
    """

    def __init__(self, octets: bytes = b"") -> None:
        """``octets`` are the file, or its beginning up to the end of a line."""
        self.ignored = 0
        self._found: dict[str, tuple[Address, ...]] = {}
        for line in octets.decode("utf-8", "replace").splitlines():
            self._read(line)

    @property
    def names(self) -> Mapping[str, tuple[Address, ...]]:
        return self._found

    def answer(self, message: bytes) -> bytes | None:
        """The answer to a query for the addresses of a name that has some which mean the same
        everywhere; ``None``: the resolver has to be asked."""
        query = self._parse(message)
        if query is None or query.qtype not in _VERSIONS:
            return None
        found = [address for address in self._found[query.name] if not _is_own(address)]
        if not found:
            return None
        version = _VERSIONS[query.qtype]
        fitting = [address for address in found if address.version == version]
        if not fitting:
            return dns.answer_negative(query, Rcode.NOERROR, TTL)
        return dns.answer_addresses(query, fitting, TTL)

    def amend(self, message: bytes, reply: bytes | None) -> bytes | None:
        """What the resolver has said to a query; that a name here does not exist is not true."""
        if reply is None or len(reply) < _HEADER_LEN or dns.rcode(reply) != Rcode.NXDOMAIN:
            return reply
        return reply if self._parse(message) is None else dns.with_rcode(reply, Rcode.NOERROR)

    def _read(self, line: str) -> None:
        text, *names = line.partition("#")[0].split() or [""]
        if not text:
            return
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            self.ignored += 1
            return
        # An address with a scope means something on a link of the server's only.
        if not names or "%" in text:
            self.ignored += 1
        else:
            for name in names:
                self._note(name.lower().removesuffix("."), address)

    def _note(self, name: str, address: Address) -> None:
        before = self._found.get(name, ())
        is_new = not before and len(self._found) >= MAX_NAMES
        if is_new or len(before) >= MAX_ADDRESSES or not _NAME.fullmatch(name):
            self.ignored += 1
        elif address not in before:
            self._found[name] = (*before, address)

    def _parse(self, message: bytes) -> Query | None:
        """What ``message`` asks, if it is about a name here."""
        if not self._found:
            return None
        try:
            query = dns.parse_query(message)
        except WireError:
            return None
        return query if query.name in self._found else None


def _is_own(address: Address) -> bool:
    """Whether it is another host for each who uses it."""
    return address.is_loopback or address.is_unspecified or address.is_link_local
