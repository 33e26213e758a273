"""A certificate authority of the test, and contexts for both ends of TLS."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Sequence

_DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates for ``names``: host names, or addresses."""

    def __init__(self, directory: pathlib.Path, *names: str) -> None:
        now = datetime.datetime.now(datetime.UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectAlternativeName(list(map(_general, names))), critical=False)
            .sign(key, hashes.SHA256())
        )
        self._file = directory / "certificate.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self._file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """The server's end."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._file)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def client(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """The end of a client that trusts nobody else."""
        context = ssl.create_default_context(cafile=str(self._file))
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
