"""What is published, what is not, and that it loads to the same. The Hub is a folder: only the upload is replaced."""

import re
import shutil
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from hub_card_checks import validate
from huggingface_hub import CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from llamarec_lkg import SequenceDataset, anonymize_users, load_dataset_bundle, push_dataset, write_dataset
from llamarec_lkg.cli import main
from llamarec_lkg.converters import open_raw
from llamarec_lkg.dataset import PreprocessingSettings
from llamarec_lkg.dataset_card import size_category
from llamarec_lkg.raw_formats import RawDataset
from llamarec_lkg.schema import DatasetBundle, Interactions, ItemTable, LKGDataError, Triples
from llamarec_lkg.sources import _load_hub
from llamarec_lkg.streaming import _hub_batches


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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder for each repository, and what was asked of the Hub. `hub.error` is raised by the next upload."""
    state = types.SimpleNamespace(root=tmp_path / "hub", calls=[], error=None)

    def create_repo(self, repo_id, **options):
        state.calls.append(("create_repo", repo_id, options))

    def create_branch(self, repo_id, **options):
        state.calls.append(("create_branch", repo_id, options))

    def repo_info(self, repo_id, **options):
        return types.SimpleNamespace(private=True)

    def list_repo_files(self, repo_id, **options):
        return [path.name for path in (state.root / repo_id).glob("*")]

    def create_commit(self, repo_id, operations, **options):
        state.calls.append(("create_commit", repo_id, options))
        if state.error is not None:
            raise state.error
        target = state.root / repo_id
        target.mkdir(parents=True, exist_ok=True)
        for operation in operations:
            if isinstance(operation, CommitOperationDelete):
                (target / operation.path_in_repo).unlink()
            else:
                shutil.copy(operation.path_or_fileobj, target / operation.path_in_repo)
        return types.SimpleNamespace(commit_url=f"/{repo_id}/commit/1", pr_url=None)

    def hf_hub_download(self, repo_id, name, **options):
        return str(state.root / repo_id / name)

    for method in (create_repo, create_branch, repo_info, list_repo_files, create_commit, hf_hub_download):
        monkeypatch.setattr(HfApi, method.__name__, method)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    state.root.mkdir()
    monkeypatch.chdir(state.root)  # where "you/name" is found
    return state


def plain(bundle):
    parts = [vars(bundle.interactions), vars(bundle.items), vars(bundle.triples) if bundle.triples else None]
    return [
        part and {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in part.items()} for part in parts
    ] + [bundle.citation, bundle.license]


def published(hub, repo_id="you/name"):
    return sorted(path.name for path in (hub.root / repo_id).iterdir())


def contents(folder):
    """Everything in a repository, as text that ids can be searched in."""
    tables = (pd.read_parquet(path).to_csv() for path in sorted(folder.glob("*.parquet")))
    return (folder / "README.md").read_text(encoding="utf-8") + "".join(tables)


# -- the round trip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_dataset_bundle, lambda name: _load_hub(name, None)], ids=["folder", "datasets"])
def test_what_is_pushed_loads_to_the_same(hub, bundle, load):
    push_dataset(bundle, "you/name", anonymize=False)
    assert published(hub) == [
        "README.md",
        *(f"{name}.parquet" for name in ("interactions", "items", "links", "triples")),
    ]
    assert plain(load("you/name")) == plain(bundle)


def test_the_hubs_form_is_streamed(hub, bundle):
    push_dataset(bundle, "you/name", anonymize=False)
    frame = pd.concat(_hub_batches("you/name", None))
    assert frame["user_id"].tolist() == USERS and frame["timestamp"].tolist() == [10, 20, 30, 2**40, 50, 60]


def test_a_bundle_of_two_tables_needs_no_more(hub, make_bundle):
    bundle = make_bundle([("u", "1", 1), ("u", "2", 2)])
    push_dataset(bundle, "you/name", anonymize=False)
    assert published(hub) == ["README.md", "interactions.parquet", "items.parquet"]
    assert plain(_load_hub("you/name", None)) == plain(bundle)


def test_a_table_that_lacks_rows_is_noticed(hub, bundle):
    push_dataset(bundle, "you/name")
    path = hub.root / "you/name/interactions.parquet"
    pd.read_parquet(path).iloc[:3].to_parquet(path)
    with pytest.raises(LKGDataError, match="'you/name' could not be read"):
        _load_hub("you/name", None)


def test_ml_latest_small_makes_the_round_trip(hub, movielens_folder):
    bundle = load_dataset_bundle(movielens_folder)
    push_dataset(bundle, "you/name", anonymize=False)
    assert plain(_load_hub("you/name", None)) == plain(bundle)


# -- what was asked of the Hub ----------------------------------------------------------------------------------------


def test_one_commit_makes_it_all(hub, bundle):
    done = push_dataset(bundle, "you/name", private=True, commit_message="first")
    assert done.commit_url == "/you/name/commit/1"
    assert hub.calls == [
        ("create_repo", "you/name", {"repo_type": "dataset", "private": True, "exist_ok": True}),
        (
            "create_commit",
            "you/name",
            {
                "repo_type": "dataset",
                "revision": None,
                "create_pr": False,
                "commit_message": "first",
                "commit_description": None,
            },
        ),
    ]


def test_a_revision_is_made_and_a_pull_request_is_not(hub, bundle):
    push_dataset(bundle, "you/name", revision="v2", create_pr=True)
    push_dataset(bundle, "you/name", revision="refs/pr/3")
    assert [call[0] for call in hub.calls] == ["create_repo", "create_branch", "create_commit"] + [
        "create_repo",
        "create_commit",
    ]
    assert hub.calls[1][2] == {"branch": "v2", "repo_type": "dataset", "exist_ok": True}
    uploads = [options for name, _, options in hub.calls if name == "create_commit"]
    assert [(o["revision"], o["create_pr"]) for o in uploads] == [("v2", True), ("refs/pr/3", False)]


def test_a_table_of_an_older_version_does_not_stay(hub, bundle):
    push_dataset(bundle, "you/name", anonymize=False)
    (hub.root / "you/name/LICENSE").write_text("mine")
    push_dataset(bundle, "you/name", include_interactions=False)
    assert published(hub) == ["LICENSE", "README.md", "items.parquet", "links.parquet", "triples.parquet"]


@pytest.mark.parametrize(
    "error", [HTTPError("cut connection"), OSError("no token"), ValueError("bad id"), TimeoutError("slow")]
)
def test_a_failed_upload_says_that_nothing_is_visible(hub, bundle, error, monkeypatch):
    hub.error = error
    with pytest.raises(
        LKGDataError, match=rf"could not be pushed to 'you/name' \({error}\). Nothing of it is visible"
    ):
        push_dataset(bundle, "you/name")
    assert not (hub.root / "you").exists()
    assert issubclass(HfHubHTTPError, HTTPError), "what the client raises for an answer of the Hub is covered too"


@pytest.mark.parametrize("name", ["name", "a/b/c", "you/na me", ""])
def test_an_id_has_an_owner_and_a_name(hub, bundle, name):
    with pytest.raises(LKGDataError, match="has the form 'owner/name'"):
        push_dataset(bundle, name)
    assert hub.calls == []


# -- private data -----------------------------------------------------------------------------------------------------


def test_user_ids_stay_at_home_unless_asked_for(hub, bundle):
    push_dataset(bundle, "you/name")
    text = contents(hub.root / "you/name")
    assert not any(user in text for user in ("user-7", "ada@example.org"))
    assert "User ids were replaced by the numbers from 1 on" in text
    loaded = load_dataset_bundle("you/name")
    assert sorted(set(loaded.interactions.users)) == ["1", "2", "3"]
    push_dataset(bundle, "you/name", anonymize=False)
    text = contents(hub.root / "you/name")
    assert "ada@example.org" in text and "User ids are those of the source" in text


def test_interactions_can_stay_at_home(hub, bundle):
    push_dataset(bundle, "you/name", include_interactions=False)
    text = contents(hub.root / "you/name")
    assert "ada@example.org" not in text and "There is no data about people in this repository" in text
    assert "interactions.parquet" not in text and "load_dataset_bundle(" not in text
    with pytest.raises(
        LKGDataError, match=r"has the configs \['items', 'triples', 'links'\]; it needs 'interactions'"
    ):
        _load_hub("you/name", None)


def test_facts_about_users_are_refused(hub, bundle):
    triples = Triples.from_frame(pd.DataFrame({"head": ["u"], "relation": ["RATED"], "tail": ["b"]}), {"b": "b"})
    with pytest.raises(LKGDataError, match="triples hold 1 RATED facts, which name users"):
        push_dataset(DatasetBundle("x", bundle.interactions, bundle.items, triples), "you/name")
    assert hub.calls == []


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


def with_friends(bundle):
    """Two users who trust each other in the triples; "12" is a user and an item of a linked entity, too."""
    facts = pd.DataFrame({"head": ["ada@example.org", "m.1"], "relation": ["TRUSTS", "IN"], "tail": ["user-7", "12"]})
    return replace(bundle, triples=Triples.from_frame(facts, {"m.1": "007", "12": "b"}))


def test_users_whom_the_triples_name_are_numbered_like_everywhere(hub, bundle):
    push_dataset(with_friends(bundle), "you/name")
    text = contents(hub.root / "you/name")
    assert "ada@example.org" not in text and "user-7" not in text
    frame = pd.read_parquet(hub.root / "you/name/interactions.parquet")
    number = {len(rows): user for user, rows in frame.groupby("user_id")}  # user-7 has three rows, ada two, 12 one
    facts = pd.read_parquet(hub.root / "you/name/triples.parquet").values.tolist()
    assert facts == [[number[2], "TRUSTS", number[3]], ["m.1", "IN", "12"]]


def test_users_whom_the_triples_name_do_not_go_up_with_the_items(hub, bundle):
    with pytest.raises(LKGDataError, match="name 2 users as heads or tails, 'ada@example.org' for example"):
        push_dataset(with_friends(bundle), "you/name", include_interactions=False)
    assert not hub.calls


@pytest.mark.parametrize("links", [False, True])
def test_a_user_who_was_filtered_out_leaves_no_facts_behind(hub, tmp_path, links):
    """Zed has one rating, so `convert --min-user-interactions 2` drops him; 'i9' is dropped too, but is an item."""
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = [f"{user},i{item},{item}" for user in ("ada@x", "bob@x") for item in range(3)]
    rows = ["user_id,item_id,timestamp", *rows, "zed@x,i1,7", "zoe@x,i9,8", ""]
    (folder / "interactions.csv").write_text("\n".join(rows))
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},T{n}\n" for n in (0, 1, 2, 9)))
    facts = ["zed@x,TRUSTS,bob@x", "ada@x,TRUSTS,zed@x", "ada@x,TRUSTS,bob@x", "zoe@x,IN,town", "i1,IN,town"]
    (folder / "triples.csv").write_text("\n".join(["head,relation,tail", *facts, ""]))
    if links:  # the entity that is named like zed is an item
        (folder / "links.csv").write_text("entity_id,item_id\nzed@x,i2\n")
    assert main(["convert", str(folder), str(tmp_path / "few"), "--min-user-interactions", "2"]) == 0
    few = load_dataset_bundle(tmp_path / "few")
    assert "zoe@x" not in contents(tmp_path / "few") and (few.triples.heads == "i1").sum() == 1
    push_dataset(few, "you/name")
    text = contents(hub.root / "you/name")
    assert "town" in text and "ada@x" not in text and "bob@x" not in text
    assert ("zed@x" in text) is links and len(few.triples) == (4 if links else 2)


def test_a_number_that_another_entity_has_is_not_given_to_a_user(bundle):
    facts = pd.DataFrame({"head": ["user-7"] * 3, "relation": ["KNOWS"] * 3, "tail": ["1", "2", "3"]})
    with pytest.raises(LKGDataError, match="names of other entities already .*'entity:7'"):
        anonymize_users(replace(bundle, triples=Triples.from_frame(facts, {})))


# -- the card ---------------------------------------------------------------------------------------------------------


def card_of(hub, repo_id="you/name"):
    return DatasetCard((hub.root / repo_id / "README.md").read_text(encoding="utf-8"))


def test_the_card_holds_what_the_hub_asks_for(hub, bundle):
    push_dataset(bundle, "you/name", license="cc-by-4.0", language="en", tags=["films"])
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
    push_dataset(bundle, "you/name", citation="Cite me")
    card = card_of(hub)
    assert card.data.license == "other" and "For research only: ask {{ the }} owner" in card.text
    assert load_dataset_bundle("you/name").license == bundle.license
    assert load_dataset_bundle("you/name").citation == "Cite me"
    push_dataset(DatasetBundle("x", bundle.interactions, bundle.items), "you/other")
    assert card_of(hub, "you/other").data.license == "unknown"
    assert "licence of the source was not stated" in card_of(hub, "you/other").text


TERMS, FACTS = "For research only; ask the owner", "A. Author: Facts, 2019."


@pytest.mark.parametrize("how", ["bundle", "push", "write"])
def test_two_sources_are_named_once_each(hub, bundle, tmp_path, how):
    """Interactions of one source and facts of another: two licences and two citations, the second of two lines."""
    films = 'A. Author: "Films", 2020.\nSecond line.'
    said = {"license": ["cc-by-4.0", TERMS, "cc-by-4.0"], "citation": [FACTS, films]}
    joined = {"license": f"cc-by-4.0\n\n{TERMS}", "citation": f"{FACTS}\n\n{films}"}
    if how == "bundle":
        push_dataset(replace(bundle, **joined), "you/name")
    elif how == "push":
        push_dataset(bundle, "you/name", **said)
    else:
        write_dataset(bundle, hub.root / "you" / "name", **said)
    card = card_of(hub)
    assert card.data.license == ["cc-by-4.0", "other"]
    assert validate(str(card), "dataset") == ([], [])
    for text in ("cc-by-4.0", TERMS, FACTS, films):
        assert card.text.count(text) == 1, text
    first, *others = card.data.to_dict()["dataset_info"]
    assert {key: first[key] for key in joined} == joined
    assert others and not any({"license", "citation"} & set(info) for info in others)
    for loaded in (load_dataset_bundle("you/name"), _load_hub("you/name", None)):
        assert {"license": loaded.license, "citation": loaded.citation} == joined


@pytest.mark.parametrize("load", [load_dataset_bundle, lambda name: _load_hub(name, None)], ids=["folder", "datasets"])
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
def test_the_licence_of_a_card_of_other_making_comes_along(hub, bundle, load, head, licence):
    push_dataset(bundle, "you/name")
    path = hub.root / "you/name/README.md"
    configs = yaml.safe_dump({"configs": card_of(hub).data.to_dict()["configs"]})
    path.write_text(f"---\n{head}\n{configs}---\n# Films\n", encoding="utf-8")
    loaded = load("you/name")
    assert (loaded.license, loaded.citation) == (licence, "")


@pytest.mark.parametrize("interactions", [True, False])
def test_every_snippet_of_the_card_runs(hub, bundle, capsys, interactions):
    push_dataset(bundle, "you/name", include_interactions=interactions)
    snippets = re.findall(r"```python\n(.*?)```", card_of(hub).text, re.DOTALL)
    assert len(snippets) == 1 + interactions
    for snippet in snippets:
        exec(snippet, {})
    printed = capsys.readouterr().out
    assert ("6 3" in printed) is interactions and "Bond" in printed


def test_the_three_lines_are_three(hub, bundle):
    push_dataset(bundle, "you/name")
    first = re.search(r"```python\n(.*?)```", card_of(hub).text, re.DOTALL).group(1)
    assert len([line for line in first.splitlines() if line]) == 3


@pytest.mark.parametrize(
    "rows, name",
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (100_836, "100K<n<1M"), (10**9, "1B<n<10B"), (10**12, "n>1T")],
)
def test_sizes_are_called_as_the_hub_calls_them(rows, name):
    assert size_category(rows) == name


# -- writing ----------------------------------------------------------------------------------------------------------


def test_names_that_reading_would_change_are_refused(bundle, tmp_path):
    items = ItemTable(("1",), ("T",), {"genre": (("x",),)})
    with pytest.raises(LKGDataError, match=r"attributes \['genre'\]; .* in capitals"):
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
    with pytest.raises(LKGDataError, match="metadata of .*README.md cannot be read"):
        load_dataset_bundle(tmp_path / "out")


def test_the_cards_metadata_is_plain_yaml(bundle, tmp_path):
    write_dataset(bundle, tmp_path / "out", tags=["a: b", "- c"])
    head = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert yaml.safe_load(head)["tags"][-2:] == ["a: b", "- c"]


# -- from raw files, and from the command line ------------------------------------------------------------------------


@pytest.fixture
def raw_folder(bundle, tmp_path):
    """The bundle with two users who trust each other, as csv tables."""
    folder = tmp_path / "films"
    folder.mkdir()
    friends = with_friends(bundle)
    friends.interactions.to_frame().to_csv(folder / "interactions.csv", index=False)
    friends.items.to_frame()[["item_id", "title"]].assign(title=["Bond", "B", "C"]).to_csv(
        folder / "items.csv", index=False
    )
    friends.triples.to_frame().to_csv(folder / "triples.csv", index=False)
    links = friends.triples.item_of_entity
    pd.DataFrame({"entity_id": list(links), "item_id": list(links.values())}).to_csv(folder / "links.csv", index=False)
    return folder


@pytest.mark.parametrize("options", [{}, {"anonymize": False}], ids=["numbered", "as they are"])
def test_a_data_set_not_yet_read_is_pushed_as_one_in_memory(hub, raw_folder, options, monkeypatch):
    push_dataset(load_dataset_bundle(raw_folder), "you/memory", **options)
    monkeypatch.setattr(RawDataset, "to_bundle", lambda self: pytest.fail("the interactions were read whole"))
    monkeypatch.setattr("llamarec_lkg.raw_files.BATCH_ROWS", 2)
    monkeypatch.setattr("llamarec_lkg.anonymizing.BATCH_ROWS", 2)
    push_dataset(open_raw(raw_folder), "you/raw", **options)
    push_dataset(raw_folder, "you/path", **options)
    assert published(hub, "you/raw") == published(hub, "you/path") == published(hub, "you/memory")
    for name in ("interactions", "items", "triples", "links"):
        frames = [pd.read_parquet(hub.root / "you" / repo / f"{name}.parquet") for repo in ("memory", "raw", "path")]
        assert frames[0].equals(frames[1]) and frames[0].equals(frames[2]), name
    assert len(frames[0]) == 2 and len(pd.read_parquet(hub.root / "you/raw/interactions.parquet")) == 6


def test_facts_about_people_are_found_in_raw_files_too(hub, raw_folder):
    with pytest.raises(LKGDataError, match="name 2 users as heads or tails, 'ada@example.org' for example"):
        push_dataset(open_raw(raw_folder), "you/name", include_interactions=False)
    (raw_folder / "triples.csv").write_text("head,relation,tail\nada@example.org,RATED,m.1\n")
    with pytest.raises(LKGDataError, match="triples hold 1 RATED facts"):
        push_dataset(open_raw(raw_folder), "you/name")
    (raw_folder / "triples.csv").write_text("head,relation,tail\nuser-7,IS,1\nuser-7,IS,2\nuser-7,IS,3\n")
    with pytest.raises(LKGDataError, match="names of other entities already"):
        push_dataset(open_raw(raw_folder), "you/name")
    assert not hub.calls


def test_the_command_pushes_what_convert_takes(hub, raw_folder, capsys):
    assert main(["push-dataset", str(raw_folder), "you/name"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "/you/name/commit/1"
    push_dataset(load_dataset_bundle(raw_folder), "you/other")
    read = [contents(hub.root / "you" / name) for name in ("name", "other")]
    assert read[0] == read[1].replace("you/other", "you/name"), "the same code path"
    assert "ada@example.org" not in read[0]
    options = ["--private", "--revision", "v2", "--create-pr", "--commit-message", "first", "--keep-user-ids"]
    options += ["--license", "cc-by-4.0", "--license", "mit", "--citation", "Me."]
    hub.calls.clear()
    assert main(["push-dataset", str(raw_folder / "interactions.csv"), "you/kept", *options]) == 0
    assert hub.calls[0][2]["private"] is True and hub.calls[1][2]["branch"] == "v2"
    asked = hub.calls[2][2]
    assert (asked["revision"], asked["create_pr"], asked["commit_message"]) == ("v2", True, "first")
    assert "ada@example.org" in contents(hub.root / "you" / "kept")
    assert card_of(hub, "you/kept").data.license == ["cc-by-4.0", "mit"] and "Me." in card_of(hub, "you/kept").text


def test_the_command_leaves_people_out_adds_facts_and_knows_names(
    hub, raw_folder, tmp_path, bundle, capsys, monkeypatch
):
    (raw_folder / "triples.csv").unlink()
    (tmp_path / "facts.csv").write_text("head,relation,tail\n007,IN,Jamaica\n")
    command = ["push-dataset", str(raw_folder), "you/name", "--format", "tables"]
    assert main([*command, "--no-interactions", "--triples", str(tmp_path / "facts.csv")]) == 0
    text = contents(hub.root / "you/name")
    assert "Jamaica" in text and "There is no data about people" in text and "ada@example.org" not in text
    assert main([*command, "--include-interactions"]) == 0 and "interactions.parquet" in published(hub)
    monkeypatch.setitem(load_dataset_bundle.__globals__["KNOWN_DATASETS"], "films", lambda: bundle)
    assert main(["push-dataset", "films", "you/known"]) == 0 and len(published(hub, "you/known")) == 5
    capsys.readouterr()
    for source, said in (
        ("no-such-data", "No data set 'no-such-data'"),
        (str(tmp_path), "Needed: interactions.parquet"),
    ):
        assert main(["push-dataset", source, "you/name"]) == 1
        assert said in capsys.readouterr().err
    assert main(["push-dataset", str(raw_folder), "name"]) == 1
    assert "has the form 'owner/name'" in capsys.readouterr().err


def test_the_command_names_the_pull_request(hub, raw_folder, capsys, monkeypatch):
    done = types.SimpleNamespace(pr_url="/you/name/discussions/1", commit_url="/you/name/commit/1")
    monkeypatch.setattr("llamarec_lkg.publishing.push_files", lambda *args, **options: done)
    assert main(["push-dataset", str(raw_folder), "you/name", "--create-pr"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "/you/name/discussions/1"
