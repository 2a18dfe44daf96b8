"""Public data sets in the spelling of their files: a few lines of each, and all that is read of them."""

import gzip
import json
import logging

import pytest

from llamarec_lkg.data.convert import convert
from llamarec_lkg.data.values import records_of
from llamarec_lkg.utils.errors import LKGError


def write(path, *lines, encoding="utf-8"):
    data = "".join(f"{line}\n" for line in lines).encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path):
    """All that is read of a data set: interactions, items and what they are like."""
    bundle = convert(path)
    items = {
        raw: (title, *({relation: cells[row] for relation, cells in bundle.items.attributes.items()}.values()))
        for row, (raw, title) in enumerate(zip(bundle.items.ids, bundle.items.titles, strict=True))
    }
    assert bundle.triples is None and bundle.citation
    return bundle.interactions.to_frame().to_numpy().tolist(), items, list(bundle.items.attributes), bundle.name


@pytest.fixture
def yelp(tmp_path):
    stars = [("u1", "b1", 5.0, "2018-07-07 22:09:11"), ("u-2", "b2", 1.0, "2012-01-03 15:28:18")]
    keys = ("user_id", "business_id", "stars", "date")
    reviews = [
        {"review_id": "r", **dict(zip(keys, row, strict=True)), "text": 'A "b"\n', "useful": 0} for row in stars
    ]
    write(tmp_path / "yelp_academic_dataset_review.json", *map(json.dumps, reviews))
    business = {"address": "", "city": "Santa Barbara", "state": "CA", "stars": 5.0, "attributes": {"WiFi": "u'no'"}}
    businesses = [
        {"business_id": "b1", "name": "Café | Bar", "categories": "Coffee & Tea, Bars,Bars", **business},
        {"business_id": "b2", "name": "Shop", "categories": None, **business, "state": ""},
    ]
    write(tmp_path / "yelp_academic_dataset_business.json", *map(json.dumps, businesses))
    return tmp_path


def test_yelp(yelp):
    assert read(yelp) == (
        [["u1", "b1", 5.0, 1531001351], ["u-2", "b2", 1.0, 1325604498]],
        {
            "b1": ("Café | Bar", ("Coffee & Tea", "Bars"), ("Santa Barbara",), ("CA",)),
            "b2": ("Shop", (), ("Santa Barbara",), ()),
        },
        ["CATEGORY", "CITY", "STATE"],
        "yelp",
    )


@pytest.mark.parametrize("books", ["goodreads_books_poetry.json.gz", "goodreads_books.json"])
def test_goodreads(tmp_path, books):
    event = {"review_id": "r", "is_read": True, "date_updated": "", "read_at": "", "started_at": ""}
    events = [
        {"user_id": "8842", "book_id": "1384", "rating": 4, "date_added": "Sun Jul 30 07:44:10 -0700 2017", **event},
        {"user_id": "8842", "book_id": "18", "rating": 0, "date_added": "Wed Jan 04 00:00:00 +0000 2012", **event},
    ]
    write(tmp_path / "goodreads_interactions_poetry.json.gz", *map(json.dumps, events))
    shelves = [
        {"count": "96", "name": "to-read"},
        {"count": "9", "name": "poetry"},
        {"count": "2", "name": "classics"},
    ]
    authors = [{"author_id": "604", "role": ""}, {"author_id": "7", "role": "Translator"}]
    described = [
        {"book_id": "1384", "title": "Beowulf", "authors": authors, "popular_shelves": shelves, "publisher": "A | B",
         "series": ["189911"], "similar_books": ["18"], "isbn": ""},
        {"book_id": "18", "title": "", "authors": [], "popular_shelves": [], "publisher": "", "series": []},
    ]  # fmt: skip
    write(tmp_path / books, *map(json.dumps, described))
    assert read(tmp_path) == (
        [["8842", "1384", 4.0, 1501425850], ["8842", "18", 0.0, 1325635200]],
        {
            "1384": ("Beowulf", ("604", "7"), ("poetry", "classics"), ("189911",), ("A | B",)),
            "18": ("item 18", (), (), (), ()),
        },
        ["AUTHOR", "SHELF", "SERIES", "PUBLISHER"],
        "goodreads-poetry",
    )


def test_of_the_shelves_of_a_book_the_ten_most_used_count(tmp_path):
    event = {"user_id": "1", "book_id": "1", "rating": 4, "date_added": "Sun Jul 30 07:44:10 -0700 2017"}
    write(tmp_path / "goodreads_interactions_x.json", json.dumps(event))
    shelves = [{"count": str(99 - place), "name": f"s{place}"} for place in range(12)]
    write(tmp_path / "goodreads_books_x.json", json.dumps({"book_id": "1", "title": "A", "popular_shelves": shelves}))
    assert convert(tmp_path).items.attributes["SHELF"] == (tuple(f"s{place}" for place in range(10)),)


