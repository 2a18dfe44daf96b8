"""What the tests share: a cache of their own, small data sets made by rule, and the real data where it is present."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hub_stand_in.client import hub, hub_server, wheel  # noqa: F401 (fixtures)

from llamarec_lkg.data.interactions import Interactions
from llamarec_lkg.data.schema import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID, DatasetBundle, ItemTable
from llamarec_lkg.data.sequences import PreprocessingSettings, SequenceDataset
from llamarec_lkg.data.sources import load_dataset_bundle


ML_LATEST_SMALL = Path(__file__).resolve().parents[2] / "shared" / "data" / "ml-latest-small"


@pytest.fixture
def shared_cache() -> None:
    """Ask for this to keep the cache of the environment, where the downloaded data sets and models are."""


@pytest.fixture(autouse=True)
def isolated_cache(request, monkeypatch, tmp_path_factory) -> None:
    """Every test has an empty cache of its own, unless it asks for `shared_cache`."""
    if "shared_cache" not in request.fixturenames:
        monkeypatch.setenv("LLAMAREC_LKG_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def movielens_folder() -> Path:
    if not (ML_LATEST_SMALL / "ratings.csv").exists():
        pytest.skip(f"the data folder {ML_LATEST_SMALL} is absent")
    return ML_LATEST_SMALL


@pytest.fixture(scope="session")
def movielens_dataset(movielens_folder) -> SequenceDataset:
    """ml-latest-small under the published protocol."""
    return SequenceDataset.from_bundle(load_dataset_bundle(movielens_folder), PreprocessingSettings(ties="item_id"))


def _bundle(rows, items=None, name="tiny", **extra) -> DatasetBundle:
    rows = [row if len(row) == 4 else (*row, 3.0) for row in rows]
    interactions = pd.DataFrame(rows, columns=[USER_ID, ITEM_ID, TIMESTAMP, RATING])
    if items is None:
        ids = list(dict.fromkeys(interactions[ITEM_ID]))
        items = pd.DataFrame({ITEM_ID: ids, TITLE: [f"Title {raw}" for raw in ids]})
    return DatasetBundle(name, Interactions.from_frame(interactions), ItemTable.from_frame(items), **extra)


@pytest.fixture(scope="session")
def make_bundle():
    """`make_bundle([(user, item, timestamp[, rating]), ...], items=None)`."""
    return _bundle


@pytest.fixture(scope="session")
def make_dataset():
    """`make_dataset(rows, items=None, **settings)`; the k-core filter is off unless the settings say otherwise."""

    def make(rows, items=None, **settings) -> SequenceDataset:
        settings = {"min_user_interactions": 1, "min_item_interactions": 1, **settings}
        return SequenceDataset.from_bundle(_bundle(rows, items), PreprocessingSettings(**settings))

    return make


@pytest.fixture(scope="session")
def film_items() -> pd.DataFrame:
    """Six films with directors (none, one or two) and genres."""
    return pd.DataFrame(
        {
            ITEM_ID: [1, 2, 3, 4, 5, 6],
            TITLE: ["Heat (1995)", "Insider, The (1999)", "Toy Story (1995)", "Antz (1998)", "Alien (1979)", "Up"],
            "DIRECTED_BY": ["Mann", "Mann", "Lasseter", "Darnell|Johnson", "Scott", None],
            "GENRE_IS": ["Action|Crime", "Drama", "Comedy|Family", "Comedy|Family", "Action|Horror", "Family"],
        }
    )


@pytest.fixture(scope="session")
def film_dataset(make_dataset, film_items) -> SequenceDataset:
    """Four users, six films, five interactions each: user `u` starts at film `u` and goes round."""
    rows = [
        (user, (user + step - 1) % 6 + 1, 100 * step + user, 1.0 + step) for user in range(1, 5) for step in range(5)
    ]
    return make_dataset(rows, film_items)


@pytest.fixture(scope="session")
def cycle_dataset(make_dataset) -> SequenceDataset:
    """A planted truth: item `i` is always followed by item `i + 1`, the last one by the first."""
    generator = np.random.default_rng(0)
    rows = []
    for user in range(1, 61):
        start, length = int(generator.integers(0, 30)), int(generator.integers(6, 10))
        rows += [(user, (start + step) % 30 + 1, step) for step in range(length)]
    return make_dataset(rows)
