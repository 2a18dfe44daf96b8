"""What of a data set is published, what is not, and that it loads to the same: over HTTP, by the real client."""

import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from hub_stand_in.card_checks import validate
from hub_stand_in.world import readable
from huggingface_hub import DatasetCard, HfApi

from llamarec_lkg import SequenceDataset, anonymize_users, load_dataset_bundle, push_dataset, write_dataset
from llamarec_lkg.cli import main
from llamarec_lkg.data.convert import open_raw
from llamarec_lkg.data.interactions import Interactions
from llamarec_lkg.data.raw_dataset import RawDataset
from llamarec_lkg.data.schema import DatasetBundle, ItemTable, Triples
from llamarec_lkg.data.sequences import PreprocessingSettings
from llamarec_lkg.data.sources import stream_interactions
from llamarec_lkg.hub.dataset_card import size_category
from llamarec_lkg.utils.errors import LKGError


pytestmark = pytest.mark.hub

USERS = ["user-7", "user-7", "ada@example.org", "user-7", "ada@example.org", "12"]


@pytest.fixture
def bundle():
    """Three users, three items with none, one or two values, and facts whose entities are not named like items."""
    interactions = pd.DataFrame(
        {
            "user_id": USERS,
            "item_id": ["007", "b", "007", "c", "b", "c"],
            "rating": [5.0, 3.5, 1.0, 2.0, 4.0, 0.5],
            "timestamp": [10, 20, 30, 2**40, 50, 60],
        }
    )
    items = pd.DataFrame(
        {
            "item_id": ["007", "b", "c"],
            "title": ["Bond: the “first”", "B", ""],
            "DIRECTED_BY": [["Young|Old", "Other"], [], ["Young|Old"]],
            "TITLE": [["of honour"], [], []],
            "EMPTY": [[], [], []],
        }
    )
    triples = pd.DataFrame({"head": ["m.1", "m.9"], "relation": ["SEQUEL", "IN"], "tail": ["m.2", "007"]})
    return DatasetBundle(
        name="films",
        interactions=Interactions.from_frame(interactions),
        items=ItemTable.from_frame(items),
        triples=Triples.from_frame(triples, {"m.1": "007", "m.2": "b"}),
        citation='A. Author: "Films", 2020.\nSecond line.',
        license="For research only: ask {{ the }} owner",
    )


def files(hub, repo_id="tester/name", revision="main"):
    """What was uploaded, without what every repository begins with."""
    found = hub.files(repo_id, revision, repo_type="dataset")
    found.pop(".gitattributes")
    return found


def table(hub, name, repo_id="tester/name"):
    return pd.read_parquet(io.BytesIO(files(hub, repo_id)[f"{name}.parquet"]))


def text_of(hub, repo_id="tester/name"):
    """All that was uploaded, as text that ids can be searched in."""
    return readable(files(hub, repo_id)).decode(errors="replace")


def from_folder(hub, folder):
    """The repository as somebody who has downloaded it reads it."""
    folder.mkdir()
    for path, content in files(hub).items():
        (folder / path).write_bytes(content)
    return load_dataset_bundle(folder)


def from_hub(hub, folder):
    return load_dataset_bundle("tester/name")


def put(path, content, repo_id="tester/name"):
    """Change one file of a repository, as its owner may in the browser."""
    HfApi().upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=repo_id, repo_type="dataset")


def plain(bundle):
    parts = [vars(bundle.interactions), vars(bundle.items), vars(bundle.triples) if bundle.triples else None]
    return [
        part and {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in part.items()} for part in parts
    ] + [bundle.citation, bundle.license]


def published(hub, repo_id="tester/name"):
    return sorted(files(hub, repo_id))


# -- the round trip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [from_folder, from_hub])
def test_what_is_pushed_loads_to_the_same(hub, bundle, load, tmp_path):
    push_dataset(bundle, "tester/name", anonymize=False)
    assert published(hub) == [
        "README.md",
        *(f"{name}.parquet" for name in ("interactions", "items", "links", "triples")),
    ]
    assert plain(load(hub, tmp_path / "films")) == plain(bundle)


def test_the_hubs_form_is_streamed(hub, bundle):
    push_dataset(bundle, "tester/name", anonymize=False)
    frame = pd.concat(batch.to_pandas() for batch in stream_interactions("tester/name"))
    assert frame["user_id"].tolist() == USERS and frame["timestamp"].tolist() == [10, 20, 30, 2**40, 50, 60]


