"""How many configurations were measured on the same test targets: whoever tunes on them is told so by every report."""

from __future__ import annotations

import logging

from ..utils.files import cache_dir, read_json, write_json


logger = logging.getLogger(__name__)


def note_test_reading(data_key: str, configuration: str) -> int:
    """Remember, in the cache, that a configuration was measured on the test targets of these data.

    Returns:
        how many other configurations were before.
    """
    path = cache_dir() / "test_readings" / f"{data_key}.json"
    known = read_json(path) if path.exists() else []
    if configuration not in known:
        try:
            write_json(path, [*known, configuration])
        except OSError as error:  # no reason to lose what was measured
            logger.warning(
                f"This reading of test targets cannot be noted ({error}), and later reports do not count it."
            )
    return sum(other != configuration for other in known)
