"""Who is served next: owners take turns, however much each has asked for."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue for asyncio in which the n-th item of an owner never waits for the (n+1)-th of another.

    An owner that comes later begins where the others are: what it did not ask for before, it is not owed. An item put
    back keeps its turn.
    """

    def __init__(self) -> None:
        self._queue: asyncio.PriorityQueue[tuple[int, int, T]] = asyncio.PriorityQueue()
        self._last_turn: dict[str, int] = {}
        self._turn, self._arrivals = 0, 0

    def put(self, owner: str, item: T) -> None:
        turn = max(self._last_turn.get(owner, 0), self._turn) + 1
        self._last_turn[owner] = turn
        self._insert(turn, item)

    def put_back(self, item: T) -> None:
        """Queue `item`, which was handed out, before all that wait."""
        self._insert(self._turn, item)

    async def get(self) -> T:
        self._turn, _, item = await self._queue.get()
        return item

    async def wait_until_filled(self, poll_s: float) -> None:
        """Wait until something is queued, without taking it."""
        while self._queue.empty():
            await asyncio.sleep(poll_s)

    def _insert(self, turn: int, item: T) -> None:
        self._arrivals += 1
        self._queue.put_nowait((turn, self._arrivals, item))
