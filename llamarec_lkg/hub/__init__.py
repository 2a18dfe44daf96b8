"""Saved folders, cards, and pushing them."""
