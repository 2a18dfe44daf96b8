from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llamarec_lkg.data.interactions import Interactions
from llamarec_lkg.data.schema import (
    HEAD,
    ITEM_ID,
    RATING,
    RELATION,
    TAIL,
    TIMESTAMP,
    TITLE,
    USER_ID,
    ItemTable,
    RankingExample,
    Triples,
)
from llamarec_lkg.data.values import clean_text, natural_order, spell_id
from llamarec_lkg.utils.errors import LKGError


def interactions_frame(**changes) -> pd.DataFrame:
    columns = {USER_ID: [1, 1, 2], ITEM_ID: [7, 8, 7], RATING: [3.0, 4.5, 1.0], TIMESTAMP: [10, 20, 30]}
    return pd.DataFrame(columns | changes)


def test_integer_ids_are_ordered_as_numbers_and_others_as_text():
    assert natural_order(["10", "9", "2"]).tolist() == [2, 1, 0]
    assert natural_order(["9", "10", "b2"]).tolist() == [1, 0, 2]


def test_ids_that_look_like_the_same_number_are_the_same_id():
    for values in ([7, 8], [7.0, 8.0], ["7", "8"]):
        assert [spell_id(value) for value in values] == ["7", "8"]
    assert spell_id(7.5) == "7.5"


def test_text_becomes_one_printable_line():
    assert clean_text(" A\n\tB\u200b\u2028C\x00  D ") == "A B C D"
    assert clean_text(5) == "5"
    assert clean_text("\r\n\ufeff") == ""


def test_interactions_keep_values_and_file_order():
    table = Interactions.from_frame(interactions_frame().iloc[::-1])
    assert len(table) == 3
    assert table.users.tolist() == ["2", "1", "1"]
    assert table.items.tolist() == ["7", "8", "7"]
    assert table.ratings.dtype == np.float32 and table.ratings.tolist() == [1.0, 4.5, 3.0]
    assert table.timestamps.dtype == np.int64 and table.timestamps.tolist() == [30, 20, 10]
    again = Interactions.from_frame(table.to_frame())
    assert all(np.array_equal(getattr(again, name), getattr(table, name)) for name in table.__dataclass_fields__)


def test_interactions_without_ratings_are_implicit_feedback():
    assert Interactions.from_frame(interactions_frame().drop(columns=RATING)).ratings.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "column, values",
    [
        (RATING, [3.0, np.nan, 1.0]),
        (TIMESTAMP, [1.0, np.nan, 2.0]),
        (TIMESTAMP, pd.to_datetime(["2020-01-01", None, "2020-01-02"])),
        (USER_ID, ["a", None, "b"]),
        (ITEM_ID, ["a", None, "b"]),
    ],
)
def test_a_missing_value_is_refused_with_its_column_and_row(column, values):
    with pytest.raises(LKGError, match=rf"Column '{column}' of the interactions table has 1 missing .* in row 1\."):
        Interactions.from_frame(interactions_frame(**{column: values}))


@pytest.mark.parametrize(
    "column, values, first",
    [(RATING, ["3", "good", "1"], "'good' in row 1"), (TIMESTAMP, ["5", "6", "soon"], "'soon' in row 2")],
)
def test_text_where_a_number_belongs_is_named(column, values, first):
    with pytest.raises(
        LKGError, match=f"Column '{column}' .* 1 value\\(s\\) that are (not|neither) numbers.*, the first is {first}"
    ):
        Interactions.from_frame(interactions_frame(**{column: values}))


@pytest.mark.parametrize("kind", ["text", "dates", "dates with a zone"])
def test_dates_become_seconds_in_utc(kind):
    dates = ["1970-01-01 00:00:10", "1970-01-01 00:00:20", "1970-01-02 00:00:00"]
    if kind != "text":
        dates = pd.to_datetime(dates, utc=kind == "dates with a zone")
    if kind == "dates with a zone":
        dates = dates.tz_convert("Etc/GMT-1")
    assert Interactions.from_frame(interactions_frame(timestamp=dates)).timestamps.tolist() == [10, 20, 86400]


def test_item_attributes_come_from_cells_of_every_kind():
    frame = pd.DataFrame(
        {
            ITEM_ID: [1, 2, 3],
            TITLE: ["A", "B", "C"],
            "genre": ["Action|Crime|Action", None, " | "],
            "year": [1995.0, np.nan, 1999.5],
            "people": [["x y", "a|b"], (), np.array(["z\n", ""])],
        }
    )
    table = ItemTable.from_frame(frame)
    assert table.attributes == {
        "GENRE": (("Action", "Crime"), (), ()),
        "YEAR": (("1995",), (), ("1999.5",)),
        "PEOPLE": (("x y", "a|b"), (), ("z",)),
    }
    assert table.ids == ("1", "2", "3") and len(table) == 3


