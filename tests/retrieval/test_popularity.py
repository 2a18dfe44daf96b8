"""The floor."""

from llamarec_lkg.retrieval.base import retriever_ranks
from llamarec_lkg.retrieval.popularity import PopularityRetriever


def test_popularity_ranks_by_hand(make_dataset):
    rows = [("a", 1, 0), ("a", 2, 1), ("a", 3, 2), ("a", 4, 3), ("b", 2, 0), ("b", 5, 1), ("b", 6, 2), ("b", 4, 3)]
    dataset = make_dataset(rows)
    # trained on: 1, 2 by a; 2, 5 by b. a's target 4 stands, by id, behind 5 and beside 6; 1, 2, 3 are its history
    ranks = retriever_ranks(dataset, PopularityRetriever.from_dataset(dataset), "test")
    assert ranks.tolist() == [2, 3]
