"""A daemon that speaks badvpn's udpgw protocol, as ``tunproxy.upstream.udpgw`` describes it.

It is run as ``python -m tests.helpers.udpgw_daemon ADDRESS PORT``, and says ``listening``. A stream
has a socket for each connection number; REBIND makes a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
import sys

KEEPALIVE, REBIND, IPV6 = 1, 2, 8


class Connection:
    """One socket, whose datagrams go back to the stream."""

    def __init__(self, number: int, place: bytes, writer: asyncio.StreamWriter) -> None:
        """``place``: address and port, as in the packets."""
        self.place = place
        flags = IPV6 if len(place) > 6 else 0
        self._head = struct.pack("<BH", flags, number) + place
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        # asyncio's own endpoints send no empty datagrams.
        family = socket.AF_INET6 if flags else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        (port,) = struct.unpack(">H", place[-2:])
        self._socket.connect((str(ipaddress.ip_address(place[:-2])), port))
        self._loop.add_reader(self._socket, self._read)

    def send(self, payload: bytes) -> None:
        with contextlib.suppress(OSError):  # the protocol has no errors
            self._socket.send(payload)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            body = self._head + self._socket.recv(1 << 16)
            self._writer.write(struct.pack("<H", len(body)) + body)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One client."""
    connections: dict[int, Connection] = {}
    try:
        while True:
            (length,) = struct.unpack("<H", await reader.readexactly(2))
            packet = await reader.readexactly(length)
            flags, number = struct.unpack_from("<BH", packet)
            if flags & KEEPALIVE:
                continue
            behind = 3 + (18 if flags & IPV6 else 6)
            place = packet[3:behind]
            known = connections.get(number)
            if known is None or flags & REBIND or known.place != place:
                if known is not None:
                    known.close()
                known = connections[number] = Connection(number, place, writer)
            known.send(packet[behind:])
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        for connection in connections.values():
            connection.close()
        writer.close()


async def main(address: str, port: str) -> None:
    server = await asyncio.start_server(serve, address, int(port))
    async with server:
        print("listening", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
