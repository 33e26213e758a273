"""The text of rules: lines, fields, parentheses, and the payloads of the types."""

from __future__ import annotations

import fnmatch
import re
import warnings
from typing import TYPE_CHECKING, NamedTuple

from .rule_matchers import Network, Ranges, network_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LOGICAL = frozenset({"AND", "OR", "NOT"})
_WITH_COMMAS = LOGICAL | {"SUB-RULE", "DOMAIN-REGEX"}
"""Types whose payload may have commas, so that nothing can stand behind it but the target."""
_DOMAIN = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_KEYWORD = re.compile(r"[a-z0-9_.-]+")
_WILDCARD = re.compile(r"[a-z0-9_.*?-]+")
_RANGE = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")
_COMMENT = re.compile(r"(?:^|\s)#")
_MAX_PATTERN = 1000


class Fault(Exception):
    """What is wrong with a line; its place is added where it is known."""


class Condition(NamedTuple):
    """What a rule looks at: a rule without its target."""

    kind: str
    """In upper case."""
    payload: str
    params: Sequence[str]


def said_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that say something, with their numbers and without comments.

    A comment begins with ``#`` at the beginning of a line or behind a space: elsewhere it may be
    part of a regular expression.
    """
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        said = strip_comment(line)
        if said:
            yield number, said


def strip_comment(line: str) -> str:
    """Return what ``line`` says."""
    if "#" in line:
        line = _COMMENT.split(line, 1)[0]
    return line.strip()


def split_rule(line: str) -> tuple[Condition, str]:
    """Read a line of a rule list: what it looks at, and its target.

    Raises:
        Fault: it lacks fields.
    """
    kind, *fields = [field.strip() for field in line.split(",")]
    kind = kind.upper()
    if kind == "MATCH":
        fields.insert(0, "")
    if len(fields) < 2:
        raise Fault(f"{line!r} is not a rule: write TYPE,payload,TARGET or MATCH,TARGET")
    if kind not in _WITH_COMMAS:
        return Condition(kind, fields[0], fields[2:]), fields[1]
    payload = line.partition(",")[2].rpartition(",")[0].strip()
    return Condition(kind, payload, ()), fields[-1]


def split_condition(text: str) -> Condition:
    """Read a line of a rule set, or a part of a logical rule.

    Raises:
        Fault: it lacks the payload.
    """
    kind, comma, rest = text.partition(",")
    kind = kind.strip().upper()
    if not comma and kind != "MATCH":
        raise Fault(f"{text!r} is not a condition: write TYPE,payload")
    if kind in _WITH_COMMAS:
        return Condition(kind, rest.strip(), ())
    payload, *params = [field.strip() for field in rest.split(",")]
    return Condition(kind, payload, params)


def split_parts(payload: str) -> list[str]:
    """Return the parts of ``((a),(b))``, without their parentheses.

    Raises:
        Fault: parentheses or commas are not where they have to be.
    """
    return [_unwrap(part) for part in _split_outside(_unwrap(payload))]


def single_part(payload: str) -> str:
    """Return the part that ``(a)`` or ``((a))`` is.

    Raises:
        Fault: it is more than one, or something else.
    """
    inner = _unwrap(payload)
    return _unwrap(inner) if inner.startswith("(") else inner


def _unwrap(text: str) -> str:
    text = text.strip()
    depth = 0
    for index, character in _unescaped(text):
        depth += (character == "(") - (character == ")")
        if depth <= 0:
            if index == len(text) - 1 and text[0] == "(" and depth == 0:
                return text[1:-1].strip()
            break
    raise Fault(
        f"{text!r} has to be in one pair of parentheses: write ((TYPE,payload),(TYPE,payload))"
    )


def _split_outside(text: str) -> Iterator[str]:
    """Split ``text`` at the commas that are in no parentheses."""
    depth = start = 0
    for index, character in _unescaped(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            yield text[start:index]
            start = index + 1
    yield text[start:]


def _unescaped(text: str) -> Iterator[tuple[int, str]]:
    """Yield the characters before which no backslash stands: regular expressions have them."""
    escaped = False
    for index, character in enumerate(text):
        if not escaped:
            yield index, character
        escaped = character == "\\" and not escaped


def domain(payload: str) -> str:
    """Return a domain name as names are spelled here.

    Raises:
        Fault: it is none.
    """
    name = _ascii(payload)
    if len(name) > 253 or not _DOMAIN.fullmatch(name):
        raise Fault(
            f"{payload!r} is not a domain name: write example.com, without '*' or a dot before it"
        )
    return name


def keyword(payload: str) -> str:
    """Return a part of a name.

    Raises:
        Fault: no name has it.
    """
    part = payload.lower()
    if not _KEYWORD.fullmatch(part):
        raise Fault(f"no name contains {payload!r}: use letters, digits, '-', '_' and '.'")
    return part


def wildcard(payload: str) -> re.Pattern[str]:
    """Compile a pattern in which ``*`` is any number of characters, dots too, and ``?`` is one.

    Raises:
        Fault: it has other characters than names and patterns have.
    """
    pattern = _ascii(payload)
    if len(pattern) > 253 or not _WILDCARD.fullmatch(pattern):
        raise Fault(f"{payload!r} is not a pattern of names: write *.example.com or www?.example.*")
    # Never slow: what translate() makes of "*" does not go back on what it has found.
    return re.compile(rf"\A{fnmatch.translate(pattern)}")


def labels(payload: str) -> re.Pattern[str]:
    """Compile a name in which ``*`` stands for one label.

    Raises:
        Fault: it is none.
    """
    domain(payload.replace("*", "a"))
    parts = ["[^.]+" if label == "*" else re.escape(label) for label in _ascii(payload).split(".")]
    if any("*" in part for part in parts if part != "[^.]+"):
        raise Fault(f"{payload!r} has a label with '*' and more: write DOMAIN-WILDCARD,{payload}")
    return re.compile(rf"\A{'[.]'.join(parts)}\Z")


def regex(payload: str) -> re.Pattern[str]:
    """Compile a regular expression of Python, in upper or lower case.

    Raises:
        Fault: it is none, or too long.
    """
    if not payload or len(payload) > _MAX_PATTERN:
        raise Fault(f"a regular expression has 1 to {_MAX_PATTERN} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return re.compile(payload, re.IGNORECASE | re.ASCII)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        raise Fault(f"{payload!r} is not a regular expression: {error}") from None


def network(payload: str) -> Network:
    """Read a network of either family.

    Raises:
        Fault: it is none.
    """
    try:
        return network_of(payload)
    except ValueError:
        raise Fault(f"{payload!r} is not a network: write it as 10.0.0.0/8") from None


def network6(payload: str) -> Network:
    """Read an IPv6 network.

    Raises:
        Fault: it is none.
    """
    if ":" not in payload:
        raise Fault(f"{payload!r} is not an IPv6 network: write it as fd00::/8")
    return network(payload)


def ports(payload: str) -> Ranges:
    """Read ports and ranges of them.

    Raises:
        Fault: they are none.
    """
    return _ranges(payload, 65535, "port", "80/443/8000-8999")


def users(payload: str) -> Ranges:
    """Read numbers of users and ranges of them.

    Raises:
        Fault: they are none.
    """
    return _ranges(payload, 2**32 - 2, "number of a user", "0/1000/2000-2999")


def number(payload: str) -> int:
    """Read the number of an autonomous system.

    Raises:
        Fault: it is none.
    """
    digits = payload.upper().removeprefix("AS")
    if not (re.fullmatch(r"[0-9]{1,10}", digits) and 0 < int(digits) < 2**32):
        raise Fault(f"{payload!r} is not the number of an autonomous system: write it as 13335")
    return int(digits)


def one_of(words: Iterable[str]) -> str:
    """Enumerate ``words``."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _ascii(payload: str) -> str:
    name = payload.lower().removesuffix(".")
    if not name.isascii():
        try:
            return name.encode("idna").decode("ascii").lower()
        except UnicodeError:
            raise Fault(f"{payload!r} is not a domain name") from None
    return name


def _ranges(payload: str, highest: int, what: str, example: str) -> Ranges:
    return tuple(_range(part.strip(), highest, what, example) for part in payload.split("/"))


def _range(part: str, highest: int, what: str, example: str) -> tuple[int, int]:
    found = _RANGE.fullmatch(part)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last <= highest:
        raise Fault(f"{part!r} is not a {what} or range: write them as {example}")
    return first, last
