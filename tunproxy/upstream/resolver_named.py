"""The resolvers that a config names: each is made when it is first asked, and kept.

``ADDRESS[:PORT]`` is asked over TCP through the tunnel, over UDP (and TCP) from this machine.
``tls://HOST[:PORT][#NAME]`` is DNS over TLS (RFC 7858), with the certificate of NAME, else of HOST.
``https://HOST[:PORT]/PATH`` is DNS over HTTPS (RFC 8484). A HOST that is a name is resolved by the
way that leads to it.
"""

from __future__ import annotations

import re
import urllib.parse
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .resolver import DNS_PORT, RemoteResolver
from .resolver_direct import DirectResolver
from .tls import TlsUpstream, client_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from . import dial
    from .base import Upstream

PORTS = {"": DNS_PORT, "tls": 853, "https": 443}


class Resolver(Protocol):
    """Who answers DNS messages."""

    @property
    def counters(self) -> Counter[str]:
        """What went wrong, by kind."""

    async def query(self, message: bytes) -> bytes | None:
        """The reply, or ``None``."""


class Server(NamedTuple):
    """Where a resolver is."""

    scheme: str
    """``tls``, ``https``, or empty: plain DNS."""
    host: str
    port: int
    name: str
    """Whose certificate it has to have."""
    path: str


def parse_server(text: str) -> Server:
    """Return what ``text`` says.

    Raises:
        ValueError: it is none of the forms above.
    """
    if "://" not in text:
        text = f"//[{text}]" if text.count(":") > 1 and "[" not in text else f"//{text}"
    # RFC 8484 section 4.1.1: the variable of a URI template is for GET.
    url = urllib.parse.urlsplit(re.sub(r"\{[^}]*\}", "", text))
    if url.scheme not in PORTS or not url.hostname:
        raise ValueError(text)
    path = url.path + (f"?{url.query}" if url.query else "")
    name = urllib.parse.unquote(url.fragment) or url.hostname
    return Server(url.scheme, url.hostname, url.port or PORTS[url.scheme], name, path)


class NamedResolvers:
    """All that a config names, each by both ways."""

    def __init__(
        self,
        *,
        proxy: Upstream,
        direct: Upstream,
        make_socket: dial.MakeSocket,
        make_context: Callable[[tuple[str, ...]], ssl.SSLContext] = client_context,
    ) -> None:
        """``make_context`` gives what is trusted, for some ALPN protocols."""
        self._ways = {False: proxy, True: direct}
        self._make_socket = make_socket
        self._make_context = make_context
        self._resolvers: dict[tuple[str, bool], RemoteResolver | DirectResolver] = {}

    def get(self, server: str, *, direct: bool) -> Resolver:
        """The resolver that a config calls ``server``, asked from this machine or through SSH.

        Raises:
            ValueError: no checked config says that.
        """
        key = server, direct
        resolver = self._resolvers.get(key)
        if resolver is None:
            resolver = self._resolvers[key] = self._make(parse_server(server), direct)
        return resolver

    def counters(self) -> Counter[str]:
        """What went wrong with all of them, by kind."""
        return sum((each.counters for each in self._resolvers.values()), Counter[str]())

    def forget(self) -> None:
        """Close all connections; the config may name others from now on."""
        for resolver in self._resolvers.values():
            if isinstance(resolver, RemoteResolver):
                resolver.close()
        self._resolvers.clear()

    def _make(self, server: Server, direct: bool) -> RemoteResolver | DirectResolver:
        way = self._ways[direct]
        if server.scheme == "tls":
            way = TlsUpstream(way, server.name, self._make_context(()))
        elif server.scheme == "https":
            # HTTP/2 is more than a MiB, and few ask for it (tunproxy.app.parts).
            from .resolver_https import ALPN, HttpsConnection

            way = TlsUpstream(way, server.name, self._make_context(ALPN))
            host = f"[{server.host}]" if ":" in server.host else server.host
            authority = host if server.port == PORTS["https"] else f"{host}:{server.port}"
            return RemoteResolver(
                way,
                [server.host],
                port=server.port,
                connection=lambda counters: HttpsConnection(counters, authority, server.path),
            )
        elif direct:
            return DirectResolver(self._make_socket, [server.host], port=server.port)
        return RemoteResolver(way, [server.host], port=server.port)
