"""Graphs to and from disk and networkx."""

import json
import tracemalloc
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from graphs import assert_same, edges_of, triples_of

from llamarec_lkg.data.schema import CO_RATED, RATED
from llamarec_lkg.graph import graph_files as module
from llamarec_lkg.graph import paths
from llamarec_lkg.graph.builder import UNDATED, GraphBuilder
from llamarec_lkg.graph.co_ratings import CoRatings
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.utils.errors import LKGError


@pytest.fixture
def films(film_dataset):
    """Films with users, dates and co-ratings: everything that a graph can hold."""
    graph = KnowledgeGraph.from_dataset(film_dataset, users=True)
    table = CoRatings(np.array([1]), np.array([2]), np.array([0.5], np.float32))
    return replace(graph, relations=(*graph.relations, CO_RATED)).with_co_ratings(table)


# -- keeping it -------------------------------------------------------------------------------------------------------


def test_a_graph_comes_back_from_disk_as_it_was(films, graph, tmp_path):
    for one in (films, graph, films.before(150), KnowledgeGraph.from_triples(triples_of(), ["1"])):
        one.save_pretrained(tmp_path / "graph")
        loaded = KnowledgeGraph.from_pretrained(tmp_path / "graph")
        assert_same(loaded, one)
        assert edges_of(loaded) == edges_of(one)
        assert edges_of(loaded.before(150)) == edges_of(one.before(150))
        assert loaded.shuffle_items().item_nodes.tolist() == one.shuffle_items().item_nodes.tolist()


