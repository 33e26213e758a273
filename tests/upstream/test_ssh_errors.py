"""Every sentence names the server and says what to do; none is a traceback."""

from __future__ import annotations

import socket

import asyncssh
import pytest

from tunproxy.errors import Refusal, ServerError
from tunproxy.upstream.ssh_errors import Circumstances, LoginRefused, open_failed, server_error


def circumstances() -> Circumstances:
    return Circumstances("exit.test", 2222, "me", ("/home/me/.ssh/known_hosts",))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "cannot be resolved"),
        (ConnectionRefusedError(111, "x"), "refuses connections"),
        (TimeoutError(), "does not answer within 15 s"),
        (OSError(113, "x"), "No route to host"),
        (FileNotFoundError(2, "x", "/k"), "cannot read /k: No such file or directory"),
        (asyncssh.ConnectionLost("Connection lost"), "ended the login (Connection lost)"),
        (asyncssh.ProtocolError("bad"), "ended the login (bad)"),
        (asyncssh.ConfigParseError("c line 3: nonsense"), "c line 3: nonsense"),
        (asyncssh.ChannelOpenError(1, "open failed"), "the jump host does not permit"),
        (asyncssh.ChannelOpenError(2, "No route to host"), "cannot connect to the SSH server exit"),
        (asyncssh.PermissionDenied("x"), "does not let user me in"),
        (asyncssh.KeyExchangeFailed("no cipher"), "no algorithm in common (no cipher)"),
        (asyncssh.HostKeyNotVerifiable("Host key is not trusted"), "is not accepted"),
        (ValueError("odd"), "odd"),
    ],
)
def test_sentences(error: Exception, words: str) -> None:
    told = server_error(error, circumstances())
    assert words in str(told)
    assert "\n" not in str(told)
    assert ":" in str(told) or ";" in str(told), "what to do"


def test_what_is_a_sentence_already_stays() -> None:
    told = ServerError("x")
    assert server_error(told, circumstances()) is told


def test_only_refused_logins_are_not_to_be_tried_again_soon() -> None:
    assert isinstance(server_error(asyncssh.PermissionDenied("x"), circumstances()), LoginRefused)
    assert not isinstance(server_error(TimeoutError(), circumstances()), LoginRefused)


def test_after_connecting_silence_and_resets_mean_something_else() -> None:
    at = circumstances()
    at.connected = True
    assert "does not speak SSH" in str(server_error(TimeoutError(), at))
    assert "ended the login" in str(server_error(ConnectionResetError(104, "x"), at))
    at.host_key_known = True
    told = str(server_error(ConnectionResetError(104, "x"), at))
    assert "ssh-keygen -R '[exit.test]:2222' -f /home/me/.ssh/known_hosts" in told
    assert "no algorithm in common" in told
    at.greeted = True
    assert "ssh-keygen" not in str(server_error(ConnectionResetError(104, "x"), at))


def test_methods_and_locked_keys_are_named() -> None:
    at = circumstances()
    at.methods = ["publickey", "password"]
    assert "(tried: publickey, password)" in str(server_error(asyncssh.PermissionDenied("x"), at))
    at.locked = ["/home/me/.ssh/id"]
    assert "/home/me/.ssh/id, which is encrypted" in str(
        server_error(asyncssh.PermissionDenied("x"), at)
    )


def test_default_port_is_not_spelled_in_known_hosts() -> None:
    assert Circumstances("h").known_hosts_name == "h"
    assert Circumstances("h", 23).known_hosts_name == "[h]:23"


@pytest.mark.parametrize(
    ("code", "text", "refusal"),
    [
        (asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "open failed", Refusal.PROHIBITED),
        (asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "Connection refused", Refusal.PROHIBITED),
        (asyncssh.OPEN_CONNECT_FAILED, "Connection refused", Refusal.REFUSED),
        (asyncssh.OPEN_CONNECT_FAILED, "No route to host", Refusal.UNREACHABLE),
        (asyncssh.OPEN_CONNECT_FAILED, "Name or service not known", Refusal.UNREACHABLE),
        (asyncssh.OPEN_RESOURCE_SHORTAGE, "", Refusal.UNREACHABLE),
    ],
)
def test_open_failed(code: int, text: str, refusal: Refusal) -> None:
    failed = open_failed(asyncssh.ChannelOpenError(code, text))
    assert failed.refusal is refusal
    assert str(failed) == text
