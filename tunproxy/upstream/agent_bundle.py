"""The text of the far half, in one piece, and the command that runs it.

The parts are sent as they are: as modules of a package that exists in memory alone.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_PYTHON, OLD_PYTHON = 127, 125
"""Exit statuses of the command."""

BOOTSTRAP = (
    f"import sys;sys.version_info<(3,6) and sys.exit({OLD_PYTHON});"
    "exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
)
"""Reads the length of the text in a line, and the text. It may read beyond, so nothing may follow
before the greeting."""

COMMAND = (
    "exec sh -c 'for p in python3 python; do command -v $p >/dev/null 2>&1 && "
    f'exec $p -BIS -c "{BOOTSTRAP}"; done; exit {NO_PYTHON}\''
)
"""For any login shell, csh and fish too. Isolated from the account's own modules, and without
writing compiled ones."""

PARTS = ("frames", "kernel", "output", "names", "echo", "source", "program")
"""Each imports only those before it."""

_LOADER = """
import sys, types
def load(name, text):
    module = types.ModuleType("tunproxy_agent." + name)
    module.__package__ = "tunproxy_agent"
    sys.modules[module.__name__] = module
    exec(compile(text, name + ".py", "exec"), vars(module))
    return module
package = types.ModuleType("tunproxy_agent")
package.__path__ = []
sys.modules["tunproxy_agent"] = package
"""


def part(name: str) -> str:
    """The text of one of PARTS."""
    return pathlib.Path(__file__).with_name(f"agent_{name}.py").read_text(encoding="utf-8")


def assembled(parts: Mapping[str, str]) -> bytes:
    """What is written to the command's standard input; the last of ``parts`` has the main
    function."""
    lines = [f"load('agent_{name}', {text!a})" for name, text in parts.items()]
    text = "\n".join([_LOADER, *lines[:-1], f"{lines[-1]}.main()\n"]).encode("ascii")
    return b"%d\n" % len(text) + text


# Read while the code is loaded: later the engine may not be allowed to.
BUNDLE = assembled({name: part(name) for name in PARTS})
"""The whole, as it is sent."""