def test_a_bundle_of_two_tables_needs_no_more(hub, make_bundle):
    bundle = make_bundle([("u", "1", 1), ("u", "2", 2)])
    push_dataset(bundle, "tester/name", anonymize=False)
    assert published(hub) == ["README.md", "interactions.parquet", "items.parquet"]
    assert plain(load_dataset_bundle("tester/name")) == plain(bundle)


def test_a_table_that_lacks_rows_is_noticed(hub, bundle):
    push_dataset(bundle, "tester/name")
    put("interactions.parquet", table(hub, "interactions").iloc[:3].to_parquet(index=False))
    with pytest.raises(LKGError, match="'tester/name' could not be read"):
        load_dataset_bundle("tester/name")


# -- what was asked of the Hub ----------------------------------------------------------------------------------------


def test_one_commit_makes_it_all(hub, bundle):
    done = push_dataset(bundle, "name", private=True, commit_message="first")
    made, start = hub.commits("tester/name", repo_type="dataset")
    assert (made.title, start.title, done.oid) == ("first", "initial commit", made.oid)
    assert hub.repository("tester/name", "dataset").private
    assert len(hub.calls("POST */commit/*")) == 1


def test_a_table_of_an_older_version_does_not_stay(hub, bundle):
    push_dataset(bundle, "tester/name", anonymize=False)
    put("LICENSE", b"mine")
    push_dataset(bundle, "tester/name", include_interactions=False)
    assert published(hub) == ["LICENSE", "README.md", "items.parquet", "links.parquet", "triples.parquet"]


PLACES = ["POST *.git/info/lfs/objects/batch", "PUT *", "POST */commit/*"]


@pytest.mark.parametrize("how", ["401", "429", "cut"])
@pytest.mark.parametrize("place", PLACES)
def test_a_push_that_fails_anywhere_leaves_the_last_version_and_the_files(hub, raw_folder, place, how):
    push_dataset(raw_folder, "tester/name", license="mit")
    before, at_home = files(hub), {path.name: path.read_bytes() for path in raw_folder.iterdir()}
    (raw_folder / "interactions.csv").write_bytes(at_home["interactions.csv"] + b"eve@example.org,c,1,70\n")
    at_home["interactions.csv"] = (raw_folder / "interactions.csv").read_bytes()
    failure = hub.fail(place, how, times=None)
    with pytest.raises(LKGError, match=r"(?s)'tester/name'.*Nothing .*push again"):
        push_dataset(raw_folder, "tester/name")
    assert failure.happened and files(hub) == before
    assert {path.name: path.read_bytes() for path in raw_folder.iterdir()} == at_home
    hub.heal()
    push_dataset(raw_folder, "tester/name")
    assert len(table(hub, "interactions")) == 7 and "eve@example.org" not in text_of(hub)


# -- private data -----------------------------------------------------------------------------------------------------


def test_user_ids_stay_at_home_unless_asked_for(hub, bundle):
    push_dataset(bundle, "tester/name")
    text = text_of(hub)
    assert not any(user in text for user in ("user-7", "ada@example.org"))
    assert "User ids were replaced by the numbers from 1 on" in text
    loaded = load_dataset_bundle("tester/name")
    assert sorted(set(loaded.interactions.users)) == ["1", "2", "3"]
    push_dataset(bundle, "tester/name", anonymize=False)
    text = text_of(hub)
    assert "ada@example.org" in text and "User ids are those of the source" in text


def test_interactions_can_stay_at_home(hub, bundle):
    push_dataset(bundle, "tester/name", include_interactions=False)
    text = text_of(hub)
    assert "ada@example.org" not in text and "There are no interactions and no user ids in this repository" in text
    assert "interactions.parquet" not in text and "load_dataset_bundle(" not in text
    with pytest.raises(LKGError, match=r"has the configs \['items', 'triples', 'links'\]; it needs 'interactions'"):
        load_dataset_bundle("tester/name")