def test_steam(tmp_path):
    write(
        tmp_path / "steam_reviews.json.gz",
        "{u'username': u'Chaos \\u2122', u'hours': 0.1, u'product_id': u'725280', u'date': u'2017-12-17', u'page': 1}",
        "{u'username': u\"Ann's\", u'product_id': u'328100', u'date': u'2017-08-02', u'early_access': False}",
    )
    write(
        tmp_path / "steam_games.json.gz",
        "{u'id': u'725280', u'app_name': u'Rock &amp; Stone', u'title': u'Rock', u'genres': [u'Indie', u'Action'], "
        "u'tags': [u'Co-op'], u'developer': u'Ann, Bob', u'publisher': u'', u'price': 4.99}",
        "{u'id': u'328100', u'title': u'Alone', u'genres': [], u'publisher': u'P'}",
        "{u'id': u'328100', u'title': u'Given twice'}",
        "{u'title': u'Without an id'}",
    )
    assert read(tmp_path) == (
        [["Chaos ™", "725280", 1.0, 1513468800], ["Ann's", "328100", 1.0, 1501632000]],
        {
            "725280": ("Rock & Stone", ("Indie", "Action"), ("Co-op",), ("Ann, Bob",), ()),
            "328100": ("Alone", (), (), (), ("P",)),
        },
        ["GENRE", "TAG", "DEVELOPER", "PUBLISHER"],
        "steam",
    )


@pytest.mark.parametrize("names", [("BX-Book-Ratings.csv", "BX-Books.csv"), ("Ratings.csv", "Books.csv")])
def test_book_crossing(tmp_path, caplog, names):
    ratings, books = names
    write(tmp_path / ratings, '"User-ID";"ISBN";"Book-Rating"', '"276725";"034545104X";"0"', '"7";"0155061224";"5"',
          '"276725";"0155061224";"10"')  # fmt: skip
    write(
        tmp_path / books,
        '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-L"',
        r'"078946697X";"DK Readers (Level 4)\";Michael Teitelbaum";"2000";"DK Publishing";"http://x/3.jpg"',
        r'"034545104X";"Die \"Mörder\"; Roman &amp; mehr";"M. J. Rose";"2002";"Ballantine | B";"http://x/1.jpg"',
        '"0155061224";"Rites";"Judith Rae";"0";"Heinle";"http://x/2.jpg"',
        '"2";"No year";"A";"";"B";"http://x/2.jpg"',
        encoding="latin-1",
    )
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path) == (
            [["276725", "034545104X", 0.0, 1], ["7", "0155061224", 5.0, 2], ["276725", "0155061224", 10.0, 3]],
            {
                "034545104X": ('Die "Mörder"; Roman & mehr', ("M. J. Rose",), ("2002",), ("Ballantine | B",)),
                "0155061224": ("Rites", ("Judith Rae",), (), ("Heinle",)),
                "2": ("No year", ("A",), (), ("B",)),
                "078946697X": ('DK Readers (Level 4)";Michael Teitelbaum', (), (), ()),
            },
            ["AUTHOR", "YEAR", "PUBLISHER"],
            "book-crossing",
        )
    assert f"{ratings} has no times: the order of its rows stands in for them" in caplog.text


def test_lastfm_2k(tmp_path, caplog):
    write(tmp_path / "user_artists.dat", "userID\tartistID\tweight", "2\t51\t13883", "2\t52\t11690", "3\t51\t1")
    write(
        tmp_path / "artists.dat",
        "id\tname\turl\tpictureURL",
        "51\tDuran Duran\thttp://www.last.fm/music/Duran+Duran\thttp://x/1.jpg",
        '52\tMötley "Crüe\thttp://www.last.fm/music/x\t',
    )
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path) == (
            [["2", "51", 13883.0, 1], ["2", "52", 11690.0, 2], ["3", "51", 1.0, 3]],
            {"51": ("Duran Duran",), "52": ('Mötley "Crüe',)},
            [],
            "lastfm-2k",
        )
    assert "user_artists.dat has no times: the order of its rows stands in" in caplog.text


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_lastfm_1k(tmp_path, packed):
    path = write(
        tmp_path / f"userid-timestamp-artid-artname-traid-traname.tsv{packed}",
        'user_000001\t2009-05-04T23:08:57Z\tf1b1cf71\tDeep "Dish\t\tFuck Me Im Famous (2007)',
        "user_000001\t2009-05-04T13:54:10Z\t\t坂本龍一\tt1\tComposition 0919",
        "user_000002\t2009-05-04T23:08:57Z\tf1b1cf71\tDeep Dish\t\tFlashdance",
    )
    expected = (
        [
            ["user_000001", "f1b1cf71", 1.0, 1241478537],
            ["user_000001", "坂本龍一", 1.0, 1241445250],
            ["user_000002", "f1b1cf71", 1.0, 1241478537],
        ],
        {"f1b1cf71": ('Deep "Dish',), "坂本龍一": ("坂本龍一",)},
        [],
        "lastfm-1k",
    )
    assert read(tmp_path) == read(path) == expected


