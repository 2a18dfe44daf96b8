"""One entry to every format of recommendation data, and to facts from elsewhere: networkx graphs and tables of
triples."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Container
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import numpy as np
import pandas as pd

from .raw_amazon import amazon_2014, amazon_2023
from .raw_files import read_table
from .raw_formats import (
    ID_TYPES,
    Catalogue,
    RawDataset,
    folder_of,
    join_sources,
    movielens_1m,
    movielens_100k,
    movielens_latest,
    recbole_atomic,
    tables,
)
from .schema import HEAD, RATED, RELATION, TAIL, DatasetBundle, ItemTable, LKGDataError, Triples


class Format(NamedTuple):
    """How a format is read: by which function, which files a folder of it holds (patterns, the interactions first),
    and what to tell people."""

    opens: Callable[[Path], RawDataset]
    signs: tuple[str, ...]
    reads: str


MOVIELENS_DAT = (r"ratings\.dat", r"movies\.dat")
# the first format whose files are all there is taken
FORMATS: dict[str, Format] = {
    "movielens-latest": Format(
        movielens_latest,
        (r"ratings\.csv", r"movies\.csv"),
        "ml-latest, ml-latest-small, ml-20m, ml-25m, ml-32m: ratings.csv and movies.csv",
    ),
    "movielens-1m": Format(movielens_1m, MOVIELENS_DAT, "ml-1m: ratings.dat and movies.dat"),
    "movielens-10m": Format(movielens_1m, MOVIELENS_DAT, "ml-10m: files as of ml-1m, which the same reader takes"),
    "movielens-100k": Format(movielens_100k, (r"u\.data", r"u\.item"), "ml-100k: u.data and u.item"),
    "recbole": Format(recbole_atomic, (r".+\.inter",), "X.inter and X.item, optionally X.kg with X.link"),
    "tables": Format(
        tables,
        (r"interactions\.(parquet|csv)", r"items\.(parquet|csv)"),
        "interactions and items, optionally triples and links, as parquet or csv",
    ),
    "amazon-2014": Format(
        amazon_2014,
        (r"(ratings_.+\.csv|reviews_.+\.json)(\.gz)?", r"meta_.+\.json(\.gz)?"),
        "ratings_X.csv or reviews_X_5.json.gz, with meta_X.json.gz",
    ),
    "amazon-2023": Format(
        amazon_2023, (r"(?!meta_).+\.jsonl(\.gz)?", r"meta_.+\.jsonl(\.gz)?"), "X.jsonl.gz, with meta_X.jsonl.gz"
    ),
}


def describe_formats() -> str:
    """The formats and their files, one a line."""
    return "\n".join(f"  {name} ({format.reads})" for name, format in FORMATS.items())


def convert(path: str | Path, format: str | None = None) -> DatasetBundle:
    """Read a raw data set into memory.

    Args:
        path: a folder of raw files, or one of them.
        format (`str`, optional): a name of `FORMATS`. By default the file names tell.

    Raises:
        LKGDataError: no format fits, a file is damaged, or a table lacks what it needs.
    """
    return open_raw(path, format).to_bundle()


def open_raw(path: str | Path, format: str | None = None) -> RawDataset:
    """Find a raw data set and its format, without reading more than file names; the arguments are those of
    `convert`.

    Raises:
        LKGDataError: there is nothing at `path`, or no format fits.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        close = difflib.get_close_matches(format, FORMATS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}? The formats are" if close else ". The formats are"
        raise LKGDataError(f"format={format!r} was given{hint}:\n{describe_formats()}")
    if not path.exists():
        raise LKGDataError(f"{path} does not exist. Pass a folder of raw files, or one of them.")
    folder = folder_of(path)
    names = sorted(entry.name for entry in folder.iterdir())
    if format is None:
        format = _recognise(path, names)
    if format is None:
        raise LKGDataError(
            f"{folder} holds {names[:12]}. Needed: interactions.parquet or .csv, and items.parquet or .csv (or "
            "MovieLens ratings.csv and movies.csv, or ratings.dat and movies.dat, or u.data and u.item; or RecBole "
            "*.inter and *.item files; or Amazon ratings_X.csv or reviews_X_5.json.gz with meta_X.json.gz, or "
            "X.jsonl.gz with meta_X.jsonl.gz)."
        )
    return FORMATS[format].opens(path)


def _recognise(path: Path, files: list[str]) -> str | None:
    for name, format in FORMATS.items():
        if path.is_file():
            if re.fullmatch(format.signs[0], path.name):
                return name
        elif all(any(re.fullmatch(sign, file) for file in files) for sign in format.signs):
            return name
    return None