def test_numbers_are_the_same_each_time_and_follow_no_order_of_the_ids(make_bundle):
    rows = [(user, f"i{(user * step) % 7}", step, user / 100) for user in range(1, 101) for step in range(1, 6)]
    bundle = make_bundle(rows)
    numbered = anonymize_users(bundle)
    assert plain(anonymize_users(bundle)) == plain(numbered)
    table = numbered.interactions
    assert table.users.tolist() == [str(user) for user in range(1, 101) for _ in range(5)]
    order = (table.ratings * 100).round().astype(int)[::5]  # the rating tells who it was
    assert sorted(order) == list(range(1, 101))
    assert abs(np.corrcoef(order, np.arange(100))[0, 1]) < 0.3 and (order == np.arange(1, 101)).sum() < 10
    for number, user in enumerate(order):
        one = slice(5 * number, 5 * number + 5)
        assert table.items[one].tolist() == [f"i{(user * step) % 7}" for step in range(1, 6)]
        assert table.timestamps[one].tolist() == [1, 2, 3, 4, 5]
    # other data, other numbers: a list of the ids is not enough to find them again
    other = anonymize_users(make_bundle([*rows, (1, "i0", 9, 0.01)]))
    assert (other.interactions.ratings[::5][:100] != table.ratings[::5]).any()


def test_numbered_users_are_split_as_before(make_bundle):
    rows = [(user, f"i{(user * step) % 7}", step) for user in range(1, 21) for step in range(1, 6)]
    settings = PreprocessingSettings(min_user_interactions=1, min_item_interactions=1)
    first, second = (
        SequenceDataset.from_bundle(bundle, settings)
        for bundle in (make_bundle(rows), anonymize_users(make_bundle(rows)))
    )
    assert first.items == second.items
    targets = [sorted(d.item_sequence[d.positions("test")].tolist()) for d in (first, second)]
    assert targets[0] == targets[1]


# -- the card ---------------------------------------------------------------------------------------------------------


def card_of(hub, repo_id="tester/name"):
    return DatasetCard(files(hub, repo_id)["README.md"].decode())


def test_the_card_holds_what_the_hub_asks_for(hub, bundle):
    push_dataset(bundle, "tester/name", license="cc-by-4.0", language="en", tags=["films"])
    card = card_of(hub)
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0" and data["language"] == "en" and data["pretty_name"] == "films"
    assert data["size_categories"] == ["n<1K"] and data["task_categories"] == ["text-ranking"]
    assert {"recommendation", "knowledge-graph", "films"} <= set(data["tags"])
    names = ["interactions", "items", "triples", "links"]
    assert data["configs"] == [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}.parquet"}]} for name in names
    ]
    assert [info["splits"][0]["num_examples"] for info in data["dataset_info"]] == [6, 3, 2, 2]
    assert "{{" not in card.text and "{%" not in card.text
    assert '"Films", 2020.\nSecond line.' in card.text and "- SEQUEL: 1" in card.text and "3 users" in card.text
    assert "| `items` | 3 |" in card.text


def test_a_licence_of_its_own_is_quoted_and_kept(hub, bundle):
    push_dataset(bundle, "tester/name", citation="Cite me")
    card = card_of(hub)
    assert card.data.license == "other" and "For research only: ask {{ the }} owner" in card.text
    assert load_dataset_bundle("tester/name").license == bundle.license
    assert load_dataset_bundle("tester/name").citation == "Cite me"
    for text, ids, name in (
        ("proprietary", "other", "proprietary"),
        ("MIT", "mit", None),
        (["mit", "Acme-1.0"], ["mit", "other"], "Acme-1.0"),
    ):
        push_dataset(bundle, "tester/name", license=text)
        card = card_of(hub)
        assert (card.data.license, card.data.to_dict().get("license_name")) == (ids, name)
        assert validate(str(card), "dataset") == ([], [])
        assert load_dataset_bundle("tester/name").license == (text if isinstance(text, str) else "\n\n".join(text))
    push_dataset(DatasetBundle("x", bundle.interactions, bundle.items), "tester/other")
    assert card_of(hub, "tester/other").data.license == "unknown"
    assert "licence of the source was not stated" in card_of(hub, "tester/other").text


TERMS, FACTS = "For research only; ask the owner", "A. Author: Facts, 2019."


