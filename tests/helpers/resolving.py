"""Names of the far side, for relays that can be told addresses only."""

from __future__ import annotations

import asyncio


class Resolving:
    """Knows ``names``, and fails for broken.example; what is asked waits for the gate."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names = names
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, name: str) -> list[str]:
        self.asked.append(name)
        await self.gate.wait()
        if name == "broken.example":
            raise OSError("no answer")
        return self.names.get(name, [])
