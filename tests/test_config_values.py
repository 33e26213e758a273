"""What texts in a config mean."""

from __future__ import annotations

import pytest

from tunproxy.config_values import split_filter, split_place


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.com", "example.com", None),
        ("Example.COM.:443", "example.com", 443),
        ("bücher.example:1", "xn--bcher-kva.example", 1),
        ("_dmarc.example.com", "_dmarc.example.com", None),
        ("192.0.2.1", "192.0.2.1", None),
        ("192.0.2.1:65535", "192.0.2.1", 65535),
        ("2001:db8::1", "2001:db8::1", None),
        ("[2001:DB8:0::1]:22", "2001:db8::1", 22),
        ("[::1]", "::1", None),
        (":53", "", 53),
    ],
)
def test_filter(text: str, host: str, port: int | None) -> None:
    assert split_filter(text) == (host, port)


# fmt: off
NO_FILTERS = (
    "", ":", "a:", "a:b", "a:b:c", ":0", ":65536", ":1 ", "a b", "a:1\n", "a..b", ".", "x" * 64,
    "443", "10.0.0", "10.0.0.256:1", "1.2.3.4.", "user@host", "10.0.0.0/8", "*.example.com",
    "[::1", "::1]:2", "[::1]2", "[::1]:", "[1.2.3.4]:5", "[a]:1", "fe80::1%eth0", "[::g]:1",
)
# fmt: on


@pytest.mark.parametrize("text", NO_FILTERS)
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(ValueError, match="expected HOST, HOST:PORT or :PORT"):
        split_filter(text)


def test_split_place() -> None:
    assert split_place("127.0.0.1:7300") == ("127.0.0.1", 7300)
    assert split_place("[2001:DB8::1]:1") == ("2001:db8::1", 1)
