"""Ranking for a whole user base: parquet in, parquet shards out, going on after whatever ended it.

A shard is a fixed slice of the input's rows, cut into the same batches whoever ranks it. So the output is the same
from one process and from many, and from one run and from several that were cut off.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from ..utils.errors import LKGError
from .batch_input import InputRows, RowReader
from .batch_output import BatchReport, RankedRows, Shards, require_alike
from .batch_rows import BatchOptions, ModelPlace, rank_rows
from .ray_workers import rank_with_ray, require_ray


LOOK_EVERY = 0.2  # seconds, for the shards of other processes

logger = logging.getLogger(__name__)


def rank_file(
    model: str | Path,
    input: str | Path,
    output: str | Path,
    *,
    device: str | None = None,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    revision: str | None = None,
    progress: bool = True,
    **options: Any,
) -> BatchReport:
    """Rank every row of a parquet file, or of a folder of them, into a folder of parquet shards.

    A row has a `user`, a `history` (a list of item ids, oldest first) and may have `candidates` (a list of the items
    to rank in place of what the retriever finds). The output has a row for each of its best items: user, item, rank,
    score and, where they are asked for, reasons. It is in the order of the input, and what it says of a row is what
    [`Recommender`] says. A row that cannot be ranked stops nothing: it goes to the folder `_refused` of the output,
    with its number and the reason.

    Called again after it was cut off, it goes on with the shards that are not there. Under `accelerate launch` the
    processes share the shards. The input is read in pieces, and hashed once on each machine.

    Args:
        model: folder or Hub id of a trained model.
        output: a new or empty folder, or one that was begun with the same input, model and settings.
        device: where the model computes; by default on GPUs where there are some.
        engine: "ray" ranks on the workers of a Ray cluster (of this machine, if none is running). Only this process
            reads the input and writes the output; the workers must reach the model.
        workers: of Ray; by default one for each GPU, or without GPUs one for each machine.
        revision: branch, tag or commit of a model on the Hub.
        options: fields of [`BatchOptions`].

    Raises:
        LKGError: the input lacks a column or has another type in it, input, model or settings are not the same on
            all machines, the output folder was begun with something else, or the model has no retriever and the input
            no candidates.
    """
    chosen = BatchOptions(**options)
    _check_engine(engine, workers, device)
    folder = Path(output).resolve()
    if Path(input).resolve() in (folder, *folder.parents):
        raise LKGError(f"The output {output} lies in the input {input}. Give a folder outside of it.")
    state = _processes(device)
    if engine == "ray" and state.num_processes > 1:
        raise LKGError("Ray starts its workers itself. Start this as one process, without `accelerate launch`.")
    rows = InputRows.from_path(input)
    shards = Shards(folder, len(rows), chosen.shard_rows)
    with ExitStack() as stack:
        shared = _Shared()
        with _together(state, shared):
            if state.is_main_process:
                stack.enter_context(shards.locked())
                shared.model = ModelPlace.find(str(model), revision)
        about = _about(state, shared.model, rows, chosen)
        with _together(state, shared):
            if state.is_main_process:
                shards.begin(about)
                shared.done = shards.done()
        missing = [number for number in range(shards.count) if number not in shared.done]
        own = missing[state.process_index :: state.num_processes]
        before = sum(report.rows for report in shared.done.values()) if state.num_processes == 1 else 0
        total = before + sum(stop - first for first, stop in map(shards.bounds, own))
        shown = progress and state.is_main_process
        with tqdm(total=total, initial=before, desc="rank", unit="row", disable=not shown) as bar:
            job = shared.model, rows, shards, own, chosen
            if not own:
                ranked = iter(())
            elif engine == "ray":
                ranked = rank_with_ray(*job, device, workers, told=bar.update)
            else:
                ranked = _rank_here(*job, state.device if device is None and state.num_processes > 1 else device, bar)
            for number, content in ranked:
                if not (content.report.ranked or content.report.rows == 0 or shared.done):
                    logger.warning(
                        f"None of the first {content.report.rows:,} rows could be ranked; the others are tried "
                        f"nevertheless. The first of them: {content.report.first_reason}"
                    )
                shards.write(number, content)
                shared.done[number] = content.report
                bar.set_postfix(refused=sum(report.refused for report in shared.done.values()))
        if state.num_processes > 1:
            shards.wait_for(missing, LOOK_EVERY)  # with more patience than the messages of processes have
            shared.done |= dict(gather_object([(number, shared.done[number]) for number in own]))
        with _together(state, shared):
            if state.is_main_process:
                rows.require_unchanged()
                shared.report = shards.finish(shared.done)
        return shared.report


def _check_engine(engine: str, workers: int | None, device: str | None) -> None:
    try:
        torch.device(device or "cpu")
    except RuntimeError as error:
        raise LKGError(f'device is {device!r}; it is such as "cpu" or "cuda:1" ({error}).') from error
    if engine not in ("local", "ray"):
        raise LKGError(f"engine is {engine!r}; it is 'local' or 'ray'.")
    if workers is not None and (engine == "local" or workers < 1):
        raise LKGError(
            f"workers is {workers!r}; it is a whole number, 1 or more, and only for engine='ray'. For several "
            "processes without Ray use `accelerate launch`."
        )
    if engine == "ray":
        require_ray()


def _rank_here(
    model: ModelPlace,
    rows: InputRows,
    shards: Shards,
    numbers: Sequence[int],
    options: BatchOptions,
    device: Any,
    bar: tqdm,
) -> Iterator[tuple[int, RankedRows]]:
    recommender, reader = model.load(device, rows.has_candidates, options.remote), RowReader(rows)
    for number in numbers:
        first, stop = shards.bounds(number)
        yield number, rank_rows(recommender, reader.read(first, stop), options, first=first, told=bar.update)
    reader.close()


# -- several processes ------------------------------------------------------------------------------------------------


def _processes(device: str | None) -> PartialState:
    """This process among those that a launcher has started. On processors accelerate sees the others only where it is
    told so; of one process it is not, since it would keep the whole session from a GPU."""
    is_launched = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return PartialState(cpu=is_launched and (device == "cpu" or not torch.accelerator.is_available()))


def end_processes() -> bool:
    """Wait for the others and end the group, whose threads would abort a process at the end of Python; whether this is
    the main process."""
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
    return state.is_main_process


def _about(
    state: PartialState, model: ModelPlace, rows: InputRows, options: BatchOptions
) -> dict[str, dict[str, Any]]:
    """Input, model and settings, which are the same on all machines, or an `LKGError`. The first process of each
    machine looks, since the others read the same files."""
    found, failed = [], []
    if state.is_local_main_process:
        try:
            here = model if state.is_main_process else ModelPlace.find(model.name, model.hub.get("revision"))
            found = [{"input": rows.identity(), "model": here.identity, "settings": options.identity()}]
        except (LKGError, OSError) as error:  # the others wait for what this one has to say
            failed = [f"process {state.process_index}: {error}"]
    if state.num_processes > 1:
        found, failed = gather_object(found), gather_object(failed)
    if failed:
        raise LKGError(f"Input or model cannot be read on {len(failed)} machine(s). {failed[0]}")
    require_alike(found)
    return found[0]


@dataclass
class _Shared:
    """What the main process finds out for all."""

    model: ModelPlace | None = None
    done: dict[int, BatchReport] = field(default_factory=dict)
    report: BatchReport | None = None


@contextmanager
def _together(state: PartialState, shared: _Shared) -> Iterator[None]:
    """A block of the main process, whose result, or error, every process has after it. Before it all have arrived."""
    error = None
    state.wait_for_everyone()
    try:
        yield
    except (LKGError, OSError) as caught:
        error = caught
    if state.num_processes > 1:
        (found, told) = broadcast_object_list([vars(shared), None if error is None else str(error)])
        vars(shared).update(found)
        error = error or (None if told is None else LKGError(told))
    if error is not None:
        raise error
