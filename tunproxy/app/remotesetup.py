"""What has to be done on a plain OpenSSH server so that its end of a tunnel leads somewhere.

Two forms of the same thing. :func:`commands` are for an administrator to read and to type;
:func:`script` is for a shell on the server, over the same SSH connection (``--remote-setup``). It
shows each command before it runs it, and undoes them all when its standard input ends: at once on
our word, else a little later. What a crash of the server has left is undone by the next script. A
script that finds its own device set up by an earlier one takes over from it: connections through
the server outlive that only if the kernel goes on translating their addresses meanwhile, else it
answers what the targets send with resets.

How much later. The standard input ends within a round trip of the end of the TCP connection, and
whoever ended that decides. Our side: it was killed, or it was thrown out by a box on the way and is
back at once; :data:`LOST_S`. (A client without a network gives its connection up, but nobody hears
that, and its successor ends this shell: see :func:`take_over`.) The server's side, where an sshd
that is started again, or crashed, serves nobody for seconds: :data:`RETURN_S`. The shell sees the
difference by whether the sshd that listens is still there.

Below /run/tunproxy on the server, for each device: ``DEVICE.pid``, the process id of the shell that
looks after it, ``DEVICE.owner``, whom it does that for, and ``DEVICE.undo``, a script.
``forwarding`` says what was set before the first device of ours; the last to leave sets it back.

Read sh(1) of POSIX, nft(8) and iptables-extensions(8) before editing. The rules go by source
address: only kernels from 5.7 on know the incoming device where packets leave.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import shlex
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

SHELL: Final = 'if [ "$(id -u)" = 0 ]; then exec sh -s; else exec sudo -n sh -s; fi'
"""The command whose standard input the scripts are for."""

SHOWN: Final = "+ "
"""Begins a line that shows a command."""
READY: Final = "tunproxy: ready"
"""The line that says that everything is done."""
FAILED: Final = "tunproxy: failed: "
"""Begins the line that says what could not be done; everything is undone then."""
LEAVE: Final = "told=yes\n"
"""Before the end of the standard input: we do not come back."""
LOST_S: Final = 1
"""How long it waits for us, otherwise: a login takes some ten round trips."""
RETURN_S: Final = 10
"""How long it does where sshd itself is gone, or is not to be found."""


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteEnd:
    """The server's end of a tunnel.

    Attributes:
        device: its name there.
        addresses: the server's own, with the prefix of the link.
        clients: our addresses, for which the server needs a route where no prefix has them.
        mtu: in octets.
        nat: what we send goes on from there, under the server's address.
    """

    device: str
    addresses: tuple[Interface, ...]
    clients: tuple[Address, ...]
    mtu: int
    nat: bool = True

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that the link has."""
        return tuple(sorted({address.version for address in self.addresses}))

    def sources(self, version: int) -> list[str]:
        """Where packets from our side of the link come from."""
        networks = {str(a.network) for a in self.addresses if a.version == version}
        networks |= {str(client) for client in self._beyond() if client.version == version}
        return sorted(networks)

    def _beyond(self) -> Iterator[Address]:
        for client in self.clients:
            if not any(client in address.network for address in self.addresses):
                yield client


def commands(end: RemoteEnd) -> list[str]:
    """Return the commands, for root on the server, in their order."""
    lines = [shlex.join(words) for words in _link(end)]
    if end.nat:
        lines += [f"sysctl -w {_FORWARDING[version]}=1" for version in end.versions]
        lines += [f"nft {shlex.quote(text)}" for text in _nft(end)]
    return lines


def script(end: RemoteEnd, owner: str) -> str:
    """Return what the :data:`SHELL` is to read; it says :data:`READY` or :data:`FAILED`.

    ``owner`` is a word that nobody else has.
    """
    return _SCRIPT.format(
        device=end.device,
        owner=owner,
        lost=LOST_S,
        away=RETURN_S,
        nat="yes" if end.nat else "no",
        table=_table(end),
        forwarding=" ".join(_FORWARDING[version].replace(".", "/") for version in end.versions),
        link=_runs("run", _link(end)),
        nft=_runs("    run", (["nft", text] for text in _nft(end))),
        accept=_runs("        run", _iptables_accept(end)),
        iptables=_runs("    run", _iptables(end)),
        unlink=_runs("", (["ip", "addr", "del", str(a), "dev", end.device] for a in end.addresses)),
        shown=SHOWN,
        ready=READY,
        failed=FAILED,
    )


