from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from graphs import assert_same, edges_of, triples_of, weighted_pairs

from llamarec_lkg.data.schema import CO_RATED, RATED, ItemTable, Triples
from llamarec_lkg.data.sequences import TRAIN
from llamarec_lkg.graph.builder import UNDATED
from llamarec_lkg.graph.co_ratings import CoRatings
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.utils.errors import LKGError


@pytest.fixture
def films(film_dataset):
    return KnowledgeGraph.from_dataset(film_dataset)


@pytest.fixture
def published(film_dataset):
    return KnowledgeGraph.from_dataset(film_dataset, users=True)


# -- from a data set --------------------------------------------------------------------------------------------------


def test_a_data_set_becomes_items_and_attributes_with_nobody_among_them(films):
    assert films.relations == (CO_RATED, "DIRECTED_BY", "GENRE_IS")
    assert films.entity_types == ("item", "DIRECTED_BY", "GENRE_IS")
    assert np.bincount(films.node_types).tolist() == [6, 5, 6]
    assert films.node_keys[:6].tolist() == ["1", "2", "3", "4", "5", "6"]
    assert films.node_names[:2].tolist() == ["Heat (1995)", "Insider, The (1999)"]
    assert films.item_nodes.tolist() == [-1, 0, 1, 2, 3, 4, 5]
    assert films.describe() == "17 nodes, 32 edges (CO_RATED 0, DIRECTED_BY 12, GENRE_IS 20)"
    assert films.weights is None and set(films.timestamps.tolist()) == {UNDATED}
    assert not films.has_people


def test_the_published_graph_has_users_in_front_and_what_they_rated(published):
    assert published.relations == (RATED, "DIRECTED_BY", "GENRE_IS")
    assert published.entity_types == ("user", "item", "DIRECTED_BY", "GENRE_IS")
    assert published.node_keys[:5].tolist() == ["1", "2", "3", "4", "1"]
    assert published.node_names[:5].tolist() == ["", "", "", "", "Heat (1995)"]
    assert published.item_nodes.tolist() == [-1, 4, 5, 6, 7, 8, 9]
    assert published.describe() == "21 nodes, 44 edges (RATED 12, DIRECTED_BY 12, GENRE_IS 20)"


def test_people_are_nodes_of_users_or_edges_that_say_who_rated_what(published, films):
    assert published.has_people
    assert published.without_relations([RATED]).has_people, "the nodes of users are left"
    strangers = nx.DiGraph()
    strangers.add_edge("ada", "a", relation=RATED)
    built = KnowledgeGraph.from_networkx(strangers, ["a"])
    assert built.has_people and not built.without_relations([RATED]).has_people, "a name in the vocabulary is no edge"
    table = CoRatings(np.array([1]), np.array([2]), np.array([0.5], np.float32))
    assert not films.with_co_ratings(table).has_people


def test_rated_edges_are_training_interactions_from_user_to_item_with_their_time(published, film_dataset):
    rated = [edge for edge in edges_of(published) if edge[1] == RATED]
    positions = film_dataset.positions("train")
    expected = zip(
        (film_dataset.user_ids[user - 1] for user in film_dataset.user_of(positions)),
        (film_dataset.items.ids[item - 1] for item in film_dataset.item_sequence[positions]),
        film_dataset.timestamps[positions].tolist(),
        strict=True,
    )
    assert sorted((user, item, stamp) for user, _, item, stamp in rated) == sorted(expected)
    assert not [edge for edge in edges_of(published) if edge[1] == "~RATED"]
    everything = KnowledgeGraph.from_dataset(film_dataset, users=True, include_heldout=True)
    assert everything.num_edges - published.num_edges == (film_dataset.labels != TRAIN).sum() > 0
    assert {edge[3] for edge in edges_of(published) if edge[1] != RATED} == {UNDATED}


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
    assert edges_of(KnowledgeGraph.from_dataset(data, users=True)) == [("1", RATED, "1", 10)]


def test_the_published_graph_has_the_published_counts(movielens_dataset):
    settings = {"users": True, "whole_values": ["GENRE_IS"]}
    published = KnowledgeGraph.from_dataset(movielens_dataset, include_heldout=True, **settings)
    assert (published.num_nodes, published.num_edges) == (10_471, 130_002)
    honest = KnowledgeGraph.from_dataset(movielens_dataset, **settings)
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


def test_edges_into_nodes_are_the_edges_read_from_their_ends(graph, published):
    which, places, sources = graph.edges_into(np.array([1, 3, 3]))
    assert which.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert sources.tolist() == [0, 3, 4, 0, 1, 0, 1] and graph.edge_relations[places].tolist() == [2, 1, 1, 0, 0, 0, 0]
    edges = np.stack([published.targets, published.edge_sources(), published.edge_relations])
    which, places, sources = published.edges_into(np.arange(published.num_nodes))
    assert np.array_equal(
        edges[:, np.lexsort(edges[::-1])], np.stack([which, sources, published.edge_relations[places]])
    )


