"""Data sets pushed and loaded by the real client over HTTP, and what is left when that fails."""

import pandas as pd
import pytest
from hub_client import use_hub

from llamarec_lkg import load_dataset_bundle, push_dataset
from llamarec_lkg.schema import DatasetBundle, Interactions, ItemTable, LKGDataError, Triples


pytestmark = pytest.mark.hub
NAME = "tester/films"
TABLES = {f"{name}.parquet" for name in ("interactions", "items", "triples", "links")}


@pytest.fixture
def bundle():
    rows = [(user, item, 3.5, 2**40 + step) for step, (user, item) in enumerate(["ab", "ac", "bc", "cb", "ca"])]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    items = pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"], "GENRE": [["x", "y"], [], ["y"]]})
    facts = pd.DataFrame({"head": ["m.1"], "relation": ["SEQUEL"], "tail": ["m.2"]})
    triples = Triples.from_frame(facts, {"m.1": "a", "m.2": "b"})
    return DatasetBundle("films", Interactions.from_frame(interactions), ItemTable.from_frame(items), triples, "Me")


def plain(bundle):
    tables = (bundle.interactions.__dict__, bundle.items.__dict__, bundle.triples.__dict__)
    return [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in table.items()} for table in tables]


def test_a_data_set_comes_back_as_it_went(hub, bundle):
    push_dataset(bundle, NAME, anonymize=False, private=True)
    assert hub.repository(NAME, "dataset").private
    assert TABLES | {"README.md"} <= set(hub.files(NAME, repo_type="dataset"))
    again = load_dataset_bundle(NAME)
    assert plain(again) == plain(bundle) and again.citation == "Me"


@pytest.mark.parametrize("how", ["401", "429", "cut"])
def test_a_push_that_fails_leaves_nothing_and_works_again(hub, bundle, how):
    failure = hub.fail("POST */commit/*", how, times=None)
    with pytest.raises(LKGDataError, match="(?s)The data set could not be pushed to .*push again"):
        push_dataset(bundle, NAME)
    assert failure.happened and not TABLES & set(hub.files(NAME, repo_type="dataset"))
    hub.heal()
    push_dataset(bundle, NAME, anonymize=False)
    assert plain(load_dataset_bundle(NAME)) == plain(bundle)


@pytest.mark.parametrize("how", ["401", "429", "cut"])
def test_a_download_that_fails_is_told_and_works_again(hub, bundle, tmp_path, how):
    push_dataset(bundle, NAME, anonymize=False)
    with use_hub(hub, tmp_path / "other"):
        failure = hub.fail("* *interactions.parquet*", how, times=None)
        with pytest.raises(LKGDataError, match=NAME):
            load_dataset_bundle(NAME)
        assert failure.happened
        hub.heal()
        assert plain(load_dataset_bundle(NAME)) == plain(bundle)
