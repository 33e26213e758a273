"""Rules: what becomes of a flow, or of a name before there is a flow.

A rule list has one rule per line, ``TYPE,payload,TARGET``, and the first that matches decides:

=====================================  =======================================================
``DOMAIN,www.example.com,DIRECT``      this name
``DOMAIN-SUFFIX,example.com,PROXY``    this name and all below it
``DOMAIN-KEYWORD,example,PROXY``       names that contain this
``DOMAIN-WILDCARD,*.example.*,PROXY``  ``*`` is any number of characters, ``?`` is one
``DOMAIN-REGEX,^a[0-9]+\\.,PROXY``      names in which Python's ``re`` finds this
``IP-CIDR,192.168.0.0/16,DIRECT``      addresses (IP-CIDR6 for IPv6 only)
``GEOIP,CH,DIRECT``                    addresses in a country; LAN: private ones
``IP-ASN,13335,PROXY``                 addresses of an autonomous system
``SRC-IP-CIDR,192.168.7.0/24,PROXY``   initiators
``DST-PORT,25/6881-6889,REJECT``       ports and ranges, separated by slashes
``SRC-PORT,1-1023,REJECT``             ports of initiators
``NETWORK,udp,REJECT``                 tcp or udp
``PROCESS-NAME,curl,DIRECT``           the last part of the program's path, in any case
``PROCESS-PATH,/usr/bin/curl,DIRECT``  the program file
``UID,1000/2000-2999,PROXY``           users
``CGROUP,user.slice,PROXY``            this control group and all below it
``RULE-SET,private.list,DIRECT``       whatever a line of another file matches (`.rule_sets`)
``AND,((A,x),(B,y)),REJECT``           all of these; OR: one of them
``NOT,((A,x)),REJECT``                 everything but this
``SUB-RULE,(A,x),other.list``          what the rules of another list say, where this holds
``MATCH,PROXY``                        everything
=====================================  =======================================================

``TARGET`` is PROXY, DIRECT, REJECT, REJECT-DROP, or the name of a server or group. ``#`` at the
beginning of a line or behind a space begins a comment. A list in which nothing else matches ends
in PROXY; a SUB-RULE list in which nothing matches changes nothing.

Rules about addresses hold for flows to addresses. Where the caller knows addresses of names, they
hold for names too, unless the rule ends in ``,no-resolve``. What is not known matches nothing
(:mod:`.facts`).

A rule set is a list without targets, MATCH, SUB-RULE and RULE-SET.

Names and networks cost the same however many there are. What else there is costs a fraction of a
microsecond for each line that is tried, and a regular expression that repeats a repetition, as
``(a+)+$`` does, can take very long: names are what strangers make of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .decision import Action, Decision
from .facts import UNKNOWN, Address, Facts, Need, Subject, Transport
from .rule_compiler import ALWAYS_KNOWN, Compiler, Load

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

__all__ = [
    "ALWAYS_KNOWN",
    "Action",
    "Address",
    "Decision",
    "Explanation",
    "Facts",
    "Load",
    "Need",
    "RuleTable",
    "Transport",
    "Tried",
    "ancestry",
]


@dataclass(frozen=True, slots=True)
class Tried:
    """A rule that was tried one by one, and did not match."""

    rule: str
    """As written."""
    place: str
    """``file:line``."""
    missing: frozenset[Need]
    """What this rule, or one before it, asked for in vain."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a decision came about."""

    decision: Decision
    place: str
    """``file:line`` of what matched: with RULE-SET, the line of the set."""
    tried: tuple[Tried, ...]
    """The rules before it that had to be tried, in order. The others before it were found not to
    match by looking the name and the address up."""
    missing: frozenset[Need]
    """Facts that were asked for and are not known: each could have changed the decision."""


