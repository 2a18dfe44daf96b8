"""A machine that lets one down: full disks, read-only folders, no network, clocks that jump, two at the same work."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import serve_load
from tiny_batch import make_rows

from campaign import jobs
from campaign.kills import Place, answer, hashes, write_rankers, write_run
from llamarec_lkg import LKGError


def full_disk(count: int, folder: Path) -> Iterator[str | None]:
    """Files that may not grow over a drawn size: a clear error, nothing half-visible, and later the right result."""
    place = Place(folder)
    write_run(place.here)
    old, new = write_rankers(place.here)
    shutil.copytree(place.here / "old", place.here / "saved")
    make_rows(40, range(1, 7)).to_parquet(place.here / "rows.parquet")
    place.keep()
    wanted = {}
    for job, where in RESULTS.items():
        jobs.finish(job, place.again())
        wanted[job] = hashes(place.here / where)
    chance = random.Random(0)
    for _ in range(count):
        job, room = chance.choice(list(RESULTS)), int(10 ** chance.uniform(1, 5.2))
        status, told = jobs.ended(jobs.start(job, place.again(), file_bytes=room)), jobs.last_words(place.here)
        clear = status == 0 or told.partition(":")[0] in CLEAR
        seen = _seen(place.here / "saved")
        jobs.finish(job, place.here)
        differing = {name for name, _ in wanted[job].items() ^ hashes(place.here / RESULTS[job]).items()}
        right = clear and seen in (None, old, new) and not differing
        yield None if right else f"{job.__name__}, files of at most {room} bytes: {status}, {told!r:.300}, {differing}"


RESULTS = {jobs.train_retriever: "run", jobs.save: "saved", jobs.rank: "ranked"}
CLEAR = ("OSError", "PermissionError", "LKGError")


def _seen(folder: Path) -> list | None:
    try:
        return answer(folder)
    except LKGError:
        return None


def read_only(count: int, folder: Path) -> Iterator[str | None]:
    """A cache that cannot be written to, empty or filled, stops no stage; an output folder that cannot says so."""
    place = Place(folder)
    write_run(place.here)
    write_rankers(place.here)
    make_rows(8, range(1, 7)).to_parquet(place.here / "rows.parquet")
    (place.here / "cache").mkdir()
    place.keep()
    for number in range(count):
        job = (jobs.prepare, jobs.rank, jobs.evaluate)[number % 3]
        is_filled, of_results = number % 2 == 1, number % 7 == 6
        place.again()
        if is_filled:
            jobs.finish(job, place.here)
        shut = place.here / (RESULTS.get(job, "run") if of_results else "cache")
        shut.mkdir(exist_ok=True)
        jobs.shut(shut)
        status, told = jobs.ended(jobs.start(job, place.here, bound=True)), jobs.last_words(place.here)
        jobs.open_again(shut)
        right = status == 0 if not of_results else status in (0, 1) and told.partition(":")[0] in (*CLEAR, "")
        yield None if right else f"{job.__name__}, {shut.name} read-only, filled: {is_filled}: {status}, {told!r:.300}"


def no_network(count: int, folder: Path) -> Iterator[str | None]:
    """What lies here works without a network; what does not is refused in time, with the address."""
    place = Place(folder)
    write_rankers(place.here)
    (place.here / "hub.json").write_text(json.dumps({"url": "http://127.0.0.1:9", "token": "hf_none"}))
    for number in range(count):
        job = (jobs.answer_offline, jobs.load_offline, jobs.push)[number % 3]
        started = time.monotonic()
        status, told = jobs.ended(jobs.start(job, place.here)), jobs.last_words(place.here)
        seconds = time.monotonic() - started
        right = seconds < 60 and (status == 0 if job is jobs.answer_offline else told.partition(":")[0] in CLEAR)
        yield None if right else f"{job.__name__}: {status} after {seconds:.0f} s, {told!r:.300}"


def clock(count: int, folder: Path) -> Iterator[str | None]:
    """A clock that jumps by years moves no result."""
    place = Place(folder)
    write_run(place.here)
    write_rankers(place.here)
    make_rows(40, range(1, 7)).to_parquet(place.here / "rows.parquet")
    place.keep()
    stages = {jobs.train_retriever: "run", jobs.rank: "ranked", jobs.train: "run"}
    wanted = {}
    for number in range(count):
        job = list(stages)[number % len(stages)]
        if job not in wanted:
            jobs.finish(job, place.again())
            wanted[job] = hashes(place.here / stages[job])
        jobs.finish(job, place.again(), clock=number)
        differing = {name for name, _ in wanted[job].items() ^ hashes(place.here / stages[job]).items()}
        yield f"{job.__name__}: {differing}" if differing else None


def clients(count: int, folder: Path) -> Iterator[str | None]:
    """Clients who ask a server again and again, for a minute: each is told what the recommender says offline, none
    waits for long, and the server does not grow."""
    found = serve_load.run(count, 60)
    yield from [None] * found["survived"] + [str(found["first_wrong"])] * found["lost"]
    bounded = found["p99"] < 30 and found["grown"] < 100e6
    yield None if bounded else f"p99 {found['p99']} s, {found['grown']} bytes more"


def together(count: int, folder: Path) -> Iterator[str | None]:
    """Two processes prepare the same data at once, or evaluate on them: both end well, with the same result."""
    place = Place(folder)
    write_run(place.here)
    place.keep()
    chance = random.Random(0)
    seconds, wanted = jobs.finish(jobs.prepare, place.here)
    for _ in range(count):
        first = jobs.start(jobs.prepare, place.again())
        time.sleep(chance.uniform(0, seconds))
        second = jobs.start(jobs.prepare, place.here)
        status = [jobs.ended(process) for process in (first, second)]
        found = json.loads((place.here / "result.json").read_text()) if status == [0, 0] else None
        yield None if found == wanted else f"{status}: {jobs.last_words(place.here)}"
