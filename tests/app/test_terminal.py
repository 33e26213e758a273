"""Asking on a terminal: a pseudo-terminal, of which the test is the user."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

import pytest

from tests.helpers.pseudo_terminal import PseudoTerminal
from tunproxy.app.terminal import Question, printable

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def user() -> Iterator[PseudoTerminal]:
    user = PseudoTerminal()
    yield user
    user.close()


def ask(user: PseudoTerminal, prompt: str, *, echo: bool) -> Question:
    question = Question.ask(prompt, echo=echo, terminal=user.path)
    assert question is not None
    return question


def wait(question: Question) -> str | None:
    assert select.select([question], [], [], 10)[0]
    return question.answer()


def test_an_answer_that_may_be_seen(user: PseudoTerminal) -> None:
    question = ask(user, "Really? ", echo=True)
    assert user.see("Really? ") == "Really? "
    user.type("yes\r")
    assert wait(question) == "yes"
    assert user.see("\r\n") == "yes\r\n"
    question.close()


def test_an_answer_that_may_not_be_seen(user: PseudoTerminal) -> None:
    before = user.modes
    question = ask(user, "Passphrase: ", echo=False)
    user.see("Passphrase: ")
    user.type("secret\r")
    assert wait(question) == "secret"
    question.close()
    assert user.see("\r\n") == "\r\n"
    assert user.modes == before


def test_the_terminal_is_as_before_when_nobody_answers(user: PseudoTerminal) -> None:
    before = user.modes
    question = ask(user, "Passphrase: ", echo=False)
    assert user.modes != before
    question.close()
    assert user.modes == before


def test_what_was_typed_before_is_no_answer(user: PseudoTerminal) -> None:
    user.type("curious\r")
    user.see("\r\n")
    question = ask(user, "Passphrase: ", echo=False)
    with pytest.raises(BlockingIOError):
        question.answer()
    question.close()


def test_an_unfinished_line_is_no_answer(user: PseudoTerminal) -> None:
    question = ask(user, "Name: ", echo=True)
    user.type("ad")
    user.see("ad")
    assert not select.select([question], [], [], 0)[0]
    user.type("a\r")
    assert wait(question) == "ada"
    question.close()


def test_end_of_file_is_no_answer(user: PseudoTerminal) -> None:
    question = ask(user, "Name: ", echo=True)
    user.type("\x04")
    assert wait(question) is None
    question.close()


def test_an_empty_answer_is_one(user: PseudoTerminal) -> None:
    question = ask(user, "Name: ", echo=True)
    user.type("\r")
    assert wait(question) == ""
    question.close()


def test_a_terminal_that_hangs_up(user: PseudoTerminal) -> None:
    question = ask(user, "Passphrase: ", echo=False)
    user.hang_up()
    assert wait(question) is None
    question.close()


def test_no_terminal() -> None:
    before = os.listdir("/proc/self/fd")
    assert Question.ask("Name: ", echo=True, terminal="/dev/absent") is None
    assert Question.ask("Name: ", echo=False, terminal="/dev/null") is None
    assert os.listdir("/proc/self/fd") == before


def test_a_prompt_does_not_command_the_terminal(user: PseudoTerminal) -> None:
    question = ask(user, "\x1b]0;title\x07Password:\r ", echo=True)
    assert user.see(" ") == "?]0;title?Password:? "
    question.close()


def test_printable() -> None:
    assert printable("Grüße 東\n") == "Grüße 東\n"
    assert printable("a\tb\x9b\u202e\udc80") == "a?b???"
