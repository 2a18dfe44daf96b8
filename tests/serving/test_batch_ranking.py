"""Ranking files: what the recommender says, row by row; nothing lost or doubled, whoever ranks, whatever ends it."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import backbone
from tiny_batch import AS_OPTIONS, ROOT, SMALL, lost_or_doubled, make_rows, rank_with_kills, save_ranker, start

from llamarec_lkg import LKGError, Recommender, rank_file
from llamarec_lkg.cli import main
from llamarec_lkg.serving.batch_input import InputRows, RowReader
from llamarec_lkg.serving.batch_output import Shards
from llamarec_lkg.serving.batch_rows import BatchOptions, ModelPlace, rank_rows


ITEMS = [1, 2, 3, 4, 5, 6]
QUIET = {**SMALL, "progress": False}


@pytest.fixture(scope="module")
def model(film_dataset, tmp_path_factory):
    return save_ranker(film_dataset, tmp_path_factory.mktemp("batch"))


@pytest.fixture(scope="module")
def recommender(model):
    return Recommender.from_pretrained(model)


@pytest.fixture(scope="module")
def mixed():
    """Rows of all kinds, and for some of them a part of the reason why they are refused."""
    rows = [
        ("a", ["1", "2"], None, ""),
        ("b", [], None, ""),
        ("c", ["1", "404"], None, "the first is '404'"),
        ("d", ["3"], ["1", "2", "5"], ""),
        ("e", ["3"], ["1"], ""),
        ("f", ["3"], [], "list of candidates is empty"),
        ("g", ["3"], ["1", "1"], "'1' appears 2 times"),
        ("h", None, ["1", "2"], "'history' is None"),
        ("i", list("123456"), None, "the whole catalogue"),
        (None, ["6"], None, ""),
        ("k", ["6", None], None, "the first is None"),
        ("l", ["6"], ["4", "505"], "the first is '505'"),
    ]
    table = {name: [row[place] for row in rows] for place, name in enumerate(("user", "history", "candidates"))}
    return pa.table(table), [row[3] for row in rows]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A hundred users, and their file."""
    path = tmp_path_factory.mktemp("input") / "users.parquet"
    rows = make_rows(100, ITEMS)
    rows.to_parquet(path)
    return path, rows


@pytest.fixture(scope="module")
def wanted(model, many, tmp_path_factory):
    """What one process makes of it, which nobody interrupts."""
    output = tmp_path_factory.mktemp("output") / "ranked"
    rank_file(model, many[0], output, **QUIET)
    return pd.read_parquet(output)


def write(folder, table):
    pq.write_table(table, folder / "users.parquet")
    return folder / "users.parquet"


# -- rows -------------------------------------------------------------------------------------------------------------


def test_every_row_is_what_the_recommender_says_or_refused_with_its_reason(model, recommender, mixed, tmp_path):
    table, reasons = mixed
    report = rank_file(model, write(tmp_path, table), tmp_path / "ranked", **QUIET | {"shard_rows": 5})
    found = pd.read_parquet(tmp_path / "ranked")
    refused = pd.read_parquet(tmp_path / "ranked" / "_refused")
    assert list(found.columns) == ["user", "item", "rank", "score"]
    lists = iter(found.groupby((found["rank"] == 1).cumsum()))
    for number, (row, reason) in enumerate(zip(table.to_pylist(), reasons, strict=True)):
        if reason:
            (told,) = refused[refused["row"] == number].to_dict("records")
            assert told["user"] == row["user"] and reason in told["reason"]
            continue
        wanted = recommender.recommend(row["history"], user=row["user"], candidates=row["candidates"], k=3)
        _, said = next(lists)
        assert said["item"].tolist() == [item.item_id for item in wanted]
        assert said["rank"].tolist() == [item.rank for item in wanted]
        assert said["score"].tolist() == pytest.approx([item.score for item in wanted], abs=1e-4)
        assert all(user == row["user"] or row["user"] is None for user in said["user"])
    assert next(lists, None) is None
    counts = (report.rows, report.ranked, report.refused, report.items, report.left_out)
    assert counts == (12, 5, 7, len(found), 0) and len(refused) == 7
    assert "5 of 12 rows ranked" in str(report) and "7 row(s) refused, see _refused; the first: 1 item" in str(report)
    assert json.loads((tmp_path / "ranked" / "_summary.json").read_text()) == asdict(report)
    assert sorted(path.name for path in (tmp_path / "ranked").glob("*.parquet")) == [
        f"part-00000{number}.parquet" for number in range(3)
    ]


