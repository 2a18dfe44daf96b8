"""The prompts of a ranker with letters, written to a file, for whoever asks a language model in his own way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.schema import RankingExample
from ..ranking.configuration_llamarec_lkg import LETTERS
from ..utils.errors import LKGError
from ..utils.files import atomic_file
from .batch_input import CANDIDATES, HISTORY, USER, InputRows, RowReader
from .batch_rows import ROW
from .recommender import Recommender
from .remote import RemoteScorer


AT_ONCE = 256  # rows


class PromptReport(NamedTuple):
    """Rows of the input, prompts that were written, and why the first row without one has none."""

    rows: int
    written: int
    first_reason: str


def write_prompts(
    model: str | Path, input: str | Path, output: str | Path, *, revision: str | None = None
) -> PromptReport:
    """Write the prompt of each row of a parquet file, or of a folder of them, as `rank_file` would have it read.

    The output has the columns `row` (of the input, counted from 0), `user`, `prompt` (text), `letters` and
    `candidates` (item ids, as many; a letter's log-probability after the prompt is what the language model says of its
    candidate) and `tokens` (of the prompt: ask with them, since tokenizing the text anew can cut it otherwise). Rows
    that cannot be ranked have no prompt.

    Args:
        model: folder or Hub id of a trained ranker with `readout="letters"`; its language model is not loaded.
        input: with columns `user`, `history` and, if any, `candidates`.
        output: a file that ends in .jsonl or .parquet; it is whole or absent.
        revision: branch, tag or commit of a ranker on the Hub.

    Raises:
        LKGError: a plain language model cannot do what the ranker's does, or a file is none of these.
    """
    path, rows = Path(output), InputRows.from_path(input)
    if path.suffix not in WRITERS:
        raise LKGError(f"The output is {path.name!r}; its name ends in {' or '.join(WRITERS)}.")
    hub = {} if revision is None else {"revision": revision}
    recommender = Recommender.from_pretrained(model, backbone=False, **hub)
    RemoteScorer.check(recommender.model.config, recommender.processor)
    reader, written, first_reason = RowReader(rows), 0, ""
    with atomic_file(path) as temporary, WRITERS[path.suffix](temporary, rows.user_type) as write:
        for start in range(0, len(rows), AT_ONCE):
            table = reader.read(start, min(len(rows), start + AT_ONCE))
            places, examples = [], []
            for number, row in enumerate(table.to_pylist(), start):
                try:
                    example = _example(recommender, row)
                except LKGError as error:
                    first_reason = first_reason or str(error)
                else:
                    places.append({ROW: number, USER: row[USER]})
                    examples.append(example)
            if examples:
                write([place | one for place, one in zip(places, _prompts(recommender, examples), strict=True)])
                written += len(examples)
    reader.close()
    return PromptReport(len(rows), written, first_reason)


def _example(recommender: Recommender, row: dict[str, Any]) -> RankingExample:
    request = recommender.request(row[HISTORY], user=row[USER], candidates=row[CANDIDATES])
    (example,) = recommender.retrieve([request], k=1)  # as many as the ranker reads at once
    recommender.processor.check_example(example)
    return example


def _prompts(recommender: Recommender, examples: Sequence[RankingExample]) -> Iterator[dict[str, Any]]:
    processor = recommender.processor
    prompt, selected = recommender.model.letter_prompts(processor(examples))
    for row, example in enumerate(examples):
        yield {
            "prompt": "".join(processor.render(example, selected[row].tolist())),
            "letters": list(LETTERS[: len(example.candidates)]),
            CANDIDATES: [processor.item_ids[item - 1] for item in example.candidates],
            "tokens": prompt.input_ids[row][prompt.attention_mask[row].bool()].tolist(),
        }


@contextmanager
def _jsonl(path: Path, user_type: pa.DataType) -> Iterator[Callable[[list[dict[str, Any]]], Any]]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda records: file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in records)


@contextmanager
def _parquet(path: Path, user_type: pa.DataType) -> Iterator[Callable[[list[dict[str, Any]]], Any]]:
    texts = pa.list_(pa.string())
    types = {"prompt": pa.string(), "letters": texts, CANDIDATES: texts, "tokens": pa.list_(pa.int32())}
    schema = pa.schema([(ROW, pa.int64()), (USER, user_type), *types.items()])
    with pq.ParquetWriter(path, schema) as file:
        yield lambda records: file.write_table(pa.Table.from_pylist(records, schema))


WRITERS = {".jsonl": _jsonl, ".parquet": _parquet}
