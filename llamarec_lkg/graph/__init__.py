"""The knowledge graph, paths in it, and the evidence it gives."""
