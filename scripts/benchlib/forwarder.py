"""The forwarding that asyncssh itself offers, as a peer.

``python -m scripts.benchlib.forwarder SERVER PORT KEY KNOWN_HOSTS ORIGIN PORT...``: each PORT of
127.0.0.1 is the ORIGIN's.
"""

from __future__ import annotations

import sys

import asyncssh
import uvloop


async def forward(argv: list[str]) -> None:
    """Forward until killed."""
    server, port, key, known_hosts, origin, *ports = argv
    async with asyncssh.connect(
        server, int(port), username="root", client_keys=[key], known_hosts=known_hosts, config=None
    ) as connection:
        for number in map(int, ports):
            await connection.forward_local_port("127.0.0.1", number, origin, number)
        await connection.wait_closed()


if __name__ == "__main__":
    uvloop.run(forward(sys.argv[1:]))
