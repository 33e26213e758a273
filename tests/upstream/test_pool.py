"""Several connections to real servers: how many there are, what goes where, and who is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import signal
import socket
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from tests.helpers.aio import Origin, Recorder, both_loops, echo, free_port, plain_socket, until
from tests.helpers.exits import Person, settings
from tests.helpers.sshd import Sshd
from tunproxy import config
from tunproxy.errors import OpenFailed, ServerError
from tunproxy.upstream import pool as pool_module
from tunproxy.upstream import pool_load
from tunproxy.upstream.exit import generate_key
from tunproxy.upstream.pool import SshPool
from tunproxy.upstream.pool_load import AUTO_MOST, wanted
from tunproxy.upstream.ssh import LinkState
from tunproxy.upstream.vpn_terms import Wish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tunproxy.upstream.pool_load import Connections

SOURCE = ("192.0.2.1", 40000)
CHUNK = bytes(64 * 1024)


PLAIN_SHELL = {"SetEnv": "HOME=/nonexistent"}
"""What the server runs for us is not to wait for what somebody has put into a .bashrc."""


@pytest.fixture
def own_sshd(tmp_path: pathlib.Path) -> Iterator[Sshd]:
    """One that the test may kill."""
    with Sshd(tmp_path / "sshd", options=PLAIN_SHELL) as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A pool that looks at its load all the time."""
    monkeypatch.setattr(pool_module, "LOOK_S", 0.01)
    return monkeypatch


@contextlib.asynccontextmanager
async def pool_through(
    server: config.Server, ask: Person | None = None, states: list[LinkState] | None = None
) -> AsyncIterator[SshPool]:
    """A pool that is connected and stays so."""
    pool = SshPool(
        server,
        make_socket=plain_socket,
        ask=ask or Person(),
        on_state=(states if states is not None else []).append,
        random=lambda: 0.01,
    )
    running = None
    try:
        await pool.connect()
        running = asyncio.create_task(pool.run(), name="run")
        yield pool
    finally:
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await pool.close()


async def opened(pool: SshPool, port: int, count: int = 1) -> list[Recorder]:
    """``count`` flows, opened one after the other, each of which has echoed an octet."""
    recorders = []
    for _ in range(count):
        recorder = Recorder()
        recorder.stream = await pool.open("127.0.0.1", port, SOURCE, recorder)
        recorder.stream.write(b"x")
        await recorder.wait("data")
        recorders.append(recorder)
    return recorders


async def has(pool: SshPool, connections: int) -> None:
    await until(lambda: pool.connections == connections, f"{connections} connections")


async def looks(quick: pytest.MonkeyPatch, count: int) -> None:
    """Wait until the pool has looked at its load ``count`` times."""
    seen: list[int] = []

    def counting(most: Connections, loads: Any) -> int:
        seen.append(len(loads))
        return wanted(most, loads)

    with quick.context() as patch:
        patch.setattr(pool_module, "wanted", counting)
        await until(lambda: len(seen) >= count, f"{count} looks")


def serving(sshd: Sshd) -> list[int]:
    """The processes that serve a connection each, the oldest first, without their children."""
    found = []
    pids = sshd.connection_pids()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) not in pids:
                found.append((int(fields[19]), pid))
    return [pid for _, pid in sorted(found)]


def kill_one(sshd: Sshd, pid: int) -> None:
    assert pid in serving(sshd)
    os.kill(pid, signal.SIGKILL)


# Coming and going


@both_loops
async def test_opened_when_there_is_a_flow(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    states: list[LinkState] = []
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=3), states=states) as pool,
    ):
        assert (pool.connections, pool.channels) == (1, 0)
        await opened(pool, origin.port)
        await has(pool, 3)
        assert own_sshd.log().count("Accepted publickey") == 3
        assert (pool.state, states) == (LinkState.UP, [LinkState.UP])
    assert states[-1] is LinkState.CLOSED


@both_loops
async def test_one_is_one(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=1)) as pool,
    ):
        await opened(pool, origin.port, 20)
        assert pool.connections == 1
        assert own_sshd.log().count("Accepted publickey") == 1


