"""Ranking files: what is lost by kills, and what a second worker of Ray is worth."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llamarec_lkg import rank_file
from llamarec_lkg.data.sequences import PreprocessingSettings, SequenceDataset
from llamarec_lkg.data.sources import load_dataset_bundle

from .runner import Figure, benchmark


TESTS = Path(__file__).resolve().parents[1]
KILLS, KILLED_ROWS = 10, 800
RAY_ROWS, RAY_SHARD, RAY_WORKERS = 400, 10, 2
LARGER = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}


@dataclass(frozen=True)
class Took:
    """Seconds of a ranking: the whole, and without starts, in which Ray loads Python and the model for each worker."""

    whole: float
    started: float

    @classmethod
    def of(cls, rank: Callable[..., Any], output: Path, workers: int = 1, **options: Any) -> Took:
        start = time.perf_counter()
        rank(output=output, **options)
        whole = time.perf_counter() - start
        times = sorted(path.stat().st_mtime for path in output.glob("part-*.parquet"))
        # each worker has ranked its first shard; what comes then is shared among all of them
        pace = (times[-1] - times[workers - 1]) / (len(times) - workers)
        return cls(whole, pace * len(times))


def on_ray(rank: Callable[..., Any], **options: Any) -> None:
    """Rank on a cluster of this machine that has as many cores as workers: each has one thread."""
    import ray

    ray.init(num_cpus=RAY_WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        rank(engine="ray", workers=RAY_WORKERS, **options)
    finally:
        ray.shutdown()


def with_threads(count: int, rank: Callable[..., Any], **options: Any) -> None:
    """Rank in this process, with so many threads for its products."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        rank(**options)
    finally:
        torch.set_num_threads(before)


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
        rank = partial(rank_file, model, room / "users.parquet", **options)
        ray = Took.of(partial(on_ray, rank), room / "ray", RAY_WORKERS)
        peers = (1, 1.6, "one thread"), (RAY_WORKERS, 1.0, "as many threads")
        for threads, target, peer in peers:
            alone = Took.of(partial(with_threads, threads, rank), room / f"alone-{threads}")
            name, peer = f"rank {RAY_ROWS} rows, {RAY_WORKERS} workers of Ray", f"one process, {peer}"
            yield Figure(f"{name}, after their start", ray.started, alone.started, "s", target, peer)
            # told without a target: so few rows are not what one starts a cluster for
            yield Figure(f"{name}, with their start", ray.whole, alone.whole, "s", 0, peer)
