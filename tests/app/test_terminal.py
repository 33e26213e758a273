"""Asking on a terminal: a pseudo-terminal, of which the test is the user."""

from __future__ import annotations

import os
import select
import termios
from typing import TYPE_CHECKING, Any

import pytest

from tunproxy.app.terminal import Question, printable

if TYPE_CHECKING:
    from collections.abc import Iterator


class User:
    """Who sits at the terminal ``path``."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        self.path = os.ttyname(self._slave)

    def close(self) -> None:
        os.close(self._slave)
        self.hang_up()

    def hang_up(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def see(self, expected: str) -> str:
        """Read what the terminal shows until it ends with ``expected``."""
        seen = ""
        while not seen.endswith(expected):
            assert select.select([self._master], [], [], 10)[0], f"only {seen!r} is to be seen"
            seen += os.read(self._master, 1000).decode()
        return seen

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)


@pytest.fixture
def user() -> Iterator[User]:
    user = User()
    yield user
    user.close()


def ask(user: User, prompt: str, *, echo: bool) -> Question:
    question = Question.ask(prompt, echo=echo, terminal=user.path)
    assert question is not None
    return question


def wait(question: Question) -> str | None:
    assert select.select([question], [], [], 10)[0]
    return question.answer()


def test_an_answer_that_may_be_seen(user: User) -> None:
    question = ask(user, "Really? ", echo=True)
    assert user.see("Really? ") == "Really? "
    user.type("yes\r")
    assert wait(question) == "yes"
    assert user.see("\r\n") == "yes\r\n"
    question.close()


def test_an_answer_that_may_not_be_seen(user: User) -> None:
    before = user.modes
    question = ask(user, "Passphrase: ", echo=False)
    user.see("Passphrase: ")
    user.type("secret\r")
    assert wait(question) == "secret"
    question.close()
    assert user.see("\r\n") == "\r\n"
    assert user.modes == before


def test_the_terminal_is_as_before_when_nobody_answers(user: User) -> None:
    before = user.modes
    question = ask(user, "Passphrase: ", echo=False)
    assert user.modes != before
    question.close()
    assert user.modes == before


def test_what_was_typed_before_is_no_answer(user: User) -> None:
    user.type("curious\r")
    user.see("\r\n")
    question = ask(user, "Passphrase: ", echo=False)
    with pytest.raises(BlockingIOError):
        question.answer()
    question.close()


def test_an_unfinished_line_is_no_answer(user: User) -> None:
    question = ask(user, "Name: ", echo=True)
    user.type("ad")
    user.see("ad")
    assert not select.select([question], [], [], 0)[0]
    user.type("a\r")
    assert wait(question) == "ada"
    question.close()


def test_end_of_file_is_no_answer(user: User) -> None:
    question = ask(user, "Name: ", echo=True)
    user.type("\x04")
    assert wait(question) is None
    question.close()


def test_an_empty_answer_is_one(user: User) -> None:
    question = ask(user, "Name: ", echo=True)
    user.type("\r")
    assert wait(question) == ""
    question.close()


def test_a_terminal_that_hangs_up(user: User) -> None:
    question = ask(user, "Passphrase: ", echo=False)
    user.hang_up()
    assert wait(question) is None
    question.close()


def test_no_terminal() -> None:
    before = os.listdir("/proc/self/fd")
    assert Question.ask("Name: ", echo=True, terminal="/dev/absent") is None
    assert Question.ask("Name: ", echo=False, terminal="/dev/null") is None
    assert os.listdir("/proc/self/fd") == before


def test_a_prompt_does_not_command_the_terminal(user: User) -> None:
    question = ask(user, "\x1b]0;title\x07Password:\r ", echo=True)
    assert user.see(" ") == "?]0;title?Password:? "
    question.close()


def test_printable() -> None:
    assert printable("Grüße 東\n") == "Grüße 東\n"
    assert printable("a\tb\x9b\u202e\udc80") == "a?b???"
