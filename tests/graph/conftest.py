import pytest
from graphs import triples_of

from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph


@pytest.fixture
def graph() -> KnowledgeGraph:
    """Three items, two entities: 1 and 2 share x, 2 has y as well, 2 comes after 1."""
    facts = triples_of(("1", "BY", "x"), ("2", "BY", "x"), ("2", "BY", "y"), ("1", "NEXT", "2"))
    return KnowledgeGraph.from_triples(facts, ["1", "2", "3"], ["One", "Two\n", "Three"])
