"""Initial packets of QUIC clients, protected as RFC 9001 section 5 and RFC 9369 have it.

Nothing here imports ``tunproxy``.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC


@dataclass(frozen=True)
class Version:
    number: int
    salt: str
    label: str
    initial: int
    """The type bits of an Initial packet."""


V1 = Version(1, "38762cf7f55934b34d179ae6a4c80cadccbb7f0a", "quic", 0)
V2 = Version(0x6B3343CF, "0dede3def700a6db819381be6e269dcbf9bd2ed9", "quicv2", 1)


def varint(number: int, size: int = 0) -> bytes:
    """RFC 9000 section 16; ``size``: at least so many octets."""
    for bits, octets in ((6, 1), (14, 2), (30, 4), (62, 8)):
        if number < 1 << bits and octets >= size:
            return (number | {1: 0, 2: 1, 4: 2, 8: 3}[octets] << 8 * octets - 2).to_bytes(octets)
    raise ValueError(number)


def crypto(offset: int, data: bytes) -> bytes:
    """A CRYPTO frame."""
    return b"\6" + varint(offset) + varint(len(data), 2) + data


def initial(
    payload: bytes,
    version: Version = V1,
    *,
    dcid: bytes = bytes.fromhex("8394c8f03e515708"),
    scid: bytes = b"",
    token: bytes = b"",
    number: int = 0,
    number_octets: int = 4,
    keys_for: bytes | None = None,
) -> bytes:
    """A protected packet with the frames ``payload``.

    ``keys_for``: the connection id that the keys are derived from, if it is not ``dcid``.
    """
    key, iv, hp = _keys(version, dcid if keys_for is None else keys_for)
    first = 0xC0 | version.initial << 4 | number_octets - 1
    header = bytes([first]) + version.number.to_bytes(4)
    for connection_id in (dcid, scid):
        header += bytes([len(connection_id)]) + connection_id
    header += varint(len(token)) + token + varint(number_octets + len(payload) + 16, 2)
    number_at = len(header)
    header += number.to_bytes(number_octets)
    nonce = (int.from_bytes(iv) ^ number).to_bytes(12)
    packet = bytearray(header + AESGCM(key).encrypt(nonce, payload, header))
    encryptor = Cipher(algorithms.AES(hp), modes.ECB()).encryptor()
    mask = encryptor.update(bytes(packet[number_at + 4 : number_at + 20]))
    packet[0] ^= mask[0] & 0x0F
    for index in range(number_octets):
        packet[number_at + index] ^= mask[1 + index]
    return bytes(packet)


def _keys(version: Version, connection_id: bytes) -> tuple[bytes, bytes, bytes]:
    secret = _hmac(bytes.fromhex(version.salt), connection_id)
    client = _label(secret, "client in", 32)
    key, iv, hp = (f"{version.label} {purpose}" for purpose in ("key", "iv", "hp"))
    return _label(client, key, 16), _label(client, iv, 12), _label(client, hp, 16)


def _label(secret: bytes, label: str, length: int) -> bytes:
    """HKDF-Expand-Label: one round of HKDF-Expand gives 32 octets."""
    full = b"tls13 " + label.encode()
    info = length.to_bytes(2) + bytes([len(full)]) + full + b"\0"
    return _hmac(secret, info + b"\1")[:length]


def _hmac(key: bytes, data: bytes) -> bytes:
    code = HMAC(key, SHA256())
    code.update(data)
    return code.finalize()
