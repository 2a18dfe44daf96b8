"""Gathering what several clients ask for into batches, which one thread computes."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


SMOOTHING = 0.2  # of the newest batch, in the seconds that a list takes

logger = logging.getLogger(__name__)


class QueueFull(Exception):
    """As many wait as may. `retry_after`: whole seconds until they are likely to be done."""

    def __init__(self, retry_after: int):
        super().__init__(f"retry after {retry_after} s")
        self.retry_after = retry_after


class Batcher:
    """A queue in front of one thread.

    While a batch is computed the next one gathers. Then it waits for as many as the last one had, but no longer than
    `wait`: one client alone is served at once, and many who ask again and again come together again.

    Args:
        work: computes a batch in the thread: from a key and items that share it to one result each; a result that is
            an exception is raised for the one it belongs to.
        size: of a batch, at most.
        wait: seconds, at most, that a batch waits for others.
        queue_size: how many may wait.
        told: is called with size and seconds of each batch.
        thread: an executor of one thread, which the first `close` shuts down; other starts make their own.
    """

    def __init__(
        self,
        work: Callable[[Hashable, list[Any]], Sequence[Any]],
        *,
        size: int,
        wait: float,
        queue_size: int,
        told: Callable[[int, float], Any] = lambda size, seconds: None,
        thread: ThreadPoolExecutor | None = None,
    ):
        self.work, self.size, self.wait, self.queue_size, self.told = work, size, wait, queue_size, told
        self.waiting: dict[asyncio.Future, tuple[Hashable, Any]] = {}  # in the order they came
        self._expected, self._seconds_each = 1, 0.0
        self._busy_since: float | None = None
        self._loop_task: asyncio.Task | None = None
        self._given_thread = thread

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._arrived = asyncio.Event()
        self._thread = self._given_thread or ThreadPoolExecutor(1, thread_name_prefix="ranking")
        self._given_thread = None  # at another start it has been shut down
        self._loop_task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End once the batch that is computed is done."""
        self._loop_task.cancel()
        await asyncio.gather(self._loop_task, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    @property
    def running(self) -> bool:
        return self._loop_task is not None and not self._loop_task.done()

    @property
    def busy_seconds(self) -> float:
        """How long the batch of this moment has taken so far; 0 between batches."""
        return 0.0 if self._busy_since is None else time.monotonic() - self._busy_since

    def put(self, key: Hashable, item: Any) -> asyncio.Future:
        """Take an item into the queue. Nothing is computed for a future that is cancelled before its turn.

        Raises:
            QueueFull: there are `queue_size` before it.
        """
        if len(self.waiting) >= self.queue_size:
            raise QueueFull(max(1, math.ceil(self._seconds_each * len(self.waiting))))
        answer = asyncio.get_running_loop().create_future()
        self.waiting[answer] = key, item
        answer.add_done_callback(lambda done: self.waiting.pop(done, None))
        self._arrived.set()
        return answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._gather()
            key, batch = self._take()
            if not batch:
                continue
            self._busy_since = start = time.monotonic()
            try:
                results = await loop.run_in_executor(self._thread, self.work, key, [item for _, item in batch])
            except Exception as error:
                logger.exception(f"A batch of {len(batch)} failed.")
                results = [error] * len(batch)
            self._busy_since, seconds = None, time.monotonic() - start
            self._expected = len(batch)
            self._seconds_each += SMOOTHING * (seconds / len(batch) - self._seconds_each)
            self.told(len(batch), seconds)
            for (answer, _), result in zip(batch, results, strict=True):
                if answer.done():  # nobody waits for it any more
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

    async def _gather(self) -> None:
        """Wait for somebody, and then for others."""
        while not self.waiting:
            self._arrived.clear()
            await self._arrived.wait()
        try:
            async with asyncio.timeout(self.wait):
                while len(self.waiting) < self._expected:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass

    def _take(self) -> tuple[Hashable, list[tuple[asyncio.Future, Any]]]:
        """The oldest, and what came after it and can be computed with it."""
        first, batch = None, []
        for answer, (key, item) in self.waiting.items():
            if answer.done():
                continue
            first = key if first is None else first
            if key == first and len(batch) < self.size:
                batch.append((answer, item))
        for answer, _ in batch:
            del self.waiting[answer]
        return first, batch