def test_items_are_found_by_node(graph):
    assert graph.item_of_node().tolist() == [1, 2, 3, 0, 0]


# -- views ------------------------------------------------------------------------------------------------------------


def test_the_graph_before_a_time_has_no_edge_from_then_on(published):
    for moment in (0, 101, 102, 203, 10**9):
        view = published.before(moment)
        assert edges_of(view) == [edge for edge in edges_of(published) if edge[3] == UNDATED or edge[3] < moment]
        assert view.num_nodes == published.num_nodes and view.relations == published.relations
    assert published.before(0).num_edges == published.num_edges - 12


def test_relations_can_be_left_out_and_the_vocabulary_stays(published):
    view = published.without_relations([RATED, "GENRE_IS", "NOT_THERE"])
    assert edges_of(view) == [edge for edge in edges_of(published) if edge[1].lstrip("~") == "DIRECTED_BY"]
    assert view.relations == published.relations
    assert published.without_relations(published.relations).num_edges == 0
    assert edges_of(published.without_relations([])) == edges_of(published)


def test_shuffling_moves_items_and_keeps_the_edges_and_degrees(films):
    shuffled = films.shuffle_items(seed=1)
    for name in ("offsets", "targets", "edge_relations", "timestamps", "node_types", "node_keys"):
        assert np.array_equal(getattr(shuffled, name), getattr(films, name))
    assert shuffled.item_nodes[0] == -1
    assert sorted(shuffled.item_nodes.tolist()) == sorted(films.item_nodes.tolist())
    assert (shuffled.item_nodes[1:] != films.item_nodes[1:]).all(), "none stays where it was"
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


# -- co-ratings -------------------------------------------------------------------------------------------------------


def table_of(*pairs) -> CoRatings:
    items, others, weights = zip(*pairs, strict=True)
    return CoRatings(np.array(items), np.array(others), np.array(weights, np.float32))


def test_co_ratings_come_in_place_of_former_ones_and_everything_else_stays(films, tmp_path):
    first = films.with_co_ratings(table_of((1, 2, 0.25), (1, 3, 0.5)))
    again = first.with_co_ratings(table_of((2, 6, 0.75), (3, 4, 1.0)))
    assert weighted_pairs(again) == {(2, 6): 0.75, (3, 4): 1.0}
    assert again.describe() == "17 nodes, 34 edges (CO_RATED 2 with weights, DIRECTED_BY 12, GENRE_IS 20)"
    assert_same(again, films.with_co_ratings(table_of((2, 6, 0.75), (3, 4, 1.0))))
    assert_same(again.without_relations([CO_RATED]), films)
    assert_same(again.with_co_ratings(CoRatings(*np.zeros((3, 0), int))), films)
    assert [edge for edge in edges_of(again) if edge[1] == CO_RATED] == [
        ("2", CO_RATED, "6", UNDATED),
        ("3", CO_RATED, "4", UNDATED),
    ]
    order = np.stack([again.edge_sources(), again.edge_relations, again.targets], axis=1).tolist()
    assert order == sorted(order)
    again.save_pretrained(tmp_path)
    assert_same(KnowledgeGraph.from_pretrained(tmp_path), again)


def test_other_weights_stay_beside_co_ratings():
    like = nx.Graph(relations=[CO_RATED])
    like.add_node("c")
    like.add_edge("a", "b", relation="LIKE", weight=0.5)
    graph = KnowledgeGraph.from_networkx(like, ["a", "b", "c"]).with_co_ratings(table_of((2, 3, 0.25)))
    assert weighted_pairs(graph) == {(1, 2): 0.5, (2, 1): 0.5, (2, 3): 0.25}
    assert weighted_pairs(graph.without_relations([CO_RATED])) == {(1, 2): 0.5, (2, 1): 0.5}


def test_co_ratings_are_between_items_also_after_these_have_been_shuffled(films):
    shuffled = films.shuffle_items(1)
    table = table_of((1, 2, 0.25), (3, 6, 0.5))
    assert weighted_pairs(shuffled.with_co_ratings(table)) == weighted_pairs(films.with_co_ratings(table))


def test_co_ratings_of_other_items_or_without_their_relation_are_refused(films, published):
    with pytest.raises(LKGError, match="nodes for 6 items .* items up to 7 .* from one data set"):
        films.with_co_ratings(table_of((1, 7, 0.5)))
    with pytest.raises(LKGError, match="need the relation 'CO_RATED'"):
        published.with_co_ratings(table_of((1, 2, 0.5)))
    without_node = replace(films, item_nodes=np.array([-1, 0, -1, 2, 3, 4, 5]))
    with pytest.raises(LKGError, match="nodes for 5 items"):
        without_node.with_co_ratings(table_of((1, 2, 0.5)))


