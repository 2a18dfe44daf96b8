"""Forms in which people's data come: each is read as its owner means it, or the refusal names the very cause, and its
remedy helps."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llamarec_lkg.data.anonymize import anonymize_users
from llamarec_lkg.data.interactions import CUT, Interactions
from llamarec_lkg.data.ledger import EXACT_DUPLICATES
from llamarec_lkg.data.schema import ItemTable, Triples
from llamarec_lkg.data.sequences import PreprocessingSettings, SequenceDataset
from llamarec_lkg.data.sources import load_dataset_bundle, open_source
from llamarec_lkg.data.values import record_of, spell_id, text_of, texts_of
from llamarec_lkg.hub.push_dataset import write_dataset
from llamarec_lkg.utils.errors import LKGError


ALL = PreprocessingSettings(min_user_interactions=1, min_item_interactions=1)
CLICKS = "user_id,item_id,timestamp\nu,1,1\nu,2,2\nu,3,3\n"
FILMS = "item_id,title,genre\n1,Up,Family\n2,Heat,Crime|Drama\n3,Antz,\n"


def folder_of(tmp_path, **files):
    for name, content in files.items():
        stem, _, suffix = name.rpartition("__")
        path = tmp_path / f"{stem}.{suffix}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def read(tmp_path, items=FILMS, interactions=CLICKS):
    return load_dataset_bundle(folder_of(tmp_path, interactions__csv=interactions, items__csv=items))


def times(*values):
    frame = pd.DataFrame({"user_id": "u", "item_id": range(len(values)), "timestamp": list(values)})
    return Interactions.from_frame(frame).timestamps.tolist()


# -- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, kept",
    [
        ([3, 1, 2], [3, 1, 2]),
        ([1588687728923, 1588687728001], [1588687728923, 1588687728001]),
        (["0.11", "0.25", "0.5", "0.99"], [11, 25, 50, 99]),
        ([1396867869.75, 1396867869.5], [139686786975, 139686786950]),
        (["9007199254740993", "9007199254740992"], [9007199254740993, 9007199254740992]),
        (["2024-01-03 10:00:00.250000", "2024-01-03 10:00:01"], [1704276000250, 1704276001000]),
        (["2024-01-03T10:00:01Z", "2024-01-03T12:00:01+02:00"], [1704276001, 1704276001]),
        (["2024-01-03", "2024-01-03 00:00:00.000001"], [1704240000000000, 1704240000000001]),
        (["Jan 3, 2024", "February 5, 2024"], [1704240000, 1707091200]),
        (["02/01/2024", "13/02/2024"], [1704153600, 1707782400]),
        (["02/01/2024 10:00", "02/28/2024 10:00"], [1706781600, 1709114400]),
        (["11/15/2019 10:22:32 AM", "1/2/2019 1:02 pm"], [1573813352, 1546434120]),
        (["15.11.2019 12:22 AM", "2.1.2019 12:02:03 PM"], [1573777320, 1546430523]),
        (["2019-11-15 1:22:32 PM", "Jul 30, 2017 10:22 AM"], [1573824152, 1501410120]),
        (["Jan 3, 2024 10:00", "3 January 2024 10:00:01"], [1704276000, 1704276001]),
        (["31/01/2024T05:00", "1/2/2024T05:00:00.5"], [1706677200000, 1706763600500]),
        (["2024-01-03 10:00:00.123456789", "2024-01-03T10:00:01Z"], [1704276000123456789, 1704276001000000000]),
        (["0.1234567890123", "0.5"], [1234567890123, 5000000000000]),
        (pd.to_datetime(["2024-01-03", "2024-01-04"]), [1704240000, 1704326400]),
        (pd.to_datetime([1704067200123456789], utc=True), [1704067200123456789]),
        (pd.to_datetime([1704067200123456789, 1704067200123456790]), [1704067200123456789, 1704067200123456790]),
    ],
)
def test_times_keep_the_precision_and_the_order_they_came_with(given, kept):
    assert times(*given) == kept


@pytest.mark.parametrize(
    "given, kept",
    [
        (["9223372036.854775808", "1"], [922337203685477580, 10**8]),
        (["1396867869.1234567896", "1"], [1396867869123456789, 10**9]),
        (["0.1234567890123456789", "0"], [123456789012345679, 0]),
        (["1e-19", "0"], [0, 0]),
        (["2024-01-03 10:00:00.1234567891", "2024-01-03"], [1704276000123456789, 1704240000000000000]),
        (["9999-12-31", "2024-01-03 10:00:00.1234567"], [253402214400000000, 1704276000123456]),
    ],
)
def test_digits_that_64_bits_do_not_hold_are_cut_and_the_ledger_says_so(make_dataset, caplog, given, kept):
    assert times(*given) == kept
    data = make_dataset([(user, item, time, 1) for user in (1, 2) for item, time in enumerate(given * 2)])
    assert list(data.ledger.changed.values()) == [4] and "are cut" in caplog.text


@pytest.mark.parametrize(
    "given, said, mended",
    [
        ([1e20, 2e20], r"2 value\(s\) that are too large for a time, the first is '1e\+20' in row 0", [1e10, 2e10]),
        (
            ["02/01/2024", "01/02/2024"],
            "day, month and year cannot be told apart, .* the first is '02/01/2024' in row 0",
            ["2024-01-02"] * 2,
        ),
        (
            ["31-12-24", "01-01-25"],
            "day, month and year cannot be told apart, .* the first is '31-12-24'",
            ["2024-12-31", "2025-01-01"],
        ),
        (["13/01/2024", "01/13/2024"], "cannot be told apart", ["2024-01-13"] * 2),
        (["2024-01-02", "5"], "dates among numbers, the first is '2024-01-02' in row 0", ["2024-01-02"] * 2),
        (["1", "soon"], "neither numbers nor dates that can be read, the first is 'soon' in row 1", ["1", "2"]),
    ],
)
def test_a_time_that_cannot_be_told_is_refused_by_its_row(given, said, mended):
    with pytest.raises(LKGError, match=said):
        times(*given)
    assert len(times(*mended)) == 2


# -- ids and texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [862, 862.0, "862", " 862 ", "862.0", b"862", np.int64(862), np.float32(862)])
def test_an_id_has_one_spelling(given):
    assert spell_id(given) == "862"
    frame = pd.DataFrame({"user_id": [given], "item_id": [given], "timestamp": [1]})
    assert Interactions.from_frame(frame).items.tolist() == ["862"]


@pytest.mark.parametrize(
    "cells",
    [
        ["862", "862.0", " 862 ", "-3.00", "007", "8.62", "a\u00a0", "\u3000b\t", "\x1fc\v", "nan", "None", "1e3"],
        [b"862", b"862.0", "Am\u00e9lie ".encode()],
        [862.0, 0.1, 1e15, 9007199254740993.0, 1e16, 1e20, 1e-7],
        np.array([862.0, 0.5, 1e10], dtype=np.float32),
        [862, -3, 2**62],
        [862, 862.0, "862.0", " x"],
    ],
)
def test_the_engine_and_python_spell_ids_alike(cells):
    frame = pd.DataFrame({"user_id": pd.Series(cells), "item_id": pd.Series(cells), "timestamp": 1})
    assert Interactions.from_frame(frame).items.tolist() == [spell_id(cell) for cell in pd.Series(cells)]


@pytest.mark.parametrize("given", [None, np.nan, "", "  ", pd.NA, b""])
def test_a_blank_is_no_id(given):
    assert spell_id(given) is None


@pytest.mark.parametrize(
    "given, texts",
    [
        ("Crime|Drama", ("Crime", "Drama")),
        (["Crime", "Drama"], ("Crime", "Drama")),
        (np.array(["Crime"]), ("Crime",)),
        ('["Crime", "Drama"]', ("Crime", "Drama")),
        ("['Crime', 'Drama']", ("Crime", "Drama")),
        ([["Books", "Crime"], ["Books"]], ("Books", "Crime")),
        (b"Am\xc3\xa9lie", ("Amélie",)),
        (1995.0, ("1995",)),
        ("All Beauty", ("All Beauty",)),
        ("['Crime' 'Drama'\n 'Film noir']", ("Crime", "Drama", "Film noir")),
        ("[['Books', 'Crime'], ['Books']]", ("Books", "Crime")),
        ("(500) Days", ("(500) Days",)),
        *((nothing, ()) for nothing in (None, np.nan, "", "None", "[]", [], "nan", "{}", "\\N", "N/A", "<NA>")),
    ],
)
def test_a_cell_of_several_texts_is_read_by_its_meaning(given, texts):
    assert texts_of(given) == texts


def test_one_text_is_never_a_list_and_a_record_never_a_text():
    assert text_of(b"Am\xc3\xa9lie") == "Amélie" and text_of(np.nan) == ""
    with pytest.raises(LKGError, match=r"\['a', 'b'\] stands where one text is needed"):
        text_of(["a", "b"])
    assert record_of('{"Brand": "ACME"}') == record_of("{'Brand': 'ACME'}") == {"Brand": "ACME"}
    assert record_of("{}") == record_of(None) == record_of("None") == {}
    with pytest.raises(LKGError, match="'ACME' stands where a record"):
        record_of("ACME")
    for cell in ({"id": 16, "name": "Toys"}, "{'id': 16, 'name': 'Toys'}", '[{"id": 16, "name": "Toys"}]'):
        with pytest.raises(LKGError, match=r"\{'id': 16, 'name': 'Toys'\} stands where one text is needed"):
            texts_of(cell)


@pytest.mark.parametrize("column", ["item_id", "title", "maker"])
def test_two_halves_of_a_character_are_one_and_a_single_half_is_none(column):
    items = pd.DataFrame({"item_id": ["1"], "title": ["Heat"], "maker": ["Mann"]}, dtype=object)
    items[column] = pd.Series(["a \ud83d\udc4d"], dtype=object)
    table = ItemTable.from_frame(items)
    assert "a \U0001f44d" in (table.ids[0], table.titles[0], *table.attributes["MAKER"][0])
    items[column] = pd.Series(["a \ud83d"], dtype=object)
    with pytest.raises(LKGError, match=r"'a \\ud83d' holds half of a character"):
        ItemTable.from_frame(items)
    table = {"item_id": ["1"], "title": ["Heat"], "maker": ["Mann"]}
    clicks = {"user_id": [1], "item_id": ["a \U0001f44d" if column == "item_id" else "1"], "timestamp": [1]}
    load_dataset_bundle({"interactions": clicks, "items": {**table, column: ["a \ud83d\udc4d"]}})
    with pytest.raises(LKGError, match=r"'a \\ud83d' holds half of a character"):
        load_dataset_bundle({"interactions": clicks, "items": {**table, column: ["a \ud83d"]}})


def test_bytes_of_parquet_are_text(tmp_path):
    pd.DataFrame({"item_id": [b"1"], "title": [b"Am\xc3\xa9lie"], "genre": [b"Crime"]}).to_parquet(
        tmp_path / "i.parquet"
    )
    items = ItemTable.from_frame(pd.read_parquet(tmp_path / "i.parquet"))
    assert (items.ids, items.titles, items.attributes) == (("1",), ("Amélie",), {"GENRE": (("Crime",),)})


def test_nested_fields_that_another_tool_saved_as_text(tmp_path):
    reviews = [{"user_id": "u", "parent_asin": "B0", "rating": 5.0, "timestamp": second} for second in (1, 2)]
    product = {"parent_asin": "B0", "title": "Soap", "details": '{"Brand": "ACME"}', "categories": "All Beauty"}
    (tmp_path / "X.jsonl").write_text("\n".join(map(json.dumps, reviews)))
    (tmp_path / "meta_X.jsonl").write_text(json.dumps({**product, "bought_together": "None"}))
    bundle = load_dataset_bundle(tmp_path)
    assert bundle.items.attributes == {"BRAND": (("ACME",),), "CATEGORY": (("All Beauty",),)}
    assert bundle.triples is None


# -- dialects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        FILMS.replace(",", ";"),
        FILMS.replace(",", "\t"),
        FILMS.replace(",", ", "),
        FILMS.replace("\n", "\r\n"),
        "\ufeff" + FILMS,
        FILMS.encode("utf-16"),
        FILMS.replace("Up,", '"Up",'),
    ],
    ids=["semicolons", "tabs", "blanks", "windows", "mark", "utf-16", "quotes"],
)
def test_a_table_in_another_dialect_is_the_same(tmp_path, table):
    items = read(tmp_path, table).items
    assert (items.ids, items.titles) == (("1", "2", "3"), ("Up", "Heat", "Antz"))
    assert items.attributes == {"GENRE": (("Family",), ("Crime", "Drama"), ())}


def test_latin_1_and_escaped_quotes_are_read_and_told(tmp_path, caplog):
    table = 'item_id,title\n1,Amélie\n2,"The \\"Heat\\", again"\n3,x\n'
    assert read(tmp_path, table.encode("latin-1")).items.titles == ("Amélie", 'The "Heat", again', "x")
    assert "items.csv is not in UTF-8; it is read as Latin-1" in caplog.text


def test_letters_of_windows_are_kept(tmp_path):
    assert read(tmp_path, "item_id,title\n1,It’s 5 €…\n2,“é”\n".encode("cp1252")).items.titles == ("It’s 5 €…", "“é”")


def test_a_header_that_comes_again_is_no_row(tmp_path):
    header = FILMS.partition("\n")[0]
    bundle = read(tmp_path, f"{FILMS}{header}\n4,Cars,genre\n", CLICKS + CLICKS)
    assert bundle.items.ids == ("1", "2", "3", "4") and bundle.interactions.items.tolist() == ["1", "2", "3"] * 2


def test_a_column_without_a_name_is_left_out_and_two_of_one_name_are_refused(tmp_path, caplog):
    assert read(tmp_path, ",item_id,title\n0,1,Up\n1,2,Heat\n2,3,x\n").items.attributes == {}
    assert "has a column without a name" in caplog.text
    with pytest.raises(LKGError, match=r"columns \['Title', 'title'\], which are one name here"):
        read(tmp_path, "item_id,Title,title\n1,a,b\n")


def test_tables_of_json_lines_and_packed_ones_are_the_same(tmp_path):
    rows = [{"item_id": "007", "title": "Up", "genre": ["Family", "Drama"]}, {"item_id": "2", "title": "Heat"}]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pd.DataFrame({"user_id": ["u"], "item_id": ["007"], "timestamp": [3]}).to_csv(tmp_path / "interactions.csv.gz")
    bundle = load_dataset_bundle(tmp_path)
    assert bundle.items.ids == ("007", "2") and bundle.items.attributes == {"GENRE": (("Family", "Drama"), ())}
    assert bundle.interactions.items.tolist() == ["007"]


def test_ids_of_json_lines_stay_as_they_are_written(tmp_path):
    ids = [862, "x", "10:00", "2024-01-03T10:00:00Z", "6F9619FF-8B86-D011-B42D-00CF4FC964FF", 18446744073709551617]
    rows = [{"user_id": one, "item_id": one, "timestamp": 1} for one in ids]
    (tmp_path / "interactions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "items.csv").write_text("item_id,title\n862,1984\n")
    assert load_dataset_bundle(tmp_path).interactions.users.tolist() == list(map(str, ids))


def test_a_folder_is_read_alone_whatever_it_is_called(tmp_path):
    for name, user in (("a[12]", "here"), ("a1", "there"), ("user_id=7", "me")):
        (tmp_path / name).mkdir()
        pd.DataFrame({"user_id": [user], "item_id": ["1"], "timestamp": [1]}).to_parquet(
            tmp_path / name / "interactions.parquet"
        )
        (tmp_path / name / "items.csv").write_text("item_id,title\n1,Up\n")
    assert load_dataset_bundle(tmp_path / "a[12]").interactions.users.tolist() == ["here"]
    assert load_dataset_bundle(tmp_path / "user_id=7").interactions.users.tolist() == ["me"]


def test_what_parquet_has_beside_blanks_stays_as_it_is(tmp_path):
    ids = pa.array([1.0, float("nan"), 3.0])  # NaN, of which the statistics of the file say nothing
    pq.write_table(
        pa.table({"user_id": ids, "item_id": ids, "timestamp": [1, 2, 3]}), tmp_path / "interactions.parquet"
    )
    items = pa.table({"item_id": [1, 3], "title": ["Up", "Heat"], "maker": pa.array([2**60 + 1, None])})
    pq.write_table(items, tmp_path / "items.parquet")
    with pytest.raises(LKGError, match=r"'user_id' .* has 1 missing value\(s\), the first in row 1"):
        load_dataset_bundle(tmp_path)
    folder_of(tmp_path, interactions__csv=CLICKS)
    (tmp_path / "interactions.parquet").unlink()
    assert load_dataset_bundle(tmp_path).items.attributes == {"MAKER": ((str(2**60 + 1),), ())}


def test_an_index_with_a_name_is_a_column(tmp_path):
    clicks = pd.DataFrame({"user_id": ["u", "u"], "item_id": [1, 2], "timestamp": [1, 2]})
    films = pd.DataFrame({"item_id": [1, 2], "title": ["Up", "Heat"]}).set_index("item_id")
    films.to_parquet(tmp_path / "items.parquet")
    clicks.set_index("user_id").to_parquet(tmp_path / "interactions.parquet")
    in_memory = {"interactions": clicks.set_index(["user_id", "item_id"]), "items": films}
    for bundle in (load_dataset_bundle(tmp_path), load_dataset_bundle(in_memory)):
        assert bundle.items.ids == ("1", "2") and not bundle.items.attributes
        assert bundle.interactions.to_frame()[["user_id", "item_id"]].to_numpy().tolist() == [["u", "1"], ["u", "2"]]


def test_columns_beside_those_that_are_read_change_nothing(tmp_path):
    table = pd.DataFrame({"row": [1, 2], "user_id": [862.0, 7.0], "item_id": [" i", "j"], "timestamp": [1.5, 2.25]})
    table.to_parquet(tmp_path / "interactions.parquet")
    (tmp_path / "items.csv").write_text("item_id,title\ni,Up\nj,Heat\n")
    found = load_dataset_bundle(tmp_path).interactions
    assert (found.users.tolist(), found.items.tolist()) == (["862", "7"], ["i", "j"])
    assert found.timestamps.tolist() == [150, 225]
    table.assign(USER_ID="x").to_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(LKGError, match=r"columns \['USER_ID', 'user_id'\], which are one name here"):
        load_dataset_bundle(tmp_path)


def test_one_odd_cell_of_many_is_seen():
    ids = pd.Series([1] * 30_000, dtype=object)
    ids[12_345] = "x"
    times = pd.Series([1] * 30_000, dtype=object)
    times[12_345] = 1.5
    found = Interactions.from_frame(pd.DataFrame({"user_id": ids, "item_id": ids, "timestamp": times}))
    assert found.users[12_345] == "x" and found.timestamps[[0, 12_345]].tolist() == [10, 15]


def test_blank_lines_before_a_header_and_backslashes_are_no_matter(tmp_path):
    items = '\n\nitem_id,title\n1,"C:\\dir\\new"\n2,"5\\"\n3,"say ""hi"""\n'
    assert read(tmp_path, items).items.titles == ("C:\\dir\\new", "5\\", 'say "hi"')


