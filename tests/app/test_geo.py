"""Databases of countries and autonomous systems."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.mmdb import write_mmdb
from tunproxy.app.geo import GeoDatabase
from tunproxy.errors import ConfigError

if TYPE_CHECKING:
    import pathlib

ADDRESS, OTHER = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
ADDRESS6 = ipaddress.ip_address("2001:db8::1")


def database(path: pathlib.Path, record: Any) -> GeoDatabase:
    write_mmdb(path / "some.mmdb", "Some", {str(ADDRESS): record, str(ADDRESS6): record})
    return GeoDatabase.open(path / "some.mmdb", "rules.geoip")


@pytest.mark.parametrize(
    ("record", "country"),
    [
        ({"country": {"iso_code": "CH"}, "continent": {"code": "EU"}}, "CH"),
        ({"registered_country": {"iso_code": "CH"}}, "CH"),
        ({"country": "ch"}, "CH"),
        ({"country_code": "CH"}, "CH"),
        ({"country": {"names": {"en": "Switzerland"}}}, None),
        ({"country": "Switzerland"}, None),
        ("CH", None),
    ],
)
def test_country(tmp_path: pathlib.Path, record: Any, country: str | None) -> None:
    found = database(tmp_path, record)
    assert found.country(ADDRESS) == found.country(ADDRESS6) == country
    assert found.country(OTHER) is None


@pytest.mark.parametrize(
    ("record", "number"),
    [
        ({"autonomous_system_number": 64500}, 64500),
        ({"asn": "AS64500"}, 64500),
        ({"asn": 64500}, 64500),
        ({"asn": "none"}, None),
        ({"country": "CH"}, None),
    ],
)
def test_asn(tmp_path: pathlib.Path, record: Any, number: int | None) -> None:
    found = database(tmp_path, record)
    assert found.asn(ADDRESS) == number
    assert found.asn(OTHER) is None


def test_file_may_be_overwritten_while_it_is_used(tmp_path: pathlib.Path) -> None:
    found = database(tmp_path, {"country": "CH"})
    (tmp_path / "some.mmdb").write_bytes(b"")
    assert found.country(ADDRESS) == "CH"


@pytest.mark.parametrize("content", [None, b"", b"text", bytes(1000)])
def test_what_is_no_database(tmp_path: pathlib.Path, content: bytes | None) -> None:
    path = tmp_path / "bad.mmdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^rules\.asn: .*bad\.mmdb (is|cannot)"):
        GeoDatabase.open(path, "rules.asn")