@both_loops
async def test_auto_on_a_short_path(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """Bulk needs no second connection; a crowd does."""
    async with Origin(echo) as origin, pool_through(settings(own_sshd)) as pool:
        (bulk,) = await opened(pool, origin.port)
        for _ in range(64):
            bulk.stream.write(CHUNK)
        await bulk.wait_for_octets(64 * len(CHUNK))
        await looks(quick, 3)
        assert pool.connections == 1
        quick.setattr(pool_load, "CROWD", 4)
        await opened(pool, origin.port, 3)
        await has(pool, 2)
        await looks(quick, 3)
        assert pool.connections == 2


@both_loops
async def test_auto_on_a_long_path(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """What any path is here is long, and any load is bulk."""
    quick.setattr(pool_load, "LONG_PATH_S", 0.0)
    quick.setattr(pool_load, "BULK_BYTES", 0.01)
    async with Origin(echo) as origin, pool_through(settings(own_sshd)) as pool:
        (bulk,) = await opened(pool, origin.port)
        while pool.connections < AUTO_MOST:
            bulk.stream.write(CHUNK)
            await asyncio.sleep(0.001)
        assert own_sshd.log().count("Accepted publickey") == AUTO_MOST


@both_loops
async def test_closed_when_idle(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    quick.setattr(pool_module, "IDLE_S", 0.05)
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2)) as pool,
    ):
        for round_ in (1, 2):
            flows = await opened(pool, origin.port)
            await has(pool, 2)
            flows += await opened(pool, origin.port)
            for flow in flows:
                flow.stream.write_eof()
                await flow.wait("lost")
                assert flow.reset is False
            await has(pool, 1)
            assert own_sshd.log().count("Accepted publickey") == 1 + round_
        assert (pool.reconnects, pool.counters) == (0, {})


# Placing flows


@both_loops
async def test_where_the_fewest_are(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """Each connection's end is the end of its share."""
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=3)) as pool,
    ):
        flows = await opened(pool, origin.port)
        await has(pool, 3)
        flows += await opened(pool, origin.port, 8)
        assert pool.channels == 9
        kill_one(own_sshd, serving(own_sshd)[0])
        await until(lambda: sum(flow.lost for flow in flows) == 3, "three flows to end")
        assert all(flow.reset for flow in flows if flow.lost)
        await until(lambda: pool.channels == 6, "their channels to end")
        for flow in flows:
            if not flow.lost:
                flow.stream.write(b"y")
                await flow.wait_for_octets(2)
        assert pool.connections == 2


@both_loops
async def test_flood_is_spread(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """Those that wait for their turn count where they wait."""
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2)) as pool,
    ):
        await opened(pool, origin.port)
        await has(pool, 2)
        flows = [Recorder() for _ in range(301)]
        await asyncio.gather(*(pool.open("127.0.0.1", origin.port, SOURCE, flow) for flow in flows))
        kill_one(own_sshd, serving(own_sshd)[0])
        await has(pool, 1)
        assert 120 < pool.channels < 182


@both_loops
async def test_rather_not_beside_bulk(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """Of two connections with as many flows, the next one goes where less was carried."""
    counted: dict[int, int] = {}

    def carried(sock: socket.socket | None) -> tuple[int, int] | None:
        """The connection that was there first receives a MiB between any two looks."""
        if sock is None:
            return None
        port = sock.getsockname()[1]
        is_first = port == next(iter(counted), port)
        counted[port] = counted.get(port, 0) + (is_first << 20)
        return 0, counted[port]

    quick.setattr(pool_module, "carried", carried)
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2)) as pool,
    ):
        (first_pid,) = serving(own_sshd)
        (bulk,) = await opened(pool, origin.port)
        await has(pool, 2)
        await looks(quick, 3)
        quiet = await opened(pool, origin.port, 2)
        (last,) = await opened(pool, origin.port)
        kill_one(own_sshd, first_pid)
        await bulk.wait("lost")
        await last.wait("lost")
        assert not any(flow.lost for flow in quiet)


# Losing connections