def test_columns_are_mapped_by_name(tmp_path):
    folder_of(tmp_path, interactions__csv="reviewerID,asin,unixReviewTime,item_id\nu,B0,5,x\n")
    folder_of(tmp_path, items__csv="asin,name,brand\nB0,Soap,ACME\n")
    with pytest.raises(LKGError, match=r"lacks \['user_id', 'timestamp'\].*rename.*data.columns"):
        load_dataset_bundle(tmp_path)
    columns = {"user_id": "reviewerID", "item_id": "asin", "timestamp": "unixReviewTime", "title": "name"}
    bundle = load_dataset_bundle(tmp_path, columns=columns)
    assert bundle.interactions.items.tolist() == ["B0"] and bundle.items.titles == ("Soap",)
    assert bundle.items.attributes == {"BRAND": (("ACME",),)}
    with pytest.raises(LKGError, match=r"no column \['stars'\]; they have \['asin', 'brand', "):
        load_dataset_bundle(tmp_path, columns={**columns, "rating": "stars"})


# -- RecBole's files --------------------------------------------------------------------------------------------------

INTER = "user_id:token\titem_id:token\ttimestamp:float\n"


def test_parts_are_joined_in_their_order(tmp_path):
    parts = {part: f"{INTER}u\t{row}\t{row}\n" for row, part in enumerate(("train", "valid", "test"))}
    folder_of(tmp_path, **{f"x.{part}__inter": text for part, text in parts.items()})
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\n0\tA b\n1\tB\n2\tC\n")
    bundle = load_dataset_bundle(tmp_path)
    assert bundle.name == "x" and bundle.interactions.items.tolist() == ["0", "1", "2"]
    assert bundle.items.titles == ("A b", "B", "C")


