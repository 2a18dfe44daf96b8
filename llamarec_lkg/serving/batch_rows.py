"""The rows of one shard of a batch ranking: options, model, and tables in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from accelerate.utils.memory import should_reduce_batch_size

from ..data.splits import check_repeats
from ..hub.layout import PARTS, PRIVATE_PARTS
from ..ranking.backbones import resolve_backbone
from ..utils.errors import LKGError
from ..utils.files import read_json
from ..utils.fingerprints import fingerprint, hash_file
from ..utils.hub import pinned
from .batch_input import CANDIDATES, HISTORY, USER
from .batch_output import BatchReport, RankedRows
from .questions import Ranking, Request
from .recommender import Recommender
from .remote import RemoteScorer, ServerError


ITEM, RANK, SCORE, REASONS = "item", "rank", "score", "reasons"
ROW, REASON = "row", "reason"
PYTHON_ROWS = 1024
REASONS_TYPE = pa.list_(
    pa.struct(
        {
            "kind": pa.string(),
            "share": pa.float64(),
            "relation": pa.string(),
            "preference": pa.float64(),
            "nodes": pa.list_(pa.string()),
        }
    )
)


@dataclass(frozen=True)
class BatchOptions:
    """How rows are ranked.

    Args:
        k (`int`): how many items a row is given at most.
        num_reasons (`int`, optional): with a column `reasons`, in which so many paths are named for each item; the
            other parts of the score are there in any case.
        repeats (`str`, optional): "allowed" or "excluded", as for `Recommender.recommend`.
        leave_out_unknown (`bool`): ids that the model does not know are left out of histories and candidates; else
            their rows are refused.
        shard_rows (`int`): rows of the input that each shard covers.
        batch_size (`int`): rows in one forward pass. It changes scores by rounding alone, so a run that was cut off
            may go on with another one.
        remote (`dict[str, Any]`, optional): a server in place of the language model: arguments of [`RemoteScorer`].
    """

    k: int = 10
    num_reasons: int | None = None
    repeats: Literal["excluded", "allowed"] | None = None
    leave_out_unknown: bool = False
    shard_rows: int = 10_000
    batch_size: int = 32
    remote: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("shard_rows", 1), ("batch_size", 1), ("num_reasons", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise LKGError(f"{name} is {value!r}; it is a whole number, {least} or more.")
        if self.repeats is not None:
            check_repeats(self.repeats)

    def identity(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one before it."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("batch_size", "remote")}
        return kept if self.remote is None else {**kept, "remote": True}  # it may go on with another server


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is loaded from, and which one it is.

    Args:
        name (`str`): folder or Hub id.
        hub (`dict[str, Any]`): the commit on the Hub, for a `from_pretrained`.
        identity (`dict[str, Any]`): what tells it from other models: its id and commit, or the content of the files
            of a folder.
    """

    name: str
    hub: dict[str, Any]
    identity: dict[str, Any]

    @classmethod
    def find(cls, name: str, revision: str | None = None) -> ModelPlace:
        """Which model a name means now; see `utils.hub.pinned` for what is raised where there is none."""
        hub = pinned(name, {} if revision is None else {"revision": revision})
        folder = Path(name)
        if not folder.is_dir():
            return cls(name, hub, {"id": name, "commit": hub.get("revision")})
        patterns = [pattern for parts in (PARTS, PRIVATE_PARTS) for part in parts.values() for pattern in part]
        files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        content = [(path.relative_to(folder).as_posix(), hash_file(path)) for path in files]
        return cls(name, hub, {"content": fingerprint(content), **_backbone_of(folder)})

    def load(self, device: str | None, has_candidates: bool, remote: dict[str, Any] | None = None) -> Recommender:
        """The model, on a device, its language model perhaps on a server; an `LKGError` where it finds no candidates
        and the input brings none."""
        scorer = None if remote is None else RemoteScorer(**remote)
        recommender = Recommender.from_pretrained(self.name, device=device, remote=scorer, **self.hub)
        if recommender.retriever is None and not has_candidates:
            raise LKGError(
                f"{self.name} has no retriever to find candidates. Give the input a column 'candidates' of lists."
            )
        return recommender


def _backbone_of(folder: Path) -> dict[str, Any]:
    """Which backbone a ranker loads that does not lie in its folder: the content of another, or id and commit."""
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    name = config.get("backbone_name_or_path")
    if not (name and config.get("external_backbone") and config.get("use_language_model", True)):
        return {}
    place = Path(resolve_backbone(name))
    if not place.is_dir():
        return {"backbone": name, "backbone commit": config.get("backbone_revision")}
    files = sorted(path for path in place.iterdir() if path.suffix in (".safetensors", ".json"))
    return {"backbone": fingerprint([(path.name, hash_file(path)) for path in files])}


