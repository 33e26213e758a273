"""The ``tunproxy`` command: its group, and what becomes of an error.

Every way out of :func:`main` is an exit status and at most one sentence on standard error; a
traceback is printed only for a defect of ours, and only with ``-vv`` or ``TUNPROXY_DEBUG`` set.
The modules of the commands import what they need when they run, so that ``tunproxy --help`` and
``tunproxy down`` load neither an event loop nor an SSH library.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

import click

from tunproxy import __version__
from tunproxy.config_check import lower_first
from tunproxy.errors import TunproxyError

from .bypass import bypass
from .check import check
from .demo import demo
from .dns import dns
from .down import down
from .options import Session
from .recover import recover
from .reload import reload
from .rules import rules
from .run import run
from .serve import serve
from .status import status
from .tun import tun
from .up import up
from .vpn import vpn

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_USAGE = 2
EXIT_DEFECT = 70
"""EX_SOFTWARE of sysexits(3)."""
EXIT_INTERRUPTED = 130
"""As a shell reports SIGINT."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=False)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Send this machine's traffic, or one program's, through an ordinary SSH account."""


for _command in (
    up,
    run,
    bypass,
    vpn,
    serve,
    down,
    recover,
    reload,
    rules,
    check,
    status,
    dns,
    tun,
    demo,
):
    cli.add_command(_command)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line ``args`` (default: of this process) and return the exit status."""
    session = Session()
    try:
        result = cli.main(
            None if args is None else list(args),
            prog_name="tunproxy",
            standalone_mode=False,
            obj=session,
        )
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "tunproxy"
        reason = lower_first(error.format_message().rstrip("."))
        return _fail(f"{reason}; see {command} --help", EXIT_USAGE)
    except click.ClickException as error:
        return _fail(lower_first(error.format_message()), error.exit_code)
    except click.Abort:
        return EXIT_INTERRUPTED
    except TunproxyError as error:
        return _fail(str(error), error.exit_status)
    except Exception as error:
        if session.verbosity >= 2 or os.environ.get("TUNPROXY_DEBUG"):
            traceback.print_exc()
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _fail(
            f"{reason}; this is a defect of tunproxy,"
            " please report what it prints with TUNPROXY_DEBUG=1 set",
            EXIT_DEFECT,
        )
    return result if isinstance(result, int) else 0


def _fail(sentence: str, status: int) -> int:
    """Say why, on one line, whatever the reason was made of."""
    print(f"tunproxy: {' '.join(sentence.split())}", file=sys.stderr)
    return status
