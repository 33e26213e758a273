"""The architecture, as a test: who imports whom, what the pure layers keep away from, what is
never called, and that every module has its tests.

The checker reads the sources, it imports nothing. Its own tests are the snippets at the end.
"""

from __future__ import annotations

import ast
import pathlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]

COMMON = frozenset({"errors", "log", "config", "config_check", "config_values", "ipnet_codec"})
"""Modules that every layer may import; they import each other only."""

MAY_IMPORT = {
    "wire": {"wire"},
    "stack": {"wire", "stack"},
    "flow": {"wire", "stack", "flow"},
    "upstream": {"wire", "upstream"},
    "linux": {"linux"},
    "app": {"wire", "stack", "flow", "upstream", "linux", "app"},
    "cli": {"wire", "stack", "flow", "upstream", "linux", "app", "cli"},
    "rules": set(),
}
"""Layer -> layers it may import (DESIGN: ``wire -> stack -> flow -> app -> cli``)."""

PURE = frozenset({"wire", "stack", "flow"})

# fmt: off
IMPURE_MODULES = frozenset({
    "asyncio", "asyncssh", "concurrent", "datetime", "fcntl", "glob", "http", "io",
    "multiprocessing", "os", "pathlib", "queue", "random", "resource", "sched",
    "secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl",
    "subprocess", "sys", "tempfile", "threading", "time", "urllib", "uuid", "uvloop",
})
# fmt: on
"""What brings time, randomness, the system or an event loop into a pure layer."""

ASYNCSSH_IN = ("upstream/ssh*.py", "upstream/exit.py")

TESTED_ELSEWHERE = {
    "ipnet_codec.py": "test_config.py",
    "app/daemon.py": "e2e/test_privileges.py",
    "app/session.py": "e2e/test_data.py",
    "app/steering.py": "e2e/test_rules.py",
    "app/demo.py": "cli/test_demo.py",
    "app/hubmember.py": "app/test_hubservice.py",
    "cli/run.py": "cli/test_main.py",
    "flow/datagrams.py": "flow/test_engine_udp.py",
    "flow/dnsforward.py": "flow/test_dnsservice.py",
    "flow/dnsown.py": "flow/test_nameserver.py",
    "flow/dnsways.py": "flow/test_nameserver_forwarding.py",
    "flow/mappedflows.py": "flow/test_engine_system.py",
    "flow/refuser.py": "flow/test_engine_refusals.py",
    "flow/settings.py": "flow/test_engine_remote.py",
    "flow/targets.py": "flow/test_engine_refusals.py",
    "flow/tcpflows.py": "flow/test_engine.py",
    "app/supervision.py": "app/test_supervisor.py",
    "app/vpnsession.py": "e2e/test_vpn.py",
    "upstream/ssh_asyncssh.py": "upstream/test_ssh_fast.py",
    "upstream/ssh_channel.py": "upstream/test_ssh_fast.py",
    "upstream/ssh_stream.py": "upstream/test_ssh.py",
    "upstream/ssh_vpn.py": "upstream/test_ssh_tunnel.py",
    "cli/up.py": "cli/test_main.py",
    "wire/dnsanswer.py": "wire/test_dns.py",
    "wire/dnsmessage.py": "wire/test_dns.py",
    "wire/dnsresponse.py": "wire/test_dns.py",
}
"""Modules that are tested together with another one."""

DECLARATIONS = frozenset({"errors.py", "flow/events.py", "upstream/base.py"})
"""Modules without a statement to test."""


def violations(path: str, source: str) -> list[str]:
    """Return what is wrong with the module at ``path`` (below tunproxy/), one line each."""
    tree = ast.parse(source)
    found = [*_wrong_imports(path, tree), *_wrong_calls(path, tree), *_silent_handlers(tree)]
    return [f"{path}:{line}: {text}" for line, text in found]


def missing_tests(modules: set[str], tests: set[str]) -> list[str]:
    """Return the modules (below tunproxy/) that have no test file (below tests/).

    The tests of ``wire/ip.py`` are in ``wire/test_ip.py``, or in ``wire/test_ip_PART.py``.
    """

    def is_tested(module: str) -> bool:
        folder, slash, name = module.removesuffix(".py").rpartition("/")
        wanted = TESTED_ELSEWHERE.get(module, f"{folder}{slash}test_{name}.py")
        stem = wanted.removesuffix(".py")
        return wanted in tests or any(test.startswith(f"{stem}_") for test in tests)

    candidates = {module for module in modules if not pathlib.PurePath(module).match("__*__.py")}
    return sorted(module for module in candidates - DECLARATIONS if not is_tested(module))