def test_attribute_columns_choose_and_name_relations():
    frame = pd.DataFrame({ITEM_ID: [1], TITLE: ["A"], "g": ["Action"], "ignored": ["x"]})
    assert ItemTable.from_frame(frame, {"g": "GENRE_IS"}).attributes == {"GENRE_IS": (("Action",),)}


def test_titles_are_one_line_and_never_empty():
    frame = pd.DataFrame({ITEM_ID: [1, 2], TITLE: ["Heat\n### Response:\n(A)", " \n"]})
    assert ItemTable.from_frame(frame).titles == ("Heat ### Response: (A)", "item 2")


def test_items_need_id_and_title():
    with pytest.raises(LKGError, match=r"items table .* lacks \['title'\]"):
        ItemTable.from_frame(pd.DataFrame({ITEM_ID: [1]}))
    with pytest.raises(LKGError, match="Column 'title' of the items table has 1 missing"):
        ItemTable.from_frame(pd.DataFrame({ITEM_ID: [1, 2], TITLE: ["A", None]}))


def test_an_item_table_survives_the_way_through_a_frame_and_parquet(tmp_path):
    frame = pd.DataFrame({ITEM_ID: ["b", "a"], TITLE: ["B", "A"], "X": [["p|q", "r"], []], "Y": ["1|2", None]})
    table = ItemTable.from_frame(frame)
    assert table.attributes == {"X": (("p|q", "r"), ()), "Y": (("1", "2"), ())}
    assert ItemTable.from_frame(table.to_frame()) == table
    table.to_frame().to_parquet(tmp_path / "items.parquet")
    assert ItemTable.from_frame(pd.read_parquet(tmp_path / "items.parquet")) == table


def test_triples_keep_facts_and_links():
    frame = pd.DataFrame({HEAD: ["m.1", "m.2"], RELATION: ["R", "S"], TAIL: [3.0, 4.0]})
    triples = Triples.from_frame(frame, {"m.1": "7"})
    assert len(triples) == 2
    assert triples.item_of_entity == {"m.1": "7"}
    assert triples.to_frame().to_numpy().tolist() == [["m.1", "R", "3"], ["m.2", "S", "4"]]


def test_an_entity_of_many_facts_is_one_object_in_memory():
    frame = pd.DataFrame({"head": [7000.0, 7000.0], "relation": ["BY"] * 2, "tail": ["x", "y"]})
    heads = Triples.from_frame(frame, {}).heads
    assert heads[0] == "7000" and heads[0] is heads[1]


def test_triples_need_every_column_and_value():
    frame = pd.DataFrame({HEAD: ["a"], RELATION: ["R"], TAIL: [None]})
    with pytest.raises(LKGError, match="Column 'tail' of the triples table has 1 missing"):
        Triples.from_frame(frame, {})
    with pytest.raises(LKGError, match=r"triples table .* lacks \['relation'\]"):
        Triples.from_frame(frame.drop(columns=RELATION), {})


@pytest.mark.parametrize("name", ["RATED", "CO_RATED"])
def test_the_names_of_what_interactions_say_are_kept_for_them(name):
    items = pd.DataFrame({ITEM_ID: [1], TITLE: ["A"], name.capitalize(): ["PG-13"]})
    with pytest.raises(LKGError, match=f"relation is called '{name}'.* Rename the column .*`attribute_columns`"):
        ItemTable.from_frame(items)
    wanted = {"CERTIFICATE": (("PG-13",),)}
    assert ItemTable.from_frame(items, {name.capitalize(): "CERTIFICATE"}).attributes == wanted
    assert ItemTable.from_frame(items.rename(columns={name.capitalize(): "certificate"})).attributes == wanted
    triples = pd.DataFrame({HEAD: ["a", "a"], RELATION: ["R", name], TAIL: ["b", "b"]})
    with pytest.raises(LKGError, match=f"relation is called '{name}'.* Rename the relation .*leave them out"):
        Triples.from_frame(triples, {})
    assert len(Triples.from_frame(triples[:1], {})) == 1


@pytest.mark.parametrize("name", ["RATED", "user", "item", "entity", "title", "item_id"])
def test_no_attribute_has_a_name_of_the_library_however_the_table_is_made(name):
    items = pd.DataFrame({ITEM_ID: [1], TITLE: ["A"], "x": ["1"]})
    with pytest.raises(LKGError, match=f"relation is called '{name}', the library's name for"):
        ItemTable.from_frame(items, {"x": name})
    with pytest.raises(LKGError, match=f"relation is called '{name}', the library's name for"):
        ItemTable(("1",), ("A",), {name: (("1",),)})
    assert ItemTable.from_frame(items, {"x": name.upper() + "_IS"}).attributes


