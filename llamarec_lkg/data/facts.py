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
from .links import checked_links, entities_of, unmet_links
from .raw_dataset import Catalogue, RawDataset, join_sources
from .readers import read_table
from .schema import CO_RATED, ENTITY, HEAD, ITEM, RELATION, TAIL, TYPES, DatasetBundle, ItemTable, Triples


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
        return replace(data, triples=_joined(data.triples, as_triples(source, data.items), data.items), **said)

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        items, triples = data.catalogue(wanted)
        return items, _joined(triples, as_triples(source, items), items)

    return replace(data, catalogue=catalogue, **said)


def _joined(known: Triples | None, added: Triples, items: ItemTable) -> Triples:
    if known is None:
        return checked_links(added, items.ids)
    if entities_of(added).keys().isdisjoint([*entities_of(known), *known.item_of_entity]):
        unmet_links(added, items.ids)  # neither with what is known nor with the items: refused
    added = _beside(known, added)
    columns = ("heads", "relations", "tails")
    arrays = (np.concatenate([getattr(known, name), getattr(added, name)]) for name in columns)
    links = {**added.item_of_entity, **known.item_of_entity}
    return Triples(*arrays, item_of_entity=links, assumed=known.assumed | added.assumed)


def _beside(known: Triples, added: Triples) -> Triples:
    """Added facts whose items have a name of their own where the known facts call something else so."""
    links, taken = known.item_of_entity, {*entities_of(known), *known.item_of_entity}
    clashes = {own for own, raw in added.item_of_entity.items() if own in taken and links.get(own) != raw}
    if not clashes:
        return added

    def name(own: str) -> str:
        return f"{ITEM}:{own}" if own in clashes else own

    return Triples(
        heads=np.array([*map(name, added.heads)], dtype=object),
        relations=added.relations,
        tails=np.array([*map(name, added.tails)], dtype=object),
        item_of_entity={name(own): raw for own, raw in added.item_of_entity.items()},
        assumed=frozenset(map(name, added.assumed)),
    )


def as_triples(source: nx.Graph | pd.DataFrame | str | Path, items: ItemTable) -> Triples:
    """Facts about `items` from a networkx graph or a table.

    Args:
        source: a graph as `KnowledgeGraph.from_networkx` takes it: its edges have `relation`, and its items are the
            nodes of type "item" or, where no node has a type, those named as an item. Or a table with `head`,
            `relation` and `tail`, where what equals an item id is that item, unless `head_type` or `tail_type` says
            otherwise (`Triples.from_frame`). Or the path of one or the other (`.graphml`, `.csv`, `.tsv`, `.parquet`).
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
            raise LKGError(
                f"{path} is no .csv, .tsv or .parquet (head, relation, tail) nor .graphml by its name. Write the "
                "facts as one of these."
            )
    if isinstance(source, pd.DataFrame):
        return Triples.by_item_ids(source, items.ids)
    return _triples_of_graph(source, items)


def _triples_of_graph(graph: nx.Graph, items: ItemTable) -> Triples:
    """Edges as facts. What interactions say is left out: the data set has the interactions themselves."""
    typed = any("type" in data for _, data in graph.nodes(data=True))
    known = set(items.ids)
    kinds, keys = {}, {}
    for node, data in graph.nodes(data=True):
        keys[node] = str(data.get("key", node))
        kinds[node] = str(data.get("type", ENTITY)) if typed else ITEM if keys[node] in known else ENTITY
    facts = []
    for head, tail, data in graph.edges(data=True):
        if "relation" not in data:
            raise LKGError(
                f"Edge {head!r} -> {tail!r} has attributes {sorted(data)} but no 'relation'. Every edge needs one: "
                "`graph.add_edge(a, b, relation='DIRECTED_BY')`."
            )
        if data["relation"] == CO_RATED and kinds[head] == kinds[tail] == ITEM:
            continue
        if not graph.is_directed() and kinds[tail] == ITEM != kinds[head]:
            head, tail = tail, head  # an edge without direction is read from the item
        facts.append((keys[head], str(data["relation"]), keys[tail], kinds[head], kinds[tail]))
    frame = pd.DataFrame(facts, columns=[HEAD, RELATION, TAIL, *TYPES.values()], dtype=str)
    linked = {key: key for node, key in keys.items() if kinds[node] == ITEM and key in known}
    return replace(Triples.from_frame(frame, {raw: raw for raw in items.ids}), item_of_entity=linked)