def test_unknown_items_are_left_out_where_that_is_asked_for(model, recommender, mixed, tmp_path):
    path = write(tmp_path, mixed[0])
    report = rank_file(model, path, tmp_path / "ranked", leave_out_unknown=True, **QUIET)
    found = pd.read_parquet(tmp_path / "ranked")
    assert report.left_out == 3 and report.refused == 4
    wanted = recommender.recommend(["1"], k=3)
    assert found[found["user"] == "c"]["item"].tolist() == [item.item_id for item in wanted]
    assert found[found["user"] == "l"]["item"].tolist() == ["4"]


def test_reasons_are_the_recommenders(model, recommender, mixed, tmp_path):
    rank_file(model, write(tmp_path, mixed[0].slice(0, 5)), tmp_path / "ranked", num_reasons=2, **QUIET)
    found = pq.read_table(tmp_path / "ranked").to_pylist()
    wanted = recommender.recommend(["1", "2"], k=3, num_reasons=2)
    for said, item in zip(found[:3], wanted, strict=True):
        assert [reason["kind"] for reason in said["reasons"]] == [reason.kind for reason in item.reasons]
        assert [reason["nodes"] for reason in said["reasons"]] == [reason.nodes for reason in item.reasons]
        assert sum(reason["share"] for reason in said["reasons"]) == pytest.approx(said["score"], abs=1e-4)
    assert found[-1]["user"] == "e" and found[-1]["reasons"] == [], "a list of one is not compared"


def test_ids_may_be_numbers_and_rows_may_lie_in_several_files(model, many, wanted, tmp_path):
    _, rows = many
    folder = tmp_path / "users"
    (folder / "b").mkdir(parents=True)
    numbers = rows.assign(history=[[int(raw) for raw in history] for history in rows["history"]])
    numbers[:33].to_parquet(folder / "a.parquet", row_group_size=7)
    rows[33:70].to_parquet(folder / "b" / "x.parquet", row_group_size=10)
    table = pa.Table.from_pandas(numbers[70:].assign(candidates=None), preserve_index=False)
    pq.write_table(table, folder / "c.parquet")
    (folder / "_notes.parquet").write_text("not a table")
    rank_file(model, folder, tmp_path / "ranked", **QUIET)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "ranked"), wanted)


def test_rows_are_read_by_their_numbers_from_anywhere(many, tmp_path):
    _, rows = many
    for name, size, part in (("a", 7, rows[:33]), ("b", 100, rows[33:]), ("c", 5, rows[:0])):
        part.to_parquet(tmp_path / f"{name}.parquet", row_group_size=size)
    found = InputRows.from_path(tmp_path)
    reader = RowReader(found)
    assert len(found) == 100
    for first, stop in [(0, 3), (3, 10), (30, 40), (95, 100), (5, 6), (5, 90), (90, 90), (99, 100), (0, 100)]:
        assert reader.read(first, stop).column("user").to_pylist() == rows["user"][first:stop].tolist()


def test_a_row_group_is_never_in_memory_as_a_whole(tmp_path):
    """One of 120 MB."""
    numbers = np.random.default_rng(0).integers(0, 1 << 30, 300_000 * 100, dtype=np.int32)
    lists = pa.FixedSizeListArray.from_arrays(numbers, 100).cast(pa.list_(pa.int32()))
    pq.write_table(
        pa.table({"user": range(300_000), "history": lists}), tmp_path / "a.parquet", row_group_size=300_000
    )
    del lists
    before = pa.total_allocated_bytes()
    rows = InputRows.from_path(tmp_path)
    assert len(rows.groups) == 1
    reader = RowReader(rows)
    for first in (0, 10, 100_000, 290_000):
        found = reader.read(first, first + 10)
        assert found.column("user").to_pylist() == list(range(first, first + 10))
        assert pa.total_allocated_bytes() - before < 25e6


