"""Which names in facts are items, which are people, and what meets nothing."""

import datasets
import networkx as nx
import pandas as pd
import pytest
from graphs import edges_of

from llamarec_lkg import KnowledgeGraph
from llamarec_lkg.data.facts import as_triples, with_triples
from llamarec_lkg.data.schema import Triples
from llamarec_lkg.data.sequences import PreprocessingSettings, SequenceDataset
from llamarec_lkg.data.sources import load_dataset_bundle
from llamarec_lkg.utils.errors import LKGError


COLUMNS = ["head", "relation", "tail"]
SETTINGS = PreprocessingSettings(min_user_interactions=1, min_item_interactions=1)


@pytest.fixture
def world(tmp_path):
    """`world(facts, links, people)` writes tables: users and items are 1 to 5, unless the users have other names."""

    def write(facts, links=None, people="12345", types=()):
        lines = ["user_id,item_id,timestamp"]
        lines += [f"{user},{(place + step) % 5 + 1},{step}" for place, user in enumerate(people) for step in range(4)]
        (tmp_path / "interactions.csv").write_text("\n".join(lines))
        (tmp_path / "items.csv").write_text(
            "item_id,title\n" + "\n".join(f"{item},Title {item}" for item in range(1, 6))
        )
        header = ["head", "relation", "tail", *types]
        (tmp_path / "triples.csv").write_text("\n".join([",".join(header), *facts]))
        (tmp_path / "links.csv").unlink(missing_ok=True)
        if links is not None:
            (tmp_path / "links.csv").write_text("\n".join(["entity_id,item_id", *links]))
        return tmp_path

    return write


def graph_of(folder, **more):
    bundle = load_dataset_bundle(folder)
    return KnowledgeGraph.from_dataset(SequenceDataset.from_bundle(bundle, SETTINGS), bundle.triples, **more)


