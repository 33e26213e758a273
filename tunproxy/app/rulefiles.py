"""Rule files and databases, read all at once.

An *edition* is a compiled rule table with the databases that its rules ask, and the state of every
file that it was made of. Nothing here needs an event loop: ``tunproxy check`` reads one, too.
"""

from __future__ import annotations

import importlib
import os
import pathlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ..config_check import lower_first
from ..errors import ConfigError
from ..flow.facts import Need
from ..flow.rules import ALWAYS_KNOWN, RuleTable
from .geo import GeoDatabase

if TYPE_CHECKING:
    from ..config import Config

State: TypeAlias = tuple[int, int, int] | None
"""Modification time (ns), size and inode of a file; ``None``: it is not there."""


@dataclass(frozen=True, slots=True)
class Edition:
    """The rules at one time."""

    config: Config
    table: RuleTable
    geoip: GeoDatabase | None
    asn: GeoDatabase | None
    files: dict[pathlib.Path, State]
    """What was read, and what state it was in just before."""

    def has_changed(self) -> bool:
        """Whether a file is not what it was."""
        return any(state_of(path) != before for path, before in self.files.items())


def read(config: Config) -> Edition:
    """Read all rules that ``config`` names.

    Raises:
        ConfigError: naming the file, and the line, and what is wrong with it.
    """
    files: dict[pathlib.Path, State] = {}

    def load_list(name: str) -> tuple[str, str]:
        path = _path(config, name)
        # Before it is read: what is written meanwhile counts as a change.
        files[path] = state_of(path)
        return name, read_list(config, name)

    geoip = _open(config.rules.geoip, "rules.geoip", files)
    asn = _open(config.rules.asn, "rules.asn", files)
    known = set(ALWAYS_KNOWN)
    if geoip is not None:
        known.add(Need.COUNTRY)
    if asn is not None:
        known.add(Need.ASN)
    if config.rules.resolve:
        known.add(Need.RESOLVED)
    sources = list(map(load_list, config.rules.files))
    servers = {server.name for server in config.server}
    table = RuleTable.parse(sources, load_list, servers=servers, known=known)
    return Edition(config, table, geoip, asn, files)


def read_list(config: Config, name: str) -> str:
    """Return the text of the rule list that a config or a RULE-SET calls ``name``.

    Raises:
        ConfigError: it is missing, cannot be read or is not UTF-8.
    """
    path = _path(config, name)
    shipped = _shipped_lists() / name
    # A bare name of a list only: "../config.py" must not reach into the package.
    may_ship = "/" not in name and name.endswith(".list")
    use_shipped = may_ship and not path.exists() and shipped.is_file()
    try:
        return (shipped if use_shipped else path).read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = "" if "/" in name else " and no list of that name is shipped with tunproxy"
        raise ConfigError(f"rules.files: {path} does not exist{hint}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"rules.files: {path} is not UTF-8 text") from None
    except OSError as error:
        reason = lower_first(error.strerror or str(error))
        raise ConfigError(f"rules.files: {path} cannot be read: {reason}") from None


def _shipped_lists() -> pathlib.Path:
    """Where our own rule lists are."""
    # importlib.resources would do that for a megabyte of modules, in a process that stays.
    return pathlib.Path(importlib.import_module("tunproxy.rules").__path__[0])


def unchanged_until_restart(before: Config, after: Config) -> list[str]:
    """Name the sections in which ``after`` differs, and which are looked at only at the start."""
    fields = [name for name in before.__struct_fields__ if name not in ("rules", "dns")]
    found = [name for name in fields if getattr(before, name) != getattr(after, name)]
    found += [
        f"dns.{name}"
        for name in ("mode", "fake_ip_range", "fake_ip_range6", "split")
        if getattr(before.dns, name) != getattr(after.dns, name)
    ]
    return found


def state_of(path: pathlib.Path) -> State:
    """Return what changes when a file does."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _path(config: Config, name: str) -> pathlib.Path:
    """Where the rule list ``name`` is, unless it is a shipped one."""
    return pathlib.Path(config.rules.directory or ".") / pathlib.Path(name).expanduser()


def _open(path: str | None, field: str, files: dict[pathlib.Path, State]) -> GeoDatabase | None:
    if path is None:
        return None
    place = pathlib.Path(path).expanduser()
    files[place] = state_of(place)
    return GeoDatabase.open(place, field)
