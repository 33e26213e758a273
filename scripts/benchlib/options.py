"""Options that several of the measuring scripts have."""

from __future__ import annotations

import argparse


def add_names(
    parser: argparse.ArgumentParser, option: str, names: list[str], usual: list[str] | None = None
) -> None:
    """An option that takes some of ``names``, separated by commas; ``usual``, or all without it."""

    def some(text: str) -> list[str]:
        found = [name.strip() for name in text.split(",")]
        if unknown := [name for name in found if name not in names]:
            raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}")
        return found

    text = f"some of: {', '.join(names)}"
    parser.add_argument(option, type=some, default=usual or names, metavar="NAME,...", help=text)
