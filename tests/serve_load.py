"""A server process under many clients, each of whose answers is compared with what the recommender says offline."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from tiny_batch import ROOT, save_ranker
from tiny_run import write_world

from llamarec_lkg import Recommender
from llamarec_lkg.data.sequences import PreprocessingSettings, SequenceDataset
from llamarec_lkg.data.sources import load_dataset_bundle


QUESTIONS = 64
PATIENCE = 60  # seconds for an answer, beyond the server's own
CLOSE = 1e-5  # of scores: a batch changes them by rounding alone


@contextmanager
def serving(model: Path, *options: str, log: Path, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`llamarec-lkg serve` in a process of its own, once it is ready, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llamarec_lkg.cli", "serve", "--model", str(model), "--port", str(port), *options]
    path = os.pathsep.join([str(ROOT), *sys.path])
    with log.open("w") as said:
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": path, **environment}, stdout=said, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}"
        while not listens(port):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield process, address
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


Question = tuple[dict[str, Any], list[tuple[str, float]]]  # a body, and the items and scores of its answer


def questions(recommender: Recommender, count: int = QUESTIONS) -> list[Question]:
    """For /recommend, of short histories."""
    generator, asked = np.random.default_rng(0), []
    longest = min(8, len(recommender.item_ids))
    for _ in range(count):
        history = generator.permutation(recommender.item_ids)[: generator.integers(1, longest)].tolist()
        items = recommender.recommend(history, k=5, num_reasons=1)
        asked.append(({"history": history, "k": 5, "num_reasons": 1}, [(one.item_id, one.score) for one in items]))
    return asked


def agrees(answer: Sequence[dict[str, Any]], expected: Sequence[tuple[str, float]]) -> bool:
    """The same scores, rank by rank, and the same items but where two of them stand as close as rounding goes."""
    if len(answer) != len(expected):
        return False
    close = all(abs(one["score"] - score) < CLOSE for one, (_, score) in zip(answer, expected, strict=True))
    given, scores = {one["item_id"]: one["score"] for one in answer}, dict(expected)
    return (
        close
        and all(abs(given[item] - scores[item]) < CLOSE for item in given.keys() & scores.keys())
        and (given.keys() == scores.keys() or min(scores.values()) - min(given.values()) < CLOSE)
    )


async def ask(address: str, asked: Sequence[Question], clients: int, seconds: float) -> dict[str, Any]:
    """Clients who ask again as soon as they are answered, or when a 429 tells them to."""
    times, wrong, tried = [], [], 0
    end = time.perf_counter() + seconds
    timeout, connector = aiohttp.ClientTimeout(PATIENCE), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(address, connector=connector, timeout=timeout) as session:

        async def client(number: int) -> None:
            nonlocal tried
            while time.perf_counter() < end:
                body, expected = asked[number % len(asked)]
                number += clients
                tried, start = tried + 1, time.perf_counter()
                try:
                    async with session.post("/recommend", json=body) as answer:
                        if answer.status == 429:
                            tried -= 1
                            await asyncio.sleep(int(answer.headers["Retry-After"]))
                            continue
                        said = await answer.json(content_type=None)
                except (aiohttp.ClientError, TimeoutError) as error:
                    wrong.append(repr(error))
                    continue
                if answer.status == 200 and agrees(said["items"], expected):
                    times.append(time.perf_counter() - start)
                else:
                    wrong.append(said)

        start = time.perf_counter()
        await asyncio.gather(*map(client, range(clients)))
        took = time.perf_counter() - start
    p99 = float(np.quantile(times, 0.99)) if times else float("inf")
    found = {"tried": tried, "survived": len(times), "lost": len(wrong), "p99": p99, "per_second": len(times) / took}
    return {**found, "first_wrong": wrong[0] if wrong else None}


async def metric(address: str, name: str) -> float:
    async with aiohttp.ClientSession(address) as session, session.get("/metrics") as answer:
        return float(re.search(rf"^{name} (\S+)$", await answer.text(), re.MULTILINE)[1])


def run(clients: int, seconds: float) -> dict[str, Any]:
    """A load on a server of a small ranker.

    Returns:
        how many requests were `tried`, `survived` (answered, as offline) and `lost`; the seconds `p99` below which 99
        of 100 answers came, answers `per_second`, and the seconds of a list `offline`; `grown`, bytes of memory that
        the server took between a quarter of the time and the end; and what was `first_wrong`.
    """
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        room = Path(folder)
        write_world(room / "world")
        settings = PreprocessingSettings(min_user_interactions=1, min_item_interactions=1)
        dataset = SequenceDataset.from_bundle(load_dataset_bundle(room / "world"), settings)
        model = save_ranker(dataset, room / "small")
        recommender = Recommender.from_pretrained(model, device="cpu")
        asked = questions(recommender)
        start = time.perf_counter()
        questions(recommender)
        offline = (time.perf_counter() - start) / len(asked)

        async def load(address: str) -> dict[str, Any]:
            begun = asyncio.create_task(ask(address, asked, clients, seconds))
            await asyncio.sleep(seconds / 4)
            before = await metric(address, "process_resident_memory_bytes")
            found = await begun
            return {
                **found,
                "offline": offline,
                "grown": await metric(address, "process_resident_memory_bytes") - before,
            }

        with serving(model, "--device", "cpu", log=room / "log") as (_, address):
            return asyncio.run(load(address))