# -- items that come later --------------------------------------------------------------------------------------------


NEW_FILMS = pd.DataFrame(
    {
        "item_id": ["7", "8"],
        "title": ["Ali", "Arlo"],
        "directed_by": ["Mann", "Sohn"],
        "genre_is": ["Drama|Sport", "Family"],
    }
)


def test_new_items_are_tied_to_the_entities_there_are_and_everything_else_stays(films, tmp_path):
    before = films.with_co_ratings(table_of((1, 2, 0.25)))
    grown = before.with_items(ItemTable.from_frame(NEW_FILMS))
    assert grown.num_items == 8 and grown.relations == films.relations
    assert grown.node_keys[grown.item_nodes[1:]].tolist() == [str(item) for item in range(1, 9)]
    assert grown.node_names[grown.item_nodes[7:]].tolist() == ["Ali", "Arlo"]
    added = set(edges_of(grown)) - set(edges_of(before))
    forward = {("7", "DIRECTED_BY", "Mann"), ("7", "GENRE_IS", "Drama"), ("7", "GENRE_IS", "Sport"),
               ("8", "DIRECTED_BY", "Sohn"), ("8", "GENRE_IS", "Family")}  # fmt: skip
    assert {edge[:3] for edge in added} == forward | {(end, f"~{name}", start) for start, name, end in forward}
    assert set(edges_of(before)) < set(edges_of(grown)) and grown.num_edges == before.num_edges + 10
    assert grown.num_nodes == before.num_nodes + 4, "two films, a director, a genre"
    assert weighted_pairs(grown) == {(1, 2): 0.25}
    order = np.stack([grown.edge_sources(), grown.edge_relations, grown.targets], axis=1).tolist()
    assert order == sorted(order)
    grown.save_pretrained(tmp_path)
    assert_same(KnowledgeGraph.from_pretrained(tmp_path), grown)
    one, other = (ItemTable.from_frame(NEW_FILMS[rows]) for rows in (slice(0, 1), slice(1, 2)))
    assert set(edges_of(before.with_items(one).with_items(other))) == set(edges_of(grown))


def test_new_values_are_the_entities_of_triples_too(film_dataset, caplog):
    """By key; by name where only one is called so; and along the relation as it stands, here from person to film."""
    facts = {"head": ["m.1", "m.1", "m.2", "m.3"], "relation": "FILMS_OF", "tail": ["f.1", "f.2", "f.3", "f.4"]}
    linked = {f"f.{number}": str(number) for number in range(1, 5)}
    graph = KnowledgeGraph.from_dataset(film_dataset, Triples.from_frame(pd.DataFrame(facts), linked))
    called = {"m.1": "Mann", "m.2": "Twin", "m.3": "Twin"}
    names = [called.get(key, name) for key, name in zip(graph.node_keys, graph.node_names, strict=True)]
    graph = replace(graph, node_names=np.array(names, dtype=object))
    new = pd.DataFrame({"item_id": list("abcd"), "title": list("ABCD"), "films_of": ["m.1", "Mann", "Twin", "m.2"]})
    added = set(edges_of(graph.with_items(ItemTable.from_frame(new)))) - set(edges_of(graph))
    found = {edge[:3] for edge in added if not edge[1].startswith("~")}
    assert {end for start, _, end in found if start == "m.1"} == {"a", "b"}
    assert ("m.2", "FILMS_OF", "d") in found and ("Twin", "FILMS_OF", "c") in found, "two are called Twin"
    assert "1 of the new items' 3 attribute values are no entities" in caplog.text and "FILMS_OF 'Twin'" in caplog.text


def test_new_values_are_joined_where_those_of_the_graph_are(film_dataset, caplog):
    graph = KnowledgeGraph.from_dataset(film_dataset, whole_values=["GENRE_IS"])
    new = pd.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"], "genre_is": ["Comedy|Family", None]})
    grown = graph.with_items(ItemTable.from_frame(new))
    assert {edge[:3] for edge in set(edges_of(grown)) - set(edges_of(graph))} == {
        ("a", "GENRE_IS", "Comedy|Family"), ("Comedy|Family", "~GENRE_IS", "a")}  # fmt: skip
    assert not caplog.text


def test_items_that_are_there_and_relations_that_are_not_are_refused(films):
    with pytest.raises(LKGError, match=r"the items \['1'\] that it has"):
        films.with_items(ItemTable.from_frame(NEW_FILMS.assign(item_id=["1", "8"])))
    with pytest.raises(LKGError, match=r"the relations \['STUDIO'\] that the graph does not have .*'GENRE_IS'"):
        films.with_items(ItemTable.from_frame(NEW_FILMS.assign(studio="A24")))
