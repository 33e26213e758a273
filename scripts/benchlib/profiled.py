"""Which stage of the data path a sampled call stack is in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_FRAME = re.compile(r"(?P<function>\S+) \((?P<file>[^:)]*)")

_FUNCTIONS: Final = {
    "Tun.read_into": "read from the TUN",
    "Tun.write": "write to the TUN",
    "FastConnection._write_now": "write to the SSH socket",
    "FastConnection._uncork": "write to the SSH socket",
    "_SelectorSocketTransport.write": "write to the SSH socket",
    "Seal.seal": "AES-GCM",
    "Opener.open": "AES-GCM",
    "GCMCipher.encrypt_and_sign": "AES-GCM",
    "GCMCipher.verify_and_decrypt": "AES-GCM",
}
"""What ends in a system call, or in the cipher."""

_FOLDERS: Final = {
    "tunproxy/wire/": "packets, TCP, flows",
    "tunproxy/stack/": "packets, TCP, flows",
    "tunproxy/flow/": "packets, TCP, flows",
    "tunproxy/app/": "driver and relay",
    "tunproxy/linux/": "driver and relay",
    "tunproxy/upstream/": "SSH channels and packets",
    "asyncssh/": "SSH channels and packets",
}

_OTHER: Final = "event loop, reading the SSH socket"

_MAIN: Final = ("tunproxy/app/session.py", "tunproxy/app/process.py", "tunproxy/app/daemon.py",
                "tunproxy/app/enginesession.py")  # fmt: skip
"""What is below every stack, and does nothing itself while the loop runs."""

STAGES: Final = tuple(dict.fromkeys((*_FUNCTIONS.values(), *_FOLDERS.values(), _OTHER)))


def stage_of(stack: Sequence[str]) -> str | None:
    """The stage that ``stack`` is in, its frames as py-spy writes them, the outermost first;
    ``None``: it is no stack of the loop's thread."""
    if not any("daemon.py" in frame for frame in stack):
        return None
    for frame in reversed(stack):
        found = _FRAME.match(frame.strip())
        if found is None:
            continue
        if found["function"] in _FUNCTIONS:
            return _FUNCTIONS[found["function"]]
        if found["file"].endswith(_MAIN):
            continue
        for folder, stage in _FOLDERS.items():
            if folder in found["file"]:
                return stage
    return _OTHER