def test_parts_with_columns_in_another_order_are_the_same_and_with_others_refused(tmp_path):
    (tmp_path / "x.train.inter").write_text(f"{INTER}u1\ti1\t1\n")
    (tmp_path / "x.test.inter").write_text("item_id:token\tuser_id:token\ttimestamp:float\ni2\tu2\t2\n")
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\ni1\tA\n")
    found = load_dataset_bundle(tmp_path).interactions
    assert found.users.tolist() == ["u1", "u2"] and found.items.tolist() == ["i1", "i2"]
    (tmp_path / "x.test.inter").write_text(f"rating:float\t{INTER}3\tu2\ti2\t2\n")
    with pytest.raises(LKGError, match="have different columns. Give all of them the same"):
        load_dataset_bundle(tmp_path)


def test_what_atomic_files_lack_is_named_and_names_are_titles(tmp_path):
    (tmp_path / "x.inter").write_text("user_id:token\tartist_id:token\tweight:float\n1\t2\t3\n")
    with pytest.raises(LKGError, match=r"none is timestamp. .*without times, number the rows"):
        load_dataset_bundle(tmp_path)
    (tmp_path / "x.inter").write_text("user_id:token\tartist_id:token\tweight:float\ttimestamp:float\n1\t2\t3\t1\n")
    with pytest.raises(LKGError, match="holds no x.item, which has the titles"):
        load_dataset_bundle(tmp_path)
    (tmp_path / "x.item").write_text("artist_id:token\tname:token\tpicture_url:token\n2\tMuse\tu\n")
    bundle = load_dataset_bundle(tmp_path)
    assert bundle.items.titles == ("Muse",) and bundle.interactions.items.tolist() == ["2"]


