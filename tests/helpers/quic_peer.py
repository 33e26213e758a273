"""A QUIC server and its client (RFC 9000), by aioquic: a library that knows nothing of us.

``python -m tests.helpers.quic_peer serve ADDRESS PORT CERTIFICATE KEY`` prints ``listening``.

``python -m tests.helpers.quic_peer ask HOST PORT CERTIFICATE UP DOWN [ADDRESS]`` verifies that HOST
(at ADDRESS, else where its name leads) has that certificate, opens a stream, sends UP octets,
receives DOWN, prints what both ends have made of them, as JSON, and ends the connection in an
orderly way.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import sys
from typing import TYPE_CHECKING

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.helpers.origin import stream

if TYPE_CHECKING:
    import pathlib

    from aioquic.quic.connection import NetworkAddress, QuicConnection

PROTOCOL = "tunproxy-test"
_PATIENCE_S = 20.0


def make_certificate(name: str, directory: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Write a certificate of ``name``, signed by itself, and its key; return both files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = directory / "quic.crt", directory / "quic.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Peer(QuicConnectionProtocol):
    """A connection of the server: it knows who is at the other end."""

    def __init__(self, quic: QuicConnection, stream_handler: object = None) -> None:
        super().__init__(quic, self._begin)
        self._address = ""
        self._tasks: set[asyncio.Task[None]] = set()

    def datagram_received(self, data: bytes | str, addr: NetworkAddress) -> None:
        self._address = addr[0]
        super().datagram_received(data, addr)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering = answer(reader, writer, self._address)
        task = asyncio.get_running_loop().create_task(answering, name="answer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
    """Tell what came on a stream, and from whom, then send as much as its first line wants."""
    wanted = int(await reader.readline())
    body = await reader.read()
    writer.write(f"{digest(body)} {peer}\n".encode())
    writer.writelines(stream(wanted))
    writer.write_eof()


async def listen(address: str, port: int, certificate: str, key: str) -> None:
    """Serve until the process is killed."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=[PROTOCOL])
    configuration.load_cert_chain(certificate, key)
    await serve(address, port, configuration=configuration, create_protocol=Peer)
    print("listening", flush=True)
    await asyncio.Event().wait()


async def ask(
    host: str, port: int, certificate: str, up: int, down: int, address: str
) -> dict[str, str]:
    """Ask a server; return what it and we have got, and whom it has seen."""
    configuration = QuicConfiguration(alpn_protocols=[PROTOCOL], server_name=host)
    configuration.load_verify_locations(certificate)
    async with (
        asyncio.timeout(_PATIENCE_S),
        connect(address, port, configuration=configuration) as peer,
    ):
        reader, writer = await peer.create_stream()
        writer.write(f"{down}\n".encode())
        writer.writelines(stream(up))
        writer.write_eof()
        told, seen = (await reader.readline()).decode().split()
        body = await reader.read()
        peer.close()
        await peer.wait_closed()
    return {"up": told, "down": digest(body), "seen": seen}


def main() -> None:
    verb, host, port, certificate, *rest = sys.argv[1:]
    if verb == "serve":
        asyncio.run(listen(host, int(port), certificate, rest[0]))
    else:
        up, down = map(int, rest[:2])
        address = rest[2] if rest[2:] else host
        print(json.dumps(asyncio.run(ask(host, int(port), certificate, up, down, address))))


if __name__ == "__main__":
    main()
