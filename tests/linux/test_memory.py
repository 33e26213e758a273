"""What becomes of memory that nobody uses, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

MEASURED = """
import os
from tunproxy.linux.memory import give_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

{garbage}
before = resident()
give_back()
print(before - resident())
"""

CYCLES = """
import gc
gc.disable()
for _ in range(100_000):
    garbage = [bytes(400)]
    garbage.append(garbage)
del garbage
"""

# Above 512 octets they are the C library's, and the last one is where its heap ends.
HOLES = """
blocks = [bytes(2000) for _ in range(20_000)]
del blocks[:-1]
"""


def given_back(garbage: str) -> int:
    """Octets that were resident before, and are not afterwards."""
    code = MEASURED.format(garbage=garbage)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_what_refers_to_itself() -> None:
    assert given_back(CYCLES) > 32 << 20


def test_what_the_c_library_keeps() -> None:
    assert given_back(HOLES) > 32 << 20