def take_over(device: str, owner: str) -> str:
    """Return a script that ends an earlier connection of ``owner`` which still holds ``device``.

    A server may not notice for hours that a client has lost its network, and the device is busy as
    long. The shell that looks after it descends from the process that serves that connection. It
    is killed, so that it undoes nothing: that is left to who takes over. The process is ended as
    well, unless it serves this script.
    """
    return _TAKE_OVER.format(device=device, owner=owner, ready=READY)


_FORWARDING: Final = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
_TOOLS: Final = {4: "iptables", 6: "ip6tables"}


def _runs(verb: str, commands: Iterator[list[str]]) -> str:
    return "\n".join(f"{verb} {shlex.join(words)}".rstrip() for words in commands)


def _link(end: RemoteEnd) -> Iterator[list[str]]:
    for address in end.addresses:
        # No duplicate address detection: there is one neighbour, and it is ours.
        nodad = ["nodad"] if address.version == 6 else []
        yield ["ip", "addr", "replace", str(address), "dev", end.device, *nodad]
    yield ["ip", "link", "set", "dev", end.device, "mtu", str(end.mtu), "up"]
    for client in end._beyond():
        yield ["ip", "route", "replace", str(client), "dev", end.device]


def _table(end: RemoteEnd) -> str:
    return f"tunproxy_{end.device}"


def _nft(end: RemoteEnd) -> Iterator[str]:
    """Masquerade what comes from our side, and let no TCP segment be too large for the device.

    Each is one transaction: the rules of an earlier connection go when the new ones are there. With
    the last rule that translates, the kernel would forget what it knows of TCP connections.
    """
    table, device = f"inet {_table(end)}", end.device
    rules: list[str] = []
    for version in end.versions:
        family = "ip" if version == 4 else "ip6"
        rules += [
            f"{family} saddr {source} oifname != {device} masquerade"
            for source in end.sources(version)
        ]
    yield _chain(table, "nat", "nat hook postrouting priority 100", rules)
    clamp = "tcp flags syn tcp option maxseg size set rt mtu"
    rules = [f"{side} {device} {clamp}" for side in ("iifname", "oifname")]
    yield _chain(table, "forward", "filter hook forward priority -150", rules)


def _chain(table: str, name: str, kind: str, rules: list[str]) -> str:
    lines = [f"add table {table}", f"add chain {table} {name} {{ type {kind}; }}"]
    lines.append(f"flush chain {table} {name}")
    lines += [f"add rule {table} {name} {rule}" for rule in rules]
    return "; ".join(lines)


def _iptables(end: RemoteEnd) -> Iterator[list[str]]:
    comment = ["-m", "comment", "--comment", _table(end)]
    for version in end.versions:
        tool = _TOOLS[version]
        for source in end.sources(version):
            out = ["-s", source, "!", "-o", end.device, *comment, "-j", "MASQUERADE"]
            yield [tool, "-t", "nat", "-A", "POSTROUTING", *out]
        for side in ("-i", "-o"):
            syn = [side, end.device, "-p", "tcp", "--tcp-flags", "SYN,RST", "SYN", *comment]
            clamp = ["-j", "TCPMSS", "--clamp-mss-to-pmtu"]
            yield [tool, "-t", "mangle", "-A", "FORWARD", *syn, *clamp]


def _iptables_accept(end: RemoteEnd) -> Iterator[list[str]]:
    """For servers that forward nothing but what is allowed, such as those with Docker."""
    comment = ["-m", "comment", "--comment", _table(end)]
    for version in end.versions:
        for side in ("-i", "-o"):
            words = ["-I", "FORWARD", side, end.device, *comment, "-j", "ACCEPT"]
            yield [_TOOLS[version], *words]


