"""The search for known users in what is to be published."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llamarec_lkg.data.user_ids import refuse_people, telling
from llamarec_lkg.utils.errors import LKGError


ADA, BOB = "ada@example.org", "bob-7"
USERS = [ADA, BOB, "Up", "12", "1995", "491512345678"]


@pytest.fixture
def staged(tmp_path):
    """What a push has laid ready: twenty items, of which one is called like a user by chance, and a graph."""
    titles = [f"Film {number}" for number in range(19)] + ["Up"]
    items = pd.DataFrame({"item_id": [str(number) for number in range(20)], "title": titles})
    items["GENRE"] = [["Drama"], ["Action", "1995"], []] * 6 + [["12"]] * 2
    items.to_parquet(tmp_path / "items.parquet")
    (tmp_path / "graph").mkdir()
    nodes = pd.DataFrame({"key": ["0", "space", "1995"], "name": ["Film 0", "Space", "Up"]})
    nodes.to_parquet(tmp_path / "graph" / "nodes.parquet")
    pd.DataFrame({"user_id": pd.Series([], dtype=str)}).to_parquet(tmp_path / "users.parquet")
    return tmp_path


def change(path, column, value):
    frame = pd.read_parquet(path)
    frame[column] = [value, *frame[column].tolist()[1:]]
    frame.to_parquet(path)


def test_ids_other_than_short_numbers_tell():
    assert telling([*USERS, "-3", "1e5", "007", "1234567890", "u1"]) == {
        ADA, BOB, "Up", "491512345678", "1e5", "1234567890", "u1"
    }  # fmt: skip


def test_what_names_nobody_may_go_out(staged):
    refuse_people(staged, USERS)
    refuse_people(staged, [])


@pytest.mark.parametrize(
    "path, column, value",
    [
        ("items.parquet", "GENRE", ["Drama", BOB]),
        ("items.parquet", "title", ADA),
        ("items.parquet", "item_id", ADA),
        ("graph/nodes.parquet", "key", BOB),
        ("graph/nodes.parquet", "name", "491512345678"),
        ("graph/nodes.parquet", "name", f"Ann|{BOB}"),
        ("users.parquet", "user_id", BOB),
    ],
)
def test_a_known_user_is_found_in_any_column(staged, path, column, value):
    if path == "users.parquet":
        pd.DataFrame({"user_id": [value]}).to_parquet(staged / path)
    else:
        change(staged / path, column, value)
    with pytest.raises(LKGError, match=rf"^{path}, .* names 1 of the known users in its column '{column}'"):
        refuse_people(staged, iter(USERS), "; or do not publish")


def test_the_error_says_what_to_do(staged):
    change(staged / "items.parquet", "GENRE", [ADA])
    with pytest.raises(LKGError, match=r"'ada@example.org' for example.* Make it without.*'entity:7'.*; or stay"):
        refuse_people(staged, USERS, "; or stay")


def test_more_than_a_few_items_called_like_users_are_no_chance(staged):
    refuse_people(staged, [*USERS, "Film 3"])
    with pytest.raises(LKGError, match="names 3 of the known users in its column 'title'"):
        refuse_people(staged, [*USERS, "Film 3", "Film 4"])


def test_dictionaries_and_large_texts_are_texts_too(tmp_path):
    columns = {
        "a": pa.array([BOB, "x"]).dictionary_encode(),
        "b": pa.array([["x"], [BOB]], pa.large_list(pa.large_string())),
        "c": pa.array(["x", BOB], pa.large_string()),
    }
    for name, column in columns.items():
        pq.write_table(pa.table({"n": [1, 2], name: column}), tmp_path / "t.parquet")
        with pytest.raises(LKGError, match=f"column '{name}'"):
            refuse_people(tmp_path, USERS)
