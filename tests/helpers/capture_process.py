"""A process that holds a capture until it is killed, as the supervisor does.

Arguments: the directory of the state, the name of the cgroup directory, the options of
:func:`tests.helpers.capture.make_plan` as JSON. Prints ``captured`` and waits for the end of its
standard input, on which it ends without undoing anything.
"""

from __future__ import annotations

import json
import sys

from tests.helpers.capture import SERVER, make_plan
from tunproxy.app.capture import Capture
from tunproxy.app.instance import Instance
from tunproxy.linux import marks
from tunproxy.linux.netlink import configure_link
from tunproxy.linux.tun import Tun


def main() -> None:
    run_dir, cgroup_dir, options = sys.argv[1:]
    # The constants are final for everybody but the tests.
    vars(marks).update(RUN_DIR=run_dir, CGROUP_DIR=cgroup_dir)
    instance = Instance.create("tun0")
    plan = make_plan(slot=instance.slot, **json.loads(options))
    instance.save(plan)
    with Tun.open("tun0") as tun:
        configure_link(tun.name, mtu=1500, addresses=plan.tun_addresses)
        capture = Capture(plan)
        capture.prepare()
        capture.apply(SERVER)
        print("captured", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
