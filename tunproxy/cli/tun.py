"""``tunproxy tun``: devices that stay, and what crosses them."""

from __future__ import annotations

import grp
import json
import pwd
import sys
from typing import TYPE_CHECKING

import click

from tunproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tunproxy.linux.tun_devices import TunDevice

_MAX_ID = 2**32 - 2  # (uid_t) -1 is nobody

_COLUMNS = ("NAME", "KIND", "OWNER", "GROUP", "QUEUES", "PERSISTENT", "IN USE")


@click.group(no_args_is_help=False)
def tun() -> None:
    """Make, delete, list and watch TUN and TAP devices."""


@tun.command()
@click.argument("name")
@click.option("--user", metavar="U", help="Who may use it without root. Default: who calls this.")
@click.option("--group", metavar="G", help="Members may use it; with --user, that user only.")
@click.option("--tap", is_flag=True, help="Ethernet frames, not IP packets.")
@click.option("--multi-queue", is_flag=True, help="Several threads or programs may share it.")
def add(name: str, user: str | None, group: str | None, tap: bool, multi_queue: bool) -> int:
    """Make a TUN device that stays, and that its owner may use without root.

    It is down and has no addresses: give it some with ip(8). A NAME such as tun%d gets a number.
    """
    from tunproxy.linux import privileges, tun_persistent

    owner = None if user is None else _user_id(user)
    if user is None and group is None:
        owner = privileges.caller().uid
    given = tun_persistent.add_device(
        name,
        owner=owner,
        group=None if group is None else _group_id(group),
        kind="tap" if tap else "tun",
        multi_queue=multi_queue,
    )
    click.echo(f"added {given}")
    return 0


@tun.command("del")
@click.argument("name")
def delete(name: str) -> int:
    """Delete a device that nobody uses. Its owner may do that, too."""
    from tunproxy.linux import tun_persistent

    tun_persistent.delete_device(name)
    click.echo(f"deleted {name}")
    return 0


@tun.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one per device.")
def list_(as_json: bool) -> int:
    """List the TUN and TAP devices of this network namespace.

    Without OWNER and GROUP a device is open to every user; with both, only to that user while he is
    in that group.
    """
    from tunproxy.linux.tun_devices import list_devices

    devices = list_devices()
    if as_json:
        click.echo(json.dumps([_object(device) for device in devices], indent=2))
    elif devices:
        rows = [_COLUMNS, *(tuple(_cells(device)) for device in devices)]
        click.echo("\n".join(_table(rows)))
    return 0


@tun.command()
@click.argument("name")
@click.option("-w", "file", metavar="FILE", help="Write a pcap file (- is standard output).")
@click.option("-c", "count", metavar="COUNT", type=click.IntRange(1), help="Stop after so many.")
def dump(name: str, file: str | None, count: int | None) -> int:
    """Print the packets that cross a device, one per line, until it is interrupted.

    "out" leaves this machine through the device, "in" comes from it. With -w, super-segments are
    cut and checksums completed, as if on a wire.
    """
    from tunproxy.app.dump import dump as run

    if file == "-" and sys.stdout.isatty():
        raise ConfigError("a pcap file is nothing for a terminal; redirect it, or name a file")
    summary = run(name, file=file, count=count, output=sys.stdout.fileno())
    noun = "packet" if summary.packets == 1 else "packets"
    click.echo(f"{summary.packets} {noun}, {summary.missed} missed", err=True)
    return 0


def _user_id(text: str) -> int:
    """Return the id of a user, given by name or number."""
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        return _number(text, "user")


def _group_id(text: str) -> int:
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        return _number(text, "group")


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID):
        raise ConfigError(
            f"there is no {what} {text!r}; give the name of one that exists, or an id"
        )
    return int(text)


def _object(device: TunDevice) -> dict[str, object]:
    from tunproxy.linux.tun_devices import group_name, user_name

    return {
        "name": device.name,
        "kind": device.kind,
        "owner": None if device.owner is None else user_name(device.owner),
        "group": None if device.group is None else group_name(device.group),
        "multi_queue": device.multi_queue,
        "queues": device.queues,
        "persistent": device.persistent,
        "in_use": device.in_use,
    }


def _cells(device: TunDevice) -> Iterator[str]:
    shown = _object(device)
    yield device.name
    yield device.kind
    yield str(shown["owner"] or "-")
    yield str(shown["group"] or "-")
    yield f"{device.queues}{' (multi)' if device.multi_queue else ''}"
    yield "yes" if device.persistent else "no"
    yield "yes" if device.in_use else "no"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
