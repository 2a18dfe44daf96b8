"""The graph: paths, evidence and what it says of histories on ml-latest-small, and a graph of ten million edges."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import networkx as nx
import numpy as np
from scipy import sparse

from llamarec_lkg.data.schema import Triples
from llamarec_lkg.data.sequences import SequenceDataset
from llamarec_lkg.data.sources import open_source
from llamarec_lkg.graph import paths
from llamarec_lkg.graph.co_ratings import co_ratings
from llamarec_lkg.graph.evidence import EvidenceIndex
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph

from .runner import Figure, alone, benchmark, in_turns, timed


FILMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "ml-latest-small"
USERS, SHOWN = 20, 20  # histories, and how many of their last items and of candidates paths lead between
OFTEN = 10  # of ours in one turn, which are over before the processor has them at hand
PLACES = 128  # of a history that are read
ITEMS = 1_000_000
RELATIONS = (("directed_by", 1, 200_000, 1.0), ("genre", 1, 50, 1.0), ("has_actor", 3, 400_000, 1.5))


@benchmark
def graph() -> Iterator[Figure]:
    dataset = SequenceDataset.from_raw(open_source(str(FILMS)))
    facts = KnowledgeGraph.from_dataset(dataset)
    histories = [dataset.item_sequence[a:b] for a, b in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)]
    histories = [history[-PLACES:].astype(np.int64) for history in histories if len(history) >= SHOWN]
    generator = np.random.default_rng(0)
    yield from of_paths(facts, histories, generator)
    index = EvidenceIndex.from_graph(facts.with_co_ratings(co_ratings(dataset)))
    yield from of_evidence(index, histories)

    room = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        built = alone(build, str(room))
        name = f"build a graph of {built['found']['edges'] / 1e6:.0f}M edges"
        yield Figure(f"{name}: time", built["found"]["seconds"], 30, "s", 1, "bound")
        yield Figure(f"{name}: memory, with its facts as text", built["gigabytes"], 1.5, "GB", 1, "bound")
        large = KnowledgeGraph.from_pretrained(room)
        loaded = timed(lambda: KnowledgeGraph.from_pretrained(room), 3)
        yield Figure("load it", loaded, 0.5, "s", 1, "bound")
    finally:
        shutil.rmtree(room)
    ends = [generator.integers(1, ITEMS + 1, size=(2, SHOWN)) for _ in range(USERS)]
    found = timed(lambda: [paths.find(large, *both) for both in ends]) / USERS
    yield Figure(f"paths of a user in it, {SHOWN} x {SHOWN} pairs", 1e3 * found, 1, "ms", 1, "bound")


def of_paths(
    facts: KnowledgeGraph, histories: Sequence[np.ndarray], generator: np.random.Generator
) -> Iterator[Figure]:
    sources = [history[-SHOWN:] for history in histories[:USERS]]
    targets = [generator.choice(facts.num_items, SHOWN, replace=False) + 1 for _ in sources]
    peer = nx.Graph()
    peer.add_nodes_from(range(facts.num_nodes))
    peer.add_edges_from(zip(facts.edge_sources().tolist(), facts.targets.tolist(), strict=True))

    def search() -> None:
        for ends in zip(sources, targets, strict=True):
            searched(peer, *(facts.item_nodes[items].tolist() for items in ends))

    def one_by_one() -> None:
        for ends in list(zip(sources, targets, strict=True)) * OFTEN:
            paths.find(facts, *ends)

    def together() -> None:
        for _ in range(OFTEN):
            paths.find_together(facts, sources, targets)

    name = f"paths of a user, {SHOWN} x {SHOWN} pairs"
    for how, run in (("", one_by_one), (f", {USERS} users at once", together)):
        ours, theirs = (1e3 * seconds / USERS for seconds in in_turns(run, search, 7))
        yield Figure(f"{name}{how}", ours / OFTEN, theirs, "ms", 200, "networkx.shortest_path")


def searched(peer: nx.Graph, sources: Sequence[Hashable], targets: Sequence[Hashable]) -> None:
    """A path from each node of some to each of others, where there is one."""
    for one in sources:
        for other in targets:
            with suppress(nx.NetworkXNoPath):
                nx.shortest_path(peer, one, other)


def of_evidence(index: EvidenceIndex, histories: Sequence[np.ndarray]) -> Iterator[Figure]:
    """Of every item of the catalogue, along each relation."""
    products, everything = products_of(index), np.arange(index.num_items + 1)
    last = histories[: 3 * USERS]
    size = len(last)
    assert np.allclose(index.evidence(last, [everything] * size), [products(one) for one in last], atol=1e-5)

    def one_by_one() -> None:
        for one in last:
            index.evidence([one], [everything])

    for name, run, target in (
        ("", one_by_one, 1),
        (f", {size} at once", lambda: index.evidence(last, [everything] * size), 5),
    ):
        ours, theirs = (1e3 * seconds / size for seconds in in_turns(run, lambda: [products(one) for one in last], 9))
        yield Figure(f"evidence of a history for all items{name}", ours, theirs, "ms", target, "scipy, one by one")
    read = timed(lambda: index.statistics(histories)) / len(histories)
    yield Figure(f"statistics of a history, to {PLACES} places", 1e3 * read, 0.2, "ms", 1, "5,000 a second")


def products_of(index: EvidenceIndex) -> Callable[[np.ndarray], np.ndarray]:
    """The evidence of one history for all items as two sparse products a relation."""
    parts = [np.flatnonzero(index.column_relation == relation) for relation in range(index.num_relations)]
    said = [index.history_rows[:, part] for part in parts]
    heard = [sparse.csr_array(index.candidate_rows[:, part].T) for part in parts]

    def products(history: np.ndarray) -> np.ndarray:
        cells = np.zeros(len(history), dtype=np.int64), history
        recency = sparse.csr_array((index.history_weights(len(history)), cells), shape=(1, index.num_items + 1))
        sums = [((recency @ a) @ b).toarray()[0] / s for a, b, s in zip(said, heard, index.scale, strict=True)]
        return np.stack(sums, axis=1).astype(np.float32)

    return products


def facts_by_chance(count: int) -> tuple[Triples, list[str]]:
    """Five facts an item, of as many entities to an item as in a graph of a million, and the items' ids."""
    generator = np.random.default_rng(0)
    items = np.array([str(item) for item in range(1, count + 1)], dtype=object)
    heads, relations, tails = [], [], []
    for name, each, most, power in RELATIONS:
        size = max(min(most, 50), most * count // ITEMS)
        entities = np.array([f"{name[:2]}{entity}" for entity in range(size)], dtype=object)
        heads.append(items.repeat(each))
        relations.append(np.full(count * each, name, dtype=object))
        tails.append(entities[(generator.random(count * each) ** power * size).astype(int)])
    links = dict(zip(items, items, strict=True))
    return Triples(*map(np.concatenate, (heads, relations, tails)), item_of_entity=links), items.tolist()


def build(folder: str) -> dict[str, float]:
    """A graph of items by chance, which is saved: its edges, and the seconds to build it of its facts."""
    triples, ids = facts_by_chance(ITEMS)
    start = time.perf_counter()
    made = KnowledgeGraph.from_triples(triples, ids)
    seconds = time.perf_counter() - start
    made.save_pretrained(folder)
    return {"edges": made.num_edges, "seconds": seconds}