def rank_rows(
    recommender: Recommender,
    rows: pa.Table,
    options: BatchOptions,
    *,
    first: int = 0,
    told: Callable[[int], Any] = lambda count: None,
) -> RankedRows:
    """Rank a table with the columns user, history and candidates.

    Args:
        first: the number of its first row in the input.
        told: is called with the number of rows that are done, now and then.
    """
    requests, refused, left_out = {}, {}, 0
    for row, (user, history, candidates) in enumerate(_each(rows)):
        if options.leave_out_unknown:
            given = sum(len(ids or ()) for ids in (history, candidates))
            history, candidates = (known(recommender, ids) for ids in (history, candidates))
            left_out += given - sum(len(ids or ()) for ids in (history, candidates))
        try:
            requests[row] = recommender.request(history, user=user, candidates=candidates, repeats=options.repeats)
        except LKGError as error:
            refused[row] = str(error)
    told(len(refused))
    order = sorted(requests, key=lambda row: len(requests[row].history))  # short with short: less padding
    pieces, ranked = [_ranked_table([], [], options, recommender)], 0
    for start in range(0, len(order), options.batch_size):
        chunk, kept = order[start : start + options.batch_size], []
        for row, ranking in zip(
            chunk, rank_each(recommender, [requests[row] for row in chunk], options.k), strict=True
        ):
            if reason := why_not(ranking, requests[row], options.k):
                refused[row] = reason
            else:
                kept.append((row, ranking))
        pieces.append(_ranked_table(*zip(*kept, strict=True), options, recommender) if kept else pieces[0])
        ranked += len(kept)
        told(len(chunk))
    table = pa.concat_tables(pieces).sort_by([(ROW, "ascending"), (RANK, "ascending")])
    users = rows.column(USER)
    table = table.set_column(0, USER, users.take(table.column(ROW)))
    away = sorted(refused)
    reasons = {
        ROW: pa.array([first + row for row in away], pa.int64()),
        USER: users.take(pa.array(away, pa.int64())),
        REASON: pa.array([refused[row] for row in away], pa.string()),
    }
    report = BatchReport(len(rows), ranked, len(away), len(table), left_out, refused[away[0]] if away else "")
    return RankedRows(table, pa.table(reasons), report)


def _each(rows: pa.Table) -> Iterator[tuple[Any, list[str] | None, list[str] | None]]:
    """User, history and candidates of each row; of few at once, since as Python's they take much room."""
    for batch in rows.select([USER, HISTORY, CANDIDATES]).to_batches(max_chunksize=PYTHON_ROWS):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def known(recommender: Recommender, ids: list[str] | None) -> list[str] | None:
    """The ids that the model knows."""
    return ids if ids is None else [raw for raw in ids if raw in recommender.processor.dense_item]


def rank_each(recommender: Recommender, requests: Sequence[Request], k: int) -> list[Ranking | str]:
    """Rank a batch; in halves where it is too large for the device or something in it is refused, so that one request
    takes no other along."""
    try:
        return recommender.rank(recommender.retrieve(requests, k))
    except Exception as error:
        if isinstance(error, ServerError) or not (_is_for_memory(error) or isinstance(error, LKGError)):
            raise
        if len(requests) == 1:
            if isinstance(error, LKGError):
                return [str(error)]
            raise LKGError(
                f"Not even one row fits into the memory of {recommender.model.device} ({error}). Free it, or take a "
                "larger one; the shards that are there stay."
            ) from error
    half = len(requests) // 2
    return [ranking for part in (requests[:half], requests[half:]) for ranking in rank_each(recommender, part, k)]


def _is_for_memory(error: Exception) -> bool:
    """Whether memory was lacking: on a device, whose libraries have words of their own for it, or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error):
        return True
    words = "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def why_not(ranking: Ranking | str, request: Request, k: int) -> str:
    """Why there is no list for a row; empty where there is one."""
    if isinstance(ranking, str):
        return ranking
    if not len(ranking.order):
        if request.candidates is not None:
            return "The list of candidates is empty, so there is nothing to rank."
        return "The history holds the whole catalogue, so there is nothing left to rank."
    if not np.isfinite(ranking.scores[ranking.order[:k]]).all():
        return "Scores are not finite numbers. The model's weights, or its precision on this device, are at fault."
    return ""


def _ranked_table(
    rows: Iterable[int], rankings: Sequence[Ranking], options: BatchOptions, recommender: Recommender
) -> pa.Table:
    """The lists of some rows, which it names by their place."""
    ids, k = recommender.item_ids, options.k
    best = [(row, one, one.order[:k]) for row, one in zip(rows, rankings, strict=True)]
    columns = {
        ROW: pa.array([row for row, _, order in best for _ in order], pa.int64()),
        ITEM: pa.array(
            [ids[item - 1] for _, one, order in best for item in one.example.candidates[order]], pa.string()
        ),
        RANK: pa.array([rank for _, _, order in best for rank in range(1, len(order) + 1)], pa.int32()),
        SCORE: pa.array([float(score) for _, one, order in best for score in one.scores[order]], pa.float64()),
    }
    if options.num_reasons is not None:
        count = len(rankings)
        told = recommender.describe_all(rankings, k=[k] * count, num_reasons=[options.num_reasons] * count)
        reasons = [[asdict(reason) for reason in item.reasons] for items in told for item in items]
        columns[REASONS] = pa.array(reasons, REASONS_TYPE)
    columns[ITEM] = columns[ITEM].cast(pa.string())  # of no lists it would have no type
    return pa.table(columns)