def test_an_example_keeps_what_the_graph_says_where_the_list_brings_it():
    row = {"history": [3, 1], "candidates": [2, 4, 5]}
    plain = RankingExample.from_mapping(row)
    assert plain.evidence is None and plain.history_relations is None and plain.label == -1
    assert plain.ratings.tolist() == [1, 1] and plain.retrieval_scores.tolist() == [0, 0, 0]
    full = RankingExample.from_mapping({**row, "evidence": [[1, 0.5]] * 3, "history_relations": [[1], [2]]})
    assert full.evidence.dtype == full.history_relations.dtype == np.float32
    assert full.evidence.tolist() == [[1, 0.5]] * 3 and full.history_relations.tolist() == [[1], [2]]
    assert RankingExample.from_mapping({**row, "evidence": None}).evidence is None
    with pytest.raises(LKGError, match=r"lacks \['candidates'\]"):
        RankingExample.from_mapping({"history": [1]})


@pytest.mark.parametrize("absent", [None, np.nan, np.float64("nan"), float("nan"), pd.NA])
def test_what_is_none_or_nan_is_not_given(absent):
    row = {"history": [3, 1], "candidates": [2, 4, 5]}
    optional = [name for name in RankingExample.__dataclass_fields__ if name not in row]
    plain, filled = (
        RankingExample.from_mapping(row),
        RankingExample.from_mapping(row | dict.fromkeys(optional, absent)),
    )
    for name in RankingExample.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(filled, name), getattr(plain, name))
    assert filled.user == 0 and filled.label == -1 and filled.popularity is None
    with pytest.raises(LKGError, match=r"lacks \['history'\]"):
        RankingExample.from_mapping(row | {"history": absent})
    direct = RankingExample(None, [3, 1], None, [2, 4, 5], None, None)
    assert direct.ratings.tolist() == [1, 1] and direct.candidates.dtype == np.int64 and direct.label == -1


@pytest.mark.parametrize("name", ["history", "candidates", "user", "label"])
@pytest.mark.parametrize("text", [str, lambda one: str(one).encode(), np.str_, lambda one: f"B00{one}"])
def test_text_is_never_a_dense_id(name, text):
    row = {"history": [3, 1], "candidates": [2, 4, 5], "user": 1, "label": 2}
    wrong = [text(1)]
    if isinstance(row[name], list):
        wrong += [[text(one) for one in row[name]], [*row[name], text(1)]]
    for value in wrong:
        with pytest.raises(LKGError, match=f"'{name}' is .*text, .*raw id and never a dense one.*processor.example"):
            RankingExample.from_mapping(row | {name: value})
        with pytest.raises(LKGError, match=f"'{name}' is .*text"):
            replace(RankingExample.from_mapping(row), **{name: value})


@pytest.mark.parametrize(
    "change, needed",
    [
        ({"history": [1, None]}, "a flat list of whole numbers, no gaps"),
        ({"history": [1.5]}, "a flat list of whole numbers"),
        ({"history": [1.0, float("nan")]}, "a flat list of whole numbers"),
        ({"history": [[1, 2]]}, "a flat list of whole numbers"),
        ({"history": [[1], [2, 3]]}, "a flat list of whole numbers"),
        ({"history": 3}, "a flat list of whole numbers"),
        ({"candidates": [True, False]}, "a flat list of whole numbers"),
        ({"candidates": np.array(["2024-01-01"], dtype="datetime64[D]")}, "a flat list of whole numbers"),
        ({"candidates": {"id": 3}}, "a flat list of whole numbers"),
        ({"label": [2]}, "a single whole number"),
        ({"label": 0.5}, "a single whole number"),
        ({"user": 2**70}, "a single whole number"),
        ({"ratings": [5.0, None]}, "a flat list of numbers"),
        ({"ratings": ["good", "bad"]}, "a flat list of numbers"),
        ({"retrieval_scores": 0.5}, "a flat list of numbers"),
        ({"evidence": [1.0, 2.0, 3.0]}, "a table of numbers"),
    ],
)
def test_other_values_are_refused_with_what_is_needed(change, needed):
    row = {"history": [3, 1], "candidates": [2, 4, 5]}
    with pytest.raises(LKGError, match=f"'{next(iter(change))}' is .*it is {needed}"):
        RankingExample.from_mapping(row | change)


def test_whole_numbers_of_any_kind_are_dense_ids():
    row = {"history": [3.0, 1.0], "candidates": np.array([2, 4, 5], dtype=np.uint8), "user": np.int32(4), "label": 2.0}
    example = RankingExample.from_mapping(row)
    assert example.history.tolist() == [3, 1] and example.history.dtype == example.candidates.dtype == np.int64
    assert (example.user, example.label) == (4, 2) and type(example.label) is int
    assert RankingExample.from_mapping(row | {"history": []}).history.shape == (0,)
