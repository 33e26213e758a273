"""Rule sets: files of conditions that one RULE-SET line includes.

Each line is one of

* a rule without target: ``DOMAIN-SUFFIX,example.com`` ("classical")
* a name: ``example.com`` itself, ``+.example.com`` with all below it, ``.example.com`` only what
  is below it; ``*`` is one label, or a part of one ("domain")
* a network or an address: ``10.0.0.0/8``, ``fd00::1`` ("ipcidr")

and they may be mixed. A file may also be YAML: one ``payload:`` with a list of such lines, plain
or in quotes. That is all of YAML that these files use, and all that is read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .rule_text import Condition, Fault, said_lines, split_condition, strip_comment

if TYPE_CHECKING:
    from collections.abc import Iterator

BARE_WILDCARD = "a name with *"
"""The kind of a bare line in which wildcards stand for labels."""
BARE_BELOW = "the names below one"
"""The kind of a bare line that begins with a dot."""
BARE_CHILDREN = "the names one label below one"
"""The kind of a bare line that begins with a wildcard and has no other."""

_PAYLOAD = re.compile(r"payload\s*:(.*)")
_ITEM = re.compile(r"-(?:\s+(.*))?")
_SINGLE = re.compile(r"'((?:[^']|'')*)'")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\["\\/])*)"')
_NOT_PLAIN = re.compile(r"[&*!|>%@`{}\[\],?:'\"-](?:\s|$)|[&*!|>%@`{}\[\],]|.*(?::\s|:$)")
"""What YAML gives a meaning of its own in an item without quotes."""


def entries(text: str) -> Iterator[tuple[int, str]]:
    """Yield the entries of a rule set with the numbers of their lines.

    Raises:
        ItemFault: it is YAML of another kind.
    """
    lines = said_lines(text)
    first = next(lines, None)
    if first is None:
        return
    head = _PAYLOAD.fullmatch(first[1])
    if head is None and first[1] != "---":
        yield first
        yield from lines
        return
    if head is None:
        first = next(lines, first)
        head = _PAYLOAD.fullmatch(first[1])
    if head is None:
        raise ItemFault(first[0], "a rule set in YAML begins with 'payload:'")
    yield from _items(text, first[0], head[1].strip())


class ItemFault(Fault):
    """What is wrong with the line ``number``."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


def condition(entry: str) -> Condition:
    """Read an entry.

    Raises:
        Fault: it is none.
    """
    if "," in entry:
        return split_condition(entry)
    if entry.startswith("+."):
        return Condition("DOMAIN-SUFFIX", entry[2:], ())
    # No top-level domain begins with a digit.
    if "/" in entry or ":" in entry or entry.rpartition(".")[2][:1].isdigit():
        return Condition("IP-CIDR", entry, ())
    if "*" in entry:
        parent = entry.removeprefix("*.")
        if parent != entry and "*" not in parent:
            return Condition(BARE_CHILDREN, parent, ())
        return Condition(BARE_WILDCARD, entry, ())
    if entry.startswith("."):
        return Condition(BARE_BELOW, entry[1:], ())
    return Condition("DOMAIN", entry, ())


def _items(text: str, first: int, rest: str) -> Iterator[tuple[int, str]]:
    """Yield the items of the list behind ``payload:``, which stands in line ``first``."""
    if rest not in ("", "[]"):
        raise ItemFault(first, "write one '- ...' below 'payload:' for each line of the rule set")
    indent: int | None = None
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        bare = line.strip()
        if number <= first or not bare or bare.startswith("#"):
            continue
        found = _ITEM.fullmatch(bare)
        depth = len(line) - len(line.lstrip(" "))
        indent = depth if indent is None else indent
        if found is None or depth != indent or rest:
            raise ItemFault(number, f"{bare!r} is not an item of the list below 'payload:'")
        yield number, _scalar(number, found[1] or "")


def _scalar(number: int, text: str) -> str:
    """Return what an item says."""
    if text.startswith(("'", '"')):
        quoted = (_SINGLE if text[0] == "'" else _DOUBLE).match(text)
        if quoted and not strip_comment(f" {text[quoted.end() :]}"):
            inner = quoted[1]
            return inner.replace("''", "'") if text[0] == "'" else re.sub(r"\\(.)", r"\1", inner)
    else:
        said = strip_comment(text)
        if said and not _NOT_PLAIN.match(said):
            return said
    raise ItemFault(number, f"{text!r} is not plain text: put it in single quotes")