@pytest.mark.parametrize("how", ["bundle", "push", "write"])
def test_two_sources_are_named_once_each(hub, bundle, tmp_path, how):
    """Interactions of one source and facts of another: two licences and two citations, the second of two lines."""
    films = 'A. Author: "Films", 2020.\nSecond line.'
    said = {"license": ["cc-by-4.0", TERMS, "cc-by-4.0"], "citation": [FACTS, films]}
    joined = {"license": f"cc-by-4.0\n\n{TERMS}", "citation": f"{FACTS}\n\n{films}"}
    if how == "bundle":
        push_dataset(replace(bundle, **joined), "tester/name")
    elif how == "push":
        push_dataset(bundle, "tester/name", **said)
    else:
        write_dataset(bundle, tmp_path / "name", **said)
        HfApi().create_repo("tester/name", repo_type="dataset")
        HfApi().upload_folder(folder_path=tmp_path / "name", repo_id="tester/name", repo_type="dataset")
    card = card_of(hub)
    assert card.data.license == ["cc-by-4.0", "other"]
    assert validate(str(card), "dataset") == ([], [])
    for text in ("cc-by-4.0", TERMS, FACTS, films):
        assert card.text.count(text) == 1, text
    first, *others = card.data.to_dict()["dataset_info"]
    assert {key: first[key] for key in joined} == joined
    assert others and not any({"license", "citation"} & set(info) for info in others)
    for loaded in (from_folder(hub, tmp_path / "copy"), from_hub(hub, None)):
        assert {"license": loaded.license, "citation": loaded.citation} == joined


@pytest.mark.parametrize("load", [from_folder, from_hub])
@pytest.mark.parametrize(
    "head, licence",
    [
        ("license: cc-by-4.0", "cc-by-4.0"),
        ("license: [cc-by-4.0, mit]", "cc-by-4.0\n\nmit"),
        ("license: other\nlicense_name: films-1\nlicense_link: LICENSE", "films-1 (LICENSE)"),
        ("license: other\nlicense_name: films-1", "films-1"),
        ("license: [other, mit]", "mit"),
        ("license: unknown", ""),
        ("language: en", ""),
    ],
)
def test_the_licence_of_a_card_of_other_making_comes_along(hub, bundle, load, head, licence, tmp_path):
    push_dataset(bundle, "tester/name")
    configs = yaml.safe_dump({"configs": card_of(hub).data.to_dict()["configs"]})
    put("README.md", f"---\n{head}\n{configs}---\n# Films\n".encode())
    loaded = load(hub, tmp_path / "films")
    assert (loaded.license, loaded.citation) == (licence, "")


@pytest.mark.parametrize("interactions", [True, False])
def test_every_snippet_of_the_card_runs(hub, bundle, capsys, interactions):
    push_dataset(bundle, "tester/name", include_interactions=interactions)
    snippets = re.findall(r"```python\n(.*?)```", card_of(hub).text, re.DOTALL)
    assert len(snippets) == 1 + interactions
    for snippet in snippets:
        exec(snippet, {})
    printed = capsys.readouterr().out
    assert ("6 3" in printed) is interactions and "Bond" in printed


@pytest.mark.parametrize(
    "rows, name",
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (100_836, "100K<n<1M"), (10**9, "1B<n<10B"), (10**12, "n>1T")],
)
def test_sizes_are_called_as_the_hub_calls_them(rows, name):
    assert size_category(rows) == name


# -- writing ----------------------------------------------------------------------------------------------------------


