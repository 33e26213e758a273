"""However it ends, the machine is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import CLIENT4, DEAD_RESOLVER, OUTSIDE4, SERVER4, STUB_RESOLVER, WORLD4
from tests.helpers.lab_http import whoami
from tests.helpers.lab_tunproxy import PROGRAM, changes, run_program, server_options, snapshot, up
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

OPTIONS = [(), ("--gateway",), ("--kill-switch",), ("--stack", "system")]


def reaches_world_directly(lab: Lab) -> bool:
    try:
        return whoami(lab.client, WORLD4) == CLIENT4
    except OSError:
        return False


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_stopped_by_a_signal(lab: Lab, number: signal.Signals, options: tuple[str, ...]) -> None:
    before = snapshot(lab.client)
    with up(lab, *options) as program:
        assert changes(lab.client, before)
        assert whoami(lab.client, WORLD4) == OUTSIDE4
        assert program.stop(number) == 0, program.output()
        assert changes(lab.client, before) == []
    assert reaches_world_directly(lab)


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_engine_killed(lab: Lab, options: tuple[str, ...]) -> None:
    """The supervisor undoes everything by itself."""
    before = snapshot(lab.client)
    with up(lab, *options) as program:
        os.kill(program.engine_pid(), signal.SIGKILL)
        assert program.wait() != 0
        assert changes(lab.client, before) == []
    assert reaches_world_directly(lab)


@pytest.mark.parametrize("options", OPTIONS[:2])
@pytest.mark.parametrize("engine_too", [False, True])
def test_supervisor_killed(lab: Lab, options: tuple[str, ...], engine_too: bool) -> None:
    """Nobody is left to undo anything, yet the machine works; ``recover`` tidies up."""
    before = snapshot(lab.client)
    with up(lab, *options) as program:
        engine = program.engine_pid()
        if engine_too:
            os.kill(engine, signal.SIGKILL)
        os.kill(program.pid, signal.SIGKILL)
        assert whoami(lab.client, SERVER4) == CLIENT4
        program.wait()
        until(lambda: reaches_world_directly(lab), "the world to be reached directly")
        run_program(lab, "recover")
        assert changes(lab.client, before) == []
    assert reaches_world_directly(lab)


def test_kill_switch_survives(lab: Lab) -> None:
    """Asked for, it keeps captured traffic in even when both processes are dead."""
    before = snapshot(lab.client)
    with up(lab, "--kill-switch") as program:
        engine = program.engine_pid()
        os.kill(program.pid, signal.SIGKILL)
        program.wait()
        until(lambda: engine not in lab.client.pids(), "the engine to end")
        assert whoami(lab.client, SERVER4) == CLIENT4
        assert not reaches_world_directly(lab)
        run_program(lab, "recover")
        assert changes(lab.client, before) == []
    assert reaches_world_directly(lab)


def test_run_killed(lab: Lab) -> None:
    """The command lives on, without us; ``recover`` does not harm it either."""
    before = snapshot(lab.client)
    command = ["run", f"root@{OUTSIDE4}", *server_options(lab), "--", "sh", "-c"]
    script = "echo started; read word; echo $word"
    with lab.client.popen(
        *PROGRAM, *command, script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"started\n"
        supervisor.kill()
        supervisor.wait()
        assert reaches_world_directly(lab)
        run_program(lab, "recover")
        assert changes(lab.client, before) == []
        assert supervisor.communicate(b"alive\n")[0] == b"alive\n"


def test_server_hangs_when_we_stop(lab: Lab) -> None:
    before = snapshot(lab.client)
    with up(lab) as program:
        lab.sshd.send_signal(signal.SIGSTOP)
        try:
            assert program.stop() == 0, program.output()
        finally:
            lab.sshd.send_signal(signal.SIGCONT)
    assert changes(lab.client, before) == []


def test_recover_leaves_the_living_alone(lab: Lab) -> None:
    with up(lab) as program:
        run_program(lab, "recover")
        assert whoami(lab.client, WORLD4) == OUTSIDE4
        assert program.running


def test_up_again_after_a_crash(lab: Lab) -> None:
    before = snapshot(lab.client)
    with up(lab) as crashed:
        os.kill(crashed.pid, signal.SIGKILL)
        crashed.wait()
        with up(lab) as program:
            assert whoami(lab.client, WORLD4) == OUTSIDE4
            assert program.stop() == 0, program.output()
        run_program(lab, "recover")
        assert changes(lab.client, before) == []


def test_local_stub_resolver(lab: Lab) -> None:
    """A resolver on the loopback is asked again as soon as we are gone."""
    lab.serve_names(lab.client, [STUB_RESOLVER], "no-resolv\nno-hosts\naddress=/test/192.0.2.99\n")
    lab.set_resolver(lab.client, STUB_RESOLVER)
    try:
        before = snapshot(lab.client)
        assert resolve(lab) == "192.0.2.99"
        with up(lab) as program:
            assert resolve(lab).startswith("198.1")
            assert program.stop() == 0, program.output()
        assert resolve(lab) == "192.0.2.99"
        assert changes(lab.client, before) == []
    finally:
        lab.client.kill_group("dnsmasq")
        lab.set_resolver(lab.client, DEAD_RESOLVER)


def resolve(lab: Lab) -> str:
    return lab.client.run("getent", "ahostsv4", "origin.test").stdout.split()[0]
