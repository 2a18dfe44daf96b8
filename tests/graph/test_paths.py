import itertools
import math
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from graphs import graph_of

from llamarec_lkg.graph import paths, walks
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.graph.paths import Paths, heaviest, keep_selectable, tfidf


def texts(graph: KnowledgeGraph, found: Paths) -> list[str]:
    """Each path as "1 BY x ~BY 2"."""
    lines = []
    for nodes, codes, length in zip(found.nodes, found.edge_codes, found.lengths, strict=True):
        words = [graph.node_keys[nodes[0]]]
        for step in range(length):
            words += ["~" * (codes[step] % 2) + graph.relations[codes[step] // 2], graph.node_keys[nodes[step + 1]]]
        assert (nodes[length + 1 :] == -1).all() and (codes[length:] == -1).all()
        lines.append(" ".join(words))
    return lines


@pytest.fixture
def graph() -> KnowledgeGraph:
    """1 and 2 share x (BY) and g (IN); 2 and 3 share g; 3 -> 4 directly and over y; 5 hangs on 4's z; 6 is alone."""
    return graph_of(
        [
            *(("1", "BY", "x"), ("2", "BY", "x"), ("1", "IN", "g"), ("2", "IN", "g"), ("3", "IN", "g")),
            *(("3", "NEXT", "4"), ("3", "BY", "y"), ("4", "BY", "y"), ("4", "IN", "z"), ("5", "IN", "z")),
        ],
        6,
    )


def test_all_shortest_paths_of_each_pair_are_found(graph):
    found = paths.find(graph, [1], [2, 3])
    assert texts(graph, found) == ["1 BY x ~BY 2", "1 IN g ~IN 2", "1 IN g ~IN 3"]
    assert found.source_index.tolist() == [0, 0, 0]
    assert found.target_index.tolist() == [0, 0, 1]
    assert found.nodes.shape == (3, 3) and found.edge_codes.shape == (3, 2)
    assert len(found) == 3


def test_the_cap_keeps_the_rarest_entities():
    facts = [(item, "BY", entity) for entity in ("hub", "mid", "rare") for item in ("1", "2")]
    facts += [(str(item), "BY", "hub") for item in range(3, 9)] + [("3", "BY", "mid")]
    graph = graph_of(facts, 8)
    kept = {cap: texts(graph, paths.find(graph, [1], [2], max_paths_per_pair=cap)) for cap in (1, 2, 3)}
    assert kept[1] == ["1 BY rare ~BY 2"]
    assert sorted(kept[2]) == ["1 BY mid ~BY 2", "1 BY rare ~BY 2"]
    assert sorted(kept[3]) == ["1 BY hub ~BY 2", "1 BY mid ~BY 2", "1 BY rare ~BY 2"]


def test_the_cap_does_not_depend_on_the_order_of_the_facts():
    facts = [(item, "BY", f"e{entity}") for entity in range(6) for item in ("1", "2")]
    graph = graph_of(facts, 2)
    found = paths.find(graph, [1], [2], max_paths_per_pair=3)
    again = paths.find(graph_of(facts[::-1], 2), [1], [2], max_paths_per_pair=3)
    assert len(found) == 3
    assert found.nodes.tolist() == again.nodes.tolist() == sorted(found.nodes.tolist())
    assert found.nodes[:, 1].tolist() == [2, 3, 4], "of equally rare entities the first ones"


def brute_force(graph, source, target, max_hops, cap):
    """The shortest paths by trying every walk: nodes and codes, the rarest up to the cap, in order."""
    start, end = int(graph.item_nodes[source]), int(graph.item_nodes[target])
    if start < 0 or end < 0 or start == end:
        return []
    edges = {}
    for one, code, other in zip(
        graph.edge_sources().tolist(), graph.edge_relations.tolist(), graph.targets.tolist(), strict=True
    ):
        edges.setdefault(one, []).append((code, other))
    walks = [((start,), ())]
    for _ in range(max_hops):
        walks = [((*n, node), (*c, code)) for n, c in walks for code, node in edges.get(n[-1], ()) if node not in n]
        if hits := [walk for walk in walks if walk[0][-1] == end]:
            rare = sorted(hits, key=lambda walk: (sum(len(edges.get(node, ())) for node in walk[0][1:-1]), walk))
            return sorted(rare[:cap])
    return []


def listed(found: Paths) -> list[tuple]:
    rows = zip(found.source_index, found.target_index, found.nodes, found.edge_codes, found.lengths, strict=True)
    assert all((nodes[n + 1 :] == -1).all() for nodes, n in zip(found.nodes, found.lengths, strict=True))
    return [
        (int(a), int(b), tuple(nodes[: n + 1].tolist()), tuple(codes[:n].tolist())) for a, b, nodes, codes, n in rows
    ]


def random_graph(generator: np.random.Generator) -> KnowledgeGraph:
    """Items and entities with edges of three relations, some in one direction alone, some of a node to itself; the
    last item has no node."""
    graph, nodes = nx.MultiDiGraph(), int(generator.integers(3, 14))
    items = int(generator.integers(2, nodes + 1))
    for node in range(nodes):
        graph.add_node(node, type="item" if node < items else "entity")
    for one, other, relation in generator.integers(nodes, size=(int(generator.integers(1, 3 * nodes)), 3)).tolist():
        graph.add_edge(one, other, relation=f"R{relation % 3}", both_ways=bool(generator.integers(2)))
    return KnowledgeGraph.from_networkx(graph, [*map(str, range(items)), "none"])


def apart(found: Paths, num_sources: list[int], num_targets: list[int]) -> list[Paths]:
    """Paths of `find_together`, or some of them in their order, list by list."""
    ends = np.cumsum(num_sources)
    stops = found.source_index.searchsorted(ends)
    parts, start, source, target = [], 0, 0, 0
    for stop, end, count in zip(stops.tolist(), ends.tolist(), num_targets, strict=True):
        own = found.take(slice(start, stop))
        parts.append(replace(own, source_index=own.source_index - source, target_index=own.target_index - target))
        start, source, target = stop, end, target + count
    return parts


@pytest.mark.parametrize("at_once", [walks.AT_ONCE, 7])
def test_paths_equal_those_of_a_brute_force_search(at_once, monkeypatch):
    """In this order: source, target, nodes, edges. Padding, an item itself and an item without a node have none."""
    monkeypatch.setattr(walks, "AT_ONCE", at_once)
    generator = np.random.default_rng(2)
    for _ in range(25):
        graph = random_graph(generator)
        sources, targets = (
            [generator.integers(graph.num_items + 1, size=n) for n in sizes] for sizes in ((3, 0, 4), (5, 1, 2))
        )
        for hops, cap in itertools.product((1, 2, 3, 4), (1, 2, 1000)):
            found = paths.find_together(graph, sources, targets, max_hops=hops, max_paths_per_pair=cap)
            each = apart(found, [*map(len, sources)], [*map(len, targets)])
            for ours, theirs, found in zip(sources, targets, each, strict=True):
                assert listed(found) == [
                    (a, b, *path)
                    for a, source in enumerate(ours)
                    for b, target in enumerate(theirs)
                    for path in brute_force(graph, source, target, hops, cap)
                ]
                assert found.nodes.shape[1] == hops + 1 and found.edge_codes.shape[1] == hops
                alone = paths.find(graph, ours, theirs, max_hops=hops, max_paths_per_pair=cap)
                assert listed(alone) == listed(found)


def test_lists_that_do_not_fit_into_one_search_are_searched_in_turn(graph, monkeypatch):
    monkeypatch.setattr(paths, "PAIRS", 4)
    sources, targets = [[1], [], [1, 3], [5], [2]], [[2, 3], [1], [4], [4], []]
    found = paths.find_together(graph, sources, targets)
    each = apart(found, [*map(len, sources)], [*map(len, targets)])
    assert [texts(graph, found) for found in each] == [
        texts(graph, paths.find(graph, *ends)) for ends in zip(sources, targets, strict=True)
    ]


def test_a_hub_is_left_out_where_the_search_is_bounded():
    """1 and 2 share an item each over a hub and over a rare entity; they share no entity."""
    facts = [("1", "BY", "rare"), ("3", "BY", "rare"), ("3", "IN", "end"), ("2", "IN", "end"), ("1", "BY", "hub")]
    facts += [(str(item), "BY", "hub") for item in range(4, 20)] + [("4", "IN", "end")]
    graph = graph_of(facts, 20)
    all_paths = texts(graph, paths.find(graph, [1], [2], max_hops=4))
    rare = "1 BY rare ~BY 3 IN end ~IN 2"
    assert len(all_paths) == 2 and rare in all_paths
    for others in ([], [3, 5, 7]):  # whatever else is looked for
        found = paths.find(graph, [1, *others], [2, *others], max_hops=4, max_frontier=5)
        own = found.take(np.flatnonzero((found.source_index == 0) & (found.target_index == 0)))
        assert texts(graph, own) == [rare]


def test_empty_lists_have_no_path(graph):
    for sources, targets in (([], [1]), ([1], []), ([], [])):
        found = paths.find(graph, sources, targets)
        assert len(found) == 0 and found.nodes.shape == (0, 3) and found.edge_codes.shape == (0, 2)


# -- weights ----------------------------------------------------------------------------------------------------------


def made_of(*relations_of_path, sources=None) -> Paths:
    width = max(map(len, relations_of_path))
    codes = np.array([[2 * r for r in path] + [-1] * (width - len(path)) for path in relations_of_path])
    count = len(codes)
    source = np.zeros(count, int) if sources is None else np.array(sources)
    return Paths(source, np.arange(count), (codes >= 0).sum(axis=1), np.zeros((count, width + 1), int), codes)


def test_a_relation_and_its_inverse_are_counted_as_one():
    found = Paths(*(np.zeros(1, int),) * 2, np.array([3]), np.zeros((1, 5), int), np.array([[4, 5, 0, -1]]))
    assert found.relation_counts(3).tolist() == [[1.0, 0.0, 2.0]]


def test_tfidf_by_hand():
    # one history item, three paths: relation 0 occurs in two of them, relation 1 in two, relation 2 in one
    found = made_of([0, 0], [0, 1], [1, 1, 2])
    idf = [math.log(3 / 3) + 1, math.log(3 / 3) + 1, math.log(3 / 2) + 1]
    raw = np.array([[2 * idf[0], 0, 0], [idf[0], idf[1], 0], [0, 2 * idf[1], idf[2]]])
    assert tfidf(found, 3) == pytest.approx(np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True), rel=1e-6)
    assert tfidf(found, 3).dtype == np.float32


def test_document_frequency_is_counted_for_each_history_item():
    found = made_of([0, 0], [0, 0], [0, 0], [1, 1], [0, 0], sources=[4, 4, 4, 4, 7])
    weights = tfidf(found, 2)
    odds = weights[:, 0] / weights[:, 1]  # of a softmax of the weight and of 0
    assert odds[0] == pytest.approx(math.exp(2 * (math.log(4 / 4) + 1)))
    assert odds[3] == pytest.approx(math.exp(-2 * (math.log(4 / 2) + 1)))
    assert odds[4] == pytest.approx(math.exp(2 * (math.log(1 / 2) + 1)))


def test_no_paths_have_empty_weights(graph):
    none = paths.find(graph, [], [])
    assert tfidf(none, 3).shape == (0, 3)
    assert keep_selectable(tfidf(none, 3), 5).shape == (0,)


# -- what can be selected ---------------------------------------------------------------------------------------------


def best(weights, preferences, count, rows, source=None) -> list[int]:
    """The `count` best of `rows`, ties by index; with `source`, of the best of each source."""
    if source is not None:
        rows = np.array(
            [best(weights, preferences, 1, rows[source[rows] == one])[0] for one in np.unique(source[rows])]
        )
    scores = (weights[rows] * preferences).sum(axis=1)
    return rows[np.lexsort((rows, -scores))[:count]].tolist()


@pytest.fixture(scope="module")
def random_weights() -> list[np.ndarray]:
    """Small whole numbers, so that rows repeat, scores tie and sums are exact; most rows lie on one relation."""
    generator = np.random.default_rng(11)
    tables = []
    for size in (1, 7, 40, 150):
        weights = generator.integers(1, 5, size=(size, 4)) * (generator.random((size, 4)) < 0.3)
        single = generator.random(size) < 0.6
        weights[single] = 0
        weights[single, generator.integers(0, 4, single.sum())] = generator.integers(1, 6, single.sum())
        tables.append(weights.astype(float))
    return tables


@pytest.mark.parametrize("one_of_each_source", [False, True])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_no_row_that_some_preferences_would_select_is_lost(random_weights, count, one_of_each_source):
    generator = np.random.default_rng(count)
    for weights in random_weights:
        source = np.sort(generator.integers(0, 12, size=len(weights))) if one_of_each_source else None
        everything, kept = np.arange(len(weights)), keep_selectable(weights, count, source)
        assert kept.tolist() == sorted(set(kept.tolist()))
        for _ in range(60):
            preferences = generator.integers(1, 6, size=4).astype(float)
            wanted = best(weights, preferences, count, everything, source)
            assert best(weights, preferences, count, kept, source) == wanted


def test_rows_that_can_never_be_selected_are_left_out():
    weights = np.array([[1.0, 0], [3, 0], [2, 0], [0, 1], [2, 1], [2, 1], [2, 1], [3, 0]])
    assert keep_selectable(weights, 1).tolist() == [1, 3, 4]
    assert keep_selectable(weights, 2).tolist() == [1, 3, 4, 5, 7]
    assert keep_selectable(weights, 100).tolist() == list(range(8))
    sources = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    assert keep_selectable(weights, 5, sources).tolist() == [1, 3, 4, 6, 7]
    assert keep_selectable(np.array([[4.0, 1], [3, 3]]), 1).tolist() == [0, 1], "preferences say which is better"


def slow_keep(weights, count, source=None, target=None) -> list[int]:
    """Of each kind of rows the heaviest, ties by row."""
    kinds: dict[tuple, list[int]] = {}
    for row, weight in enumerate(weights):
        support = tuple(np.flatnonzero(weight))
        key = tuple(None if ends is None else ends[row] for ends in (source, target))
        kinds.setdefault((key, support, () if len(support) == 1 else tuple(weight)), []).append(row)
    each = count if source is None else 1
    return sorted(row for rows in kinds.values() for row in sorted(rows, key=lambda row: -weights[row].max())[:each])


def test_what_is_kept_equals_what_is_kept_row_by_row(random_weights):
    generator = np.random.default_rng(12)
    for weights in (*random_weights, np.zeros((3, 4)), np.zeros((0, 4)), np.zeros((0, 0))):
        ends = np.sort(generator.integers(0, 5, len(weights))), generator.integers(0, 5, len(weights))
        for count, source, target in itertools.product((1, 2, 10), (None, ends[0]), (None, ends[1])):
            found = keep_selectable(weights.astype(np.float32), count, source, target)
            assert found.dtype == np.int64 and found.tolist() == slow_keep(weights, count, source, target)


@pytest.mark.parametrize("wide", [1, 1 << 40])
def test_the_heaviest_of_each_group_are_what_can_be_selected(wide):
    generator = np.random.default_rng(5)
    for size, count in itertools.product((0, 1, 60), (1, 2, 5)):
        groups = generator.integers(5, size=size)
        weights = generator.integers(6, size=size).astype(np.float32) / 3
        some = np.flatnonzero(weights)
        kept = some[slow_keep(weights[some, None], count, target=groups[some])].tolist()
        assert heaviest(groups * wide, weights, count).tolist() == kept