def test_one_long_title_does_not_make_all_others_long(tmp_path):
    """As it would in an array of numpy's own texts."""
    nodes = GraphBuilder()
    for key in range(100):
        nodes.node("item", str(key), "x" * (1_000_000 if key == 7 else 1))
    long = KnowledgeGraph(**nodes.build([-1]))
    tracemalloc.start()
    long.save_pretrained(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6, "of 100 texts as long as the one, of four bytes a letter, it would be 400 MB"
    assert KnowledgeGraph.from_pretrained(tmp_path).node_names.tolist() == long.node_names.tolist()


def test_an_interrupted_save_keeps_the_old_graph(films, graph, tmp_path, monkeypatch):
    films.save_pretrained(tmp_path / "graph")
    monkeypatch.setattr(module, "write_json", lambda *args: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError):
        graph.save_pretrained(tmp_path / "graph")
    assert_same(KnowledgeGraph.from_pretrained(tmp_path / "graph"), films)
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


@pytest.mark.parametrize("name", ["graph.safetensors", "nodes.parquet", "graph.json"])
@pytest.mark.parametrize("keep", [None, 0, 5, 0.1, 0.5, 0.98])
def test_a_file_that_is_absent_or_cut_short_gives_a_clear_error(films, tmp_path, name, keep):
    films.save_pretrained(tmp_path / "graph")
    file = tmp_path / "graph" / name
    content = file.read_bytes()
    if keep is None:
        file.unlink()
    else:
        file.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(LKGError, match="is damaged|does not exist|not readable json"):
        KnowledgeGraph.from_pretrained(tmp_path / "graph")


@pytest.mark.parametrize("place", [0, 8, 20])
def test_noise_in_the_header_of_the_arrays_gives_a_clear_error(films, tmp_path, place):
    films.save_pretrained(tmp_path / "graph")
    file = tmp_path / "graph" / "graph.safetensors"
    content = bytearray(file.read_bytes())
    content[place : place + 6] = b"\xff" * 6
    file.write_bytes(content)
    with pytest.raises(LKGError, match="is damaged .*Save or download it again"):
        KnowledgeGraph.from_pretrained(tmp_path / "graph")


@pytest.mark.parametrize("name", ["graph.safetensors", "nodes.parquet", "graph.json"])
def test_files_of_two_graphs_do_not_fit_each_other(films, graph, tmp_path, name):
    films.save_pretrained(tmp_path / "one")
    graph.save_pretrained(tmp_path / "other")
    (tmp_path / "one" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(LKGError, match="do not fit each other"):
        KnowledgeGraph.from_pretrained(tmp_path / "one")


def test_a_description_without_a_field_gives_a_clear_error(films, tmp_path):
    films.save_pretrained(tmp_path / "graph")
    file = tmp_path / "graph" / "graph.json"
    description = json.loads(file.read_text())
    for name in ("relations", "entity_types", "num_edges"):
        file.write_text(json.dumps({key: value for key, value in description.items() if key != name}))
        with pytest.raises(LKGError, match=f"is damaged .*{name}"):
            KnowledgeGraph.from_pretrained(tmp_path / "graph")


# -- networkx ---------------------------------------------------------------------------------------------------------


def test_a_graph_survives_the_way_through_networkx(films, film_dataset, graph):
    for one, ids in (
        (films, film_dataset.items.ids),
        (graph, ["1", "2", "3"]),
        (films.before(150), film_dataset.items.ids),
    ):
        assert_same(KnowledgeGraph.from_networkx(one.to_networkx(), ids), one)


def test_networkx_gets_one_edge_a_fact_with_its_attributes(films, graph):
    exported = films.to_networkx()
    assert exported.number_of_nodes() == films.num_nodes
    assert exported.nodes[4] == {"type": "item", "key": "1", "name": "Heat (1995)"}
    by_relation = {name: [] for name in films.relations}
    for _, _, data in exported.edges(data=True):
        by_relation[data.pop("relation")].append(data)
    assert [len(facts) for facts in by_relation.values()] == [12, 6, 10, 1]
    assert all(sorted(data) == ["both_ways", "timestamp"] and not data["both_ways"] for data in by_relation[RATED])
    assert by_relation[CO_RATED] == [{"both_ways": False, "weight": 0.5}]
    assert all(data == {"both_ways": True} for data in by_relation["DIRECTED_BY"] + by_relation["GENRE_IS"])
    assert sorted((a, b, data["relation"]) for a, b, data in graph.to_networkx().edges(data=True)) == [
        (0, 1, "NEXT"),
        (0, 3, "BY"),
        (1, 3, "BY"),
        (1, 4, "BY"),
    ]


def test_a_plain_networkx_graph_is_read_by_item_id_in_both_directions():
    graph = nx.Graph()
    graph.add_edge("a", "Mann", relation="BY")
    graph.add_edge("b", "Mann", relation="BY", timestamp=7)
    built = KnowledgeGraph.from_networkx(graph, ["b", "a", "none"])
    assert built.entity_types == ("item", "entity")
    assert [built.node_keys[node] for node in built.item_nodes[1:3]] == ["b", "a"]
    assert built.item_nodes[3] == -1
    assert built.num_edges == 4
    assert {frozenset((s, t)): stamp for s, _, t, stamp in edges_of(built)} == {
        frozenset(("a", "Mann")): UNDATED,
        frozenset(("b", "Mann")): 7,
    }


def test_a_directed_networkx_edge_is_one_way_unless_it_says_both_ways():
    graph = nx.MultiDiGraph()
    graph.add_edge("a", "x", relation="R")
    graph.add_edge("a", "y", relation="S", both_ways=True)
    assert [edge[:3] for edge in edges_of(KnowledgeGraph.from_networkx(graph, ["a"]))] == [
        ("a", "R", "x"),
        ("a", "S", "y"),
        ("y", "~S", "a"),
    ]


def test_typed_networkx_nodes_keep_type_and_name():
    graph = nx.DiGraph()
    graph.add_node("a", type="item", name="Alpha\n")
    graph.add_node("u", type="user")
    graph.add_node("p", type="person")
    graph.add_node("b")
    graph.add_edge("u", "a", relation=RATED, timestamp=3)
    built = KnowledgeGraph.from_networkx(graph, ["a", "b"])
    assert built.entity_types == ("item", "user", "person", "entity")
    assert built.node_names.tolist() == ["Alpha", "", "p", "b"]
    assert built.item_nodes.tolist() == [-1, 0, -1]


def test_a_networkx_edge_needs_its_relation():
    graph = nx.DiGraph()
    graph.add_edge("a", "x", weight=2)
    with pytest.raises(LKGError, match=r"Edge 'a' -> 'x' has attributes \['weight'\] but no 'relation'"):
        KnowledgeGraph.from_networkx(graph, ["a"])


# -- weights and many relations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-1, "much", True, float("inf")])
def test_a_weight_is_a_number_from_zero_up(wrong):
    graph = nx.Graph()
    graph.add_edge("a", "b", relation="LIKE", weight=wrong)
    with pytest.raises(LKGError, match="A weight is a number from 0 up"):
        KnowledgeGraph.from_networkx(graph, ["a", "b"])


def test_a_graph_of_twenty_thousand_relations_is_like_any_other(tmp_path):
    """An edge code is twice its relation: 16 bits end at relation 16,384."""
    count = 20_000
    builder = GraphBuilder()
    items = [builder.node("item", raw, raw) for raw in "123"]
    for relation in range(count):
        entity = builder.node("entity", f"e{relation}", "")
        builder.edges(f"R{relation}", items[:2], [entity, entity])
        if relation % 4_096 == 0:
            builder.edges(f"R{relation}", items[:1], items[2:], both_ways=False)
    graph = KnowledgeGraph(**builder.build([-1, *items]))
    assert len(graph.relations) == count and graph.edge_relations.max() == 2 * count - 1
    graph.save_pretrained(tmp_path)
    loaded = KnowledgeGraph.from_pretrained(tmp_path)
    assert_same(loaded, graph)
    through_networkx = KnowledgeGraph.from_networkx(loaded.to_networkx(), list("123"))
    assert_same(through_networkx, graph)
    found = paths.find(through_networkx, [1], [2], max_paths_per_pair=count)
    assert found.edge_codes.tolist() == [[2 * relation, 2 * relation + 1] for relation in range(count)]
    assert [graph.node_keys[node] for node in found.nodes[:, 1]] == [f"e{relation}" for relation in range(count)]
