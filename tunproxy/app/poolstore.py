"""Fake addresses from one run to the next: an application may hold one longer than we live.

One file for each device name, in the user's state directory, which is a journal: a line for each
name that was given an address, the last line of an address counts. A line bears a checksum; one
that is damaged is skipped, with a warning for the file. A last line that was not finished is what a
kill in the middle of a write leaves, and skipped in silence. When the ranges have changed, the old
addresses mean nothing, and the file begins anew.

What is new is written :data:`WRITE_AFTER_S` later in one piece: that is what SIGKILL can cost. It
is written to the page cache, so a power cut can cost more. A file with many outdated lines is
written anew, in a thread, beside the old one, and then takes its place.

Two instances of one user may have devices of one name, in different network namespaces: the first
one keeps its names, the other does without.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pathlib

    from ..flow.fakeip import Address, FakePools

WRITE_AFTER_S = 0.5
MIN_LINES = 4096
"""A file of fewer lines is not worth to be written anew."""
OUTDATED = 2
"""It is, when it has this many times as many lines as there are names."""
MAX_OCTETS = 256 << 20
"""A file longer than that is none of ours: the longest one has some 100 MB."""

_MAGIC = "tunproxy-names-1"

_log = logging.getLogger(__name__)


class PoolStore:
    """Keeps ``pools`` in ``path``; errors are logged, and the names are not kept then."""

    def __init__(self, path: pathlib.Path, pools: FakePools, layout: str = "") -> None:
        """``layout``: a word for what else the addresses depend on."""
        self._path = path
        self._pools = pools
        self._header = f"{_MAGIC} {pools.v4.network} {pools.v6.network} {layout}"
        self._lock: int | None = None
        self._file: int | None = None
        self._lines = 0
        self._new: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._renewal: asyncio.Task[None] | None = None

    def load(self) -> int:
        """Read what an earlier run has left into the pools; return how many addresses that were.

        From here on new ones are kept: call it in the event loop.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._take_lock():
                _log.info("%s belongs to another instance: our names are not kept", self._path)
                return 0
            loaded = self._read()
            if self._lines:
                self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            else:
                self._begin()
        except OSError as error:
            self._give_up(error)
            return 0
        self._pools.watch(self._assigned)
        return loaded

    async def close(self) -> None:
        """Write what is new, and let go of the file."""
        self._pools.watch(None)
        if self._renewal is not None:
            await asyncio.gather(self._renewal, return_exceptions=True)
        try:
            if self._file is not None:
                os.close(self._file)
                # In the order of their last use, which the journal does not know.
                self._begin()
        except OSError as error:
            self._give_up(error)
        self._release()

    # --- writing --------------------------------------------------------------------------------

    def _assigned(self, name: str, address: Address) -> None:
        self._new.append(_line(name, str(address)))
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(WRITE_AFTER_S, self._write_and_tidy)

    def _write_and_tidy(self) -> None:
        self._write()
        names = len(self._pools.v4) + len(self._pools.v6)
        if self._renewal is None and self._lines > max(MIN_LINES, OUTDATED * names):
            self._renewal = asyncio.create_task(self._renew(), name="renew the names' file")
            self._renewal.add_done_callback(self._renewed)

    def _write(self) -> None:
        """Append what is new."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._new or self._file is None:
            return
        data = "".join(self._new).encode("ascii")
        self._lines += len(self._new)
        self._new.clear()
        try:
            _write_all(self._file, data)
        except OSError as error:
            self._give_up(error)

    async def _renew(self) -> None:
        """Write the file anew, without the lines that do not count any more."""
        file = self._file
        if file is None:
            return
        size = os.fstat(file).st_size
        fresh = self._path.with_suffix(".new")
        count = await asyncio.to_thread(_compact, self._path, fresh, size)
        self._write()
        if self._file != file:
            return
        with self._path.open("rb") as old:
            old.seek(size)
            tail = old.read()
        descriptor = os.open(fresh, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            _write_all(descriptor, tail)
            fresh.replace(self._path)
        except OSError:
            os.close(descriptor)
            raise
        os.close(file)
        self._file = descriptor
        self._lines = count + tail.count(b"\n")

    def _renewed(self, task: asyncio.Task[None]) -> None:
        self._renewal = None
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, OSError):
            self._give_up(error)
        elif error is not None:
            _log.error("the file of names was not written anew", exc_info=error)

    # --- the file -------------------------------------------------------------------------------

    def _take_lock(self) -> bool:
        self._lock = os.open(
            self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            return False
        return True

    def _read(self) -> int:
        """Load what is in the file; leave ``_lines`` at 0 when it has to begin anew."""
        try:
            if self._path.stat().st_size > MAX_OCTETS:
                _log.warning("%s is too long to be ours: it is not read", self._path)
                return 0
            data = self._path.read_bytes()
        except FileNotFoundError:
            return 0
        first, _, rest = data.partition(b"\n")
        if first != self._header.encode():
            if not first.startswith(_MAGIC.encode()):
                _log.warning("%s is damaged: names get new addresses", self._path)
            return 0
        lines, damaged = _latest(rest)
        if damaged:
            _log.warning("%s is damaged: %d lines are not read", self._path, damaged)
        elif data.endswith(b"\n"):
            self._lines = rest.count(b"\n")
        # A line is "checksum address name".
        pairs = [(name, address) for _, address, name in (line.split(" ") for line in lines)]
        loaded = self._pools.v4.load(pair for pair in pairs if ":" not in pair[1])
        return loaded + self._pools.v6.load(pair for pair in pairs if ":" in pair[1])

    def _begin(self) -> None:
        """Write the file anew from the pools, and leave it open for more."""
        fresh = self._path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(fresh, flags, 0o600)
        lines = [_line(name, address) for name, address in self._pools.export()]
        self._lines = len(lines)
        _write_all(self._file, "".join([f"{self._header}\n", *lines]).encode("ascii"))
        fresh.replace(self._path)

    def _give_up(self, error: OSError) -> None:
        _log.warning(
            "names are not kept for the next start: %s: %s", self._path, error.strerror or error
        )
        self._pools.watch(None)
        self._release()

    def _release(self) -> None:
        for descriptor in (self._file, self._lock):
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._file = self._lock = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _line(name: str, address: str) -> str:
    text = f"{address} {name}"
    return f"{zlib.crc32(text.encode('ascii')):08x} {text}\n"


def _latest(data: bytes) -> tuple[list[str], int]:
    """Return the whole lines that count, in their order, and how many are damaged."""
    *lines, _unfinished = data.split(b"\n")
    damaged = 0
    latest: dict[bytes, bytes] = {}
    for line in lines:
        checksum, _, text = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text) or text.count(b" ") != 1:
            damaged += 1
            continue
        address = text.partition(b" ")[0]
        latest.pop(address, None)
        latest[address] = line
    return [line.decode("ascii", "replace") for line in latest.values()], damaged


def _compact(path: pathlib.Path, fresh: pathlib.Path, size: int) -> int:
    """Write what counts in the first ``size`` octets to ``fresh``; return how many lines it has."""
    with path.open("rb") as file:
        header, _, rest = file.read(size).partition(b"\n")
    lines, _ = _latest(rest)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(fresh, flags, 0o600)
    try:
        text = "".join(f"{line}\n" for line in lines)
        _write_all(descriptor, header + b"\n" + text.encode("ascii", "replace"))
    finally:
        os.close(descriptor)
    return len(lines)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
