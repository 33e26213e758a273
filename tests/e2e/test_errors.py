"""What a user is told when it does not work: one sentence, and a status that tells whose fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import OUTSIDE4, UNROUTED4
from tests.helpers.lab_tunproxy import PROGRAM, changes, server_options, snapshot, up

if TYPE_CHECKING:
    import subprocess

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

USAGE, SERVER, MACHINE = 2, 3, 4


def fail(lab: Lab, *options: str, target: str = f"root@{OUTSIDE4}", within: str = "") -> Outcome:
    """``tunproxy up`` that cannot succeed; ``within``: a shell script to run it from."""
    before = snapshot(lab.client)
    command = [*PROGRAM, "up", target, *server_options(lab), *options]
    shell = ["unshare", "--mount", "sh", "-ec", f'{within}\nexec "$@"', "sh"] if within else []
    process = lab.client.run(*shell, *command, check=False, timeout_s=40)
    assert changes(lab.client, before) == []
    return Outcome(process)


class Outcome:
    """How it ended."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self._process = process

    def is_(self, status: int, *words: str) -> None:
        """It ended with ``status`` and one line on standard error that holds ``words``."""
        process = self._process
        assert process.stdout == ""
        lines = process.stderr.splitlines()
        assert (process.returncode, len(lines)) == (status, 1), process.stderr
        assert "Traceback" not in process.stderr
        for word in words:
            assert word in lines[0]


# The server


def test_wrong_host_key(lab: Lab) -> None:
    fail(lab, "--known-hosts", str(lab.sshd.foreign_known_hosts)).is_(SERVER, "key")


def test_unknown_host_key(lab: Lab) -> None:
    fail(lab, "--known-hosts", "/dev/null").is_(SERVER, "known")


def test_wrong_key(lab: Lab) -> None:
    fail(lab, "-i", str(lab.sshd.foreign_key)).is_(SERVER, "root")


def test_wrong_user(lab: Lab) -> None:
    fail(lab, target=f"nobody-here@{OUTSIDE4}").is_(SERVER, "nobody-here")


def test_nothing_listens(lab: Lab) -> None:
    fail(lab, "-p", "1").is_(SERVER, OUTSIDE4)


def test_unreachable_server(lab: Lab) -> None:
    fail(lab, target=f"root@{UNROUTED4}").is_(SERVER, UNROUTED4)


def test_unknown_server(lab: Lab) -> None:
    fail(lab, target="root@no-such-host.test").is_(SERVER, "no-such-host.test")


# The machine


def test_no_tun_device(lab: Lab) -> None:
    fail(lab, within="mount -t tmpfs tmpfs /dev/net").is_(MACHINE, "/dev/net/tun")


def test_no_nft(lab: Lab) -> None:
    remove = """
    new=$(mktemp -d -p /run)
    mkdir "$new/upper" "$new/work"
    programs=$(dirname "$(command -v nft)")
    mount -t overlay -o "lowerdir=$programs,upperdir=$new/upper,workdir=$new/work" none "$programs"
    rm "$programs/nft"
    """
    fail(lab, within=remove).is_(MACHINE, "nft")


def test_device_that_is_in_use(lab: Lab) -> None:
    with up(lab, "--tun", "tun3"):
        fail(lab, "--tun", "tun3").is_(MACHINE, "tun3")


def test_not_root(lab: Lab) -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *PROGRAM, "up"]
    process = lab.client.run(*command, f"root@{OUTSIDE4}", check=False)
    Outcome(process).is_(MACHINE, "root")


# The user


def test_config_with_unknown_key(lab: Lab) -> None:
    config = lab.directory / "unknown.toml"
    config.write_text("[tun]\ncolour = 'red'\n")
    fail(lab, "-c", str(config)).is_(USAGE, str(config), "colour")


def test_config_that_is_no_toml(lab: Lab) -> None:
    config = lab.directory / "broken.toml"
    config.write_text("[tun\n")
    fail(lab, "-c", str(config)).is_(USAGE, str(config))


def test_config_that_does_not_exist(lab: Lab) -> None:
    fail(lab, "-c", "/nowhere.toml").is_(USAGE, "/nowhere.toml")


def test_bad_rule(lab: Lab) -> None:
    rules = lab.directory / "bad.list"
    rules.write_text("DOMAIN,example.com,PROXY\nNONSENSE,example.com,PROXY\n")
    fail(lab, "--rules", str(rules)).is_(USAGE, f"{rules}", "2", "NONSENSE")
