"""What a pool asks a person, and what it does without."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import asyncssh

from tests.helpers.aio import Origin, both_loops, echo, until
from tests.helpers.exits import Person
from tests.helpers.pools import has, looks, opened, pool_through, quick
from tunproxy import config
from tunproxy.upstream import pool as pool_module
from tunproxy.upstream.exit import generate_key

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator

    import pytest

__all__ = ["quick"]


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
