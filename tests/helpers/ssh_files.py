"""Keys and settings of SSH, as OpenSSH has them."""

from __future__ import annotations

import pathlib
import subprocess


def sshd_options(host_key: pathlib.Path, user_key: pathlib.Path) -> dict[str, str]:
    """Those of sshd_config(5) for a server that lets root in with ``user_key``, and nobody else."""
    return {
        "HostKey": str(host_key),
        "AuthorizedKeysFile": f"{user_key}.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "MaxStartups": "100",
        "LogLevel": "VERBOSE",
    }


def new_key(path: pathlib.Path, passphrase: str = "", kind: str = "ed25519") -> pathlib.Path:
    """Make a key pair, ``path`` and ``path``.pub."""
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True)
    return path


def sign_key(authority: pathlib.Path, key: pathlib.Path, *options: str) -> None:
    """Make a certificate, ``key``-cert.pub; ``options`` are of ssh-keygen(1)."""
    command = ["ssh-keygen", "-q", "-s", str(authority), "-I", key.name, *options, f"{key}.pub"]
    subprocess.run(command, check=True)


def public_key(key: pathlib.Path) -> str:
    """The kind and the public half of ``key``, as known_hosts has them."""
    kind, public, *_ = pathlib.Path(f"{key}.pub").read_text().split()
    return f"{kind} {public}"


def fingerprint(key: pathlib.Path) -> str:
    """What ssh(1) shows of ``key``."""
    command = ["ssh-keygen", "-lf", f"{key}.pub"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.split()[1]
