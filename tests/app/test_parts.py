"""What most runs do without is not loaded, and what a config needs is."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from tunproxy import ipnet_codec
from tunproxy.app import parts
from tunproxy.config import Config
from tunproxy.errors import ConfigError

EVERYTHING = {
    "tun": {"pcap": "/tmp/trace.pcap"},
    "udp": {"via": "tun"},
    "dns": {"rule": [{"suffix": ["test"], "server": "HTTPS://dns.test/dns-query"}]},
    "rules": {"geoip": "/tmp/country.mmdb"},
}


def config(**sections: object) -> Config:
    return msgspec.convert(sections, Config, dec_hook=ipnet_codec.dec_hook)


def loaded(*modules: str) -> set[str]:
    """What a process has loaded that has imported ``modules``."""
    script = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{script}print(*sys.modules)", *modules],
        capture_output=True,
        check=True,
        text=True,
    )
    return set(done.stdout.split())


def test_most_runs_need_nothing_more() -> None:
    plain = {"dns": {"rule": [{"suffix": ["test"], "server": "tls://dns.test"}]}}
    assert parts.needed(config()) == parts.needed(config(**plain)) == ["tunproxy.app.session"]
    assert parts.needed(config(), vpn=True) == ["tunproxy.app.vpnsession"]


@pytest.mark.parametrize(
    ("section", "module"),
    [
        ("tun", "tunproxy.app.pcap"),
        ("udp", "tunproxy.app.tunrelay"),
        ("dns", "tunproxy.upstream.resolver_https"),
        ("rules", "maxminddb"),
    ],
)
def test_what_a_config_needs(section: str, module: str) -> None:
    assert module in parts.needed(config(**{section: EVERYTHING[section]}))


def test_an_engine_has_loaded_nothing_that_few_need() -> None:
    plain, vpn = parts.needed(config()), parts.needed(config(), vpn=True)
    named = parts.needed(config(**EVERYTHING))
    found = loaded("tunproxy.app.daemon", *plain)
    assert not found & {*vpn, *named[1:], "click", "dpkt", "h2", "tunproxy.upstream.exit"}
    assert not loaded("tunproxy.app.daemon", *vpn) & {*plain, "tunproxy.flow.engine"}
    assert loaded("tunproxy.app.daemon", *named) >= {*plain, *named}


def test_a_part_that_cannot_be_loaded() -> None:
    with pytest.raises(ConfigError, match=r"needs tunproxy\.absent, which .*: restart tunproxy$"):
        parts.load(["tunproxy.app.ipc", "tunproxy.absent"])
