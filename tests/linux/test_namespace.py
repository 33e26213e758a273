"""Namespaces and cables, with real packets through them."""

from __future__ import annotations

import os
import subprocess

import pytest

from tunproxy.errors import MachineError
from tunproxy.linux.namespace import Namespace, connect

pytestmark = pytest.mark.netns


def _run(namespace: Namespace, *argv: str) -> str:
    done = subprocess.run(
        namespace.command(argv), check=True, capture_output=True, text=True, timeout=20
    )
    return done.stdout


def test_packets_cross_the_cable() -> None:
    tag = os.getpid()
    with Namespace(f"tpa-{tag}") as a, Namespace(f"tpb-{tag}") as b:
        connect(a, "left", b, "right")
        a.add_address("left", "10.99.0.1/24", "fd99::1/64")
        b.add_address("right", "10.99.0.2/24", "fd99::2/64")
        assert a.has_link("left")
        assert not a.has_link("right")
        assert "1 received" in _run(a, "ping", "-c1", "-W5", "10.99.0.2")
        assert "1 received" in _run(a, "ping", "-c1", "-W5", "fd99::2")
        a.add_default_route("10.99.0.2")
        a.add_default_route("fd99::2")
        assert "default via 10.99.0.2" in _run(a, "ip", "route")
        assert "default via fd99::2" in _run(a, "ip", "-6", "route")


def test_leaving_removes_the_namespace_even_after_an_error() -> None:
    def fail(name: str) -> None:
        with Namespace(name) as namespace:
            raise LookupError(namespace.path)

    with pytest.raises(LookupError) as caught:
        fail(f"tpc-{os.getpid()}")
    assert not os.path.exists(str(caught.value))


def test_the_machines_own_namespace_sees_neither_end() -> None:
    tag = os.getpid()
    with Namespace(f"tpd-{tag}") as a, Namespace(f"tpe-{tag}") as b:
        before = set(os.listdir("/sys/class/net"))
        connect(a, "tpleft", b, "tpright")
        assert set(os.listdir("/sys/class/net")) == before


def test_an_address_is_tentative_until_nobody_else_has_it() -> None:
    tag = os.getpid()
    with Namespace(f"tpf-{tag}") as a, Namespace(f"tpg-{tag}") as b:
        connect(a, "left", b, "right")
        a.add_address("left", "fd99::1/64")
        # No carrier, so that the answer stays what it is.
        _run(a, "ip", "address", "add", "fd99::2/64", "dev", "left")
        assert not a.is_settled()
        _run(a, "ip", "address", "delete", "fd99::2/64", "dev", "left")
        assert a.is_settled()


def test_a_name_that_is_taken_is_refused() -> None:
    name = f"tph-{os.getpid()}"
    taken = pytest.raises(MachineError, match=f"'ip netns add {name}' failed .*File exists")
    with Namespace(name), taken:
        Namespace(name)


def test_without_ip_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MachineError, match="install iproute2"):
        Namespace("tpi")
