from __future__ import annotations

import asyncio

from dmray.on_ray.evaluation_pool import FairQueue


async def taken(queue: FairQueue[str], count: int) -> str:
    return "".join([await queue.get() for _ in range(count)])


def test_owners_take_turns_however_much_each_has_asked_for() -> None:
    async def serve() -> str:
        queue: FairQueue[str] = FairQueue()
        for _ in range(4):
            queue.put("greedy", "g")
        queue.put("modest", "m")
        queue.put("other", "o")
        return await taken(queue, 6)

    assert asyncio.run(serve()) == "gmoggg"


def test_who_comes_later_begins_where_the_others_are() -> None:
    async def serve() -> str:
        queue: FairQueue[str] = FairQueue()
        for _ in range(6):
            queue.put("early", "e")
        served = await taken(queue, 3)
        for _ in range(3):
            queue.put("late", "l")
        return served + await taken(queue, 6)

    assert asyncio.run(serve()) in ("eee" + "elelel", "eee" + "lelele")


def test_what_is_put_back_is_next() -> None:
    async def serve() -> str:
        queue: FairQueue[str] = FairQueue()
        for item in "abc":
            queue.put("one", item)
        first = await queue.get()
        queue.put_back(first)
        return await taken(queue, 3)

    assert asyncio.run(serve()) == "abc"


def test_waiting_for_work_takes_none() -> None:
    async def serve() -> str:
        queue: FairQueue[str] = FairQueue()
        waiting = asyncio.ensure_future(queue.wait_until_filled(0.001))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        queue.put("one", "x")
        await asyncio.wait_for(waiting, 10)
        return await queue.get()

    assert asyncio.run(serve()) == "x"
