"""The first stage: retrievers, and the lists they make."""