# -- facts from elsewhere ---------------------------------------------------------------------------------------------


def with_triples(
    bundle: DatasetBundle, source: nx.Graph | pd.DataFrame | str | Path, *, citation: str = "", license: str = ""
) -> DatasetBundle:
    """The bundle with further facts beside those it has.

    Args:
        source: what `as_triples` takes.
        citation, license: of the facts, named beside those of the bundle.

    Raises:
        LKGDataError: as `as_triples`.
    """
    return replace(
        bundle,
        triples=_joined(bundle.triples, as_triples(source, bundle.items)),
        citation=join_sources(bundle.citation, citation),
        license=join_sources(bundle.license, license),
    )


def with_facts(
    raw: RawDataset, source: nx.Graph | pd.DataFrame | str | Path, *, citation: str = "", license: str = ""
) -> RawDataset:
    """`with_triples` for a data set that has not been read yet."""

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        items, triples = raw.catalogue(wanted)
        return items, _joined(triples, as_triples(source, items))

    return replace(
        raw,
        catalogue=catalogue,
        citation=join_sources(raw.citation, citation),
        license=join_sources(raw.license, license),
    )


def _joined(known: Triples | None, added: Triples) -> Triples:
    if known is None:
        return added
    columns = ("heads", "relations", "tails")
    arrays = (np.concatenate([getattr(known, name), getattr(added, name)]) for name in columns)
    return Triples(*arrays, item_of_entity={**added.item_of_entity, **known.item_of_entity})


def as_triples(source: nx.Graph | pd.DataFrame | str | Path, items: ItemTable) -> Triples:
    """Facts about `items` from a networkx graph or a table.

    Args:
        source: a graph as `KnowledgeGraph.from_networkx` takes it: its edges have `relation`, and its items are the
            nodes of type "item" or, where no node has a type, those named as an item. Or a table with `head`,
            `relation` and `tail`, where what equals an item id is that item. Or the path of one or the other
            (`.graphml`, `.csv`, `.tsv`, `.parquet`).
        items: of the data set.

    Raises:
        LKGDataError: an edge lacks its relation, a table its columns, or the file cannot be read.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix == ".graphml":
            source = _read_graphml(path)
        elif path.suffix in (".csv", ".tsv", ".parquet"):
            options = {"sep": "\t"} if path.suffix == ".tsv" else {}
            source = read_table(path, dtype=ID_TYPES, **options)
        else:
            raise LKGDataError(
                f"{path} does not say what it is; name it .csv, .tsv or .parquet (head, relation, tail) or .graphml."
            )
    if isinstance(source, pd.DataFrame):
        return Triples.from_frame(source, {raw: raw for raw in items.ids})
    return _triples_of_graph(source, items)


def _read_graphml(path: Path) -> nx.Graph:
    try:
        return nx.read_graphml(path)
    except (OSError, SyntaxError, nx.NetworkXError, KeyError) as error:  # a damaged xml file is a SyntaxError
        raise LKGDataError(f"{path} cannot be read as graphml ({error}). Make or copy it again.") from error


def _triples_of_graph(graph: nx.Graph, items: ItemTable) -> Triples:
    """Edges as facts. Who rated what is left out: it is dated, private, and in the interactions already."""
    typed = any("type" in data for _, data in graph.nodes(data=True))
    known = set(items.ids)
    keys = {node: str(data.get("key", node)) for node, data in graph.nodes(data=True)}
    is_item = {
        node: keys[node] in known and data.get("type", "" if typed else "item") == "item"
        for node, data in graph.nodes(data=True)
    }
    # an entity with the key of an item is another thing than that item
    entity = {
        node: key if is_item[node] or key not in known else f"{graph.nodes[node].get('type', 'entity')}:{key}"
        for node, key in keys.items()
    }
    facts = []
    for head, tail, data in graph.edges(data=True):
        if "relation" not in data:
            raise LKGDataError(
                f"Edge {head!r} -> {tail!r} has attributes {sorted(data)} but no 'relation'. Every edge needs one: "
                "`graph.add_edge(a, b, relation='DIRECTED_BY')`."
            )
        if data["relation"] == RATED:
            continue
        if not graph.is_directed() and is_item[tail] and not is_item[head]:
            head, tail = tail, head  # an edge without direction is read from the item
        facts.append((entity[head], str(data["relation"]), entity[tail]))
    frame = pd.DataFrame(facts, columns=[HEAD, RELATION, TAIL], dtype=str)
    return Triples.from_frame(frame, {keys[node]: keys[node] for node, found in is_item.items() if found})
