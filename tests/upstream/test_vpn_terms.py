"""What two ends of a VPN may say to each other."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunproxy.upstream import vpn_terms
from tunproxy.upstream.vpn_terms import Reply, Terms, Wish, decode_reply, decode_wish, encode

WISH = Wish(kind="tap", mtu=1400, big=True, addresses=("10.74.0.2/24", "fd00::2/64"))
TERMS = Terms(
    addresses=("10.74.0.2/24", "fd00::2/64"),
    peers=("10.74.0.1", "fd00::1"),
    routes=("0.0.0.0/0", "::/0", "192.0.2.0/24"),
    dns=("10.74.0.1",),
    mtu=1420,
    big=True,
)


def test_wish_comes_back() -> None:
    assert decode_wish(encode(WISH)) == WISH
    assert decode_wish(b"{}") == Wish(kind="tun", mtu=None, big=False, addresses=())


@pytest.mark.parametrize("reply", [Reply(terms=TERMS), Reply(refused="no")])
def test_reply_comes_back(reply: Reply) -> None:
    assert decode_reply(encode(reply)) == reply


def test_what_a_newer_version_adds_is_ignored() -> None:
    wish = json.loads(encode(WISH)) | {"colour": "blue"}
    assert decode_wish(json.dumps(wish).encode()) == WISH
    reply = {"terms": json.loads(encode(Reply(terms=TERMS)))["terms"] | {"colour": "blue"}}
    assert decode_reply(json.dumps(reply).encode()) == Reply(terms=TERMS)


@pytest.mark.parametrize(
    "wish",
    [
        {"kind": "gre"},
        {"mtu": 575},
        {"mtu": 65536},
        {"mtu": "1500"},
        {"addresses": ["10.0.0.1/33"]},
        {"addresses": ["fe80::1%eth0/64"]},
        {"addresses": ["10.0.0.1/24"] * 9},
        {"addresses": "10.0.0.1/24"},
        [],
        None,
    ],
)
def test_wishes_that_are_none(wish: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are for a log
        decode_wish(json.dumps(wish).encode())


@pytest.mark.parametrize(
    "terms",
    [
        {"peers": ["10.74.0.1/24"]},
        {"routes": ["10.74.0.1/24"]},  # has bits behind the mask
        {"routes": ["10.0.0.0/8"] * 257},
        {"routes": ["default"]},
        {"dns": ["resolver.example"]},
        {"mtu": 0},
        {"big": 1},
    ],
)
def test_terms_that_are_none(terms: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are for a log
        decode_reply(json.dumps({"terms": terms}).encode())


@pytest.mark.parametrize("reply", [{}, {"terms": {}, "refused": "no"}])
def test_a_reply_is_one_thing(reply: object) -> None:
    with pytest.raises(ValueError, match="either terms or a refusal"):
        decode_reply(json.dumps(reply).encode())


def test_length_is_limited() -> None:
    padding = b" " * vpn_terms.MAX_LEN
    with pytest.raises(ValueError, match="octets are more than"):
        decode_wish(encode(WISH) + padding)
    with pytest.raises(ValueError, match="octets are more than"):
        decode_reply(encode(Reply(refused="no")) + padding)


@given(st.binary() | st.integers(0, 30_000).map(lambda depth: b"[" * depth))
def test_any_octets_are_refused_in_order(octets: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode_wish(octets)
    with contextlib.suppress(ValueError):
        decode_reply(octets)
