"""A running program whose output is collected while it runs."""

from __future__ import annotations

import signal
import subprocess
import threading
from typing import IO

from tests.helpers.lab_wait import until

READY_S = 20.0


class Program:
    """``process`` has pipes for its output: ``stdout`` and ``stderr`` are the lines so far."""

    end_s = 20.0
    """How long it may take to end."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self.stdout: list[str] = []
        self._errors: list[str] = []
        self._process = process
        self._readers = [
            _collect(process.stdout, self.stdout),
            _collect(process.stderr, self._errors),
        ]

    @property
    def stderr(self) -> list[str]:
        return self._errors

    @property
    def running(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Wait for the ``ready`` line."""
        until(
            lambda: not self.running or any(line.startswith("ready") for line in self.stdout),
            f"the ready line; {self.output()}",
            READY_S,
        )
        assert self.running, self.output()

    def output(self) -> str:
        """What it has written, for a failure message."""
        return "\n".join(["stdout:", *self.stdout, "stderr:", *self._errors])

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end, and for the end of what holds its output; return the exit status."""
        try:
            status = self._process.wait(self.end_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end; {self.output()}") from None
        for reader in self._readers:
            reader.join(self.end_s)
            assert not reader.is_alive(), "a process it started has survived it"
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal and wait for its end; return the exit status."""
        self.send_signal(number)
        return self.wait()

    def close(self) -> None:
        """End it, by force when it has to be, and whatever it has left."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(self.end_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._clean_up()
        for reader in self._readers:
            reader.join(self.end_s)

    def _clean_up(self) -> None:
        """Undo what it may have left."""


def _collect(stream: IO[bytes] | None, lines: list[str]) -> threading.Thread:
    assert stream is not None

    def read() -> None:
        with stream:
            # One by one: others look at the list meanwhile.
            lines.extend(
                line.decode(errors="replace").rstrip("\n") for line in iter(stream.readline, b"")
            )

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread
