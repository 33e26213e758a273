"""The far half's text: what it keeps to, and that other Pythons run it."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.agent_half import FarHalf, bound, changed, port_of
from tunproxy.upstream import agent_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

SHELLS = [s for s in ("sh", "bash", "dash", "zsh", "ksh", "tcsh", "csh", "fish") if shutil.which(s)]

each_part = pytest.mark.parametrize("name", agent_bundle.PARTS)


def imports(node: ast.AST) -> Iterator[str]:
    """What is imported in ``node``, but for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield "." * child.level + (child.module or "")
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from imports(child)


@each_part
def test_python_3_6_can_read_it(name: str) -> None:
    ast.parse(agent_bundle.part(name), feature_version=(3, 6))


@each_part
def test_it_imports_what_is_there(name: str) -> None:
    """The standard library, and the parts before it."""
    before = agent_bundle.PARTS[: agent_bundle.PARTS.index(name)]
    parts = {f".agent_{other}" for other in before}
    found = set(imports(ast.parse(agent_bundle.part(name))))
    assert found
    assert found <= sys.stdlib_module_names | parts


@each_part
def test_annotations_are_texts(name: str) -> None:
    """Python 3.6 evaluates the others."""
    for node in ast.walk(ast.parse(agent_bundle.part(name))):
        if isinstance(node, ast.FunctionDef):
            hints = [argument.annotation for argument in node.args.args] + [node.returns]
            assert not any(isinstance(hint, ast.Subscript | ast.BinOp) for hint in hints)
        assert not isinstance(node, ast.AnnAssign)


def test_all_of_it_is_sent() -> None:
    length, _, text = agent_bundle.BUNDLE.partition(b"\n")
    assert int(length) == len(text) < 100_000
    assert text.isascii()
    with pytest.raises(AssertionError, match="PARTS"):
        changed(("no such text: PARTS", ""))


def test_command_is_for_any_shell() -> None:
    """csh takes no newline and no ! in quotes, fish a backslash for an escape."""
    assert not set(agent_bundle.COMMAND) & set("\n!\\")
    assert agent_bundle.COMMAND.count("'") == 2


@pytest.mark.parametrize("shell", SHELLS)
def test_command_is_run_by_the_shells_that_are_here(shell: str) -> None:
    """The program greets, and ends with its standard input."""
    command = [shell, "-c", agent_bundle.COMMAND]
    done = subprocess.run(command, input=agent_bundle.BUNDLE, capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith(b"TUNPROXY-AGENT 1 ")


def other_pythons() -> list[str]:
    """The versions that can be run here, beside the one of the tests."""
    found = (shutil.which(f"python3.{minor}") for minor in range(6, 20))
    return [
        python
        for python in found
        if python and not subprocess.run([python, "-c", ""], capture_output=True).returncode
    ]


@pytest.mark.parametrize("python", [sys.executable, *other_pythons()])
def test_every_python_that_is_here_runs_it(python: str) -> None:
    with FarHalf(python=python) as far, bound() as target:
        far.open(1)
        number = far.target("127.0.0.1", port_of(target))
        far.send(1, number, b"there")
        payload, sender = target.recvfrom(100)
        assert payload == b"there"
        target.sendto(b"and back", sender)
        assert far.received() == (1, number, b"and back")
