"""Inputs that hypothesis makes up: each gives a clear `LKGError` or a right answer, in time."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_run import settings as run_settings

from campaign.kills import answer, write_rankers
from llamarec_lkg import KnowledgeGraph, LKGError, Recommender
from llamarec_lkg.data.schema import Triples
from llamarec_lkg.data.sequences import PreprocessingSettings, SequenceDataset
from llamarec_lkg.data.sources import load_dataset_bundle
from llamarec_lkg.serving.batch_ranking import rank_file
from llamarec_lkg.training.run_config import RunConfig


PATIENCE = 20  # seconds for one input, after which it hangs
ODD = [
    "", " ", "0", "1.0", "-1", "nan", "None", "null", "1e400", "\ud800", "\x00", "a\nb", "|", "[1, 2]", "{'a': 1}",
    "[" * 3000, "1" * 5000, "<pad>", "\u202e1", 2**63, 2**64, -(2**70), 1e308, float("nan"), float("inf"), b"\xff",
    np.datetime64("NaT"), pd.NA, datetime.datetime(2020, 1, 1), datetime.date(1, 1, 1), 1j, {1}, object,
]  # fmt: skip
cells = st.one_of(
    st.sampled_from(ODD), st.none(), st.booleans(), st.integers(), st.integers(-2, 7), st.floats(),
    st.text(max_size=6), st.binary(max_size=4), st.lists(st.integers(0, 7), max_size=3),
)  # fmt: skip
NAMES = [
    "user_id",
    "item_id",
    "timestamp",
    "rating",
    "title",
    "genre",
    "head",
    "relation",
    "tail",
    "",
    3,
    None,
    "RATED",
]


def fuzz(inputs: st.SearchStrategy, check: Callable[[Any], None], count: int) -> Iterator[str | None]:
    """What became of `count` inputs, the same in every run."""
    outcomes: list[str | None] = []

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(inputs)
    def one(value):
        try:
            with within(PATIENCE):
                check(value)
        except LKGError as error:
            outcomes.append(None if 20 < len(str(error)) < 2000 else f"unclear: {error!r:.300} of {value!r:.800}")
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error!s:.300} of {value!r:.800}")
        else:
            outcomes.append(None)

    one()
    yield from outcomes


class Hang(BaseException):
    """No `Exception`, which somebody may catch who waits."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """A block that takes longer ends with a `TimeoutError`."""

    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Hang:
        raise TimeoutError(f"more than {seconds} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- tables and files -------------------------------------------------------------------------------------------------

INTERACTIONS = {
    "user_id": [1, 1, 1, 2, 2, 2, 3, 3, 3],
    "item_id": [1, 2, 3, 2, 3, 4, 3, 4, 1],
    "timestamp": [1, 2, 3, 1, 2, 3, 1, 2, 3],
    "rating": [4.0, 3.0, 5.0] * 3,
}
ITEMS = {"item_id": [1, 2, 3, 4], "title": ["A", "B", "C", "D"], "genre": ["x|y", "y", None, "x"]}
FACTS = {"head": [1, 2, 3], "relation": ["MADE_BY", "MADE_BY", "NEXT"], "tail": ["p", "p", 4]}
ALL = {"interactions": INTERACTIONS, "items": ITEMS, "triples": FACTS}


@st.composite
def spoiled(draw, table: dict[str, list]) -> dict[Any, list]:
    """A table with up to three things wrong with it."""
    table = {name: list(column) for name, column in table.items()}
    for _ in range(draw(st.integers(0, 3))):
        if not table:
            break
        name = draw(st.sampled_from(list(table)))
        rows = len(table[name])
        how = draw(st.sampled_from(["cell", "cell", "cell", "column", "rename", "drop", "add", "repeat", "empty"]))
        if how == "cell" and rows:
            table[name][draw(st.integers(0, rows - 1))] = draw(cells)
        elif how == "column":
            table[name] = draw(st.lists(cells, min_size=rows, max_size=rows))
        elif how == "rename":
            table[draw(st.sampled_from(NAMES))] = table.pop(name)
        elif how == "drop":
            del table[name]
        elif how == "add":
            table[draw(st.sampled_from(NAMES))] = draw(st.lists(cells, min_size=rows, max_size=rows))
        elif how == "repeat":
            table = {one: column + column[:2] for one, column in table.items()}
        elif how == "empty":
            table = {one: [] for one in table}
    return table


@st.composite
def worlds(draw) -> dict[str, Any]:
    """All tables, one of them spoiled, each in memory in some form."""
    chosen = draw(st.sampled_from(list(ALL)))
    tables = {name: draw(spoiled(table)) if name == chosen else table for name, table in ALL.items()}
    form = draw(st.sampled_from(["frame", "frame", "columns", "arrow"]))
    return {"form": form, **tables}


def check_world(world: dict[str, Any]) -> None:
    form = world.pop("form")
    tables = {name: pd.DataFrame(table, dtype=object) for name, table in world.items()}
    if form == "columns":
        tables = world
    if form == "arrow":
        with contextlib.suppress(pa.ArrowException, TypeError, UnicodeError, ValueError, OverflowError):
            tables = {name: pa.table(table) for name, table in world.items()}
    check_data(load_dataset_bundle(tables), len(next(iter(world["interactions"].values()), [])))


def check_data(bundle: Any, rows: int) -> None:
    """What was read makes a data set and a graph that agree with it."""
    dataset = SequenceDataset.from_bundle(
        bundle, PreprocessingSettings(min_user_interactions=1, min_item_interactions=1)
    )
    assert 0 < dataset.num_users and len(dataset.item_sequence) <= rows
    assert 1 <= dataset.item_sequence.min() and dataset.item_sequence.max() <= dataset.num_items
    assert len(dataset.items.titles) == dataset.num_items and all(dataset.items.titles)
    graph = KnowledgeGraph.from_dataset(dataset, bundle.triples)
    assert graph.num_items == dataset.num_items and not graph.has_people


FORMS = ["csv", "tsv", "jsonl", "parquet"]


def file_bytes(table: dict[str, list], form: str) -> bytes:
    frame = pd.DataFrame(table).astype({name: str for name in ("tail", "head") if name in table})
    if form == "parquet":
        frame.to_parquet(stream := io.BytesIO())
        return stream.getvalue()
    if form == "jsonl":
        return frame.to_json(orient="records", lines=True).encode()
    return frame.to_csv(index=False, sep="\t" if form == "tsv" else ",").encode()


@st.composite
def spoiled_bytes(draw, content: bytes) -> bytes:
    """A file cut off, with bytes changed, put in or taken out, or another one altogether."""
    how = draw(st.sampled_from(["cut", "change", "put in", "take out", "other"]))
    if how == "other":
        return draw(
            st.one_of(st.binary(max_size=60), st.sampled_from([b"PK\x03\x04", b"{}", b"[]", b"null", b"PAR1"]))
        )
    first = draw(st.integers(0, len(content)))
    last = min(len(content), first + draw(st.integers(1, 20)))
    if how == "cut":
        return content[:first]
    new = draw(
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b'"', b"\n", b"\x00", b",", b"\xff\xfe"]))
    )
    return content[:first] + (b"" if how == "take out" else new) + content[first if how == "put in" else last :]


@st.composite
def folders(draw) -> dict[str, bytes]:
    form = draw(st.sampled_from(FORMS))
    files = {f"{name}.{form}": file_bytes(table, form) for name, table in ALL.items()}
    name = draw(st.sampled_from(list(files)))
    return {**files, name: draw(spoiled_bytes(files[name]))}


def tables(count: int, folder: Path) -> Iterator[str | None]:
    yield from fuzz(worlds(), check_world, count)


def files(count: int, folder: Path) -> Iterator[str | None]:
    def check(content: dict[str, bytes]) -> None:
        place = folder / "files"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name, data in content.items():
            (place / name).write_bytes(data)
        check_data(load_dataset_bundle(place), 1000)

    yield from fuzz(folders(), check, count)


def graphs(count: int, folder: Path) -> Iterator[str | None]:
    """Triples alone, and graphs of networkx."""
    ids = [str(item) for item in ITEMS["item_id"]]

    def check(given: tuple[dict, list]) -> None:
        table, edges = given
        if edges is None:
            frame = pd.DataFrame(table, dtype=object)
            graph = KnowledgeGraph.from_triples(Triples.from_frame(frame, {one: one for one in ids}), ids)
        else:
            drawn = nx.MultiDiGraph()
            for one, other, facts in edges:
                drawn.add_edge(one, other, **facts)
            graph = KnowledgeGraph.from_networkx(drawn, ids)
        assert graph.num_items == len(ids) and graph.num_edges >= 0
        graph.save_pretrained(folder / "graph")
        same = KnowledgeGraph.from_pretrained(folder / "graph")
        assert same.num_edges == graph.num_edges and list(same.relations) == list(graph.relations)

    ends = st.one_of(st.sampled_from(ids), st.integers(0, 5), st.text(max_size=4), st.none().map(lambda _: ("a", 1)))
    facts = st.dictionaries(st.sampled_from(["relation", "weight", "timestamp", "type"]), cells, max_size=3)
    edges = st.lists(st.tuples(ends, ends, facts), max_size=5)
    yield from fuzz(st.tuples(spoiled(FACTS), st.one_of(st.none(), edges)), check, count)


# -- configurations ---------------------------------------------------------------------------------------------------


def configurations(count: int, folder: Path) -> Iterator[str | None]:
    whole = run_settings(folder)
    places = [(name, None) for name in whole]
    places += [(name, field) for name, section in whole.items() if isinstance(section, dict) for field in section]
    places += [("data", "columns"), ("graph", "exclude_relations"), ("evaluation", "controls"), ("model", "readout")]
    places += [("model", "hidden_size"), ("benchmark", "variants"), ("benchmark", "seeds"), ("nothing", "here")]
    values = st.one_of(cells, st.dictionaries(st.text(max_size=5), cells, max_size=2), st.just({}), st.just([]))
    path = folder / "config.yaml"

    def check(given: tuple[Any, Any, str]) -> None:
        (section, field), value, how = given
        content = {name: dict(held) if isinstance(held, dict) else held for name, held in whole.items()}
        if how == "override":
            path.write_text(yaml.safe_dump(content))
            name = section if field is None else f"{section}.{field}"
            config = RunConfig.from_yaml([path], [f"{name}={value}"])
        else:
            if field is None:
                content[section] = value
            else:
                content.setdefault(section, {})[field] = value
            config = RunConfig.from_mapping(content)
        written = yaml.safe_dump(config.to_mapping())  # compared as text, since NaN is not NaN
        assert yaml.safe_dump(RunConfig.from_mapping(yaml.safe_load(written)).to_mapping()) == written

    yield from fuzz(st.tuples(st.sampled_from(places), values, st.sampled_from(["mapping", "override"])), check, count)


def yaml_files(count: int, folder: Path) -> Iterator[str | None]:
    content = yaml.safe_dump(run_settings(folder)).encode()

    def check(data: bytes) -> None:
        (folder / "config.yaml").write_bytes(data)
        RunConfig.from_yaml([folder / "config.yaml"])

    yield from fuzz(spoiled_bytes(content), check, count)


# -- requests ---------------------------------------------------------------------------------------------------------

known = st.sampled_from([str(item) for item in range(1, 7)])
id_lists = st.one_of(
    st.lists(known, max_size=6), st.lists(st.one_of(known, cells), max_size=5), cells, st.lists(known, min_size=200)
)


def requests(count: int, folder: Path) -> Iterator[str | None]:
    write_rankers(folder / "here")
    recommender = Recommender.from_pretrained(folder / "here" / "new")

    def check(given: dict[str, Any]) -> None:
        found = recommender.recommend(**given)
        scores = [item.score for item in found]
        assert len({item.item_id for item in found}) == len(found) and scores == sorted(scores, reverse=True)
        assert np.isfinite(scores).all() and {item.item_id for item in found} <= set(recommender.item_ids)
        if given.get("candidates") is not None:
            wanted = {str(one).removesuffix(".0").strip() for one in given["candidates"]}
            assert {item.item_id for item in found} <= wanted

    options = {"user": cells, "candidates": id_lists, "k": st.one_of(st.integers(-1, 9), cells)}
    options["repeats"] = st.one_of(st.sampled_from(["allowed", "excluded", None]), cells)
    options["num_reasons"] = st.one_of(st.integers(-1, 5), cells)
    yield from fuzz(st.fixed_dictionaries({"history": id_lists}, optional=options), check, count)


def rows_to_rank(count: int, folder: Path) -> Iterator[str | None]:
    """Files of rows: every row is ranked or refused."""
    write_rankers(folder / "here")

    def check(given: tuple[dict[str, list], bytes | None]) -> None:
        table, data = given
        place = folder / "rows.parquet"
        if data is None:
            try:
                made = pa.table(table)
                pq.write_table(made, place)
            except (pa.ArrowException, TypeError, UnicodeError, ValueError, OverflowError):
                return
        else:
            place.write_bytes(data)
        shutil.rmtree(folder / "ranked", ignore_errors=True)
        report = rank_file(folder / "here" / "new", place, folder / "ranked", progress=False, k=2)
        assert report.ranked + report.refused == report.rows == pq.read_metadata(place).num_rows

    table = {"user": ["a", "b", "c"], "history": [["1"], ["2", "3"], []], "candidates": [["4"], ["5", "6"], ["1"]]}
    pq.write_table(pa.table(table), whole := io.BytesIO())
    made = st.one_of(st.tuples(spoiled(table), st.none()), st.tuples(st.just(table), spoiled_bytes(whole.getvalue())))
    yield from fuzz(made, check, count)


# -- saved folders ----------------------------------------------------------------------------------------------------


def saved_folders(count: int, folder: Path) -> Iterator[str | None]:
    """Files of a saved ranker cut off, gone, swapped with each other, taken from another ranker, or foreign."""
    old, new = write_rankers(folder / "here")
    begin, place = folder / "here" / "new", folder / "spoiled"
    paths = sorted(str(path.relative_to(begin)) for path in begin.rglob("*") if path.is_file())
    paths = [path for path in paths if path not in (".gitignore", "README.md")]
    names = st.sampled_from(paths)
    foreign = st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"{}", b"[]", b"null", b"PAR1", b"\x00" * 64]))
    json_values = st.one_of(st.none(), st.integers(), st.text(max_size=4), st.just({}), st.just([]), st.just(-1))

    def check(given: tuple[str, str, str, float, bytes, Any]) -> None:
        how, name, other, share, content, value = given
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(begin, place)
        data = (place / name).read_bytes()
        if how == "cut":
            (place / name).write_bytes(data[: int(share * len(data))])
        elif how == "gone":
            (place / name).unlink()
        elif how == "swapped":
            (place / name).write_bytes((place / other).read_bytes())
            (place / other).write_bytes(data)
        elif how == "foreign":
            (place / name).write_bytes(content)
        elif how == "a folder":
            (place / name).unlink()
            (place / name).mkdir()
        elif how == "another's":
            (place / name).write_bytes((folder / "here" / "old" / name).read_bytes())
        elif name.endswith(".json") and isinstance(held := json.loads(data), dict) and held:
            key = sorted(held)[int(share * (len(held) - 1))]
            held[key] = value
            (place / name).write_text(json.dumps(held))
        found = answer(place)
        if how in ("cut", "gone"):
            assert found in (new, old), "another answer without a word"

    hows = st.sampled_from(["cut", "gone", "swapped", "foreign", "a folder", "another's", "a value"])
    yield from fuzz(st.tuples(hows, names, names, st.floats(0, 0.999), foreign, json_values), check, count)