def test_values_in_quotation_marks_hold_together(tmp_path):
    (tmp_path / "x.inter").write_text(f"{INTER}u\t1\t1\n")
    row = "1\tUp\t'Movies & TV', 'Science Fiction'\tDrama Crime\n"
    (tmp_path / "x.item").write_text(f"item_id:token\ttitle:token_seq\tcategories:token_seq\tclass:token_seq\n{row}")
    attributes = load_dataset_bundle(tmp_path).items.attributes
    assert attributes == {"CATEGORIES": (("Movies & TV", "Science Fiction"),), "GENRE_IS": (("Drama", "Crime"),)}


# -- the ledger -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_what_was_written_is_what_is_read_or_the_ledger_says_the_difference(tmp_path, seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(40, 200))
    frame = pd.DataFrame(
        {
            "user_id": generator.integers(0, 12, count),
            "item_id": generator.integers(0, 9, count),
            "timestamp": generator.integers(0, 60, count) / generator.choice([1, 4]),
        }
    )
    frame.to_csv(tmp_path / "interactions.csv", index=False)
    pd.DataFrame({"item_id": range(7), "title": "t"}).to_csv(tmp_path / "items.csv", index=False)
    bundle = load_dataset_bundle(tmp_path)
    assert bundle.interactions.users.tolist() == frame["user_id"].astype(str).tolist()
    assert bundle.interactions.items.tolist() == frame["item_id"].astype(str).tolist()
    ranks = pd.Series(bundle.interactions.timestamps).rank()
    assert ranks.tolist() == frame["timestamp"].rank().tolist()
    data = SequenceDataset.from_bundle(bundle, ALL)
    assert len(data.item_sequence) + sum(data.ledger.left_out.values()) == count
    assert data.ledger.left_out.get("of items that have no row in the item table", 0) == int(
        (frame.drop_duplicates()["item_id"] >= 7).sum()
    )
    assert data.ledger.left_out.get(EXACT_DUPLICATES, 0) == int(frame.duplicated().sum())
    data.save(tmp_path / "saved")
    assert SequenceDataset.load(tmp_path / "saved").ledger == data.ledger


