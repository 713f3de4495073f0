"""Clients that come at a set rate, however long the answers take.

``python -m tests.bench.visitors PORT PATH RATE SECONDS``. They come when a line arrives on standard input, after this
said "ready". Each asks for PATH, in which ``{n}`` is its own number. Prints how long they took and what they were
answered, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

import aiohttp


async def visit(port: int, path: str, rate: float, seconds: float) -> dict[str, object]:
    """Let them come, and return what they saw."""
    took: list[float] = []
    statuses: Counter[int] = Counter()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:

        async def one(n: int) -> None:
            begun = time.perf_counter()
            async with session.get(path.replace("{n}", str(n))) as response:
                await response.read()
            took.append(time.perf_counter() - begun)
            statuses[response.status] += 1

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for n in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, begun + n / rate - time.perf_counter()))
                group.create_task(one(n))
    return {"took": took, "statuses": statuses}


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asyncio.run(visit(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))))
