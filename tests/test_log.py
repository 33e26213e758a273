"""Where the log goes, and how much of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tunproxy import log

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def restore_loggers() -> Iterator[None]:
    ours, theirs = logging.getLogger("tunproxy"), logging.getLogger("asyncssh")
    before = (ours.handlers[:], ours.propagate, ours.level, theirs.level)
    yield
    ours.handlers[:], ours.propagate = before[0], before[1]
    ours.setLevel(before[2])
    theirs.setLevel(before[3])


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [
        (-1, ["WARNING"]),
        (0, ["WARNING"]),
        (1, ["WARNING", "INFO"]),
        (2, ["WARNING", "INFO", "DEBUG"]),
        (3, ["WARNING", "INFO", "DEBUG", "TRACE"]),
        (9, ["WARNING", "INFO", "DEBUG", "TRACE"]),
    ],
)
def test_verbosity(verbosity: int, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(verbosity)
    logger = logging.getLogger("tunproxy.somewhere")
    for level in (logging.WARNING, logging.INFO, logging.DEBUG, log.TRACE):
        logger.log(level, "hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split()[2] for line in lines] == expected
    assert all(line.endswith("tunproxy.somewhere: hello") for line in lines)


def test_setup_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(0)
    log.setup(0)
    logging.getLogger("tunproxy").warning("hello")
    assert capsys.readouterr().err.count("hello") == 1


def test_connections_of_asyncssh_are_for_the_most_curious_only() -> None:
    log.setup(2)
    assert logging.getLogger("asyncssh").level == logging.WARNING
    log.setup(3)
    assert logging.getLogger("asyncssh").level == log.TRACE