def test_a_blank_or_a_list_is_no_id_in_any_table():
    with pytest.raises(LKGError, match=r"'item_id' of the items table has 1 missing value\(s\), the first in row 1"):
        ItemTable.from_frame(pd.DataFrame({"item_id": ["1", " "], "title": ["Up", "Heat"]}))
    with pytest.raises(LKGError, match=r"'head' of the triples table has 1 missing value\(s\), the first in row 0"):
        Triples.from_frame(pd.DataFrame({"head": [" "], "relation": ["R"], "tail": ["x"]}), {})
    with pytest.raises(LKGError, match=r"\['a'\] stands where"):
        Interactions.from_frame(pd.DataFrame({"user_id": [["a"]], "item_id": [1], "timestamp": [1]}))


def test_names_of_columns_are_checked_in_memory_as_in_a_folder(caplog):
    given = {
        "interactions": {"user_id": [1], "item_id": [1], "timestamp": [1]},
        "items": {"item_id": [1], "title": ["Up"]},
    }
    with pytest.raises(LKGError, match=r"The tables have no column \['stars'\]"):
        load_dataset_bundle(given, columns={"rating": "stars"})
    with pytest.raises(LKGError, match="'user_id'.*one name here"):
        Interactions.from_frame(pd.DataFrame([[1, 1, 1, 1]], columns=["user_id", "user_id", "item_id", "timestamp"]))


def test_what_is_cut_is_told_of_data_that_are_numbered_and_on_the_card(tmp_path):
    interactions = "user_id,item_id,timestamp\n" + "".join(f"u,{n},139686786{n}.1234567896\n" for n in (1, 2, 3))
    raw = anonymize_users(open_source(folder_of(tmp_path, interactions__csv=interactions, items__csv=FILMS)))
    write_dataset(raw, tmp_path / "written")
    assert raw.to_bundle().interactions.ledger.changed == {CUT: 3}
    assert f"3 interactions {CUT}" in (tmp_path / "written" / "README.md").read_text()


def test_a_backslash_that_ends_a_cell_before_a_quotation_mark_escapes_nothing(tmp_path):
    bundle = read(tmp_path, items='item_id,title\n1,"C:\\""x"\n2,"He said ""no"""\n3,Up\n')
    assert bundle.items.titles == ('C:\\"x', 'He said "no"', "Up")