LACKING = {
    "a GPU": lambda: torch.OutOfMemoryError("out of memory"),
    "a library of a GPU": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    "torch on the CPU": lambda: torch.empty(10**15),
    "numpy": lambda: np.empty(10**15),
}


@pytest.mark.parametrize("lack", LACKING.values(), ids=LACKING.keys())
def test_a_row_takes_no_other_along(recommender, monkeypatch, lack):
    """A batch that is too large for the memory, or that holds something that cannot be ranked, is halved."""

    def too_large():
        raise lack()  # or it is raised by asking for so much

    rows = pa.table({"user": list("abcde"), "history": [["1"]] * 2 + [["2"]] + [["1"]] * 2, "candidates": [None] * 5})
    rows = rows.set_column(2, "candidates", pa.nulls(5, pa.list_(pa.string())))
    rank, wanted = recommender.rank, rank_rows(recommender, rows, BatchOptions())

    def small(examples):
        if len(examples) > 2:
            too_large()
        if any(2 in example.history for example in examples):
            raise LKGError("not with 2")
        return rank(examples)

    monkeypatch.setattr(recommender, "rank", small)
    found = rank_rows(recommender, rows, BatchOptions(), first=10)
    assert found.refused.to_pylist() == [{"row": 12, "user": "c", "reason": "not with 2"}]
    assert (found.report.ranked, found.report.items) == (4, wanted.report.items - 5)

    monkeypatch.setattr(recommender, "rank", lambda examples: too_large())
    with pytest.raises(LKGError, match="Not even one row fits into the memory of cpu"):
        rank_rows(recommender, rows, BatchOptions())


def test_what_is_no_lack_of_memory_is_no_business_of_batches(recommender, monkeypatch):
    rows = pa.table({"user": ["a", "b"], "history": [["1"]] * 2, "candidates": pa.nulls(2, pa.list_(pa.string()))})
    calls = []

    def wrong(examples):
        calls.append(examples)
        raise RuntimeError("a bug")

    monkeypatch.setattr(recommender, "rank", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        rank_rows(recommender, rows, BatchOptions())
    assert len(calls) == 1


def test_scores_that_are_no_numbers_are_refused(recommender, monkeypatch, mixed):
    with torch.no_grad():
        weight = recommender.model.fusion.popularity_weight
        monkeypatch.setattr(weight, "data", torch.full_like(weight, float("nan")))
        found = rank_rows(recommender, mixed[0].slice(0, 2), BatchOptions())
    assert found.report.ranked == 0 and "not finite" in found.report.first_reason


def test_a_wrong_catalogue_is_said_at_the_first_shard(model, tmp_path, caplog):
    rows = pd.DataFrame({"user": range(20), "history": [["ml-1"]] * 20})
    rows.to_parquet(tmp_path / "users.parquet")
    report = rank_file(model, tmp_path / "users.parquet", tmp_path / "ranked", **QUIET)
    assert caplog.text.count("None of the first 8 rows could be ranked") == 1 and "'ml-1'" in caplog.text
    assert (report.ranked, report.refused) == (0, 20)
    assert pd.read_parquet(tmp_path / "ranked").empty


def test_an_empty_input_gives_an_empty_table(model, many, tmp_path):
    many[1][:0].to_parquet(tmp_path / "users.parquet")
    # of no rows pandas writes lists of nothing
    assert rank_file(model, tmp_path / "users.parquet", tmp_path / "ranked", **QUIET).rows == 0
    assert list(pd.read_parquet(tmp_path / "ranked").columns) == ["user", "item", "rank", "score"]


# -- refusals ---------------------------------------------------------------------------------------------------------

HISTORY = [["1"], ["2"]]
WRONG = {
    "names": ({"user_id": ["a", "b"], "history": HISTORY}, r"columns \['user_id', .*lacks \['user'\].*rename"),
    "no list": (
        {"user": ["a", "b"], "history": ["1", "2"]},
        "'history' of .* is (large_)?string. .*lists of item ids",
    ),
    "a list of users": ({"user": HISTORY, "history": HISTORY}, "'user' of .* is (large_)?list"),
    "fractions": ({"user": ["a", "b"], "history": [[1.0], [2.0]]}, "'history' .*double.*whole numbers.*cast"),
    "users": ({"user": [1.5, 2.0], "history": HISTORY}, "'user' .*double.*cast the column"),
    "candidates": ({"user": ["a", "b"], "history": HISTORY, "candidates": ["1", "2"]}, "'candidates' .*of lists"),
}


@pytest.mark.parametrize(("columns", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_columns_are_refused_before_a_model_is_loaded(columns, message, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "users.parquet")
    with pytest.raises(LKGError, match=message):
        rank_file("nowhere", tmp_path / "users.parquet", tmp_path / "ranked")
    assert not (tmp_path / "ranked").exists()


def test_other_input_that_cannot_be_read_is_refused(model, many, tmp_path):
    (tmp_path / "damaged.parquet").write_text("PAR1")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "absent", "does not exist. Give a parquet file"),
        (tmp_path / "empty", "holds no parquet file"),
        (tmp_path / "damaged.parquet", "cannot be read as parquet"),
    ):
        with pytest.raises(LKGError, match=message):
            rank_file(model, path, tmp_path / "ranked")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "users.csv").write_text("user,history\nann,50 181\n007,\n")
    for path in (tmp_path / "csv", tmp_path / "csv" / "users.csv"):
        with pytest.raises(LKGError, match="pandas makes parquet: pd.read_csv") as refused:
            rank_file(model, path, tmp_path / "ranked")
        eval(str(refused.value).partition("makes parquet: ")[2])
        made = tmp_path / "csv" / "users.parquet"
        assert RowReader(InputRows.from_path(made)).read(0, 2).to_pylist() == [
            {"user": "ann", "history": ["50", "181"], "candidates": None},
            {"user": "007", "history": [], "candidates": None},
        ]
        made.unlink()
    with pytest.raises(LKGError, match="lies in the input"):
        rank_file(model, tmp_path, tmp_path / "ranked")
    pq.write_table(pa.table({"user": [1], "history": [["1"]]}), tmp_path / "empty" / "a.parquet")
    pq.write_table(pa.table({"user": ["1"], "history": [["1"]]}), tmp_path / "empty" / "b.parquet")
    with pytest.raises(LKGError, match="several types: int64 in a.parquet, string in b.parquet"):
        rank_file(model, tmp_path / "empty", tmp_path / "ranked")
    with pytest.raises(LKGError, match="k is 0; it is a whole number, 1 or more"):
        rank_file(model, many[0], tmp_path / "ranked", k=0)
    with pytest.raises(LKGError, match="device is 'gpu'; it is such as"):
        rank_file(model, many[0], tmp_path / "ranked", device="gpu")
    with pytest.raises(LKGError, match="only for engine='ray'.*accelerate launch"):
        rank_file(model, many[0], tmp_path / "ranked", workers=2)


