import json

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hub_stand_in.world import RANKER, readable, uploaded
from same_graph import assert_same
from tiny import tokenizer

from llamarec_lkg import LlamaRecLKGProcessor
from llamarec_lkg.data.schema import HEAD, RATED, RELATION, TAIL, Triples
from llamarec_lkg.data.sequences import TRAIN, PreprocessingSettings, SequenceDataset
from llamarec_lkg.data.sources import load_dataset_bundle
from llamarec_lkg.graph import knowledge_graph as module
from llamarec_lkg.graph.inverse_relations import merge_inverses
from llamarec_lkg.graph.knowledge_graph import UNDATED, KnowledgeGraph, map_safetensors
from llamarec_lkg.utils.errors import LKGError
from llamarec_lkg.utils.files import cache_dir
from llamarec_lkg.utils.fingerprints import fingerprint


def triples_of(*facts, links=None) -> Triples:
    frame = pd.DataFrame(facts, columns=[HEAD, RELATION, TAIL], dtype=object)
    return Triples.from_frame(frame, {str(i): str(i) for i in range(1, 10)} if links is None else links)


def edges_of(graph: KnowledgeGraph) -> list[tuple[str, str, str, int]]:
    """(source, relation, target, date), with "~" before a relation that is read against its direction."""
    keys = graph.node_keys
    return [
        (keys[source], "~" * (code % 2) + graph.relations[code // 2], keys[target], int(stamp))
        for source, code, target, stamp in zip(
            graph.edge_sources(), graph.edge_relations, graph.targets, graph.timestamps, strict=True
        )
    ]


@pytest.fixture
def facts():
    return triples_of(("1", "BY", "x"), ("2", "BY", "x"), ("2", "BY", "y"), ("1", "NEXT", "2"))


@pytest.fixture
def graph(facts):
    return KnowledgeGraph.from_triples(facts, ["1", "2", "3"], ["One", "Two\n", "Three"])


@pytest.fixture
def films(film_dataset):
    return KnowledgeGraph.from_dataset(film_dataset)


# -- from triples -----------------------------------------------------------------------------------------------------


def test_triples_become_edges_in_both_directions_ordered_by_source_code_and_target(graph):
    assert graph.relations == ("BY", "NEXT")
    assert graph.entity_types == ("item", "entity")
    assert graph.node_keys.tolist() == ["1", "2", "3", "x", "y"]
    assert graph.node_names.tolist() == ["One", "Two", "Three", "", ""]
    assert graph.node_types.tolist() == [0, 0, 0, 1, 1]
    assert graph.item_nodes.tolist() == [-1, 0, 1, 2]
    assert graph.offsets.tolist() == [0, 2, 5, 5, 7, 8]
    assert graph.targets.tolist() == [3, 1, 3, 4, 0, 0, 1, 1]
    assert graph.edge_relations.tolist() == [0, 2, 0, 0, 3, 1, 1, 1]
    assert set(graph.timestamps.tolist()) == {UNDATED}
    assert (graph.num_nodes, graph.num_edges, graph.num_items) == (5, 8, 3)


def test_every_fact_has_its_inverse(graph):
    forward = {(s, r, t) for s, r, t, _ in edges_of(graph) if r[0] != "~"}
    inverse = {(t, r[1:], s) for s, r, t, _ in edges_of(graph) if r[0] == "~"}
    assert forward == inverse and len(forward) == 4


def test_titles_default_to_ids(facts):
    assert KnowledgeGraph.from_triples(facts, ["1", "2"]).node_names[:2].tolist() == ["1", "2"]


def test_repeated_facts_count_once():
    graph = KnowledgeGraph.from_triples(triples_of(("1", "BY", "x"), ("1", "BY", "x"), ("1", "AS", "x")), ["1"])
    assert [edge[:3] for edge in edges_of(graph)] == [
        ("1", "AS", "x"),
        ("1", "BY", "x"),
        ("x", "~AS", "1"),
        ("x", "~BY", "1"),
    ]


def test_linked_entities_are_the_items_and_unlinked_items_have_no_edges():
    triples = triples_of(("m.7", "BY", "x"), ("m.8", "BY", "x"), links={"m.7": "1", "m.8": "unknown item"})
    graph = KnowledgeGraph.from_triples(triples, ["1", "2"])
    assert graph.node_keys.tolist() == ["1", "2", "m.8", "x"]
    assert ("1", "BY", "x", UNDATED) in edges_of(graph)
    assert graph.offsets[2] - graph.offsets[1] == 0
    assert graph.item_of_node().tolist() == [1, 2, 0, 0]


def test_a_graph_without_facts_has_items_and_no_edges():
    graph = KnowledgeGraph.from_triples(triples_of(), ["1", "2"])
    assert (graph.num_nodes, graph.num_edges, graph.num_items) == (2, 0, 2)
    assert graph.before(5).num_edges == 0
    which, codes, reached = graph.neighbours(np.array([0, 1]))
    assert len(which) == len(codes) == len(reached) == 0


def test_relations_stated_in_both_directions_are_merged():
    pairs = {
        "BY": np.array([[1, 7], [2, 7], [3, 8]]),
        "MADE": np.array([[7, 1], [7, 2], [8, 3]]),
        "OTHER": np.array([[7, 1], [9, 9]]),
    }
    merged = merge_inverses(pairs)
    assert list(merged) == ["BY", "OTHER"]
    assert merged["BY"].tolist() == [[1, 7], [2, 7], [3, 8]]
    assert merged["OTHER"].tolist() == [[7, 1], [9, 9]]


def test_merging_adds_facts_that_only_the_inverse_states():
    by = np.array([[i, 100 + i] for i in range(10)])
    made = np.array([[100 + i, i] for i in range(11)])
    assert merge_inverses({"BY": by, "MADE": made})["BY"].tolist() == [[i, 100 + i] for i in range(11)]


def test_relations_that_overlap_too_little_or_differ_much_in_size_stay_apart():
    by = np.array([[i, 100 + i] for i in range(10)])
    eight = np.array([[100 + i, i] for i in range(8)] + [[100, 50], [100, 51]])
    assert list(merge_inverses({"A": by, "B": eight})) == ["A", "B"]
    assert list(merge_inverses({"A": by, "B": eight}, overlap=0.8)) == ["A"]
    large = np.concatenate([by[:, ::-1], np.array([[200 + i, i] for i in range(11)])])
    assert list(merge_inverses({"A": by, "B": large})) == ["A", "B"]
    assert list(merge_inverses({"A": by, "B": by})) == ["A", "B"]


def test_a_graph_of_triples_merges_inverse_relations():
    graph = KnowledgeGraph.from_triples(
        triples_of(("1", "a.by", "x"), ("2", "a.by", "y"), ("x", "b.made", "1"), ("y", "b.made", "2")), ["1", "2"]
    )
    assert graph.relations == ("a.by",)
    assert graph.num_edges == 4


# -- from a data set --------------------------------------------------------------------------------------------------


def test_a_data_set_becomes_users_items_and_attributes(films, film_dataset):
    assert films.relations == (RATED, "DIRECTED_BY", "GENRE_IS")
    assert films.entity_types == ("user", "item", "DIRECTED_BY", "GENRE_IS")
    assert np.bincount(films.node_types).tolist() == [4, 6, 5, 6]
    assert films.node_keys[:10].tolist() == ["1", "2", "3", "4", "1", "2", "3", "4", "5", "6"]
    assert films.node_names[:4].tolist() == [""] * 4
    assert films.node_names[4:6].tolist() == ["Heat (1995)", "Insider, The (1999)"]
    assert films.item_nodes.tolist() == [-1, 4, 5, 6, 7, 8, 9]
    assert films.describe() == "21 nodes, 44 edges (RATED 12, DIRECTED_BY 12, GENRE_IS 20)"


def test_rated_edges_go_from_user_to_item_only_and_carry_their_time(films, film_dataset):
    rated = [edge for edge in edges_of(films) if edge[1] == RATED]
    positions = film_dataset.positions("train")
    expected = zip(
        (film_dataset.user_ids[user - 1] for user in film_dataset.user_of(positions)),
        (film_dataset.items.ids[item - 1] for item in film_dataset.item_sequence[positions]),
        film_dataset.timestamps[positions].tolist(),
        strict=True,
    )
    assert sorted((user, item, stamp) for user, _, item, stamp in rated) == sorted(expected)
    assert not [edge for edge in edges_of(films) if edge[1] == "~RATED"]
    assert {edge[3] for edge in edges_of(films) if edge[1] != RATED} == {UNDATED}


def test_no_held_out_interaction_is_in_the_graph_unless_asked_for(film_dataset, movielens_dataset):
    for data in (film_dataset, movielens_dataset):
        graph = KnowledgeGraph.from_dataset(data)
        rated = graph.edge_relations == 2 * graph.relations.index(RATED)
        found = set(zip(graph.edge_sources()[rated].tolist(), graph.targets[rated].tolist(), strict=True))
        users, items = data.user_of(np.arange(len(data.labels))) - 1, data.num_users + data.item_sequence - 1
        pairs = list(zip(users.tolist(), items.tolist(), strict=True))
        trained = {pair for pair, label in zip(pairs, data.labels, strict=True) if label == TRAIN}
        assert found == trained
        assert found.isdisjoint(pair for pair, label in zip(pairs, data.labels, strict=True) if label != TRAIN)
        everything = KnowledgeGraph.from_dataset(data, include_heldout=True)
        assert everything.num_edges - graph.num_edges == int((data.labels != TRAIN).sum())


def test_values_can_be_kept_whole_and_then_the_dropped_items_count_too(make_dataset, film_items):
    data = make_dataset([(1, item, item) for item in (3, 4, 5, 6)], film_items)
    single = KnowledgeGraph.from_dataset(data)
    whole = KnowledgeGraph.from_dataset(data, whole_values=["GENRE_IS"])
    genres = {
        kind: graph.node_keys[graph.node_types == graph.entity_types.index("GENRE_IS")].tolist()
        for kind, graph in {"single": single, "whole": whole}.items()
    }
    assert genres["single"] == ["Comedy", "Family", "Action", "Horror"]
    assert genres["whole"] == ["Comedy|Family", "Action|Horror", "Family", "Action|Crime", "Drama"]
    comedy = [edge[0] for edge in edges_of(whole) if edge[2] == "Comedy|Family"]
    assert comedy == ["3", "4"]


def test_an_item_without_a_whole_value_gets_a_node_of_its_own(make_dataset, film_items):
    data = make_dataset([(1, item, item) for item in (1, 5, 6)], film_items)
    graph = KnowledgeGraph.from_dataset(data, whole_values=["DIRECTED_BY"])
    assert ("6", "DIRECTED_BY", "(none listed)", UNDATED) in edges_of(graph)


def test_triples_join_the_items_of_a_data_set(film_dataset):
    triples = triples_of(("m.1", "WON", "Oscar"), ("m.9", "WON", "Oscar"), links={"m.1": "1", "m.9": "99"})
    graph = KnowledgeGraph.from_dataset(film_dataset, triples)
    assert graph.relations[-1] == "WON" and graph.entity_types[-1] == "entity"
    assert {edge[:3] for edge in edges_of(graph) if edge[1] == "WON"} == {
        ("1", "WON", "Oscar"),
        ("m.9", "WON", "Oscar"),
    }
    oscar = int(np.flatnonzero(graph.node_keys == "Oscar")[0])
    assert graph.item_nodes[1] in graph.neighbours(np.array([oscar]))[2]


def test_of_a_repeated_interaction_the_earliest_date_stays(make_dataset):
    data = make_dataset([(1, 1, 30), (1, 1, 10), (1, 1, 20), (1, 2, 40), (1, 3, 50)])
    assert [edge for edge in edges_of(KnowledgeGraph.from_dataset(data))] == [("1", RATED, "1", 10)]


def test_the_published_graph_has_the_published_counts(movielens_dataset):
    published = KnowledgeGraph.from_dataset(movielens_dataset, include_heldout=True, whole_values=["GENRE_IS"])
    assert (published.num_nodes, published.num_edges) == (10_471, 130_002)
    honest = KnowledgeGraph.from_dataset(movielens_dataset, whole_values=["GENRE_IS"])
    assert (honest.num_nodes, honest.num_edges) == (10_471, 128_782)
    genres = published.node_types == published.entity_types.index("GENRE_IS")
    degrees = np.diff(published.offsets)[genres]
    assert (len(degrees), int((degrees > 0).sum())) == (951, 635)


# -- looking ----------------------------------------------------------------------------------------------------------


def test_neighbours_say_which_node_they_belong_to(graph):
    which, codes, reached = graph.neighbours(np.array([4, 2, 0, 0]))
    assert which.tolist() == [0, 2, 2, 3, 3]
    assert codes.tolist() == [1, 0, 2, 0, 2]
    assert reached.tolist() == [1, 3, 1, 3, 1]


def test_items_are_found_by_node(graph):
    assert graph.item_of_node().tolist() == [1, 2, 3, 0, 0]


def test_what_a_user_has_rated_is_nothing_else_that_the_user_did(rated_graph):
    """Ada also wishes for a film and knows bob; what she rated comes oldest first."""
    assert rated_graph.rated_items("ada").tolist() == [1, 2] and rated_graph.rated_items("bob").tolist() == [2]
    assert rated_graph.rated_items("robot").tolist() == [] and rated_graph.rated_items("eve").tolist() == []
    assert rated_graph.without_relations([RATED]).rated_items("ada").tolist() == []


# -- views ------------------------------------------------------------------------------------------------------------


def test_the_graph_before_a_time_has_no_edge_from_then_on(films):
    for moment in (0, 101, 102, 203, 10**9):
        view = films.before(moment)
        assert edges_of(view) == [edge for edge in edges_of(films) if edge[3] == UNDATED or edge[3] < moment]
        assert view.num_nodes == films.num_nodes and view.relations == films.relations
    assert films.before(0).num_edges == films.num_edges - 12


def test_relations_can_be_left_out_and_the_vocabulary_stays(films):
    view = films.without_relations([RATED, "GENRE_IS", "NOT_THERE"])
    assert edges_of(view) == [edge for edge in edges_of(films) if edge[1].lstrip("~") == "DIRECTED_BY"]
    assert view.relations == films.relations
    assert films.without_relations(films.relations).num_edges == 0
    assert edges_of(films.without_relations([])) == edges_of(films)


def test_shuffling_moves_items_and_keeps_the_edges_and_degrees(films):
    shuffled = films.shuffle_items(seed=1)
    for name in ("offsets", "targets", "edge_relations", "timestamps", "node_types", "node_keys"):
        assert np.array_equal(getattr(shuffled, name), getattr(films, name))
    assert shuffled.item_nodes[0] == -1
    assert sorted(shuffled.item_nodes.tolist()) == sorted(films.item_nodes.tolist())
    assert shuffled.item_nodes.tolist() != films.item_nodes.tolist()
    degrees = [np.diff(graph.offsets)[graph.item_nodes[1:]] for graph in (films, shuffled)]
    assert sorted(degrees[0]) == sorted(degrees[1])
    assert np.array_equal(films.shuffle_items(seed=1).item_nodes, shuffled.item_nodes)
    assert not np.array_equal(films.shuffle_items(seed=2).item_nodes, shuffled.item_nodes)


def test_shuffling_leaves_items_without_a_node_without_one():
    graph = nx.MultiDiGraph()
    for item in "abcdef":
        graph.add_edge(item, "x", relation="R")
    built = KnowledgeGraph.from_networkx(graph, ["a", "zz", "b", "c", "d", "e", "f"])
    shuffled = built.shuffle_items(3)
    assert built.item_nodes[2] == shuffled.item_nodes[2] == -1
    assert (shuffled.item_nodes >= 0).sum() == 6


def test_shuffling_gives_nearly_every_item_another_place(movielens_dataset):
    graph = KnowledgeGraph.from_dataset(movielens_dataset)
    assert (graph.shuffle_items().item_nodes[1:] == graph.item_nodes[1:]).mean() < 0.005


# -- keeping it -------------------------------------------------------------------------------------------------------


def test_a_graph_comes_back_from_disk_as_it_was(films, graph, tmp_path):
    for one in (films, graph, films.before(150), KnowledgeGraph.from_triples(triples_of(), ["1"])):
        one.save_pretrained(tmp_path / "graph")
        loaded = KnowledgeGraph.from_pretrained(tmp_path / "graph")
        assert_same(loaded, one)
        assert edges_of(loaded) == edges_of(one)
        assert edges_of(loaded.before(150)) == edges_of(one.before(150))
        assert loaded.shuffle_items().item_nodes.tolist() == one.shuffle_items().item_nodes.tolist()


def test_loaded_arrays_are_mapped_from_the_file_and_cannot_be_written(films, tmp_path):
    films.save_pretrained(tmp_path / "graph")
    loaded = KnowledgeGraph.from_pretrained(tmp_path / "graph")
    for name in module._ARRAYS:
        array = getattr(loaded, name)
        assert not array.flags.writeable and not array.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert sorted(path.name for path in (tmp_path / "graph").iterdir()) == [
        "graph.json",
        "graph.safetensors",
        "nodes.parquet",
    ]


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


def test_cut_arrays_name_where_they_end(films, tmp_path):
    films.save_pretrained(tmp_path / "graph")
    file = tmp_path / "graph" / "graph.safetensors"
    content = file.read_bytes()
    for length, reason in ((20, "ends inside its header"), (len(content) - 1, r"ends inside \w+")):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"graph.safetensors {reason}"):
            map_safetensors(file)


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
    assert exported.number_of_edges() == 12 + (films.num_edges - 12) // 2
    assert exported.nodes[4] == {"type": "item", "key": "1", "name": "Heat (1995)"}
    rated = [data for _, _, data in exported.edges(data=True) if data["relation"] == RATED]
    assert all(not data["both_ways"] and isinstance(data["timestamp"], int) for data in rated) and len(rated) == 12
    others = [data for _, _, data in exported.edges(data=True) if data["relation"] != RATED]
    assert all(data["both_ways"] and "timestamp" not in data for data in others)
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


# -- without people ---------------------------------------------------------------------------------------------------


@pytest.fixture
def rated_graph():
    """Ada and bob rated films, a robot of another type did, too; films share a director; ada knows bob."""
    graph = nx.MultiDiGraph()
    for key in ("ada", "bob"):
        graph.add_node(key, type="user", name=key.title())
    graph.add_node("robot", type="machine", name="R")
    for key in ("1", "2", "3"):
        graph.add_node(key, type="item", name=f"Film {key}")
    graph.add_node("mann", type="entity", name="Mann")
    for user, item, stamp in (("ada", "1", 10), ("ada", "2", 30), ("bob", "2", 20), ("robot", "3", 5)):
        graph.add_edge(user, item, relation="RATED", timestamp=stamp)
    graph.add_edge("ada", "bob", relation="KNOWS")
    graph.add_edge("ada", "3", relation="WISHES", timestamp=1)
    for item in ("1", "2"):
        graph.add_edge(item, "mann", relation="DIRECTED_BY", both_ways=True)
    return KnowledgeGraph.from_networkx(graph, ["1", "2", "3"])


def facts_of(graph):
    return sorted(edges_of(graph))


def test_people_are_users_and_whoever_rated(rated_graph):
    assert [str(key) for key in rated_graph.node_keys[rated_graph.people()]] == ["ada", "bob", "robot"]


def built(nodes, edges, items=("i1", "i2", "i3")) -> KnowledgeGraph:
    """A graph of `(key, type or None, name)` beside some items, and edges `(source, relation, target[, time])`."""
    graph = nx.MultiDiGraph()
    for item in items:
        graph.add_node(item, type="item")
    for key, kind, name in nodes:
        graph.add_node(key, **({"type": kind} if kind else {}), **({"name": name} if name else {}))
    for source, relation, target, *stamp in edges:
        graph.add_edge(source, target, relation=relation, **({"timestamp": stamp[0]} if stamp else {}))
    return KnowledgeGraph.from_networkx(graph, list(items))


def people_of(graph, user_ids):
    return sorted(graph.node_keys[graph.people(user_ids)])


MAILS = [f"{name}@example.org" for name in ("ada", "bob", "cyd", "dan")]


@pytest.mark.parametrize("kind", ["customer", "entity", None, "REVIEWED_BY"])
def test_what_is_named_like_a_user_is_a_person_of_whatever_type(kind):
    nodes = [(mail, kind, None) for mail in MAILS] + [(key, kind or "entity", None) for key in ("space", "Jamaica")]
    edges = [("i1", "REVIEWED_BY", mail) for mail in MAILS] + [("i1", "IN", "space"), ("i2", "IN", "Jamaica")]
    graph = built(nodes, edges)
    assert people_of(graph, MAILS) == MAILS and people_of(graph, ()) == []
    assert people_of(built([("u1", "user", None), *nodes], edges), MAILS) == [*MAILS, "u1"], "beside a known user, too"
    public = graph.without_people(MAILS)
    assert {edge[:3] for edge in edges_of(public)} == {("i1", "IN", "space"), ("i2", "IN", "Jamaica")}
    assert set(graph.with_numbered_people(MAILS).node_keys) >= {"1", "2", "3", "4", "space", "Jamaica"}


def test_the_name_of_a_node_and_a_part_of_a_joined_value_count_as_well():
    nodes = [("c1", "customer", MAILS[0]), (f"{MAILS[1]}|Ann", "maker", None), ("c2", "customer", "Eve"),
             ("c3", "customer", "see ada@example.org")]  # fmt: skip
    graph = built(nodes, [("i1", "BY", key) for key, _, _ in nodes])
    assert people_of(graph, MAILS) == [f"{MAILS[1]}|Ann", "c1"], "one in a longer text is not found"


def test_long_numbers_are_phone_numbers_and_short_ones_may_be_anything():
    phone, year = "491512345678", "1995"
    graph = built([(phone, "maker", None), (year, "year", None)], [("i1", "BY", phone), ("i1", "FROM", year)])
    assert people_of(graph, [phone, year, "7", "8"]) == [phone]


def test_a_number_with_dated_edges_is_a_person_and_one_without_may_be_a_year():
    nodes = [("7", None, None), ("8", None, None), ("9", None, None), ("u", "user", None)]
    edges = [("7", "BOUGHT", "i1", 5), ("i2", "FROM", "8"), ("9", "BOUGHT", "i1", 5)]
    graph = built(nodes, edges)
    assert people_of(graph, ["7", "8", "70", "80"]) == ["7", "u"], "9 is no user, 8 could be a count"
    facts_alone = built(nodes[:3], edges)
    assert people_of(facts_alone, ["7", "8", "70", "80"]) == ["7", "8"], "without nodes of users all are suspect"


@pytest.mark.parametrize(
    "users, dated, found",
    [
        (range(17, 29), False, True),  # half of all users, and all but one customer
        (range(17, 53), False, False),  # a third of them
        (range(17, 53), True, True),
        (range(22, 34), True, False),  # known are 7 of 13 customers: only these are people
    ],
)
def test_a_type_of_numbers_is_one_of_people_if_nearly_all_are_users_and_act_like_users(users, dated, found):
    customers = [str(number) for number in [*range(17, 29), 99]]
    edges = [(key, "BOUGHT", "i1", *([5] if dated else [])) for key in customers]
    graph = built([(key, "customer", None) for key in customers], edges)
    known = [str(user) for user in users]
    assert people_of(graph, known) == (customers if found else [key for key in customers if key in known and dated])


def test_years_stay_years_where_users_are_numbers(make_dataset):
    """As in MovieLens-1M: each year is somebody's number, and so are the values of a count."""
    users = range(1990, 2011)
    rows = [(user, item, item) for user in users for item in range(1, 6)]
    items = pd.DataFrame({"item_id": range(1, 6), "title": list("abcde"), "YEAR": range(1991, 1996), "PARTS": 2000})
    data = make_dataset(rows, items)
    graph = KnowledgeGraph.from_dataset(data)
    public = graph.without_people(data.user_ids)
    assert sorted(public.node_keys[public.node_types == public.entity_types.index("YEAR")]) == [
        str(year) for year in range(1991, 1996)
    ]
    assert public.num_edges == 20 and not public.people(data.user_ids).any()


def test_the_people_of_movielens_are_its_users(movielens_dataset):
    graph = KnowledgeGraph.from_dataset(movielens_dataset)
    users = graph.node_types == graph.entity_types.index("user")
    assert np.array_equal(graph.people(movielens_dataset.user_ids), users)


def test_the_people_of_movielens_100k_are_its_users(shared_cache):
    if not (cache_dir() / "ml-100k" / "ml-100k.inter").exists():
        pytest.skip("MovieLens-100K is not in the cache")
    bundle = load_dataset_bundle("ml-100k")
    data = SequenceDataset.from_bundle(bundle)
    graph = KnowledgeGraph.from_dataset(data, bundle.triples)
    assert np.array_equal(graph.people(data.user_ids), graph.node_types == graph.entity_types.index("user"))
    public = graph.without_people(data.user_ids)
    assert (public.num_nodes, public.num_edges) == (34_775, 152_650)


def test_users_among_the_attributes_are_people_also_those_whom_the_filter_dropped(make_bundle):
    rows = [(user, f"i{item}", item) for user in MAILS[:2] for item in range(5)] + [("zed@example.org", "i1", 7)]
    makers = [MAILS[0], f"{MAILS[1]}|Ann", "zed@example.org", "Ann", None]
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(5)], "title": list("abcde"), "MADE_BY": makers})
    settings = PreprocessingSettings(min_user_interactions=3, min_item_interactions=1)
    data = SequenceDataset.from_bundle(make_bundle(rows, items), settings)
    for whole in ((), ["MADE_BY"]):
        graph = KnowledgeGraph.from_dataset(data, whole_values=whole)
        public = graph.without_people(data.user_ids)
        assert not [key for key in public.node_keys if "@" in key] and "Ann" in public.node_keys
        assert not [key for key in graph.with_numbered_people(data.user_ids).node_keys if "@" in key]