def facts_of(graph):
    """(type of the head, head, relation, type of the tail, tail)."""
    kinds = [graph.entity_types[kind] for kind in graph.node_types]
    return {
        (kinds[source], graph.node_keys[source], graph.relations[code // 2], kinds[target], graph.node_keys[target])
        for source, code, target in zip(graph.edge_sources(), graph.edge_relations, graph.targets, strict=True)
        if code % 2 == 0
    }


# -- links that meet nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "links, said",
    [
        (["n.1,1", "n.2,2"], r"links lead from 'n.1', 'n.2' to '1', '2', and the items are '1'.* of one edition"),
        (["m.1,77"], r"links lead from 'm.1' to '77', and the items are '1', '2', '3', \.\.\."),
        ([], r"the items are '1', .*a table `links` \(`entity_id`, `item_id`\)"),
        (None, r"the items are '1', .*a table `links` \(`entity_id`, `item_id`\)"),
    ],
)
def test_facts_of_which_none_is_about_an_item_are_refused(world, links, said):
    with pytest.raises(LKGError, match=f"None of the 1 facts is about an item: they name 'm.1', 'x', {said}"):
        load_dataset_bundle(world(["m.1,IS,x"], links))
    assert ("item", "1", "IS", "entity", "x") in facts_of(graph_of(world(["m.1,IS,x"], ["m.1,1"])))
    assert ("item", "1", "IS", "entity", "x") in facts_of(graph_of(world(["1,IS,x"])))
    folder = world([])
    (folder / "triples.csv").unlink()
    assert load_dataset_bundle(folder).triples is None


def test_recbole_links_of_another_edition_are_refused_and_some_are_counted(tmp_path, caplog):
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\t1\t1\nu\t2\t2\n")
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\n1\tOne\n2\tTwo\n")
    (tmp_path / "x.kg").write_text("head_id:token\trelation_id:token\ttail_id:token\nm.1\tIS\tm.9\n")
    (tmp_path / "x.link").write_text("item_id:token\tentity_id:token\n1\tn.1\n")
    with pytest.raises(LKGError, match="links lead from 'n.1' to '1'"):
        load_dataset_bundle(tmp_path)
    (tmp_path / "x.link").write_text("item_id:token\tentity_id:token\n1\tm.1\n2\tm.2\n")
    assert len(load_dataset_bundle(tmp_path).triples) == 1
    assert "1 of 2 links lead from no fact or to no item: 'm.2'" in caplog.text


def test_links_of_which_some_meet_nothing_are_counted(world, caplog):
    load_dataset_bundle(world(["m.1,IS,x", "m.2,IS,x"], ["m.1,1", "m.2,77", "m.3,3"]))
    assert "2 of 3 links lead from no fact or to no item: 'm.2', 'm.3'. Compare how they are spelled" in caplog.text
    caplog.clear()
    load_dataset_bundle(world(["m.1,IS,x"], ["m.1,1"]))
    assert not caplog.text
    load_dataset_bundle(world(["1,IS,x", "2,IS,x"]))
    assert "3 of 5 items are in no fact: '3', '4', '5'" in caplog.text


def test_a_graph_of_facts_about_no_item_is_refused_however_they_came(film_dataset):
    facts = pd.DataFrame({"head": ["m.1"], "relation": ["IS"], "tail": ["x"]})
    for links in ({}, {"n.1": "1"}, {"m.1": "99"}):
        with pytest.raises(LKGError, match="None of the 1 facts is about an item"):
            KnowledgeGraph.from_dataset(film_dataset, Triples.from_frame(facts, links))
        with pytest.raises(LKGError, match="None of the 1 facts is about an item"):
            KnowledgeGraph.from_triples(Triples.from_frame(facts, links), ["1"])
    assert "IS" in KnowledgeGraph.from_dataset(film_dataset, Triples.from_frame(facts, {"m.1": "1"})).relations


def test_facts_about_items_that_the_filter_dropped_are_facts_about_items(make_bundle):
    rows = [(user, item, item) for user in range(3) for item in range(4)] + [(0, 9, 9)]
    bundle = make_bundle(
        rows, triples=Triples.from_frame(pd.DataFrame([("m", "IS", "x")], columns=COLUMNS), {"m": "9"})
    )
    settings = PreprocessingSettings(min_user_interactions=1, min_item_interactions=2)
    graph = KnowledgeGraph.from_dataset(SequenceDataset.from_bundle(bundle, settings), bundle.triples)
    assert facts_of(graph) == {("entity", "m", "IS", "entity", "x")}


def test_added_facts_meet_the_items_or_the_facts_there_are(world):
    bundle = load_dataset_bundle(world(["m.1,IS,x"], ["m.1,1"]))
    frame = pd.DataFrame({"head": ["X"], "relation": ["IN"], "tail": ["town"]})
    with pytest.raises(LKGError, match="None of the 1 facts is about an item: they name 'X', 'town'"):
        with_triples(bundle, frame)
    for met in ("x", "m.1", "2"):
        assert len(with_triples(bundle, frame.assign(head=met)).triples) == 2


# -- people, and other things that are called like items --------------------------------------------------------------


def test_ids_that_are_items_and_users_alike_are_told_until_the_table_says_which(world, caplog):
    facts = ["1,BOOKED,3", "2,BOOKED,4", "5,IN,town"]
    graph_of(world(facts))
    assert (
        "5 ids in the triples are ids of items and of users, and are taken for items: '1' 'BOOKED' '3'" in caplog.text
    )
    assert "`head_type` or `tail_type`" in caplog.text
    caplog.clear()
    typed = [f"{fact},{kind}" for fact, kind in zip(facts, ["user", " User", "item"], strict=True)]
    graph = graph_of(world(typed, types=["head_type"]))
    assert facts_of(graph) == {("item", "5", "IN", "entity", "town")} and not graph.has_people
    assert "2 of 3 facts are about users, '1' 'BOOKED' '3' is the first" in caplog.text
    assert "are taken for items" not in caplog.text
    caplog.clear()
    hotels = graph_of(world([f"{fact},item,{kind}" for fact, kind in zip(facts, ["item", "item", ""], strict=True)],
                            types=["head_type", "tail_type"]))  # fmt: skip
    assert ("item", "1", "BOOKED", "item", "3") in facts_of(hotels) and "users" not in caplog.text


def test_users_with_names_of_their_own_are_no_question(world, caplog):
    graph_of(world(["1,NEAR,3"], people="abcde"))
    assert "users" not in caplog.text


def test_facts_that_users_are_the_tail_of_are_left_out_too(world, caplog):
    graph = graph_of(world(["3,BOOKED_BY,1,user", "3,IN,town,"], types=["tail_type"]))
    assert facts_of(graph) == {("item", "3", "IN", "entity", "town")}
    assert "1 of 2 facts are about users" in caplog.text


@pytest.mark.parametrize("users", [False, True])
def test_a_star_is_no_person_and_no_item(world, users):
    """Users, items and stars are all numbers from 1 to 5; the links say what items are, or the type what stars are."""
    wanted = {("item", "1", "STARS", "entity", "4"), ("item", "2", "STARS", "entity", "5")}
    linked = graph_of(world(["h1,STARS,4", "h2,STARS,5"], ["h1,1", "h2,2"]), users=users)
    assert {fact for fact in facts_of(linked) if fact[2] == "STARS"} == wanted
    typed = graph_of(world(["1,STARS,4,stars", "2,STARS,5,stars"], types=["tail_type"]), users=users)
    assert {fact for fact in facts_of(typed) if fact[2] == "STARS"} == {
        (*fact[:4], f"stars:{fact[4]}") for fact in wanted
    }


def test_things_of_two_types_that_are_called_alike_stay_two(world):
    facts = ["1,IN,War,place", "2,ABOUT,War,topic", "3,ABOUT,Peace,topic", "4,ABOUT,Peace,topic"]
    graph = graph_of(world(facts, types=["tail_type"]))
    assert {"place:War", "topic:War", "Peace"} == set(graph.node_keys[5:])


def test_a_star_stays_a_star_beside_facts_that_name_items_by_their_ids(world):
    bundle = load_dataset_bundle(world(["h1,STARS,4", "h4,STARS,5"], ["h1,1", "h4,4"]))
    joined = with_triples(bundle, pd.DataFrame({"head": ["4", "2"], "relation": "IN", "tail": "town"}))
    graph = KnowledgeGraph.from_dataset(SequenceDataset.from_bundle(joined, SETTINGS), joined.triples)
    assert facts_of(graph) == {
        ("item", "1", "STARS", "entity", "4"), ("item", "4", "STARS", "entity", "5"),
        ("item", "4", "IN", "entity", "town"), ("item", "2", "IN", "entity", "town"),
    }  # fmt: skip


# -- networkx ---------------------------------------------------------------------------------------------------------


def test_facts_about_the_users_of_a_networkx_graph_are_left_out_with_a_word(film_dataset, caplog):
    graph = nx.DiGraph()
    graph.add_node("u1", type="user", key="1")
    graph.add_node("i1", type="item", key="1")
    graph.add_node("g", type="genre", key="War")
    graph.add_node("k", type="keyword", key="War")
    graph.add_edge("u1", "i1", relation="BOOKED")
    graph.add_edge("i1", "g", relation="IS")
    graph.add_edge("i1", "k", relation="ABOUT")
    triples = as_triples(graph, film_dataset.items)
    assert triples.to_frame().to_numpy().tolist() == [["1", "IS", "genre:War"], ["1", "ABOUT", "keyword:War"]]
    assert "1 of 3 facts are about users, '1' 'BOOKED' '1' is the first" in caplog.text


@pytest.mark.parametrize("node", [1, 1.0, "1.0", " 1", b"1"])
@pytest.mark.parametrize("types", [{}, {"type": "Item"}])
def test_nodes_of_a_networkx_graph_are_spelled_as_items_are(film_dataset, node, types):
    graph = nx.Graph([(node, "x", {"relation": "IS"})])
    graph.nodes[node].update(types)
    triples = as_triples(graph, film_dataset.items)
    assert triples.to_frame().to_numpy().tolist() == [["1", "IS", "x"]] and triples.item_of_entity == {"1": "1"}


def test_facts_come_as_a_data_set_too(film_dataset):
    given = datasets.Dataset.from_dict({"head": [1], "relation": ["IS"], "tail": ["x"]})
    assert as_triples(given, film_dataset.items).to_frame().to_numpy().tolist() == [["1", "IS", "x"]]


def test_an_entity_that_is_linked_to_two_items_is_told(world, caplog):
    bundle = load_dataset_bundle(world(["m.1,IS,x"], ["m.1,1", "m.1,2", "m.1,2"]))
    assert bundle.triples.item_of_entity == {"m.1": "2"}
    assert "1 of 3 rows of links link an entity that a later row links to another item; the last counts" in caplog.text


@pytest.mark.parametrize("relation", ["RATED", "CO_RATED"])
def test_a_certificate_in_a_networkx_graph_is_not_what_people_say(film_dataset, relation):
    graph = nx.DiGraph([("1", "PG-13", {"relation": relation})])
    with pytest.raises(LKGError, match=f"called '{relation}', the library's name for what interactions say. Rename"):
        as_triples(graph, film_dataset.items)
    with pytest.raises(LKGError, match=f"from a node of type 'item' to one of type 'entity' is called '{relation}'"):
        KnowledgeGraph.from_networkx(graph, ["1"])
    graph.edges["1", "PG-13"]["relation"] = "CERTIFICATE"
    assert as_triples(graph, film_dataset.items).relations.tolist() == ["CERTIFICATE"]
    built = KnowledgeGraph.from_networkx(graph, ["1"])
    assert [edge[:3] for edge in edges_of(built)] == [("1", "CERTIFICATE", "PG-13")] and not built.has_people