def test_without_a_retriever_candidates_are_needed(film_dataset, mixed, many, tmp_path):
    bare = save_ranker(film_dataset, tmp_path, retriever=False)
    with pytest.raises(LKGError, match="has no retriever.*Give the input a column 'candidates'"):
        rank_file(bare, many[0], tmp_path / "ranked", **QUIET)
    report = rank_file(bare, write(tmp_path, mixed[0]), tmp_path / "others", **QUIET)
    assert report.ranked == 2 and "give `candidates`" in report.first_reason


def test_a_run_goes_on_with_the_same_input_model_and_settings_alone(model, many, film_dataset, tmp_path, wanted):
    output = tmp_path / "ranked"
    rank_file(model, many[0], output, **QUIET)
    shards = sorted(output.glob("part-*.parquet"))
    times = [path.stat().st_mtime_ns for path in shards]
    assert rank_file(model, many[0], output, **QUIET | {"batch_size": 5}).ranked == 100
    assert [path.stat().st_mtime_ns for path in shards] == times, "nothing is done again"
    changed = many[1].copy()
    changed.at[99, "history"] = ["6", "1"]
    changed.to_parquet(tmp_path / "changed.parquet")
    other = save_ranker(film_dataset, tmp_path / "other", retriever=False)
    for path, given, options, message in (
        (model, many[0], {"k": 4}, "settings k: 3 then, 4 now"),
        (model, many[0], {"shard_rows": 9}, "settings shard_rows: 8 then, 9 now"),
        (model, many[0], {"num_reasons": 1}, "settings num_reasons: None then, 1 now"),
        (model, tmp_path / "changed.parquet", {}, "input content: .*new folder"),
        (other, many[0], {}, "model content: "),
    ):
        with pytest.raises(LKGError, match=f"was begun with something else .*{message}"):
            rank_file(path, given, output, **QUIET | options)
    pd.testing.assert_frame_equal(pd.read_parquet(output), wanted)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(LKGError, match=r"not empty \(notes.txt\).*Give a new folder"):
        rank_file(model, many[0], tmp_path / "full", **QUIET)
    with Shards(output, 100, 8).locked(), pytest.raises(LKGError, match="Another process is ranking into"):
        rank_file(model, many[0], output, **QUIET)