def test_without_people_facts_and_vocabulary_stay(rated_graph, tmp_path):
    public = rated_graph.without_people()
    assert [str(key) for key in public.node_keys] == ["1", "2", "3", "mann"]
    assert public.relations == rated_graph.relations and public.entity_types == rated_graph.entity_types
    assert facts_of(public) == [fact for fact in facts_of(rated_graph) if fact[1].endswith("DIRECTED_BY")]
    assert [str(public.node_keys[node]) for node in public.item_nodes[1:]] == ["1", "2", "3"]
    public.save_pretrained(tmp_path)
    assert facts_of(KnowledgeGraph.from_pretrained(tmp_path)) == facts_of(public)
    assert facts_of(public.without_people()) == facts_of(public)


def test_numbered_people_keep_their_edges_and_lose_their_names(rated_graph, tmp_path):
    public = rated_graph.with_numbered_people()
    people = public.people()
    assert sorted(map(str, public.node_keys[people])) == ["1", "2", "3"]
    assert set(public.node_names[people]) == {""}
    assert public.num_edges == rated_graph.num_edges and public.relations == rated_graph.relations
    assert [f for f in facts_of(public) if f[1].endswith("DIRECTED_BY")] == [
        f for f in facts_of(rated_graph) if f[1].endswith("DIRECTED_BY")
    ]
    histories = []
    for graph in (rated_graph, public):
        by_person = {}
        for person, relation, item, stamp in facts_of(graph):
            if relation == "RATED":
                by_person.setdefault(person, []).append((item, stamp))
        histories.append(sorted(by_person.values()))
    assert histories[0] == histories[1]
    public.save_pretrained(tmp_path)
    assert facts_of(KnowledgeGraph.from_pretrained(tmp_path)) == facts_of(public)
    assert facts_of(rated_graph.with_numbered_people()) == facts_of(public), "the same data, the same numbers"