def test_names_that_reading_would_change_are_refused(bundle, tmp_path):
    items = ItemTable(("1",), ("T",), {"genre": (("x",),)})
    with pytest.raises(LKGError, match=r"attributes \['genre'\]; .* in capitals"):
        write_dataset(DatasetBundle("x", bundle.interactions, items), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


def test_a_folder_of_tables_may_have_a_card_of_its_own_making(bundle, tmp_path):
    write_dataset(bundle, tmp_path / "out")
    card = tmp_path / "out" / "README.md"
    for text in ("# No metadata\n", "---\ndataset_info:\n  features: []\n---\n"):
        card.write_text(text)
        loaded = load_dataset_bundle(tmp_path / "out")
        assert (loaded.citation, loaded.license) == ("", "") and len(loaded.items) == 3
    card.write_text("---\n a: [\n---\n")
    with pytest.raises(LKGError, match="metadata of .*README.md cannot be read"):
        load_dataset_bundle(tmp_path / "out")


# -- from raw files, and from the command line ------------------------------------------------------------------------


@pytest.fixture
def raw_folder(bundle, tmp_path):
    """The bundle as csv tables."""
    folder = tmp_path / "films"
    folder.mkdir()
    bundle.interactions.to_frame().to_csv(folder / "interactions.csv", index=False)
    bundle.items.to_frame()[["item_id", "title"]].assign(title=["Bond", "B", "C"]).to_csv(
        folder / "items.csv", index=False
    )
    bundle.triples.to_frame().to_csv(folder / "triples.csv", index=False)
    links = bundle.triples.item_of_entity
    pd.DataFrame({"entity_id": list(links), "item_id": list(links.values())}).to_csv(folder / "links.csv", index=False)
    return folder


@pytest.mark.parametrize("options", [{}, {"anonymize": False}], ids=["numbered", "as they are"])
def test_a_data_set_not_yet_read_is_pushed_as_one_in_memory(hub, raw_folder, options, monkeypatch):
    push_dataset(load_dataset_bundle(raw_folder), "tester/memory", **options)
    monkeypatch.setattr(RawDataset, "to_bundle", lambda self: pytest.fail("the interactions were read whole"))
    monkeypatch.setattr("llamarec_lkg.data.engine.BATCH_ROWS", 2)
    push_dataset(open_raw(raw_folder), "tester/raw", **options)
    push_dataset(raw_folder, "tester/path", **options)
    assert published(hub, "tester/raw") == published(hub, "tester/path") == published(hub, "tester/memory")
    for name in ("interactions", "items", "triples", "links"):
        frames = [table(hub, name, f"tester/{repo}") for repo in ("memory", "raw", "path")]
        assert frames[0].equals(frames[1]) and frames[0].equals(frames[2]), name
    assert len(frames[0]) == 2 and len(table(hub, "interactions", "tester/raw")) == 6


def test_the_command_pushes_what_convert_takes(hub, raw_folder, capsys):
    assert main(["push-dataset", str(raw_folder), "tester/name"]) == 0
    made, _ = hub.commits("tester/name", repo_type="dataset")
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"/datasets/tester/name/commit/{made.oid}")
    push_dataset(load_dataset_bundle(raw_folder), "tester/other")
    same = {path: data.replace(b"tester/other", b"tester/name") for path, data in files(hub, "tester/other").items()}
    assert files(hub) == same and "ada@example.org" not in text_of(hub)
    options = ["--private", "--revision", "v2", "--create-pr", "--commit-message", "first", "--keep-user-ids"]
    options += ["--license", "cc-by-4.0", "--license", "mit", "--citation", "Me."]
    assert main(["push-dataset", str(raw_folder / "interactions.csv"), "tester/kept", *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("/datasets/tester/kept/discussions/1"), "the pull request"
    assert hub.repository("tester/kept", "dataset").private and not files(hub, "tester/kept")
    assert hub.calls("POST */branch/v2") and not files(hub, "tester/kept", "v2")
    proposed = files(hub, "tester/kept", "refs/pr/1")
    proposal = hub.commits("tester/kept", "refs/pr/1", "dataset")[0]
    assert proposal.title == "first" and b"ada@example.org" in readable(proposed)
    card = DatasetCard(proposed["README.md"].decode())
    assert card.data.license == ["cc-by-4.0", "mit"] and "Me." in card.text


def test_the_command_leaves_people_out_adds_facts_and_knows_names(
    hub, raw_folder, tmp_path, bundle, capsys, monkeypatch
):
    (raw_folder / "triples.csv").unlink()
    (tmp_path / "facts.csv").write_text("head,relation,tail\n007,IN,Jamaica\n")
    command = ["push-dataset", str(raw_folder), "tester/name", "--format", "tables"]
    assert main([*command, "--no-interactions", "--triples", str(tmp_path / "facts.csv")]) == 0
    text = text_of(hub)
    assert "Jamaica" in text and "There are no interactions and no user ids" in text and "ada@example.org" not in text
    assert main(command) == 0 and "interactions.parquet" in published(hub)
    monkeypatch.setitem(load_dataset_bundle.__globals__["KNOWN_DATASETS"], "films", lambda: bundle)
    assert main(["push-dataset", "films", "tester/known"]) == 0 and len(published(hub, "tester/known")) == 5
    capsys.readouterr()
    for source, said in (
        ("no-such-data", "No data set 'no-such-data'"),
        (str(tmp_path), "is in no known format"),
    ):
        assert main(["push-dataset", source, "tester/name"]) == 1
        assert said in capsys.readouterr().err
    assert main(["push-dataset", str(raw_folder), "a/b/c"]) == 1
    assert "has the form 'owner/name'" in capsys.readouterr().err