# -- ends -------------------------------------------------------------------------------------------------------------


def test_what_was_left_half_written_is_made_again(model, many, wanted, tmp_path):
    output = tmp_path / "ranked"
    rank_file(model, many[0], output, **QUIET)
    (output / "part-000003.parquet").unlink()
    (output / "part-000005.parquet").write_bytes((output / "part-000005.parquet").read_bytes()[:-9])
    (output / "_refused").mkdir()
    left = [output / ".part-000003.parquet.99.part", output / "_refused" / ".part-000003.parquet.99.part"]
    for path in (*left, output / "_refused" / "part-000003.parquet"):
        path.write_text("half")
    assert rank_file(model, many[0], output, **QUIET).ranked == 100
    pd.testing.assert_frame_equal(pd.read_parquet(output), wanted)
    assert not any(path.exists() for path in left) and not list((output / "_refused").iterdir())


@pytest.mark.parametrize("name", ["part-000005.parquet", "_refused/part-000005.parquet", "_done/part-000005.json"])
def test_what_is_damaged_in_its_middle_is_made_again(model, many, tmp_path, caplog, name):
    many[1].assign(history=[["404"] if row % 8 == 3 else ["1"] for row in range(100)]).to_parquet(
        tmp_path / "in.parquet"
    )
    output = tmp_path / "ranked"
    report = rank_file(model, tmp_path / "in.parquet", output, **QUIET)
    files = {path: path.read_bytes() for path in output.rglob("part-*")}
    times = {path: path.stat().st_mtime_ns for path in files}
    damaged = bytearray(files[output / name])
    damaged[len(damaged) // 3] ^= 1
    (output / name).write_bytes(damaged)
    assert rank_file(model, tmp_path / "in.parquet", output, **QUIET) == report
    assert caplog.text.count("its rows are ranked again") == 1 and "part-000005.parquet is damaged" in caplog.text
    assert {path: path.read_bytes() for path in output.rglob("part-*")} == files
    again = {path.stem for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert again == {"part-000005"}


def test_shards_are_named_in_the_order_of_rows(tmp_path):
    for count in (5, 999_999, 1_000_000, 1_000_001, 12_345_678):
        shards = Shards(tmp_path, count, 1)
        names = [shards.path(number).name for number in (0, 1, count // 2, count - 1)]
        assert names == sorted(names)
    assert Shards(tmp_path, 1_000_000, 1).path(7).name == "part-000007.parquet"


def test_refused_rows_are_there_before_the_shard_that_counts_them(model, mixed, tmp_path, monkeypatch):
    path, output, replace = write(tmp_path, mixed[0]), tmp_path / "ranked", os.replace

    def end(source, target):
        if Path(target).parent == output and Path(target).name == "part-000001.parquet":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", end)
    with pytest.raises(KeyboardInterrupt):
        rank_file(model, path, output, **QUIET | {"shard_rows": 5})
    assert (output / "_refused" / "part-000001.parquet").exists() and not (output / "part-000001.parquet").exists()
    monkeypatch.undo()
    assert rank_file(model, path, output, **QUIET | {"shard_rows": 5}).refused == 7
    assert len(pd.read_parquet(output / "_refused")) == 7


@pytest.mark.parametrize("kills, rows", [(2, 200), pytest.param(10, 800, marks=pytest.mark.slow)])
def test_nothing_is_lost_or_doubled_by_kills(kills, rows, model, tmp_path):
    path, table = tmp_path / "users.parquet", make_rows(rows, ITEMS, seed=kills)
    table.to_parquet(path)
    rank_with_kills(model, path, tmp_path / "killed", kills)
    assert lost_or_doubled(table["user"], tmp_path / "killed") == 0
    rank_file(model, path, tmp_path / "whole", **QUIET)
    found, wanted = (pd.read_parquet(tmp_path / name) for name in ("killed", "whole"))
    pd.testing.assert_frame_equal(found, wanted)
    left = {entry.name for entry in (tmp_path / "killed").iterdir() if not entry.name.startswith("part-")}
    assert left - {"_lock"} == {"_manifest.json", "_summary.json", "_done"}


def test_what_is_lost_or_doubled_is_counted(tmp_path):
    rows = pd.DataFrame({"user": ["a", "a", "b", "b", "b"], "rank": [1, 2, 1, 2, 1]})
    rows.to_parquet(tmp_path / "part.parquet")
    assert lost_or_doubled(["a", "b"], tmp_path) == 1 and lost_or_doubled(["a", "b", "c"], tmp_path) == 2


# -- several workers --------------------------------------------------------------------------------------------------


TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def test_two_processes_share_the_shards(model, many, wanted, tmp_path):
    output = tmp_path / "ranked"
    process = start(model, many[0], output, launcher=TWO, progress=True)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and "/52 " in said, said  # the bar of the first process, which has 52 of the rows
    pd.testing.assert_frame_equal(pd.read_parquet(output), wanted)
    assert json.loads((output / "_summary.json").read_text())["ranked"] == 100
    (output / "part-000004.parquet").unlink()
    assert rank_file(model, many[0], output, **QUIET).ranked == 100, "one goes on where two have ended"
    pd.testing.assert_frame_equal(pd.read_parquet(output), wanted)


def test_an_error_of_one_process_ends_all(model, many, tmp_path):
    (tmp_path / "ranked").mkdir()
    (tmp_path / "ranked" / "notes.txt").write_text("mine")
    process = start(model, many[0], tmp_path / "ranked", launcher=TWO)
    said = process.communicate(timeout=120)[1]
    assert process.returncode and said.count("Give a new folder") == 2


def test_machines_that_rank_different_things_do_not_begin(model, many, film_dataset, tmp_path):
    """Two launchers stand for two machines, which see other content under their paths."""
    other = save_ranker(film_dataset, tmp_path / "other", retriever=False)
    many[1][:90].to_parquet(tmp_path / "other.parquet")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for rank, place, path in ((0, model, many[0]), (1, other, tmp_path / "other.parquet")):
        there = tmp_path / f"machine-{rank}"
        there.mkdir()
        (there / "model").symlink_to(place)
        (there / "users.parquet").symlink_to(path)
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1"]
        launcher += ["--master_addr", "localhost", "--master_port", str(port)]
        processes.append(
            start(Path("model"), Path("users.parquet"), tmp_path / "ranked", launcher=launcher, folder=there)
        )
    for process in processes:
        said = process.communicate(timeout=120)[1]
        assert process.returncode and "Machines rank different things (input content: " in said, said
        assert "input rows: 100 on the main machine, 90 on another; model content: " in said
    assert {path.name for path in (tmp_path / "ranked").iterdir()} <= {"_lock"}


@pytest.fixture(scope="module")
def cluster():
    """Ray with room for two workers."""
    ray = pytest.importorskip("ray")
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in paths.items():
            patch.setenv(name, value)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


def test_two_workers_of_ray_give_the_same_rows(cluster, model, many, wanted, tmp_path):
    output = tmp_path / "ranked"
    report = rank_file(model, many[0], output, engine="ray", workers=2, **QUIET)
    pd.testing.assert_frame_equal(pd.read_parquet(output), wanted)
    assert report.ranked == 100
    (output / "part-000004.parquet").unlink()
    assert rank_file(model, many[0], output, **QUIET).ranked == 100, "one process goes on where Ray has ended"
    (output / "part-000004.parquet").unlink()
    assert rank_file(model, many[0], output, engine="ray", **QUIET).ranked == 100, "and the other way round"
    pd.testing.assert_frame_equal(pd.read_parquet(output), wanted)


def test_a_worker_that_dies_loses_no_shard(cluster, model, many, wanted, tmp_path, monkeypatch):
    """The first worker that has ranked a shard is killed, with what it has in hand."""
    from llamarec_lkg.serving.ray_workers import RankingWorker

    mark, rank = tmp_path / "killed", RankingWorker.rank

    def rank_and_die(self, rows, options, first):
        if first >= 24 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return rank(self, rows, options, first)

    class Mortal(RankingWorker):
        pass

    Mortal.rank = rank_and_die
    Mortal.__module__ = rank_and_die.__module__ = "__main__"  # sent to the workers as code
    monkeypatch.setattr("llamarec_lkg.serving.ray_workers.RankingWorker", Mortal)
    rank_file(model, many[0], tmp_path / "ranked", engine="ray", workers=2, **QUIET)
    assert mark.exists()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "ranked"), wanted)


def test_what_a_worker_cannot_load_is_said_here(cluster, film_dataset, many, tmp_path):
    bare = save_ranker(film_dataset, tmp_path, retriever=False)
    with pytest.raises(LKGError, match="A worker of Ray cannot load the model. .*has no retriever"):
        rank_file(bare, many[0], tmp_path / "ranked", engine="ray", workers=1, **QUIET)


def test_where_ray_is_absent_the_extra_is_named(many, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "ray" else found(name, *more))
    with pytest.raises(LKGError, match=r'not installed: pip install "llamarec-lkg\[ray\]"'):
        rank_file("anywhere", many[0], tmp_path / "ranked", engine="ray")


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_came_of_the_rows(model, mixed, tmp_path, capsys):
    command = ["rank", "--model", str(model), "--input", str(write(tmp_path, mixed[0]))]
    command += ["--output", str(tmp_path / "ranked")]
    assert main([*command, *AS_OPTIONS, "--reasons"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("5 of 12 rows ranked, ") and f"Written to {tmp_path / 'ranked'}." in said.out
    assert "rank: 100%" in said.err and "refused=7" in said.err
    assert pq.read_schema(tmp_path / "ranked" / "part-000000.parquet").names[-1] == "reasons"
    assert main([*command, *AS_OPTIONS]) == 1
    assert "num_reasons: 3 then, None now" in capsys.readouterr().err
    assert main(["rank", "--model", str(tmp_path), *command[3:]]) == 1
    assert "holds no trained model" in capsys.readouterr().err


def test_an_input_that_changes_while_it_is_ranked_is_no_longer_ranked(model, many, tmp_path):
    folder, output = tmp_path / "users", tmp_path / "ranked"
    folder.mkdir()
    table = pd.read_parquet(many[0])
    table[:50].to_parquet(folder / "1.parquet")
    table[50:].to_parquet(folder / "2.parquet")
    rows = InputRows.from_path(folder)
    table[:10].to_parquet(folder / "2.parquet")
    with pytest.raises(LKGError, match=r"2.parquet was changed while it was ranked"):
        RowReader(rows).read(60, 62)
    with pytest.raises(LKGError, match="was changed"):
        rows.require_unchanged()
    assert rank_file(model, folder, output, **QUIET).rows == 60


def test_what_was_finished_and_is_not_whole_any_more_is_made_again(model, many, tmp_path):
    table = pd.read_parquet(many[0])
    table.at[3, "history"] = ["nothing that is known"]
    table.to_parquet(tmp_path / "users.parquet")
    output = tmp_path / "ranked"
    report = rank_file(model, tmp_path / "users.parquet", output, **QUIET)
    (refused,) = (output / "_refused").glob("part-*.parquet")
    before = pd.read_parquet(output)
    refused.unlink()
    assert rank_file(model, tmp_path / "users.parquet", output, **QUIET) == report and refused.exists()
    pd.testing.assert_frame_equal(pd.read_parquet(output), before)


def test_another_backbone_of_the_same_ranker_is_another_model(model, many, tmp_path):
    copied = tmp_path / "model"
    shutil.copytree(model.parent, copied)
    config = copied / "run" / "config.json"
    config.write_text(config.read_text().replace(str(model.parent), str(copied)))
    first = ModelPlace.find(str(copied / "run")).identity
    other = backbone()
    torch.nn.init.normal_(other.get_input_embeddings().weight)
    other.save_pretrained(copied / "backbone")
    assert ModelPlace.find(str(copied / "run")).identity != first