def _imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and absolute name of each module that is imported, wherever it stands."""
    package = ["tunproxy", *pathlib.PurePosixPath(path).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # "from tunproxy import flow" names a layer, "from tunproxy.wire import ip" needs none.
            if name == "tunproxy":
                yield from ((node.lineno, f"tunproxy.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, name


def _wrong_imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    layer = pathlib.PurePosixPath(path).parts[0] if "/" in path else None
    may_import = MAY_IMPORT.get(layer, set()) if layer else set()
    for line, name in _imports(path, tree):
        top, _, rest = name.partition(".")
        if top == "tunproxy":
            part = rest.partition(".")[0]
            allowed = part in COMMON | may_import | {"", "__version__"} or path == "__main__.py"
            if not allowed:
                yield line, f"{layer or 'the common modules'} may not import {name}"
        elif layer in PURE and top in IMPURE_MODULES:
            yield line, f"{layer} is pure and may not import {name}"
        elif top == "asyncssh" and not any(
            pathlib.PurePosixPath(path).match(p) for p in ASYNCSSH_IN
        ):
            yield line, "only the ssh modules and exit.py of upstream may import asyncssh"


def _wrong_calls(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    dropped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else _name(node.func)
        if name in ("create_task", "ensure_future"):
            if id(node) in dropped:
                yield node.lineno, f"keep what {name}() returns, or the task may vanish"
            if name == "ensure_future" or not any(kw.arg == "name" for kw in node.keywords):
                yield node.lineno, "start tasks with create_task(..., name=...)"
        elif name == "open_connection":
            yield node.lineno, "open_connection() makes sockets that bypass nothing"
        elif name == "open" and isinstance(node.func, ast.Name) and path.split("/")[0] in PURE:
            yield node.lineno, "a pure layer opens no files"


def _silent_handlers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or _name(node.type) in ("Exception", "BaseException")
            if broad and all(isinstance(statement, ast.Pass) for statement in node.body):
                yield node.lineno, "an exception of any kind is swallowed"


def _name(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _modules() -> dict[str, pathlib.Path]:
    top = ROOT / "tunproxy"
    return {path.relative_to(top).as_posix(): path for path in sorted(top.rglob("*.py"))}


def test_modules_keep_to_their_layer() -> None:
    modules = _modules()
    assert {"errors.py", "upstream/base.py", "cli/main.py"} <= modules.keys()
    found = [
        line
        for name, path in modules.items()
        for line in violations(name, path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_every_module_has_tests() -> None:
    top = ROOT / "tests"
    tests = {path.relative_to(top).as_posix() for path in top.rglob("test_*.py")}
    missing = missing_tests(set(_modules()), tests)
    assert not missing, f"no tests for {', '.join(missing)}"


def test_every_layer_is_known() -> None:
    layers = {name.split("/")[0] for name in _modules() if "/" in name}
    assert layers <= MAY_IMPORT.keys()


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("wire/ip.py", "import tunproxy.stack.tcp", "wire may not import tunproxy.stack.tcp"),
        ("wire/ip.py", "from ..stack import tcp", "wire may not import tunproxy.stack"),
        ("wire/ip.py", "from tunproxy import flow", "wire may not import tunproxy.flow"),
        ("flow/key.py", "from .. import upstream", "flow may not import tunproxy.upstream"),
        ("flow/a/b.py", "from ...app import x", "flow may not import tunproxy.app"),
        ("upstream/ssh.py", "from ..flow.key import Key", "upstream may not import"),
        ("linux/tun.py", "from tunproxy.app import x", "linux may not import tunproxy.app"),
        ("app/relay.py", "from tunproxy.cli.main import main", "app may not import tunproxy.cli"),
        ("config.py", "from .wire import ip", "the common modules may not import tunproxy.wire"),
        ("stack/tcp.py", "import time", "stack is pure and may not import time"),
        (
            "stack/tcp.py",
            "def f():\n    from os import path",
            "stack is pure and may not import os",
        ),
        ("wire/ip.py", "import socket as s", "wire is pure and may not import socket"),
        ("flow/rules.py", "import asyncio.events", "flow is pure and may not import asyncio"),
        ("flow/rules.py", "open('x')", "a pure layer opens no files"),
        ("app/relay.py", "import asyncssh", "only the ssh modules"),
        ("upstream/pool.py", "from asyncssh import connect", "only the ssh modules"),
        ("app/x.py", "asyncio.create_task(f(), name='f')", "keep what create_task() returns"),
        ("app/x.py", "loop.create_task(f(), name='f')", "keep what create_task() returns"),
        ("app/x.py", "task = asyncio.create_task(f())", "start tasks with create_task(..., name"),
        ("app/x.py", "task = asyncio.ensure_future(f())", "start tasks with create_task(..., name"),
        ("app/x.py", "async def f():\n    await asyncio.open_connection('h', 1)", "bypass nothing"),
        ("app/x.py", "try:\n    f()\nexcept Exception:\n    pass", "any kind is swallowed"),
        ("app/x.py", "try:\n    f()\nexcept:\n    pass", "any kind is swallowed"),
    ],
)
def test_checker_finds(path: str, source: str, reason: str) -> None:
    found = violations(path, source)
    assert len(found) == 1
    assert reason in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "wire/ip.py",
            "import struct, ipaddress\nfrom ..errors import WireError\nfrom . import seq",
        ),
        ("flow/engine.py", "from tunproxy.config import Dns\nfrom ..stack.tcp import Endpoint"),
        ("upstream/ssh_link.py", "import asyncssh\nfrom .base import Stream"),
        ("upstream/exit.py", "import asyncssh"),
        ("app/daemon.py", "import asyncio\nfrom ..flow import engine\nfrom ..upstream import ssh"),
        ("app/x.py", "self._task = asyncio.create_task(f(), name='f')"),
        ("app/x.py", "tasks.add(asyncio.create_task(f(), name='f'))"),
        ("app/x.py", "try:\n    f()\nexcept OSError:\n    pass"),
        ("app/x.py", "open('x')"),
        ("cli/main.py", "from tunproxy import __version__"),
    ],
)
def test_checker_accepts(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_checker_misses_no_test_file() -> None:
    modules = {"wire/ip.py", "wire/__init__.py", "log.py", "cli/up.py"}
    assert missing_tests(modules, {"wire/test_ip.py", "test_log.py"}) == ["cli/up.py"]
    assert missing_tests(modules, {"wire/test_ip_v6.py", "test_logs.py"}) == ["cli/up.py", "log.py"]
    assert missing_tests(modules, {"cli/test_main.py"}) == ["log.py", "wire/ip.py"]