@both_loops
async def test_another_takes_the_place_of_the_first(
    quick: pytest.MonkeyPatch, own_sshd: Sshd
) -> None:
    states: list[LinkState] = []
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2), states=states) as pool,
    ):
        (first_pid,) = serving(own_sshd)
        flows = await opened(pool, origin.port)
        await has(pool, 2)
        resolvers, hosts = pool.resolver_addresses, pool.hosts_file
        assert hosts is not None
        kill_one(own_sshd, first_pid)
        await flows[0].wait("lost")
        await has(pool, 1)
        await opened(pool, origin.port, 2)
        assert await (await pool.command("exit 3")).wait() == 3
        assert states == [LinkState.UP, LinkState.UP]
        assert (pool.state, pool.reconnects) == (LinkState.UP, 0)
        await pool.surveyed()
        assert (pool.resolver_addresses, pool.hosts_file) == (resolvers, hosts)
        assert pool.cipher is not None
        # Whoever has taken over is the one that is made again.
        own_sshd.kill_connections()
        await until(lambda: states[2:] == [LinkState.DOWN, LinkState.UP], "the reconnect")
        assert pool.reconnects == 1
        await opened(pool, origin.port)


@both_loops
async def test_lost_one_is_not_made_again_at_once(
    quick: pytest.MonkeyPatch, own_sshd: Sshd
) -> None:
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2)) as pool,
    ):
        (first_pid,) = serving(own_sshd)
        await opened(pool, origin.port)
        await has(pool, 2)
        (other_pid,) = set(serving(own_sshd)) - {first_pid}
        kill_one(own_sshd, other_pid)
        await has(pool, 1)
        await looks(quick, 5)
        assert pool.counters["connection_lost"] == 1
        assert own_sshd.log().count("Accepted publickey") == 2


@both_loops
async def test_open_moves_to_another_connection(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """One that is under way when its connection is lost is done on another."""
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2)) as pool,
    ):
        await opened(pool, origin.port)
        await has(pool, 2)
        pids = serving(own_sshd)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        recorders = [Recorder() for _ in range(4)]
        opens = [
            asyncio.create_task(pool.open("127.0.0.1", origin.port, SOURCE, recorder), name="open")
            for recorder in recorders
        ]
        await until(lambda: pool.channels == 5, "the opens to be under way")
        kill_one(own_sshd, pids[0])
        os.kill(pids[1], signal.SIGCONT)
        for stream, recorder in zip(await asyncio.gather(*opens), recorders, strict=True):
            stream.write(b"x")
            await recorder.wait("data")


@both_loops
async def test_all_lost_while_another_is_opened(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """The login that nobody needs any more holds nothing up."""
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2)) as pool,
    ):
        await opened(pool, origin.port)
        await has(pool, 2)
        own_sshd.kill()
        await until(lambda: pool.state is LinkState.DOWN, "the loss")
        own_sshd.start()
        await until(lambda: pool.state is LinkState.UP, "the reconnect")
        await opened(pool, origin.port)


@both_loops
async def test_refusals_of_targets_are_the_caller_s(own_sshd: Sshd) -> None:
    async with pool_through(settings(own_sshd)) as pool:
        with pytest.raises(OpenFailed, match="Connection refused"):
            await pool.open("127.0.0.1", free_port(), SOURCE, Recorder())
        assert pool.counters == {"refused": 1}


@both_loops
async def test_first_login_fails(own_sshd: Sshd) -> None:
    own_sshd.kill()
    with pytest.raises(ServerError, match="refuses connections"):
        async with pool_through(settings(own_sshd)):
            raise AssertionError("it has connected")


# Servers that do not want it


