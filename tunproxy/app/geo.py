"""Countries and autonomous systems of addresses, from databases that the user has got somewhere.

The format is MaxMind's (.mmdb, https://maxmind.github.io/MaxMind-DB/); what records look like
differs from one publisher to the other. A database is read into memory: one that is mapped would
kill us when somebody writes into the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    import ipaddress
    import pathlib
    from collections.abc import Mapping
    from typing import TypeAlias

    Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class GeoDatabase:
    """One database; make it with :meth:`open`."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    @classmethod
    def open(cls, path: pathlib.Path, field: str) -> GeoDatabase:
        """Read the file ``path``, which ``field`` of the config names.

        Raises:
            ConfigError: it cannot be read, or is no such database.
        """
        import maxminddb

        try:
            return cls(maxminddb.open_database(path, maxminddb.MODE_MEMORY))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"{field}: {path} cannot be read: {reason}") from None
        except (maxminddb.InvalidDatabaseError, ValueError, UnicodeDecodeError):
            raise ConfigError(f"{field}: {path} is no database in MaxMind's format") from None

    def country(self, address: Address) -> str | None:
        """Return two letters in upper case, ``None`` where the database has none."""
        record = self._record(address)
        place = record.get("country") or record.get("registered_country")
        code = place.get("iso_code") if isinstance(place, dict) else place
        code = code or record.get("country_code")
        return code.upper() if isinstance(code, str) and len(code) == 2 else None

    def asn(self, address: Address) -> int | None:
        """Return the number of the autonomous system, ``None`` where the database has none."""
        record = self._record(address)
        number = record.get("autonomous_system_number") or record.get("asn")
        if isinstance(number, str):
            digits = number.upper().removeprefix("AS")
            return int(digits) if digits.isascii() and digits.isdecimal() else None
        return number if isinstance(number, int) else None

    def _record(self, address: Address) -> Mapping[str, Any]:
        import maxminddb

        try:
            record = self._reader.get(address)
        except (ValueError, maxminddb.InvalidDatabaseError):
            return {}  # of the other family, or broken just there
        return record if isinstance(record, dict) else {}
