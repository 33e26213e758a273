"""Rules that change while they are in force."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import both_loops, until
from tunproxy.app import rulebook, rulefiles
from tunproxy.app.rulebook import Rulebook
from tunproxy.config import Config, Rules
from tunproxy.errors import ConfigError

if TYPE_CHECKING:
    import pathlib

    from tunproxy.app.rulefiles import Edition


class Book:
    """A rulebook of one file, and what has come of it."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.path = directory / "my.list"
        self.path.write_text("MATCH,PROXY\n")
        self.config = Config(rules=Rules(files=("my.list",), directory=str(directory)))
        self.rulebook = Rulebook(rulefiles.read(self.config))
        self.changes: list[Edition] = []
        self.rulebook.on_change = self.changes.append

    @property
    def rules(self) -> list[str]:
        return [decision.rule for decision in self.rulebook.edition.table.decisions]


@pytest.fixture
def book(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Book:
    monkeypatch.setattr(rulebook, "LOOK_S", 0.01)
    return Book(tmp_path)


@both_loops
async def test_reload(book: Book) -> None:
    book.path.write_text("MATCH,DIRECT\n")
    edition = await book.rulebook.reload(book.config)
    assert book.changes == [edition]
    assert book.rulebook.edition is edition
    assert "MATCH,DIRECT" in book.rules


@both_loops
async def test_wrong_rules_are_not_put_in_force(book: Book) -> None:
    book.path.write_text("MATCH\n")
    with pytest.raises(ConfigError, match=r"my\.list:1"):
        await book.rulebook.reload(book.config)
    assert book.changes == []
    assert "MATCH,PROXY" in book.rules


@both_loops
async def test_change_is_seen(book: Book, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    watching = asyncio.get_running_loop().create_task(book.rulebook.watch(), name="watch")
    book.path.write_text("MATCH,DIRECT\n")
    await until(lambda: "MATCH,DIRECT" in book.rules, "the change")
    assert len(book.changes) == 1
    # What is wrong is said once, and what is right again is taken again.
    book.path.write_text("NONSENSE\n")
    await until(lambda: "stay as they were" in caplog.text, "the complaint")
    assert "MATCH,DIRECT" in book.rules
    book.path.write_text("MATCH,REJECT\n")
    await until(lambda: "MATCH,REJECT" in book.rules, "the next change")
    assert caplog.text.count("stay as they were") == 1
    watching.cancel()