class RuleTable:
    """A compiled rule list; make one with :meth:`parse`.

    Attributes:
        decisions: what each rule decides, in their order, with the implicit last one.
        hits: how often each of them did.
        needs: the facts that the rules may ask for. One that is not among them has no influence
            on any decision.
    """

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._root = compiler.root
        self._index_at = compiler.index_at
        self.decisions: Sequence[Decision] = compiler.decisions
        self.hits = [0] * len(self.decisions)
        self.needs: frozenset[Need] = self._root.needs

    @classmethod
    def parse(
        cls,
        files: Sequence[tuple[str, str]],
        load: Load,
        *,
        servers: Collection[str] = (),
        known: Collection[Need] = ALWAYS_KNOWN,
    ) -> RuleTable:
        """Compile the ``(source, text)`` pairs of ``files``, one after the other.

        Args:
            files: ``source`` is what error messages call the file.
            load: returns such a pair for the name in a RULE-SET or SUB-RULE line, or raises
                ConfigError.
            servers: the names of servers and groups that a rule may have as target.
            known: what the :class:`Facts` of a flow may know. A rule about COUNTRY or ASN is an
                error if it is not among them. Without RESOLVED, rules about addresses never hold
                for names.

        Raises:
            ConfigError: naming the line and what is wrong with it.
        """
        compiler = Compiler(load, servers, known)
        for source, text in files:
            compiler.add_list(source, text)
        compiler.finish()
        return cls(compiler)

    def decide(
        self,
        *,
        name: str | None,
        address: Address | None,
        port: int,
        network: Transport,
        facts: Facts = UNKNOWN,
    ) -> Decision:
        """Return the decision for a flow, and count it.

        ``name`` is in lower case without trailing dot; ``None``, when it is not known, matches no
        name rule. ``address`` is ``None`` for a flow to a fake one. ``facts`` are asked for what a
        rule needs when it is that rule's turn.
        """
        found = self._root.find(Subject(name, address, port, network, facts))
        index = self._index_at(found)
        self.hits[index] += 1
        return self.decisions[index]

    def decide_name(self, name: str) -> Decision | None:
        """Return the decision that holds for every flow to ``name`` with a fake address.

        ``None``: it depends on the flow's port, protocol, owner or the like.
        """
        outlook = Subject(name, None, 0, "tcp", is_outlook=True)
        found = self._root.foresee(outlook)
        return None if found is None else self.decisions[self._index_at(found)]

    def needs_name(
        self, *, address: Address, port: int, network: Transport, facts: Facts = UNKNOWN
    ) -> bool:
        """Whether the decision for a flow to a bare address depends on the name that it may have.

        Then it is worth to accept the flow, and to look for one in what its initiator sends
        (:mod:`.sniff`).
        """
        if Need.SNIFF not in self.needs:
            return False
        return self._root.foresee(Subject(None, address, port, network, facts)) is None

    def explain(
        self,
        *,
        name: str | None,
        address: Address | None,
        port: int,
        network: Transport,
        facts: Facts = UNKNOWN,
    ) -> Explanation:
        """Return what :meth:`decide` would, uncounted, and why."""
        subject = Subject(name, address, port, network, facts)
        subject.trail = []
        found = self._root.find(subject)
        tried: dict[str, Tried] = {}
        for position, missing in subject.trail:
            rule, place = self._rule_at(position)
            tried[place] = Tried(rule, place, missing)
        decision = self.decisions[self._index_at(found)]
        # A set that matches with one of its lines has been tried with those before it.
        tried.pop(decision.place, None)
        return Explanation(
            decision,
            self._compiler.place(found),
            tuple(tried.values()),
            subject.missing,
        )

    def _rule_at(self, position: int) -> tuple[str, str]:
        """Return the text and the place of the rule that the line at ``position`` belongs to."""
        detour = self._compiler.detours.get(position)
        if detour is not None:
            return detour
        decision = self.decisions[self._index_at(position)]
        return decision.rule, decision.place


def ancestry(name: str) -> Iterator[str]:
    """Yield ``name`` and the names above it, without the root."""
    yield name
    while dot := name.find(".") + 1:
        name = name[dot:]
        yield name
