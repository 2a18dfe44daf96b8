"""Batch ranking on a Ray cluster: actors that load the model once, and are handed the rows of one shard after another.

The driver reads and writes. So workers need no common file system, and a shard is written by one process alone.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch

from ..utils.errors import LKGError
from .batch_input import InputRows, RowReader
from .batch_output import RankedRows, Shards
from .batch_rows import BatchOptions, ModelPlace, rank_rows


AHEAD = 2  # shards that a worker has: one that it ranks, one that waits
RESTARTS = 3  # of a worker whose machine or process is gone; the shards that it had are ranked again


def require_ray() -> None:
    """Raise `LKGError` where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise LKGError("engine='ray' needs Ray, which is not installed: pip install \"llamarec-lkg[ray]\".")


class RankingWorker:
    """A model on its device, loaded once. An error that it expects is its answer, as text."""

    def __init__(
        self,
        model: ModelPlace,
        device: str | None,
        has_candidates: bool,
        threads: int | None,
        remote: dict[str, Any] | None = None,
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        self.recommender, self.wrong = None, ""
        try:
            here = model if model.hub else ModelPlace.find(model.name)
            if here.identity != model.identity:
                self.wrong = (
                    f"{model.name} is not the same model on a worker of Ray as on the machine that started it. Copy "
                    "its folder there, or give a Hub id."
                )
            else:
                self.recommender = here.load(device, has_candidates, remote)
        except (LKGError, OSError) as error:
            self.wrong = f"A worker of Ray cannot load the model. {error}"

    def ready(self) -> str:
        """Empty, or why the model could not be loaded."""
        return self.wrong

    def rank(self, rows: pa.Table, options: BatchOptions, first: int) -> RankedRows | str:
        """The ranked rows, or why there are none."""
        try:
            return self.wrong or rank_rows(self.recommender, rows, options, first=first)
        except LKGError as error:
            return str(error)


def rank_with_ray(
    model: ModelPlace,
    rows: InputRows,
    shards: Shards,
    numbers: Sequence[int],
    options: BatchOptions,
    device: str | None = None,
    workers: int | None = None,
    told: Callable[[int], Any] = lambda count: None,
) -> Iterator[tuple[int, RankedRows]]:
    """Yield shards as they are ranked, in no order. A worker gets shards as soon as it has loaded the model, and the
    next one whenever it has ranked one: what comes late or is slow holds up nobody.

    Args:
        workers: by default one for each GPU of the cluster, or without GPUs one for each machine.
        told: is called with the number of rows that are done, now and then.
    """
    import ray

    is_own = not ray.is_initialized()
    if is_own:
        ray.init(log_to_driver=False, logging_level="ERROR")
    actors: list[Any] = []
    reader = RowReader(rows)
    try:
        there = ray.cluster_resources()
        gpus = 0 if device == "cpu" else int(there.get("GPU", 0))
        workers = min(len(numbers), workers or gpus or sum(node["Alive"] for node in ray.nodes()))
        threads = None
        if not gpus:  # Ray lets a worker have one thread unless it says otherwise
            threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, int(there.get("CPU", 1)) // workers)
        kind = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=RESTARTS, max_task_retries=RESTARTS)
        given = model, device, rows.has_candidates, threads, options.remote
        actors = [kind(RankingWorker).remote(*given) for _ in range(workers)]
        running: dict[Any, tuple[Any, int | None]] = {actor.ready.remote(): (actor, None) for actor in actors}
        left, missing = iter(numbers), len(numbers)
        while missing:  # not for workers that could not be started or are late
            (task,), _ = ray.wait(list(running), num_returns=1)
            actor, number = running.pop(task)
            content = _result(ray, task)
            for _ in range(AHEAD if number is None else 1):
                if (coming := next(left, None)) is not None:
                    first, stop = shards.bounds(coming)
                    running[actor.rank.remote(reader.read(first, stop), options, first)] = actor, coming
            if number is not None:
                missing -= 1
                told(content.report.rows)
                yield number, content
    finally:
        reader.close()
        for actor in actors:
            ray.kill(actor)
        if is_own:
            ray.shutdown()


def _result(ray: Any, task: Any) -> Any:
    try:
        content = ray.get(task)
    except ray.exceptions.RayActorError as error:
        raise LKGError(
            f"A worker of Ray ended {RESTARTS + 1} times ({error}). The shards that are there stay: see to its "
            "memory, then start again."
        ) from error
    if isinstance(content, str) and content:
        raise LKGError(content)
    return content
