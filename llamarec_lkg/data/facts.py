"""Facts from elsewhere: networkx graphs and tables of triples, beside those that a data set brings."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import networkx as nx
import numpy as np
import pandas as pd

from ..utils.errors import LKGError
from .raw_dataset import Catalogue, RawDataset, join_sources
from .readers import read_table
from .schema import CO_RATED, HEAD, RATED, RELATION, TAIL, DatasetBundle, ItemTable, Triples


Data = TypeVar("Data", DatasetBundle, RawDataset)


def with_triples(
    data: Data, source: nx.Graph | pd.DataFrame | str | Path, *, citation: str = "", license: str = ""
) -> Data:
    """The data with further facts beside those they have.

    Args:
        data: a bundle, or a data set that has not been read yet.
        source: what `as_triples` takes. Facts are published as they are given, so leave people out of them.
        citation, license: of the facts, named beside those of the data.
    """
    said = {"citation": join_sources(data.citation, citation), "license": join_sources(data.license, license)}
    if isinstance(data, DatasetBundle):
        return replace(data, triples=_joined(data.triples, as_triples(source, data.items)), **said)

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        items, triples = data.catalogue(wanted)
        return items, _joined(triples, as_triples(source, items))

    return replace(data, catalogue=catalogue, **said)


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
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix == ".graphml":
            try:
                source = nx.read_graphml(path)
            except (OSError, SyntaxError, nx.NetworkXError, KeyError) as error:  # damaged xml is a SyntaxError
                raise LKGError(f"{path} cannot be read as graphml ({error}). Make or copy it again.") from error
        elif path.suffix in (".csv", ".tsv", ".parquet"):
            source = read_table(path)
        else:
            raise LKGError(f"{path} is no .csv, .tsv or .parquet (head, relation, tail) nor .graphml by its name.")
    if isinstance(source, pd.DataFrame):
        return Triples.from_frame(source, {raw: raw for raw in items.ids})
    return _triples_of_graph(source, items)


def _triples_of_graph(graph: nx.Graph, items: ItemTable) -> Triples:
    """Edges as facts. What interactions say is left out: the data set has the interactions themselves."""
    typed = any("type" in data for _, data in graph.nodes(data=True))
    known = set(items.ids)
    entity, is_item = {}, {}
    for node, data in graph.nodes(data=True):
        key, kind = str(data.get("key", node)), data.get("type", "entity" if typed else "item")
        is_item[node] = key in known and kind == "item"
        # an entity with the key of an item is another thing than that item
        entity[node] = key if is_item[node] or key not in known else f"{kind}:{key}"
    facts = []
    for head, tail, data in graph.edges(data=True):
        if "relation" not in data:
            raise LKGError(
                f"Edge {head!r} -> {tail!r} has attributes {sorted(data)} but no 'relation'. Every edge needs one: "
                "`graph.add_edge(a, b, relation='DIRECTED_BY')`."
            )
        if data["relation"] in (RATED, CO_RATED):
            continue
        if not graph.is_directed() and is_item[tail] and not is_item[head]:
            head, tail = tail, head  # an edge without direction is read from the item
        facts.append((entity[head], str(data["relation"]), entity[tail]))
    frame = pd.DataFrame(facts, columns=[HEAD, RELATION, TAIL], dtype=str)
    return Triples.from_frame(frame, {entity[node]: entity[node] for node, found in is_item.items() if found})