def test_numbers_of_people_follow_no_order_of_their_ids(make_dataset):
    rows = [(f"{user:03}", f"i{(user * step) % 7}", 1000 * user + step) for user in range(1, 101) for step in range(3)]
    graph = KnowledgeGraph.from_dataset(make_dataset(rows)).with_numbered_people()
    people = np.flatnonzero(graph.people())
    first = [int(np.asarray(graph.timestamps)[graph.offsets[node] : graph.offsets[node + 1]].min()) for node in people]
    order = np.array(first) // 1000  # the time tells who it was
    assert sorted(order) == list(range(1, 101)) and abs(np.corrcoef(order, np.arange(100))[0, 1]) < 0.3


def test_users_whom_the_filter_dropped_are_people_too(make_bundle, tmp_path):
    """Zed rated twice and is dropped; who trusts whom says his name all the same."""
    rows = [(user, f"i{item}", item) for user in ("ada", "bob") for item in range(5)] + [("zed", "i1", 7)] * 2
    facts = pd.DataFrame({"head": ["zed", "i1", "ada"], "relation": ["TRUSTS", "IN", "TRUSTS"],
                          "tail": ["bob", "town", "zed"]})  # fmt: skip
    triples = Triples.from_frame(facts, {"i1": "i1"})
    settings = PreprocessingSettings(min_user_interactions=3, min_item_interactions=1)
    dataset = SequenceDataset.from_bundle(make_bundle(rows), settings)
    assert dataset.user_ids == ("ada", "bob") and dataset.dropped_users == ("zed",)
    dataset.save(tmp_path)
    for data in (dataset, SequenceDataset.load(tmp_path), dataset.without_last_training(1)):
        graph = KnowledgeGraph.from_dataset(data, triples)
        assert set(graph.node_keys[graph.people()]) == {"ada", "bob", "zed"}
        assert [str(key) for key in graph.without_people(data.user_ids).node_keys] == [*data.items.ids, "town"]
        numbered = graph.with_numbered_people()
        assert not {"ada", "bob", "zed"} & set(numbered.node_keys)
        assert (numbered.edge_relations // 2 == graph.relations.index("TRUSTS")).sum() == 4


def test_the_dropped_users_make_no_other_run(make_bundle):
    """What they change shows in the graph, which has a name of its own; retrievers are not trained anew for them."""
    rows = [("ada", f"i{item}", item) for item in range(5)]
    settings = PreprocessingSettings(min_user_interactions=3, min_item_interactions=1)
    one, two = (SequenceDataset.from_bundle(make_bundle(r), settings) for r in (rows, [*rows, ("zed", "i1", 7)]))
    assert one.dropped_users != two.dropped_users and fingerprint(one) == fingerprint(two)
    triples = Triples.from_frame(pd.DataFrame({"head": ["zed"], "relation": ["R"], "tail": ["i1"]}), {"i1": "i1"})
    graphs = [KnowledgeGraph.from_dataset(data, triples) for data in (one, two)]
    assert fingerprint(graphs[0]) != fingerprint(graphs[1])


@pytest.mark.hub
@pytest.mark.parametrize("interactions", [False, True])
def test_a_dropped_user_whom_facts_name_is_in_no_uploaded_byte(hub, make_bundle, interactions):
    people = [f"{name}@example.org" for name in ("ada", "bob")]
    rows = [(user, f"i{item}", item) for user in people for item in range(5)] + [("zed@example.org", "i1", 7)]
    facts = pd.DataFrame({"head": ["zed@example.org", "i1"], "relation": ["TRUSTS", "IN"], "tail": [people[1], "m.9"]})
    settings = PreprocessingSettings(min_user_interactions=3, min_item_interactions=1)
    dataset = SequenceDataset.from_bundle(make_bundle(rows), settings)
    graph = KnowledgeGraph.from_dataset(dataset, Triples.from_frame(facts, {"i1": "i1"}))
    items = dataset.items
    LlamaRecLKGProcessor(tokenizer(), graph, items.ids, items.titles, dataset.user_ids).push_to_hub(
        RANKER, include_interactions=interactions
    )
    text = readable(uploaded(hub))
    assert b"m.9" in text, "the search finds what is there"
    assert not any(user.encode() in text for user in [*people, "zed@example.org"])


@pytest.mark.hub
@pytest.mark.parametrize("interactions", [False, True])
@pytest.mark.parametrize("how", ["attribute", "customers", "friends"])
def test_a_user_in_any_place_of_the_graph_is_in_no_uploaded_byte(hub, make_dataset, film_items, how, interactions):
    """As the maker of a film; as a customer, which no one has said to be a user; as an untyped friend of a user."""
    makers = [MAILS[0], MAILS[1], MAILS[0], MAILS[2], MAILS[3], None]
    rows = [(user, (number + step) % 6 + 1, step) for number, user in enumerate(MAILS) for step in range(5)]
    dataset = make_dataset(rows, film_items.assign(UPLOADED_BY=makers))
    items = dataset.items
    friends = [(MAILS[0], "user", None), *((mail, None, None) for mail in MAILS[1:])]
    graph = {
        "attribute": lambda: KnowledgeGraph.from_dataset(dataset),
        "customers": lambda: built(
            [(mail, "customer", None) for mail in MAILS], [(mail, "BOUGHT", "1", 9) for mail in MAILS], items.ids
        ),
        "friends": lambda: built(
            friends, [(MAILS[0], RATED, "1", 9), *((mail, "WISHES", "1") for mail in MAILS[1:])], items.ids
        ),
    }[how]()
    LlamaRecLKGProcessor(tokenizer(), graph, items.ids, items.titles, dataset.user_ids).push_to_hub(
        RANKER, include_interactions=interactions
    )
    text = readable(uploaded(hub))
    assert b"Alien (1979)" in text, "the search finds what is there"
    assert not any(mail.encode() in text for mail in MAILS)
