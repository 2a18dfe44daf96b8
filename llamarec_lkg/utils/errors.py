"""The error that everything in the library raises for input that cannot be used."""

from __future__ import annotations


class LKGDataError(ValueError):
    """Input that cannot be used as it is. The message names what was found, what is needed and the remedy."""
