"""What supervisor and engine say to each other, and the socket they say it on.

One AF_UNIX SOCK_SEQPACKET pair; one packet is one message, written as JSON, with the descriptors
that belong to it. End of file, either way, ends the other side. Who asks and who answers:

- supervisor: ``Start`` first; ``Captured`` after ``Connected``; ``Socket`` or ``SocketFailed`` for
  each ``WantSocket``; ``Owners`` for each ``WantOwners``; ``Answer`` for each ``Ask``; ``Reload``
  at any time.
- engine: ``Connected`` when it is logged in, or ``Failed`` before it ends; ``Note`` at any time;
  requests at any time, at most :data:`MAX_PENDING` of them without an answer, so that neither side
  ever has to queue.

Each side decodes only what the other may say: the supervisor has privileges, the engine has not.
"""

from __future__ import annotations

import array
import contextlib
import ipaddress  # noqa: TC003 - msgspec evaluates the annotations
import os
import select
import socket
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from ..config import Config, Origin  # noqa: TC001 - as above
from ..errors import TunproxyError
from ..ipnet_codec import dec_hook, enc_hook
from .hubsettings import HubSettings  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

MAX_LEN: Final = 128 * 1024
"""Octets of the longest message: a config with some thousand networks, and less than the default
send buffer (net.core.wmem_default), which a packet has to fit into."""

MAX_PENDING: Final = 64
"""Requests of the engine without an answer: far less than the send buffer holds (about 200)."""

MAX_OWNERS: Final = 16
"""Sockets, and cgroups, in one question."""

_RIGHTS_LEN: Final = socket.CMSG_LEN(2 * array.array("i").itemsize)
"""Octets of the ancillary data of the most descriptors that go with a message."""


class LinkError(TunproxyError):
    """The other side does not keep to the protocol: a defect of ours, or somebody else's doing."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="message"):
    """What all messages have in common."""

    fd_count: ClassVar[int] = 0
    """How many descriptors go with the message."""


class TunInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The device whose descriptor goes with an :class:`EngineStart`."""

    name: str
    mtu: int
    """Octets."""
    offload: bool


class EngineStart(Message, frozen=True, kw_only=True):
    """Begin. Descriptors: the device, the listening control socket."""

    fd_count: ClassVar[int] = 2

    tun: TunInfo
    verbosity: int
    listeners: int = 0
    """How many :class:`Listener` follow."""


class Start(EngineStart, frozen=True, tag=True, kw_only=True):
    """Be the proxy of ``tunproxy up`` and ``tunproxy run``, or the end of a VPN."""

    config: Config
    mode: Literal["system", "cgroup", "vpn"]
    """What is captured: the command of ``run`` is a cgroup, whatever the config says. ``vpn``: what
    comes to the device goes to the server as it is."""
    dns4: ipaddress.IPv4Address | None
    """Where the name server on the TUN listens; ``None``: not on IPv4."""
    dns6: ipaddress.IPv6Address | None
    direct: tuple[str, ...]
    """Where the bypass cgroup sends from to a fake address: DIRECT, whatever the rules say."""
    local: tuple[str, ...] | None
    """Where this host's own programs send from, on a gateway; ``None``: there are no others."""
    resolvers: tuple[str, ...]
    """Addresses of the machine's own resolvers, as they were before the capture."""
    origin: Origin | None = None
    """Where ``config`` comes from, to read it again; ``None``: there is nothing to be read."""


class HubStart(EngineStart, frozen=True, tag=True, kw_only=True):
    """Be the hub of ``tunproxy serve``; the one :class:`Listener` is where clients come in."""

    hub: HubSettings
    host: str
    """What the listener is bound to, as the user has named it."""
    host_key: str | None
    """A private key file, which the engine reads; ``None``: its own."""
    authorized_keys: str
    """A file as sshd(8) has it, which the engine reads."""
    permit_open: tuple[str, ...]
    """The targets that may be opened; empty: all."""


class Listener(Message, frozen=True, tag=True):
    """After :class:`Start`, for ``tun.stack = "system"``: one for each family.

    Descriptor: a TCP socket that listens on the TUN's address. Or after :class:`HubStart`.
    """

    fd_count: ClassVar[int] = 1


class Captured(Message, frozen=True, tag=True):
    """The traffic comes to the TUN from here on."""


class Socket(Message, frozen=True, tag=True):
    """The answer to :class:`WantSocket`. Descriptor: the socket."""

    fd_count: ClassVar[int] = 1

    id: int


class SocketFailed(Message, frozen=True, tag=True):
    """The answer to :class:`WantSocket` when the kernel refuses one."""

    id: int
    text: str


class Answer(Message, frozen=True, tag=True):
    """The answer to :class:`Ask`; ``None`` where there is nobody to ask."""

    id: int
    text: str | None

    def __repr__(self) -> str:
        # It may be a passphrase, and a message may be logged.
        return f"Answer(id={self.id})"


class Owners(Message, frozen=True, tag=True):
    """The answer to :class:`WantOwners`, without what is not known."""

    id: int
    programs: dict[int, str]
    """Program files by the inodes of sockets."""
    cgroups: dict[int, str]
    """Paths below the mount point of cgroup v2 by their ids."""


class Reload(Message, frozen=True, tag=True):
    """Read the rules and the DNS settings again."""


class WantOwners(Message, frozen=True, tag=True):
    """Which programs have these sockets, and what are these cgroups called?"""

    id: int
    inodes: tuple[int, ...]
    """At most :data:`MAX_OWNERS`, as of ``cgroups``."""
    cgroups: tuple[int, ...]


class WantSocket(Message, frozen=True, tag=True):
    """Make a socket that is never captured; ``family``, ``type`` and ``protocol`` as for socket(2).

    For ICMP it is one that may send echo requests (icmp(7)), or a raw one where the system lets
    nobody have such.
    """

    id: int
    family: int
    type: int
    protocol: int = 0


