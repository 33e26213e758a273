"""Runs a script of this directory as ``scripts/test`` and ``scripts/demo`` run: in .venv.

Any Python of the system can import this, an old one as well; the environment and the programs that
are needed are made ready by ``setup.sh`` first.
"""

from __future__ import annotations

import os
import pathlib
import sys

_HERE = pathlib.Path(__file__).resolve().parent
_VENV = _HERE.parent / ".venv"

_RUN = """
set -euo pipefail
. "$1/setup.sh"
case $2 in
help) "$venv/bin/python" -c 'import tunproxy' 2>/dev/null || setup_venv ;;
measuring) setup_measuring ;;
plain) setup_venv ;;
esac
shift 2
exec "$venv/bin/python" "$@"
"""


def run_in_venv(*, measuring: bool) -> None:
    """Return when this process runs in .venv; else make it one that does, with the same arguments.

    With ``measuring`` the programs that are measured with and compared with are installed, too, and
    only root gets anywhere. Who asks for help need not be root, and gets no program installed.
    """
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        kind = "help"
    elif not measuring:
        kind = "plain"
    elif os.geteuid() != 0:
        raise SystemExit(f"{sys.argv[0]}: run it as root: it makes network namespaces")
    else:
        kind = "measuring"
    if os.path.realpath(sys.prefix) != os.path.realpath(_VENV):
        os.execv("/bin/bash", ["bash", "-c", _RUN, "bash", str(_HERE), kind, *sys.argv])