# The braces of the shell are doubled: this goes through str.format. No "set -e": a command that
# fails ends the script through "run", and then the trap undoes what was done.
_SCRIPT: Final = """\
exec 2>&1
trap '' PIPE
umask 077
PATH=$PATH:/usr/sbin:/sbin:/usr/local/sbin
here=/run/tunproxy device={device} nat={nat} told=
fail() {{ echo "{failed}$*"; told=yes; exit 1; }}
run() {{ echo "{shown}$*"; "$@" </dev/null || fail "$*"; }}
set_to() {{
    echo "$1 $(cat "/proc/sys/$1")" >>"$here/forwarding"
    echo "{shown}sysctl -w $(echo "$1" | tr / .)=$2"
    echo "$2" >"/proc/sys/$1" || fail "sysctl $1"
}}
keep_routes() {{
    # A router forgets the default route that an advertisement gave it, unless accept_ra is 2.
    for file in /proc/sys/net/ipv6/conf/*/accept_ra; do
        [ "$(cat "$file")" = 1 ] && set_to "${{file#/proc/sys/}}" 2
    done
}}
restore() {{
    for other in "$here"/*.undo; do [ -e "$other" ] && return; done
    [ -e "$here/forwarding" ] || return
    while read -r name value; do echo "$value" >"/proc/sys/$name"; done <"$here/forwarding"
    rm -f "$here/forwarding"
}}
undo() {{
    [ -e "$here/$1.undo" ] || return
    sh "$here/$1.undo" </dev/null >/dev/null 2>&1
    rm -f "$here/$1.undo" "$here/$1.pid" "$here/$1.owner"
    restore
}}
# Neither a process that has the number by now, nor one that nobody has waited for.
is_alive() {{ [ "$(tr '\\0' ' ' 2>/dev/null <"/proc/$1/cmdline")" = "sh -s " ]; }}
# The uppermost sshd accepts connections; those below serve this one.
listener='' above=$$
while [ "${{above:-0}}" -gt 1 ]; do
    case $(cat "/proc/$above/comm" 2>/dev/null) in
        sshd*) listener=$above ;;
    esac
    above=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$above/status" 2>/dev/null)
done
is_ours() {{ [ "$(cat "$here/$device.pid" 2>/dev/null)" = $$ ]; }}
patience() {{
    # What nobody has waited for has a name, and no command line.
    case $(tr '\\0' ' ' 2>/dev/null <"/proc/$listener/cmdline") in
        *sshd*) echo {lost} ;;
        *) echo {away} ;;
    esac
}}
leave() {{
    trap '' EXIT HUP INT TERM
    waited=0
    while [ -z "$told" ] && is_ours && [ $waited -lt "$(patience)" ]; do
        sleep 1
        waited=$((waited + 1))
    done
    is_ours && undo "$device"
}}
mkdir -p "$here" 2>/dev/null && [ -w "$here" ] || fail "no right to change the system"
for pid in "$here"/*.pid; do
    [ -e "$pid" ] || continue
    stale=${{pid##*/}} stale=${{stale%.pid}}
    [ "$stale" = "$device" ] || is_alive "$(cat "$pid")" || undo "$stale"
done
if [ -e "$here/$device.undo" ]; then
    sh "$here/$device.undo" keep </dev/null >/dev/null 2>&1
fi
cat >"$here/$device.undo" <<'END'
PATH=$PATH:/usr/sbin:/sbin:/usr/local/sbin
[ "$1" = keep ] || nft delete table inet {table}
for tool in iptables ip6tables; do
    for table in nat mangle filter; do
        $tool -t $table -S | sed -n 's/^-A \\(.* --comment {table} .*\\)/-D \\1/p' |
            while read -r rule; do $tool -t $table $rule; done
    done
done
{unlink}
END
echo {owner} >"$here/$device.owner"
echo $$ >"$here/$device.pid"
trap leave EXIT
trap 'told=yes; exit 1' HUP INT TERM
{link}
if [ $nat = yes ]; then
    for name in {forwarding}; do
        value=$(cat "/proc/sys/$name") || fail "no $name"
        [ "$value" = 0 ] || continue
        case $name in *ipv6*) keep_routes ;; esac
        set_to "$name" 1
    done
fi
if [ $nat = no ]; then
    :
elif command -v nft >/dev/null; then
{nft}
    if iptables -S FORWARD 2>/dev/null | grep -q '^-P FORWARD DROP'; then
{accept}
    fi
elif command -v iptables >/dev/null; then
{iptables}
{accept}
else
    fail "neither nft nor iptables is installed"
fi
echo "{ready}"
"""

_TAKE_OVER: Final = """\
here=/run/tunproxy
server_of() {{
    above=$1
    while [ "${{above:-0}}" -gt 1 ]; do
        case $(cat "/proc/$above/comm" 2>/dev/null) in
            sshd*) break ;;
        esac
        above=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$above/status" 2>/dev/null)
    done
    echo "${{above:-0}}"
}}
is_alive() {{ [ "$(tr '\\0' ' ' 2>/dev/null <"/proc/$1/cmdline")" = "sh -s " ]; }}
pid=$(cat "$here/{device}.pid" 2>/dev/null)
if [ "$(cat "$here/{device}.owner" 2>/dev/null)" = {owner} ] && is_alive "$pid"; then
    server=$(server_of "$pid")
    kill -9 "$pid"
    [ "$server" -gt 1 ] && [ "$server" != "$(server_of $$)" ] && kill "$server"
fi
echo "{ready}"
exit
"""
