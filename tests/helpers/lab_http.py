"""Plain HTTP to the origin server, from any host of the laboratory."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from tests.helpers import origin

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.helpers.lab_host import Host


def whoami(host: Host, address: str, port: int = origin.HTTP) -> str:
    """Whom the server at ``address`` (a literal) sees when ``host`` connects."""
    with host.connect(address, port) as sock:
        sock.sendall(request("GET", "/whoami"))
        return b"".join(body(sock)).decode().strip()


def download(
    host: Host, address: str, length: int, port: int = origin.HTTP, timeout_s: float = 20.0
) -> str:
    """Fetch ``length`` octets of the stream; return the SHA-256 of what came.

    ``timeout_s``: the longest that a single call waits.
    """
    found = hashlib.sha256()
    with host.connect(address, port, timeout_s) as sock:
        sock.sendall(request("GET", f"/bytes/{length}"))
        for chunk in body(sock):
            found.update(chunk)
    return found.hexdigest()


def upload(
    host: Host, address: str, length: int, port: int = origin.HTTP, timeout_s: float = 20.0
) -> tuple[int, str]:
    """Send ``length`` octets of the stream; return length and SHA-256 of what the server got."""
    with host.connect(address, port, timeout_s) as sock:
        sock.sendall(request("PUT", "/upload", length))
        for chunk in origin.stream(length):
            sock.sendall(chunk)
        found = json.loads(b"".join(body(sock)))
    return found["length"], found["sha256"]


def request(method: str, path: str, length: int = 0) -> bytes:
    """The head of a request with a body of ``length`` octets."""
    return f"{method} {path} HTTP/1.1\r\nHost: origin\r\nContent-Length: {length}\r\n\r\n".encode()


def body(sock: socket.socket) -> Iterator[bytes]:
    """The body of the one answer that ``sock`` brings, in pieces."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(1 << 18)
        if not data:
            raise EOFError(f"the answer ends in its head: {head!r}")
        head += data
    yield head.partition(b"\r\n\r\n")[2]
    while data := sock.recv(1 << 20):
        yield data
