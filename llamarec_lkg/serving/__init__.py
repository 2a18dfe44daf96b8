"""Recommending with a trained ranker, and saying why."""
