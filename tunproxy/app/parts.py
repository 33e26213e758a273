"""The parts of the engine that not every run needs: some MiB, imported where they are used.

The engine has to load its code before it gives up the privileges of root, and hears of the config
only afterwards. So the supervisor, who knows the config, tells it on the command line what it will
need. What the config asks for only when it is read again is loaded then, with the caller's rights.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..config import Config


def needed(config: Config, *, vpn: bool = False) -> list[str]:
    """Return the modules that a run with ``config`` needs, beside those of every run."""
    return list(_needed(config, vpn))


def load(modules: Iterable[str]) -> None:
    """Load ``modules``.

    Raises:
        ConfigError: one cannot be read with the rights that we have left.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            raise ConfigError(
                f"the config needs {name}, which cannot be loaded ({error}): restart tunproxy"
            ) from error


def _needed(config: Config, vpn: bool) -> Iterator[str]:
    yield "tunproxy.app.vpnsession" if vpn else "tunproxy.app.session"
    if config.tun.pcap is not None:
        yield "tunproxy.app.pcap"
    if config.udp.via == "tun":
        yield "tunproxy.app.rawlink"
        yield "tunproxy.app.tunrelay"
    if any(rule.server.lower().startswith("https:") for rule in config.dns.rule):
        yield "tunproxy.upstream.resolver_https"
    if config.rules.geoip is not None or config.rules.asn is not None:
        yield "maxminddb"
