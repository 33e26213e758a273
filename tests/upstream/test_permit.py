from __future__ import annotations

import pytest

from tunproxy.errors import ConfigError
from tunproxy.upstream.permit import Permit


def test_permit_entries() -> None:
    permit = Permit(["*.test:443", "a.test:*", "10.0.0.0/8:*", "[2001:db8::/32]:53", "::1:22"])
    assert permit.allows_name("WWW.Test.", 443)
    assert not permit.allows_name("www.test", 80)
    assert permit.allows_name("a.test", 1)
    assert permit.allows_address("10.1.2.3", 5)
    assert not permit.allows_address("11.1.2.3", 5)
    assert permit.allows_address("2001:db8::1", 53)
    assert not permit.allows_address("2001:db8::1", 54)
    assert permit.allows_address("::1", 22)
    assert not permit.allows_name("10.1.2.3", 5)
    for entry in ("", "host", "host:", "host:x", ":80", "host:70000"):
        with pytest.raises(ConfigError):
            Permit([entry])