class Ask(Message, frozen=True, tag=True):
    """Ask the user, on the terminal; ``echo``: what is typed may be seen."""

    id: int
    prompt: str
    echo: bool


class LinkTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the link of ``tunproxy vpn`` is to be configured: all in all, nothing is added to it."""

    local: tuple[str, ...] = ()
    """Addresses of the device, as ``10.74.0.2/24``."""
    peers: tuple[str, ...] = ()
    """Addresses of the other end."""
    routes: tuple[str, ...] = ()
    """Networks behind it; ``default``: everything that ``local`` has an address for."""
    dns: tuple[str, ...] = ()
    """Resolvers behind it, the best first."""
    mtu: int = 1500
    """Octets."""


class Connected(Message, frozen=True, tag=True):
    """We are logged in to ``server``; its ``addresses`` must never be captured.

    ``link`` goes with the mode ``vpn``, whose tunnel is open then.
    """

    server: str
    addresses: tuple[str, ...]
    link: LinkTerms | None = None


class Note(Message, frozen=True, tag=True):
    """A line for the user, on standard output."""

    text: str


class Failed(Message, frozen=True, tag=True):
    """The engine ends: the exit status of the command, and the sentence for the user."""

    status: int
    text: str


ToEngine: TypeAlias = (
    Start | HubStart | Listener | Captured | Socket | SocketFailed | Owners | Answer | Reload
)
ToSupervisor: TypeAlias = WantSocket | WantOwners | Ask | Connected | Note | Failed

_Out = TypeVar("_Out", bound=Message)
_In = TypeVar("_In", bound=Message)


class Received(NamedTuple, Generic[_In]):
    """A message and its descriptors, exactly ``message.fd_count`` of them, close-on-exec."""

    message: _In
    fds: list[int]


class Link(Generic[_Out, _In]):
    """One end of the socket pair. Make both with :func:`pair`, or one with :func:`engine_link`."""

    def __init__(self, sock: socket.socket, decoder: msgspec.json.Decoder[_In]) -> None:
        self._sock = sock
        self._decoder = decoder
        self._encoder = msgspec.json.Encoder(enc_hook=enc_hook)

    def fileno(self) -> int:
        """Return the descriptor, for a selector or ``add_reader``."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close this end; the other reads end of file."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def send(self, message: _Out, fds: Sequence[int] = ()) -> None:
        """Send ``message`` with ``fds``, without waiting; the caller still owns ``fds``.

        Where the other side is gone nothing happens: the next ``recv`` tells.

        Raises:
            LinkError: the message is too long, or the other side reads nothing.
        """
        if len(fds) != message.fd_count:
            raise ValueError(f"{type(message).__name__} goes with {message.fd_count} descriptors")
        octets = self._encoder.encode(message)
        if len(octets) > MAX_LEN:
            raise LinkError(
                f"the configuration is too long ({len(octets)} octets of {MAX_LEN}); "
                "merge networks, or move them to a rule file"
            )
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([octets], rights, flags)
        except BlockingIOError:
            raise LinkError("the other process of tunproxy hangs; start again") from None
        except (BrokenPipeError, ConnectionResetError):
            return

    def recv(self) -> Received[_In] | None:
        """Wait for a message; return ``None`` at end of file.

        Raises:
            LinkError: what came is no message of this protocol; its descriptors are closed.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        while True:
            poll.poll()
            with contextlib.suppress(BlockingIOError):
                return self.recv_nowait()

    def recv_nowait(self) -> Received[_In] | None:
        """Return the message that is there, ``None`` at end of file.

        Raises:
            BlockingIOError: there is none.
            LinkError: what came is no message of this protocol; its descriptors are closed.
        """
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        while True:
            try:
                octets, rights, got, _ = self._sock.recvmsg(MAX_LEN, _RIGHTS_LEN, flags)
                break
            except ConnectionResetError:
                # The other side has gone without reading all of ours. It is said once, before the
                # messages that are still to be read, the reason of its going among them.
                continue
        fds = _descriptors(rights)
        if not octets and not fds:
            return None
        try:
            message = self._decode(octets, fds, got)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return Received(message, fds)

    def _decode(self, octets: bytes, fds: list[int], flags: int) -> _In:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise LinkError("a message between the processes of tunproxy was cut; start again")
        try:
            message = self._decoder.decode(octets)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise LinkError(
                f"malformed message between the processes of tunproxy: {error}"
            ) from None
        if len(fds) != message.fd_count:
            raise LinkError(
                f"malformed message between the processes of tunproxy: {len(fds)} descriptors "
                f"with {type(message).__name__}"
            )
        return message


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    # socket.recv_fds() of Python 3.11 forgets its flags, so this is done by hand.
    fds = array.array("i")
    for level, kind, octets in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(octets[: len(octets) - len(octets) % fds.itemsize])
    return list(fds)


SupervisorLink: TypeAlias = Link[ToEngine, ToSupervisor]
EngineLink: TypeAlias = Link[ToSupervisor, ToEngine]


def pair() -> tuple[SupervisorLink, socket.socket]:
    """Return the supervisor's end, and the socket to be inherited for :func:`engine_link`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return supervisor_link(ours), theirs


def supervisor_link(sock: socket.socket) -> SupervisorLink:
    """Return the supervisor's end of the link, made of its half of the pair."""
    return Link(sock, msgspec.json.Decoder(ToSupervisor, dec_hook=dec_hook))


def engine_link(sock: socket.socket) -> EngineLink:
    """Return the engine's end of the link, made of its half of the pair."""
    return Link(sock, msgspec.json.Decoder(ToEngine, dec_hook=dec_hook))