@pytest.fixture
def mind(tmp_path):
    folder = tmp_path / "MINDsmall_dev"
    folder.mkdir()
    write(
        folder / "behaviors.tsv",
        "1\tU13740\t11/15/2019 12:22:32 AM\tN3 N4\tN1-1 N2-0 N5-1",
        "2\tU9\t11/15/2019 1:02:03 PM\t\tN2-1",
        "3\tU13740\t11/15/2019 12:00:00 PM\tN3 N4\tN2-1 N21-0",
        "4\tU7\t11/15/2019 9:00:00 AM\tN1\tN2-0",
    )
    entities = '[{"Label": "Prince \\"P\\" Philip", "Type": "P", "WikidataId": "Q80976"}, {"Label": "Elizabeth II"}]'
    write(
        folder / "news.tsv",
        f'N1\tlifestyle\tlifestyleroyals\tThe "Brands\tShop\thttps://x\t{entities}\t[]',
        "N2\thealth\tweightloss\t50 Habits\t\thttps://x\t\t",
        *(f"N{number}\tnews\t\tNews {number}\t\thttps://x\t[]\t[]" for number in (3, 4, 5)),
    )
    return folder


def test_mind(mind, caplog):
    first = 1573777352
    with caplog.at_level(logging.WARNING):
        interactions, items, relations, name = read(mind)
    assert interactions == [
        ["U13740", "N3", 1.0, first - 2],
        ["U13740", "N4", 1.0, first - 1],
        ["U7", "N1", 1.0, first - 1],
        ["U13740", "N1", 1.0, first],
        ["U13740", "N5", 1.0, first],
        ["U9", "N2", 1.0, 1573822923],
        ["U13740", "N2", 1.0, 1573819200],
    ]
    assert items == {
        "N1": ('The "Brands', ("lifestyle",), ("lifestyleroyals",), ('Prince "P" Philip', "Elizabeth II")),
        "N2": ("50 Habits", ("health",), ("weightloss",), ()),
        **{f"N{number}": (f"News {number}", ("news",), (), ()) for number in (3, 4, 5)},
    }
    assert relations == ["CATEGORY", "SUBCATEGORY", "MENTIONS"] and name == "mind-MINDsmall_dev"
    assert "behaviors.tsv has no times: it is put in its order before the first click" in caplog.text


# -- what is missing or damaged ---------------------------------------------------------------------------------------


def test_columns_of_another_release_are_refused(tmp_path):
    ratings = write(tmp_path / "BX-Book-Ratings.csv", '"user";"ISBN";"Book-Rating"', '"1";"2";"3"')
    books = "ISBN;Book-Title;Book-Author;Year-Of-Publication;Publisher"
    write(tmp_path / "BX-Books.csv", books, "2;A;B;1999;C")
    with pytest.raises(LKGError, match=r"BX-Book-Ratings.csv table has columns .* but lacks \['User-ID'\]"):
        convert(tmp_path)
    write(ratings, '"User-ID";"ISBN";"Book-Rating"', '"1";"2";"3"')
    assert len(convert(tmp_path).interactions) == 1
    write(tmp_path / "BX-Books.csv", books)
    with pytest.raises(LKGError, match="BX-Books.csv has no row with 'ISBN'"):
        convert(tmp_path)


@pytest.mark.parametrize("cell", ['[{"a": 1}, {"a": 2}]', "[{'a': 1}, {'a': 2}]", [{"a": 1}, {"a": 2}]])
def test_several_records_in_a_cell(cell):
    assert records_of(cell) == [{"a": 1}, {"a": 2}]
    assert records_of({"a": 1}) == [{"a": 1}] and records_of(None) == records_of("[]") == records_of(" ") == []
    with pytest.raises(LKGError, match="stands where a record with named fields is needed"):
        records_of("[1, 2]")
