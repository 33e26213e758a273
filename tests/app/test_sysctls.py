"""What is changed below /proc/sys/net, as a plan has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.capture import make_plan, make_strict
from tests.helpers.netns import Namespace, Network
from tunproxy.app.sysctls import Sysctl
from tunproxy.linux.netlink import write_sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns


@pytest.fixture(autouse=True)
def namespace() -> Iterator[Namespace]:
    with Namespace("sysctls") as namespace, namespace.entered():
        yield namespace


def test_strict_reverse_path_filters_are_to_respect_marks(namespace: Namespace) -> None:
    assert not make_plan().strict
    make_strict()
    # The device that is strict by `all` is not lo.
    assert not make_plan().strict
    namespace.ip("link", "add", "veth0", "type", "veth", "peer", "veth1")
    plan = make_plan()
    assert plan.strict
    assert plan.sysctls == (Sysctl("ipv4/conf/all/src_valid_mark", "1", "0"),)
    assert not make_plan(run=True).strict
    write_sysctl("ipv4/conf/all/rp_filter", "2")
    assert not make_plan().strict


def test_gateway_keeps_router_advertisements_and_undoes_forwarding() -> None:
    with Network():
        plan = make_plan(gateway=True)
    changes = {change.path: (change.before, change.value) for change in plan.sysctls}
    assert changes["ipv4/conf/all/forwarding"] == ("0", "1")
    assert changes["ipv6/conf/all/forwarding"] == ("0", "1")
    assert changes["ipv6/conf/up0/accept_ra"] == ("1", "2")
    paths = list(changes)
    assert paths.index("ipv6/conf/up0/accept_ra") < paths.index("ipv6/conf/all/forwarding")