@both_loops
async def test_max_startups(quick: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """A server that is busy is left alone, and asked again when it has been away."""
    quick.setattr(pool_module, "RETRY_S", 0.0)
    quick.setattr(pool_module, "STABLE_AFTER_S", 0.0)
    with Sshd(tmp_path / "busy", options={**PLAIN_SHELL, "MaxStartups": "1"}) as sshd:
        async with (
            Origin(echo) as origin,
            pool_through(settings(sshd, connections=4)) as pool,
        ):
            # Who has not logged in yet occupies the only place.
            with socket.create_connection((sshd.listen, sshd.port)) as loiterer:
                assert loiterer.recv(4) == b"SSH-"
                await opened(pool, origin.port)
                tries = pool_module.TRIES
                await until(lambda: pool.counters["connection_refused"] == tries, "refusals")
                await looks(quick, 10)
                await opened(pool, origin.port)
            assert pool.counters == {"connection_refused": tries}
            assert sshd.log().count("Accepted publickey") == 1
            sshd.kill_connections()
            await until(lambda: pool.reconnects == 1, "the reconnect")
            await opened(pool, origin.port)
            await has(pool, 4)


class Guard(asyncssh.SSHServer):
    """Lets in who knows that the password is "sesame", except whom it hangs up on then."""

    logins = 0
    hang_up_on: tuple[int, ...] = ()

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        type(self).logins += 1
        if self.logins in self.hang_up_on:
            self.connection.abort()
        return password == "sesame"

    def connection_requested(self, *_: Any) -> bool:
        return True


class OneTime(Guard):
    """Wants something that nobody knows beforehand."""

    def password_auth_supported(self) -> bool:
        return False

    def kbdint_auth_supported(self) -> bool:
        return True

    def get_kbdint_challenge(self, *_: str) -> Any:
        type(self).logins += 1
        return "", "", "", [("Code: ", False)]

    def validate_kbdint_response(self, username: str, responses: Any) -> bool:
        return list(responses) == ["42"]


@contextlib.asynccontextmanager
async def guarded(
    guard: type[Guard], directory: pathlib.Path, *hang_up_on: int
) -> AsyncIterator[tuple[config.Server, type[Guard]]]:
    """A server behind a guard of its own, and how to log in to it."""
    kind = type("Own", (guard,), {"logins": 0, "hang_up_on": hang_up_on})
    generate_key(directory / "guard")
    acceptor = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=kind, server_host_keys=[str(directory / "guard")],
        gss_host=None,
    )  # fmt: skip
    port = acceptor.get_port()
    known_hosts = directory / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {(directory / 'guard.pub').read_text()}")
    try:
        yield (
            config.Server(
                target="me@127.0.0.1",
                port=port,
                known_hosts=str(known_hosts),
                ssh_config="none",
                connections=3,
            ),
            kind,
        )
    finally:
        acceptor.close()
        await acceptor.wait_closed()


@both_loops
async def test_password_is_asked_once(quick: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    person = Person("sesame")
    async with (
        Origin(echo) as origin,
        guarded(Guard, tmp_path) as (server, guard),
        pool_through(server, person) as pool,
    ):
        await opened(pool, origin.port)
        await has(pool, 3)
        assert guard.logins == 3
        assert len(person.prompts) == 1


@both_loops
async def test_password_outlives_a_login_that_breaks_off(
    quick: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    quick.setattr(pool_module, "RETRY_S", 0.0)
    person = Person("sesame")
    async with (
        Origin(echo) as origin,
        guarded(Guard, tmp_path, 2, 3) as (server, guard),
        pool_through(server, person) as pool,
    ):
        await opened(pool, origin.port)
        await has(pool, 3)
        assert guard.logins == 5
        assert pool.counters == {"connection_refused": 2}
        assert len(person.prompts) == 1


@both_loops
async def test_nobody_is_asked_for_more(quick: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """What only a person can answer is not asked for a further connection, nor tried again."""
    quick.setattr(pool_module, "RETRY_S", 0.0)
    person = Person("42", "42", "42")
    async with (
        Origin(echo) as origin,
        guarded(OneTime, tmp_path) as (server, guard),
        pool_through(server, person) as pool,
    ):
        await opened(pool, origin.port)
        await until(lambda: pool.counters["connection_refused"] == 1, "the refusal")
        await looks(quick, 10)
        assert (pool.connections, guard.logins) == (1, 2)
        assert len(person.prompts) == 1


# The rest of the interface


@both_loops
async def test_what_is_no_flow_goes_to_the_first(own_sshd: Sshd) -> None:
    async with pool_through(settings(own_sshd)) as pool:
        assert pool.addresses == ("127.0.0.1",)
        assert pool.names == ()
        assert pool.connected_at is not None
        assert pool.connection_path == f"fast: {pool.cipher}"
        command = await pool.command("exit 3")
        assert await command.wait() == 3
        assert await pool.agree(Wish(kind="tun")) is None


@both_loops
async def test_closed_while_another_is_opened(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=4)) as pool,
    ):
        (flow,) = await opened(pool, origin.port)
    assert flow.lost
    assert (pool.state, pool.connections, pool.channels) == (LinkState.CLOSED, 0, 0)
    await until(lambda: not own_sshd.connection_pids(), "the server to forget all")
    with pytest.raises(OpenFailed, match="closed"):
        await pool.open("127.0.0.1", origin.port, SOURCE, Recorder())
