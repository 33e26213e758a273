"""Slots are told apart by their numbers alone."""

from __future__ import annotations

import pytest

from tunproxy.linux import marks


@pytest.mark.parametrize("slot", range(marks.SLOTS))
def test_slots_share_no_number(slot: int) -> None:
    others = [number for number in range(marks.SLOTS) if number != slot]
    for other in others:
        assert marks.slot_priorities(slot).isdisjoint(marks.slot_priorities(other))
        assert {marks.table(slot), marks.names_table(slot)}.isdisjoint(
            {marks.table(other), marks.names_table(other)}
        )
    assert marks.capture_mark(slot) & marks.CAPTURE_MASK == marks.CAPTURE_MARK
    assert marks.run_classid(slot) != marks.BYPASS_CLASSID


def test_every_priority_belongs_to_a_slot() -> None:
    slots = [marks.slot_of_priority(number) for number in marks.ALL_PRIORITIES]
    assert set(slots) == set(range(marks.SLOTS))
    for slot in range(marks.SLOTS):
        assert {marks.table(slot), marks.names_table(slot)} <= set(marks.ALL_TABLES)
        assert len(marks.trap_device(slot)) < 16
        assert marks.late_priority(slot) > max(
            marks.priority(other, 15) for other in range(marks.SLOTS)
        )


def test_cgroups_of_two_network_namespaces_differ() -> None:
    assert marks.run_cgroup(1, 0) != marks.run_cgroup(2, 0)
