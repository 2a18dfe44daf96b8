"""Ranking files: what is lost by kills, and what a second worker of Ray is worth."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llamarec_lkg import rank_file
from llamarec_lkg.data.sequences import PreprocessingSettings, SequenceDataset
from llamarec_lkg.data.sources import load_dataset_bundle

from .runner import Figure, benchmark


TESTS = Path(__file__).resolve().parents[1]
KILLS, KILLED_ROWS = 10, 800
RAY_ROWS, RAY_SHARD = 800, 20
LARGER = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}


def pace(output: Path) -> float:
    """Seconds from the first shard of a folder to its last: neither starts nor the loading of models."""
    times = [path.stat().st_mtime for path in output.glob("part-*.parquet")]
    return max(times) - min(times)


@benchmark
def batch() -> Iterator[Figure]:
    sys.path.append(str(TESTS))  # as pytest does
    from tiny_batch import lost_or_doubled, make_rows, rank_with_kills, save_ranker
    from tiny_run import write_world

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        room = Path(folder)
        write_world(room / "world")
        bundle = load_dataset_bundle(room / "world")
        settings = PreprocessingSettings(min_user_interactions=1, min_item_interactions=1)
        dataset = SequenceDataset.from_bundle(bundle, settings)
        rows = make_rows(KILLED_ROWS, list(dataset.items.ids))
        rows.to_parquet(room / "killed.parquet")
        model = save_ranker(dataset, room / "small")
        rank_with_kills(model, room / "killed.parquet", room / "killed", KILLS)
        lost = lost_or_doubled(rows["user"], room / "killed")
        name = f"rank {KILLED_ROWS} rows, {KILLS} kills: lost or doubled"
        yield Figure(name, lost, KILLED_ROWS, "rows", 0, "all rows", overhead=True)
        if importlib.util.find_spec("ray") is None:
            return
        make_rows(RAY_ROWS, list(dataset.items.ids)).to_parquet(room / "users.parquet")
        model = save_ranker(dataset, room / "larger", **LARGER)
        options = {"shard_rows": RAY_SHARD, "batch_size": 10, "progress": False, "device": "cpu"}
        rank_file(model, room / "users.parquet", room / "alone", **options)
        rank_file(model, room / "users.parquet", room / "ray", engine="ray", workers=2, **options)
        seconds = pace(room / "ray"), pace(room / "alone")
        yield Figure(f"rank {RAY_ROWS} rows on two workers of Ray", *seconds, "s", 1.6, "one process")
