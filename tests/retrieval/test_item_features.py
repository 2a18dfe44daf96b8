"""What is known of items besides who took them."""

import numpy as np
import pytest
from tiny import entities_of

from llamarec_lkg.graph.co_ratings import co_ratings
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.retrieval import item_features as module
from llamarec_lkg.retrieval.item_features import (
    ItemFeatures,
    item_entities,
    item_features,
    item_texts,
    shared_entities,
)
from llamarec_lkg.retrieval.item_vectors import feature_sizes
from llamarec_lkg.retrieval.text_vectors import TextProjection
from llamarec_lkg.utils.errors import LKGError


def test_a_text_is_the_title_and_a_line_for_each_attribute(film_dataset):
    texts = item_texts(film_dataset.items)
    assert texts[0] == "Heat (1995)\ndirected by: Mann\ngenre is: Action, Crime"
    assert texts[5] == "Up\ngenre is: Family"


def test_entities_are_what_items_share_in_the_graph(film_dataset):
    graph = KnowledgeGraph.from_dataset(film_dataset)
    graph = graph.with_co_ratings(co_ratings(film_dataset, min_people=1))
    entities = shared_entities(graph)
    # Mann made two, the others one; Crime, Drama and Horror are genres of one film
    assert sorted(graph.node_names[entities]) == ["Action", "Comedy", "Family", "Mann"]
    offsets, indices = item_entities(graph)
    named = [sorted(graph.node_names[entities[indices[a:b]]]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    assert named == [
        [],
        ["Action", "Mann"],
        ["Mann"],
        ["Comedy", "Family"],
        ["Comedy", "Family"],
        ["Action"],
        ["Family"],
    ]


def test_people_are_no_entities(film_dataset):
    graph = KnowledgeGraph.from_dataset(film_dataset, users=True)
    assert not set(film_dataset.user_ids) & set(graph.node_names[shared_entities(graph)])
    assert len(item_entities(graph)[1]) == 9


def test_features_are_made_by_name(film_dataset, monkeypatch):
    seen = []

    def read(texts, backbone, **settings):
        seen.append((list(texts), backbone, settings["name"]))
        return np.ones((6, 3), dtype=np.float32), TextProjection(np.zeros(4), np.zeros((4, 3)), 8, "tiny")

    monkeypatch.setattr(module, "read_texts", read)
    graph = KnowledgeGraph.from_dataset(film_dataset)
    items = film_dataset.items
    assert item_features("ids", items) is None
    text = item_features("text", items, backbone="folder", backbone_name="tiny", attributes=False)
    assert text.text.shape == (7, 3) and not text.text[0].any() and text.entities is None and text.num_items == 6
    assert seen == [(list(items.titles), "folder", "tiny")]
    assert feature_sizes(text) == {"text_size": 3, "text_state_size": 4, "text_layers": 8, "text_backbone": "tiny"}
    both = item_features("text+entities", items, backbone="folder", graph=graph)
    assert seen[1][0] == item_texts(items)
    assert feature_sizes(both).items() >= {"num_entities": 4, "num_entity_links": 9}.items()
    entities = item_features("entities", items, graph=graph)
    assert entities.text is None and entities.num_items == 6


def test_what_is_missing_is_named(film_dataset):
    with pytest.raises(LKGError, match="item_vectors is 'txt'; it is one of 'ids', 'text'"):
        item_features("txt", film_dataset.items)
    with pytest.raises(LKGError, match="give `backbone=`"):
        item_features("text", film_dataset.items)
    with pytest.raises(LKGError, match="give `graph=`"):
        item_features("entities", film_dataset.items)


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(LKGError, match="zeros for the padding item"):
        ItemFeatures(text=np.ones((3, 2), dtype=np.float32))
    with pytest.raises(LKGError, match="offsets go from 0 to 5 for 2 indices"):
        ItemFeatures(entities=(np.array([0, 0, 5]), np.array([0, 1])))
    with pytest.raises(LKGError, match="text vectors for 2 items and entities for 1"):
        ItemFeatures(text=np.zeros((3, 2), dtype=np.float32), entities=entities_of([[0]]))
    assert ItemFeatures().num_items is None
