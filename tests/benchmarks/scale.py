"""Data larger than memory: a hundred million interactions, and the size of MovieLens 25M in csv."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb

from llamarec_lkg.data.sequences import SequenceDataset
from llamarec_lkg.data.sources import open_source
from llamarec_lkg.graph.co_ratings import co_ratings

from .runner import Figure, alone, benchmark


WINDOW = 5
PARQUET = {"interactions": 100_000_000, "users": 10_000_000, "items": 1_000_000}
CSV = {"interactions": 25_000_000, "users": 162_000, "items": 59_000}


def write(folder: Path, kind: str, interactions: int, users: int, items: int) -> None:
    """Interactions by chance, items the more popular the lower their number, and the items."""
    folder.mkdir(parents=True)
    with duckdb.connect(config={"temp_directory": str(folder)}) as connection:
        connection.execute("SELECT setseed(0.42)")
        connection.execute(
            f"COPY (SELECT 1 + floor(random() * {users})::BIGINT AS user_id, "
            f"1 + floor(pow(random(), 2) * {items})::BIGINT AS item_id, 1 + floor(random() * 10) / 2 AS rating, "
            f"1e9::BIGINT + floor(random() * 5e8)::BIGINT AS timestamp FROM range({interactions})) "
            f"TO '{folder}/interactions.{kind}'"
        )
        connection.execute(
            f"COPY (SELECT range + 1 AS item_id, 'Title ' || range AS title FROM range({items})) "
            f"TO '{folder}/items.{kind}'"
        )


def prepare(folder: str) -> int:
    """How many interactions are left of some tables after duplicates and filter, in order, split."""
    return len(SequenceDataset.from_raw(open_source(folder)).item_sequence)


def prepare_and_count(folder: str) -> int:
    """The same, then pairs of items that people took within a window of each other."""
    return len(co_ratings(SequenceDataset.from_raw(open_source(folder)), min_people=3, window=WINDOW))


@benchmark
def scale() -> Iterator[Figure]:
    room = Path(tempfile.mkdtemp(prefix="benchmark-"))
    environment = {"LLAMAREC_LKG_MEMORY": "1GB", "LLAMAREC_LKG_CACHE": str(room / "cache")}
    try:
        for kind, size, seconds, gigabytes in (("csv", CSV, 120, 2), ("parquet", PARQUET, 600, 6)):
            write(room / kind, kind, **size)
            name = f"prepare {size['interactions'] / 1e6:.0f}M interactions, {kind}"
            found = alone(prepare, str(room / kind), **environment)
            yield Figure(f"{name}: time", found["seconds"], seconds, "s", 1, "bound")
            yield Figure(f"{name}: memory", found["gigabytes"], gigabytes, "GB", 1, "bound")
        both = alone(prepare_and_count, str(room / "parquet"), **environment)
        name = f"co-ratings of {PARQUET['interactions'] / 1e6:.0f}M, window {WINDOW}"
        yield Figure(f"{name}: time", both["seconds"] - found["seconds"], 1200, "s", 1, "bound")
        yield Figure(f"{name}: memory, prepared before", both["gigabytes"], 6, "GB", 1, "bound")
    finally:
        shutil.rmtree(room)
